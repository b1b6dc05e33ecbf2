"""One attempt at a point, as one of its ranks.

    claim (rank 0) -> prompts, engine -> sidecar ready (local rank 0) -> idle, load, warmup, batches, idle_after
        -> sidecar closed -> files -> record

A rank that fails leaves logs/error-rank<k>.json; rank 0 alone writes record.json, and `finished` only once every
other file lies in place.
"""

import contextlib
import shutil
import time
from functools import partial
from pathlib import Path

from wattflow.run.measurement import PointMeasurement
from wattflow.run.place import Claim, Progress, TaskEnds
from wattflow.run.record import RecordWriter
from wattflow.run.resources import Task
from wattflow.run.watchdog import HungError, Watchdog, hang_limit_s
from wattflow.store.grid import GridPoint
from wattflow.store.heartbeat import Heartbeat
from wattflow.store.layout import AttemptDir

LET_RANK_0_CLOSE_S = 5.0


def run_attempt(
    task: Task, point: GridPoint, claim: Claim, ends: TaskEnds, heart: Heartbeat | None
) -> None:
    """Measure a point once; an error is recorded, then raised. `heart` is the attempt's heartbeat, on rank 0."""
    config = point.config()
    folder = task.sweep.point_path(point.point_id) / f"attempt-{claim.number}"
    attempt = AttemptDir(folder, point.point_id, claim.number)
    record = RecordWriter(attempt, task.ranks.rank, point.choices(), task.place.job)
    limit_s = hang_limit_s(config)
    if heart is not None:
        heart.report_energy(task.sidecar.so_far, config.nodes or 1)
    try:
        with Watchdog(limit_s, partial(_end_hung, task, attempt, record, limit_s)) as watchdog:

            def report(progress: Progress) -> None:
                watchdog.moved(progress)
                if heart is not None:
                    heart.report_progress(progress.phase, progress.done, progress.of)
                task.report(point.point_id, progress)

            measurement = PointMeasurement(task, config, attempt, claim.continuation, record)
            measurement.run(ends, report)
    except BaseException as error:
        task.sidecar.close()
        record.fail(error)
        raise
    record.finish()


def _end_hung(
    task: Task, attempt: AttemptDir, record: RecordWriter, limit_s: float, last: Progress
) -> None:
    """Record that this rank hangs, and where; the process ends after this."""
    record.fail(
        HungError(
            f"hung: nothing moved for {limit_s:g} s in {last.phase} ({last.done} of {last.of} batches done). "
            "The stacks of all ranks are in their logs, which `wattflow logs` prints. `wattflow resume` runs the "
            "point again."
        )
    )
    if task.place.local_rank == 0:
        task.sidecar.close_failed()
        task.sidecar.close()
        shutil.rmtree(task.spool_of(attempt), ignore_errors=True)
        shutil.rmtree(task.sidecar.spool, ignore_errors=True)
        with contextlib.suppress(OSError):  # local ranks keep their logs there
            Path(task.place.spool).rmdir()
    if task.ranks.rank != 0:
        time.sleep(LET_RANK_0_CLOSE_S)  # the first rank to end has Slurm kill the others
