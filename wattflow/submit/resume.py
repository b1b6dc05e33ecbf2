"""Send unfinished points once more; cancel what waits or runs."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattflow import process
from wattflow.config.choices import with_leaves
from wattflow.errors import DamagedError, RefusedError, SlurmError
from wattflow.slurm import client, sbatch, task_ids
from wattflow.slurm.shapes import fitting, shapes
from wattflow.store.grid import GridPoint, encoded, write_grid
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.submit import journal, lock
from wattflow.submit.journal import Submission
from wattflow.submit.send import SubmitResult, Todo, check_commands, live_tasks, start

# --- resume and cancel ----------------------------------------------------------------------------


def resume(
    sweep: SweepDir,
    *,
    dry_run: bool = False,
    only: set[str] | None = None,
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> SubmitResult:
    """Send the points that were tried, have no finished attempt, and neither wait nor run now; and what was sent.

    `force` also sends those of `only` that have a finished attempt. `settings` are new values of `cluster.*`, see
    `is_replaceable`: the grid keeps them for the points that are sent, so that later resumes ask so too. SlurmError
    when Slurm does not say what waits and runs: then nothing is sent.
    """
    anew = Anew(only, force, settings or {})
    sweep.require_owner()
    sbatch.check_path(sweep)
    if force and only is None:
        raise RefusedError("--force runs finished points again: name them with --only ID.")
    if dry_run:
        submissions = journal.read(sweep)
        journal.refuse_other_versions(sweep, submissions)
        return _unfinished(sweep, submissions, live_tasks(submissions), anew)[0]
    with lock.submit_lock(sweep) as held:
        submissions = journal.read(sweep)
        journal.refuse_other_versions(sweep, submissions)
        live = live_tasks(submissions)
        _mend(sweep, submissions, live)
        result, todo, again = _unfinished(sweep, submissions, live, anew)
        if anew.settings and todo:
            _keep(sweep, todo)
        start(result, todo, held, again)
    return result


@dataclass(frozen=True)
class Anew:
    """Which points a resume sends, and what it asks for them anew."""

    only: set[str] | None
    force: bool
    settings: Mapping[str, Any]


def _unfinished(
    sweep: SweepDir,
    submissions: Sequence[Submission],
    live: dict[str, client.TaskState],
    anew: Anew,
) -> tuple[SubmitResult, Todo, dict[str, int]]:
    """What a resume has to send, and the newest attempt of those points that are sent though they finished."""
    newest = journal.newest_task(submissions)
    points = [p for p in sweep.points() if anew.only is None or p.point_id in anew.only]
    _refuse_unknown(sweep, anew.only, {point.point_id for point in points})
    feasible = [point for point in points if point.reason is None]
    todo: Todo = []
    again: dict[str, int] = {}
    left: Counter[str] = Counter()
    for point in feasible:
        point_id = point.point_id
        if _needs_another_try(sweep, point_id, newest, live, force=anew.force):
            todo.append((point_id, with_leaves(point.config(), anew.settings)))
            if anew.force and (last := sweep.last_number(point_id)):
                again[point_id] = last
        elif not sweep.is_finished(point_id):
            left[_WAITS if point_id in newest else _UNTRIED] += 1
    result = SubmitResult(
        sweep,
        fitting(shapes(todo)),
        points=len(todo),
        tried=len(feasible) - len(todo),
        infeasible=len(points) - len(feasible),
        left=[f"{count} {why.format(sweep.path)}" for why, count in left.items()],
    )
    check_commands(result.shapes)
    return result, todo, again


_WAITS = "points wait or run now; `wattflow status {}` shows them"
_UNTRIED = "points were never tried; `wattflow submit` with their overrides sends them"


def _keep(sweep: SweepDir, todo: Todo) -> None:
    """Write the choices of these points into the grid."""
    texts = dict(zip([i for i, _ in todo], encoded(config for _, config in todo), strict=True))
    points = [
        GridPoint(p.point_id, p.position, p.reason, texts.get(p.point_id) or p.text)
        for p in sweep.points()
    ]
    write_grid(sweep.grid_path, points)


def _mend(
    sweep: SweepDir, submissions: Sequence[Submission], live: dict[str, client.TaskState]
) -> None:
    """Finish what a killed submit left: complete submissions are released, all other jobs of our names cancelled."""
    by_name: dict[str, set[str]] = {}
    for key, task_state in live.items():
        by_name.setdefault(task_state.name, set()).add(key.partition("_")[0])
    for submission in submissions:
        jobs = by_name.get(submission.name, set())
        # taken without an answer, so that their pickle may not lie where their tasks look; or after the lock was lost
        stray = sorted(jobs if submission.cancelled else jobs - {str(submission.job_id)})
        client.cancel(stray)
        for key in [key for key in live if key.partition("_")[0] in stray]:
            del live[key]
        if not submission.is_open:
            continue
        if submission.job_id is None:
            journal.write(sweep, "cancelled", submission.name)
        elif str(submission.job_id) in jobs:
            stuck, why = client.release([submission.job_id])
            if stuck:
                raise SlurmError(f"{submission.job_id} of {sweep.name} stays held: {why}")
            journal.write(sweep, "released", submission.name)


def _refuse_unknown(sweep: SweepDir, only: set[str] | None, known: set[str]) -> None:
    unknown = sorted((only or set()) - known)
    if unknown:
        raise RefusedError(
            f"{', '.join(unknown)}: no such point in {sweep.path}. `wattflow status {sweep.path}` lists them."
        )


def _needs_another_try(
    sweep: SweepDir,
    point_id: str,
    newest: dict[str, tuple[Submission, int]],
    live: dict[str, client.TaskState],
    *,
    force: bool,
) -> bool:
    """Whether a point was tried, is not finished (or is forced), and neither waits nor runs."""
    if not force and sweep.is_finished(point_id):
        return False
    if point_id not in newest:
        # `wattflow run` leaves attempts without a submission; a point never tried is submit's to send
        return sweep.last_number(point_id) > 0
    submission, task = newest[point_id]
    return submission.key(task) not in live or _has_failed(
        sweep.attempts(point_id), submission, task
    )


def _has_failed(attempts: Sequence[AttemptDir], submission: Submission, task: int) -> bool:
    """Whether a task that is still alive has given a point up and gone on to its others."""
    with contextlib.suppress(DamagedError):
        record = attempts[-1].read_record() if attempts else None
        if record is not None and submission.made(record, task):
            return record["status"] in ("failed", "interrupted")
    return False


def cancel(
    sweep: SweepDir,
    *,
    only: set[str] | None = None,
    states: set[str] | None = None,
    dry_run: bool = False,
) -> list[str]:
    """End the tasks that hold these points (all by default), waiting or running; the tasks that were ended.

    `states`, of `waiting` and `running`, chooses by what a task does now. A task that packs several points ends for
    all of them. Without a filter the collect job ends too.
    """
    sweep.require_owner()
    if states is not None and not states <= {"running", "waiting"}:
        raise RefusedError(
            f"--state {', '.join(sorted(states))}: only running, waiting points have a task that can be ended."
        )
    submissions = journal.read(sweep)
    live = live_tasks(submissions)
    chosen = {
        (submission.key(task), submission.is_local)
        for submission in submissions
        for task, point_ids in enumerate(submission.tasks)
        if (task_state := live.get(submission.key(task))) is not None
        and (
            submission.is_local or task_state.name == submission.name
        )  # a job of another Slurm may have its number
        and (only is None or only.intersection(point_ids))
        and (states is None or (point_ids and _waits_or_runs(task_state) in states))
    }
    if not dry_run:
        client.cancel(task_ids.pack(sorted(key for key, is_local in chosen if not is_local)))
        for key in (key for key, is_local in chosen if is_local):
            process.end(key)
        client.forget()
    return sorted(key for key, _ in chosen)


def _waits_or_runs(task_state: client.TaskState) -> str:
    return "waiting" if task_state.is_queued else "running"
