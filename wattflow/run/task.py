"""Run the points of one Slurm task on each of its ranks."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from wattflow.config.choices import Config
from wattflow.engine.ranks import Ranks, join
from wattflow.errors import EngineError, PowerError, SlurmError
from wattflow.process import node_name
from wattflow.run import continuation
from wattflow.run.attempt import LET_RANK_0_CLOSE_S, Attempt, Task, hang_limit_s
from wattflow.run.continuation import Left
from wattflow.run.place import Claim, Place, Progress
from wattflow.run.signals import InterruptedRunError, Signals
from wattflow.run.watchdog import Watchdog
from wattflow.slurm import client
from wattflow.store import heartbeat
from wattflow.store.layout import SweepDir
from wattflow.store.schema import JobInfo


def _measure(task: Task, point_id: str, after: int, ends: tuple[bool, bool]) -> None:
    """One attempt at a point, unless another process is at it; `ends`: whether the first and the last of its task."""
    ranks, sweep = task.ranks, task.sweep
    own = heartbeat.claim(sweep, point_id) if ranks.rank == 0 else None
    told = None
    if own is not None:
        left = _left(sweep, point_id, after)
        told = [own.attempt.number, left.pieces, left.prompts_sha256]
    told = ranks.broadcast(told)
    if told is None:
        print(f"point {point_id}: another task runs it now; this one steps aside", flush=True)
        return
    with own or contextlib.nullcontext() as heart:
        number, pieces_left, sha256 = told
        attempt = Attempt(task, point_id, Claim(number, Left(pieces_left, sha256), *ends))
        if heart is not None:
            heart.report_energy(attempt.energy_so_far, attempt.config.nodes or 1)
        try:
            with Watchdog(hang_limit_s(attempt.config), attempt.hung) as watchdog:

                def report(phase: str, done: int, of: int) -> None:
                    attempt.at = phase, done, of
                    watchdog.tell()
                    if heart is not None:
                        heart.report_progress(phase, done, of)
                    task.progress(phase, done, of)

                attempt.run(report)
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.finish()


def _left(sweep: SweepDir, point_id: str, after: int) -> Left:
    """What earlier attempts above `after` left to go on from; nothing where a point starts anew."""
    on_interrupt = sweep.point(point_id).config().sweep.on_interrupt
    return (
        continuation.find(sweep, point_id, after) if on_interrupt == "continue" else Left([], None)
    )


def _join(chosen: Config, place: Place) -> Ranks:
    return join(
        place.rank,
        place.world,
        place.local_rank,
        place.node,
        place.init_method,
        chosen.engine.device,
        chosen.engine.init_timeout_s,
        max(chosen.engine.init_timeout_s, hang_limit_s(chosen) + _WATCHDOG_FIRST_S),
    )


def run_points(  # noqa: PLR0917 - what a task is told
    sweep: SweepDir,
    point_ids: Sequence[str],
    place: Place,
    progress: Progress,
    again: Mapping[str, int],
    signals: Signals,
    ends: tuple[bool, bool] = (True, True),
) -> None:
    """Run points one after another as one of the ranks of a task; EngineError when some of them failed.

    `ends` says whether the task's first and last point are among them.

    What finished is left alone; a point in `again` is, once it finished with a higher attempt than told there.

    With one rank a failure costs one point. With several, the ranks no longer agree on where they are, so the task
    ends; `resume` runs what is left.
    """
    ranks = _join(sweep.point(point_ids[0]).config(), place)
    signals.together = ranks.world > 1
    task = Task(sweep, ranks, place, progress, signals)
    failed = []
    first = ends[0]
    try:
        for point_id in point_ids:
            after = again.get(point_id, 0)
            if ranks.any(signals.asked):
                signals.stop()
            if ranks.broadcast(sweep.is_finished(point_id, after) if ranks.rank == 0 else None):
                continue
            try:
                at_ends = first, ends[1] and point_id == point_ids[-1]
                first = False
                _measure(task, point_id, after, at_ends)
            except InterruptedRunError:
                raise
            except Exception:
                if ranks.world > 1:
                    raise
                traceback.print_exc()
                task.loaded = None  # whatever broke may have broken them too
                failed.append(point_id)
    finally:
        task.close_sidecar()
        ranks.close()
    if failed:
        raise EngineError(f"{len(failed)} of {len(point_ids)} points failed: {', '.join(failed)}")


def run_task(sweep_path: str, point_ids: list[str], again: Mapping[str, int] | None = None) -> None:
    """What a Slurm task runs, once on each rank; submitit calls it."""
    import submitit  # noqa: PLC0415 (only under Slurm)

    signals = Signals()
    signals.heed()  # submitit's own handler takes preemption for time-out where a limit is below 10 minutes
    env = submitit.JobEnvironment()
    sweep = SweepDir(Path(sweep_path))
    chosen = sweep.point(point_ids[0]).config()
    os.environ.setdefault("OMP_NUM_THREADS", str(chosen.engine.threads_per_rank))
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    job: JobInfo = {
        "job_id": env.job_id,
        "array_task": env.array_task_id,
        "restart": restart,
        "cluster": chosen.cluster.name,
    }
    base = chosen.cluster.spool_dir or os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    spool = Path(base) / f"wattflow-{os.getuid()}-{env.job_id}-{restart}-{node_name()}"
    spool.mkdir(mode=0o700, exist_ok=True)
    if spool.stat().st_uid != os.getuid():
        raise PowerError(
            f"{spool} belongs to somebody else: set cluster.spool_dir to a private folder."
        )
    # one job's tasks never share a node with another's of the same number, whatever the port's range
    port = 20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 12000  # below the ephemeral ports
    place = Place(
        rank=env.global_rank,
        world=env.num_tasks,
        local_rank=env.local_rank,
        node=node_name(),
        init_method=f"tcp://{env.hostnames[0]}:{port}",
        spool=str(spool),
        job=job,
    )
    again = again or {}
    began = time.monotonic()
    before = _done(sweep, point_ids, again)
    try:
        run_points(sweep, point_ids, place, _print_progress(), again, signals)
    except InterruptedRunError as error:
        if env.global_rank != 0:
            time.sleep(LET_RANK_0_CLOSE_S)  # the first rank to end has Slurm kill the others
        elif error.signum == signal.SIGUSR2:
            progressed = _done(sweep, point_ids, again) != before
            _go_back(env.job_id, chosen.cluster.time_min, time.monotonic() - began, progressed)
        raise
    finally:
        if env.local_rank == 0:
            shutil.rmtree(spool, ignore_errors=True)


_WATCHDOG_FIRST_S = 60.0  # a collective gives up so long after the watchdog, which says more
_SIGNAL_EARLY_S = 150.0  # before its limit a task is told 90 s ahead, which Slurm may do 60 s early


def _done(
    sweep: SweepDir, point_ids: Sequence[str], again: Mapping[str, int]
) -> list[tuple[bool, int]]:
    """Which points are finished, and how many batches each has closed in pieces."""
    return [
        (
            sweep.is_finished(point_id, again.get(point_id, 0)),
            continuation.batches_kept(sweep, point_id),
        )
        for point_id in point_ids
    ]


def _go_back(task: str, time_min: int, ran_s: float, progressed: bool) -> None:
    """Queue the task once more: after a preemption always, near its time limit if it had come further by then.

    Further is a finished point or, where points go on from where they were, a finished batch.

    A point that alone outlasts the limit would do so again, so its task ends, and status says why.
    """
    preempted = client.was_preempted(os.environ["SLURM_JOB_ID"])
    if preempted is None:
        preempted = ran_s < time_min * 60 - _SIGNAL_EARLY_S
    if not (preempted or progressed):
        print(f"a point outlasts cluster.time_min={time_min}; give it more time", flush=True)
        return
    try:
        client.requeue(task)
    except SlurmError as error:
        print(f"not queued again, `wattflow resume` does so: {error}", flush=True)


def _print_progress() -> Progress:
    """Progress lines for a job's log, at most one in 15 s but for changes of phase."""
    last: dict[str, float] = {}

    def report(phase: str, done: int, of: int) -> None:
        if time.monotonic() - last.get(phase, -15.0) >= 15.0 or done == of:
            last[phase] = time.monotonic()
            print(f"{phase}: {done}/{of} batches", flush=True)

    return report
