"""Submit a planned sweep, resume it, cancel it; it returns as soon as Slurm has the jobs.

    wattflow submit grid=shards model=llama-7b cluster=mysite
    wattflow resume sweeps/shards
    wattflow cancel sweeps/shards

Points of one shape share arrays, which are sent held; a collect job waits for their end. In this order, so that a
kill at any moment loses nothing: grid.parquet, all INTENTs, then for each array sbatch (held), its pickle, SUBMITTED,
and when all are sent their release. `resume` mends what was cut short: it releases what is complete and takes back
what is not. Both hold the sweep's submit lock meanwhile, so that two terminals never send one point twice.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from wattflow import __version__, process
from wattflow.config.choices import Config
from wattflow.errors import RefusedError, SlurmError
from wattflow.slurm import client, guard, sbatch
from wattflow.slurm.shapes import Shape, fitting, shapes
from wattflow.store.collected import read_collected
from wattflow.store.files import read_own, write_atomic
from wattflow.store.grid import GridPoint, encoded, write_grid
from wattflow.store.layout import SweepDir
from wattflow.submit import journal, lock, shared_disk
from wattflow.submit.differences import ignored
from wattflow.submit.journal import Submission
from wattflow.submit.local import COLLECT, start_local
from wattflow.submit.lock import LostLockError, SubmitLock
from wattflow.submit.preview import Quote, of_points
from wattflow.submit.same_axes import check_axes

if TYPE_CHECKING:  # importing it loads Hydra, which resume and cancel do not need
    from wattflow.plan.points import Plan, Point

log = logging.getLogger(__name__)

COLLECT_TASK = "wattflow.submit.send:collect_task"

_COLLECT_ROUNDS = 10  # collect jobs in a row
_COLLECT_WAIT_S = (
    60  # of the second collect job, after the jobs that it waits for; each next waits twice as long
)


@dataclass
class SubmitResult:
    """What a call sent, or with `dry_run` would send."""

    sweep: SweepDir
    shapes: list[Shape]
    points: int  # sent by this call
    tried: int  # left out: sent before
    infeasible: int  # left out: they cannot run
    job_ids: list[str] = field(default_factory=list)
    collect_job: str | None = None
    left: list[str] = field(default_factory=list)  # why unfinished points were not sent
    ignored: list[str] = field(default_factory=list)  # what points sent before have otherwise


@dataclass(frozen=True)
class Tested:
    """What `sbatch --test-only` says of one array, without sending it."""

    cluster: str
    nodes: int
    ranks_per_node: int
    tasks: int
    accepted: bool
    answer: str


def test_only(plan: "Plan") -> list[Tested]:
    """Slurm's answer to each array that a submit of the plan would send; RefusedError without Slurm's commands."""
    requested = [
        shape
        for shape in fitting(shapes([(p.point_id, p.config) for p in plan.feasible]))
        if not shape.is_local
    ]
    check_commands(requested)
    return [
        Tested(
            shape.cluster.name,
            shape.nodes,
            shape.ranks_per_node,
            len(tasks),
            *client.test_only(sbatch.batch_script(shape, plan.sweep, array=number)),
        )
        for shape in requested
        for number, tasks in enumerate(shape.arrays)
    ]


def batch_scripts(plan: "Plan") -> list[str]:
    """The text that sbatch would get for the first array of each shape of a plan; local points have none."""
    requested = fitting(shapes([(p.point_id, p.config) for p in plan.feasible]))
    return [sbatch.batch_script(shape, plan.sweep) for shape in requested if not shape.is_local]


def _write_grid(plan: "Plan", tried: Collection[str]) -> None:
    """grid.parquet: what was there, with the plan's points added; a point that was tried keeps its row."""
    old = plan.sweep.points() if plan.sweep.grid_path.is_file() else []
    points = {point.point_id: point for point in old}
    new = [p for p in plan.points if p.point_id not in points or p.point_id not in tried]
    for point, text in zip(new, encoded(point.config for point in new), strict=True):
        known = points.get(point.point_id)
        position = len(points) if known is None else known.position
        points[point.point_id] = GridPoint(point.point_id, position, point.reason, text)
    write_grid(plan.sweep.grid_path, list(points.values()))


def _write_sweep_yaml(plan: "Plan") -> None:
    """Write sweep.yaml: the overrides of each submit, for people; JSON's strings are YAML too."""
    path = plan.sweep.sweep_yaml
    text = (
        read_own(path).decode(errors="replace")
        if path.is_file()
        else f"# The submits of {plan.name}, oldest first.\n"
    )
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    overrides = json.dumps(plan.overrides, ensure_ascii=False)
    text += f'- time: "{when}"\n  wattflow: "{__version__}"\n  words: {overrides}\n'
    write_atomic(path, text.encode())


# --- submit ---------------------------------------------------------------------------------------


def keep(plan: "Plan") -> None:
    """Write sweep.yaml and grid.parquet, adding the plan's points; RefusedError in somebody else's sweep."""
    plan.sweep.refuse_measurement()
    plan.sweep.make()
    plan.sweep.require_owner()
    with lock.submit_lock(plan.sweep):
        check_axes(plan)
        _write_grid(plan, set(journal.newest_task(journal.read(plan.sweep))))
        _write_sweep_yaml(plan)


def submit(
    plan: "Plan",
    *,
    dry_run: bool = False,
    only: set[str] | None = None,
    announce: Callable[[Quote], None] | None = None,
) -> SubmitResult:
    """Send the points of a plan that were never tried, and what was sent; `announce` is given their cost before.

    RefusedError before anything is written or sent; SlurmError when Slurm took none or a part of the jobs: those
    it took run, and the same submit sends the rest.
    """
    sweep = plan.sweep
    sbatch.check_path(sweep)
    if sweep.path.exists():
        sweep.make()
        sweep.require_owner()
    result, todo = _never_tried(plan, only)
    check_commands(result.shapes)
    shared_disk.check(sweep, result.shapes)
    if announce is not None and todo:
        announce(of_points(sweep.path.parent, todo, result.shapes).quote)
    if dry_run:
        return result
    sweep.make()
    sweep.require_owner()
    with lock.submit_lock(sweep) as held:
        # once more, now that nobody else can send any of them
        result, todo = _never_tried(plan, only)
        _write_grid(plan, set(journal.newest_task(journal.read(sweep))))
        _write_sweep_yaml(plan)
        start(result, todo, held)
    return result


Todo = list[tuple[str, Config]]  # point ids with their choices


def _never_tried(plan: "Plan", only: set[str] | None) -> tuple[SubmitResult, Todo]:
    """What a submit of this plan has to send: the points that were neither sent nor tried."""
    sweep = plan.sweep
    check_axes(plan)
    journal.refuse_other_versions(sweep, journal.read(sweep))
    known = tried(sweep)
    chosen = [p for p in plan.points if only is None or p.point_id in only]
    feasible = [point for point in chosen if point.reason is None]
    todo = [(point.point_id, point.config) for point in feasible if point.point_id not in known]
    result = SubmitResult(
        sweep,
        fitting(shapes(todo)),
        points=len(todo),
        tried=len(feasible) - len(todo),
        infeasible=len(chosen) - len(feasible),
        left=[] if todo else _why_none(sweep, chosen),
        ignored=ignored(plan, known),
    )
    return result, todo


def _why_none(sweep: SweepDir, chosen: Sequence["Point"]) -> list[str]:
    """Why a submit sends none of some points; nothing where all that can run have finished."""
    feasible = [point for point in chosen if point.reason is None]
    if not feasible:
        reasons = list(dict.fromkeys(str(point.reason) for point in chosen))
        more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
        return [f"{len(chosen)} points cannot run: {', '.join(reasons[:1])}{more}"]
    unfinished = sum(not sweep.is_finished(point.point_id) for point in feasible)
    if not unfinished:
        return []
    way = f"`wattflow resume {sweep.path}` sends those that neither wait nor run"
    return [f"{unfinished} points were sent before and have not finished; {way}"]


def tried(sweep: SweepDir) -> set[str]:
    """Return the points of a sweep that were sent, or have an attempt."""
    return {*journal.newest_task(journal.read(sweep)), *_attempted(sweep)}


def _attempted(sweep: SweepDir) -> set[str]:
    """The points that have an attempt, or had one whose row was collected."""
    there = {point_id for point_id in sweep.points_on_disk() if sweep.attempts(point_id)}
    return there | set(read_collected(sweep.points_path))


def check_commands(requested: Sequence[Shape]) -> None:
    """RefusedError where jobs are meant for Slurm and this machine has none, or their script cannot hold a value."""
    for shape in requested:
        sbatch.check_values(shape)
        if not shape.is_local and not (shutil.which("sbatch") and shutil.which("srun")):
            raise RefusedError(
                f"cluster={shape.cluster.name}: no sbatch and srun on the PATH. "
                "Submit from a login node, or run here with cluster=local."
            )
    check_node_hours(requested)


def check_node_hours(requested: Sequence[Shape]) -> None:
    """Raise RefusedError where points ask for more node-hours, by their time limits, than cluster.max_node_hours."""
    hours: dict[str, float] = {}
    for shape in requested:
        most, name = shape.cluster.max_node_hours, shape.cluster.name
        hours[name] = hours.get(name, 0.0) + (shape.row()["node_hours"] or 0.0)
        if most is not None and hours[name] > most:
            raise RefusedError(
                f"cluster={name}: these points may take {hours[name]:g} node-hours or more by their time limits, and "
                f"cluster.max_node_hours is {most:g}. Nothing was sent. Send fewer points, shorten cluster.time_min, "
                "have them share nodes (cluster.side_by_side=true), or raise the bound."
            )


def start(
    result: SubmitResult, todo: Todo, held: SubmitLock, again: dict[str, int] | None = None
) -> None:
    """Send points: those of Slurm profiles as arrays, those of local ones as one local job.

    `again` holds the newest attempt of points that are run though they finished.
    """
    sweep = result.sweep
    local = [point_id for point_id, config in todo if config.cluster.launcher == "local"]
    remote = [shape for shape in result.shapes if not shape.is_local]
    try:
        if remote:
            _start_arrays(result, remote, held, again or {})
        if local:
            result.job_ids.append(start_local(sweep, local, again or {}))
    finally:
        client.forget()


def _start_arrays(
    result: SubmitResult, remote: Sequence[Shape], held: SubmitLock, again: dict[str, int]
) -> None:
    """Send all arrays held, then the collect job, then let them start.

    At the first refusal no further array is sent: SlurmError says what is under way and what is not.
    """
    sweep = result.sweep
    intended = [
        (shape, journal.begin(sweep, "points", tasks)) for shape in remote for tasks in shape.arrays
    ]
    refusal: SlurmError | None = None
    accepted: list[Submission] = []
    with client.guarded_sbatch():
        for shape, submission in intended:
            if refusal is None:
                held.check()
                refusal = _send_array(sweep, shape, submission, held, again)
            if refusal is None:
                accepted.append(submission)
            else:
                journal.write(sweep, "failed", submission.name, error=str(refusal))
        result.job_ids = [str(submission.job_id) for submission in accepted]
        if accepted:
            collect = _send_collect(sweep, remote[0], held, result.job_ids)
            result.collect_job = collect.job_id
            accepted.append(collect)
    held.check()
    _release(sweep, accepted)
    if refusal is not None:
        left = sum(len(submission.tasks) for _, submission in intended) - sum(
            len(submission.tasks) for submission in accepted if submission.kind == "points"
        )
        fewer = " with cluster.max_tasks at what this site allows" * ("MaxSubmit" in str(refusal))
        raise SlurmError(
            f"{refusal} {left} tasks of {sweep.name} were not sent; {len(result.job_ids)} arrays were. "
            f"`wattflow submit` with the same overrides{fewer} sends the rest."
        )


def _send_array(
    sweep: SweepDir, shape: Shape, submission: Submission, held: SubmitLock, again: dict[str, int]
) -> SlurmError | None:
    """Send one array, held; null, or why Slurm refused it."""
    calls = [sbatch.call_of(shape, sweep, task, _of(task, again)) for task in submission.tasks]
    try:
        job = sbatch.points_job(shape, submission.name, sweep)
        _send_noted(sweep, submission, held, job, calls)
    except SlurmError as error:
        return error
    return None


def _of(point_ids: Sequence[str], again: dict[str, int]) -> dict[str, int]:
    return {point_id: again[point_id] for point_id in point_ids if point_id in again}


def _send_collect(
    sweep: SweepDir, shape: Shape, held: SubmitLock, after: list[str], earlier: Sequence[int] = ()
) -> Submission:
    """Send the job that collects once `after` have ended; without it `wattflow collect` does the same by hand.

    `earlier` says how many points each collect job before it found unfinished.
    """
    submission = journal.begin(sweep, "collect", [[]])
    calls = [sbatch.Call(COLLECT_TASK, (str(sweep.path), list(earlier)))]
    wait_s = _COLLECT_WAIT_S * 2 ** (len(earlier) - 1) if earlier else 0
    try:
        job = sbatch.collect_job(shape, submission.name, sweep, after, wait_s)
        _send_noted(sweep, submission, held, job, calls)
    except SlurmError as error:
        journal.write(sweep, "failed", submission.name, error=str(error))
        log.warning("no collect job: %s `wattflow collect %s` collects by hand.", error, sweep.path)
    return submission


def _send_noted(
    sweep: SweepDir,
    submission: Submission,
    held: SubmitLock,
    job: sbatch.Job,
    calls: Sequence[sbatch.Call],
) -> None:
    """Send, held, and journal the job's id once its pickle lies where its tasks look for it.

    LostLockError when the lock was lost meanwhile: then nobody may know of the job, and it is taken back.
    """
    from submitit.core.utils import FailedJobError  # noqa: PLC0415 (as in _send)

    submission.folder.mkdir(mode=0o700)
    try:
        sent = sbatch.send(submission.folder, job, calls)
    except FailedJobError as error:
        shutil.rmtree(submission.folder, ignore_errors=True)  # a pickle that no task will load
        raise SlurmError(" ".join(str(error).split())) from error
    submission.job_id = str(sent.job_id)
    try:
        held.check()
    except LostLockError:
        client.cancel([submission.job_id])
        raise
    pickle = sent.paths.submitted_pickle
    journal.write(
        sweep,
        "submitted",
        submission.name,
        job_id=submission.job_id,
        sha256=guard.sha256(pickle),
    )


def _release(sweep: SweepDir, submissions: Sequence[Submission]) -> None:
    """Let held submissions start; SlurmError where some stay held, which `resume` lets start."""
    sent = [submission for submission in submissions if submission.job_id is not None]
    stuck, why = client.release([str(submission.job_id) for submission in sent])
    for submission in sent:
        if submission.job_id not in stuck:
            journal.write(sweep, "released", submission.name)
    if stuck:
        raise SlurmError(
            f"all jobs of {sweep.name} are queued, and {', '.join(stuck)} held: {why} "
            f"`wattflow resume {sweep.path}` lets them start."
        )


def collect_task(sweep_path: str, earlier: list[int]) -> None:
    """What the collect job runs: collect, and if points are queued still or again, send the next collect job.

    Tasks that were requeued may end after their array did. At most ten collect jobs follow each other, each waiting
    twice as long as the last, and none after one that found no further point finished.
    """
    sweep = SweepDir.existing(sweep_path)
    left = cast(Any, sbatch.Call(COLLECT, (sweep_path,))()).unfinished
    if not left or len(earlier) + 1 >= _COLLECT_ROUNDS or (earlier and left >= earlier[-1]):
        return
    try:
        _collect_again(sweep, [*earlier, left])
    except (SlurmError, RefusedError, LostLockError) as error:
        print(f"no further collect job: {error}", flush=True)


def _collect_again(sweep: SweepDir, earlier: list[int]) -> None:
    """Send a collect job after the jobs of points that wait or run, if there are any."""
    with lock.submit_lock(sweep) as held, client.guarded_sbatch():
        submissions = [
            submission
            for submission in journal.read(sweep)
            if submission.kind == "points" and submission.job_id
        ]
        live = live_tasks(submissions)
        waiting = [
            submission
            for submission in submissions
            if any(submission.key(k) in live for k in range(len(submission.tasks)))
        ]
        if not waiting:
            return
        of = waiting[0].tasks[0][0]
        (shape,) = shapes([(of, sweep.point(of).config())])
        submission = _send_collect(
            sweep, shape, held, [str(submission.job_id) for submission in waiting], earlier
        )
        _release(sweep, [submission])


def live_tasks(submissions: Sequence[Submission]) -> dict[str, client.TaskState]:
    """What waits or runs now, by task; asks Slurm at once, and only if something was ever sent to it."""
    live = {}
    if any(not submission.is_local for submission in submissions):
        live = {key: task for key, task in client.queue().items() if not task.is_over}
    for submission in submissions:
        if submission.is_local and process.lives(str(submission.job_id)) is not False:
            live[submission.key(0)] = client.TaskState("RUNNING")
    return live
