"""Run points one after another on this machine: a process a rank for each point, or for those of a task."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wattflow.config.choices import Config, ranks_of
from wattflow.errors import WattflowError
from wattflow.process import die_with_parent, node_name, python
from wattflow.run.device_locks import device_locks, visible_devices
from wattflow.run.place import Place, PointReport, Progress, TaskEnds
from wattflow.run.record import close_left
from wattflow.run.signals import Signals
from wattflow.run.task import Todo, run_points
from wattflow.slurm.shapes import shapes
from wattflow.store import rank_errors
from wattflow.store.files import open_append
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.rank_errors import RankError
from wattflow.submit.last_words import last_words

_FAILED_PEER_S = (
    60.0  # in which rank 0 sees that a peer failed, stops its sidecar and closes the record
)
_LOOK_S = 0.5


@dataclass(frozen=True)
class RankJob:
    """What one rank's process runs; it travels as JSON on the command line."""

    sweep: str
    point_ids: list[str]
    again: dict[str, int]
    ends: TaskEnds
    place: Place

    @classmethod
    def from_json(cls, text: str) -> "RankJob":
        """Read what `json.dumps(asdict(job))` makes of a job."""
        fields = json.loads(text)
        parts = {"ends": TaskEnds(**fields["ends"]), "place": Place.from_json(fields["place"])}
        return cls(**{**fields, **parts})


# --- the process that starts the ranks ------------------------------------------------------------


def run_serially(
    sweep_path: str,
    point_ids: Sequence[str],
    again: Mapping[str, int] | None = None,
    report: PointReport | None = None,
) -> list[str]:
    """Run points one after another, those of a task by one process a rank; the ids of those that failed."""
    todo = Todo(SweepDir(Path(sweep_path)), point_ids, again or {})
    tried: list[str] = []
    for task in tasks_of(todo):
        left = [point_id for point_id in task if not todo.is_finished(point_id)]
        while left:  # a process that is killed leaves points that it did not come to
            ends = TaskEnds(point_ids[0] in left, point_ids[-1] in left)
            now = _run_task(todo, left, ends, report or _print_progress)
            tried += now
            left = [point_id for point_id in left if point_id not in now]
    return [point_id for point_id in tried if not todo.is_finished(point_id)]


def tasks_of(todo: Todo) -> list[list[str]]:
    """Return the points that one process a rank runs in turn, as Slurm's tasks have them; else each alone, in order."""
    points = [(point_id, todo.sweep.point(point_id).config()) for point_id in todo.point_ids]
    tasks = [task for shape in shapes(points) for task in shape.tasks]
    if all(len(task) == 1 for task in tasks):
        return [[point_id] for point_id in todo.point_ids]
    return tasks


def _print_progress(point_id: str, progress: Progress) -> None:
    batches = f", {progress.done} of {progress.of} batches" if progress.of else ""
    print(f"{point_id}: {progress.phase}{batches}", flush=True)


def _run_task(
    todo: Todo, point_ids: Sequence[str], ends: TaskEnds, report: PointReport
) -> list[str]:
    """Attempt points by local processes, and return those that they came to, at least the first.

    Afterwards the attempts lie closed on disk, finished or not.
    """
    sweep = todo.sweep
    config = sweep.point(point_ids[0]).config()
    before = {point_id: sweep.last_number(point_id) for point_id in point_ids}
    base = config.cluster.spool_dir or tempfile.gettempdir()
    waiting = Progress("waiting for another sweep on this machine")
    with (
        visible_devices(ranks_of(config)),
        device_locks(config, lambda: report(point_ids[0], waiting)),
        tempfile.TemporaryDirectory(prefix="wattflow-", dir=base) as spool,
    ):
        ranks: list[subprocess.Popen[str]] = []
        outlived: set[int] = set()
        try:
            for rank in range(ranks_of(config)):
                place = _place(config, rank, spool)
                again = {p: todo.after(p) for p in point_ids}
                job = RankJob(str(sweep.path), list(point_ids), again, ends, place)
                ranks.append(_spawn(job, config.engine.threads_per_rank))
            _follow(ranks, outlived, report)
        finally:
            codes = _end(ranks, outlived)
            attempts = {
                point_id: attempt
                for point_id in point_ids
                for attempt in sweep.attempts(point_id)[-1:]
                if attempt.number > before[point_id]
            }
            if not attempts:
                attempts = {point_ids[0]: sweep.claim_attempt(point_ids[0])}
            for point_id, attempt in attempts.items():
                if not todo.is_finished(point_id):
                    _close_unfinished(attempt, Path(spool), codes)
    return list(attempts)


def _place(config: Config, rank: int, spool: str) -> Place:
    return Place(
        rank=rank,
        world=ranks_of(config),
        local_rank=rank,
        node=node_name(),
        init_method=f"file://{spool}/rendezvous",
        spool=spool,
        job={
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "array_task": None,
            "restart": 0,
            "cluster": config.cluster.name,
        },
    )


def _spawn(job: RankJob, threads: int) -> subprocess.Popen[str]:
    """Start one rank; rank 0 reports progress on its stdout, and all else goes to a log in the spool."""
    rank = job.place.rank
    with open_append(Path(job.place.spool) / f"rank{rank}.log") as log:
        return subprocess.Popen(
            python("-m", "wattflow.run.local", json.dumps(asdict(job))),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if rank == 0 else log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            text=True,
            errors="replace",
        )


def _follow(
    ranks: Sequence[subprocess.Popen[str]], outlived: set[int], report: PointReport
) -> None:
    """Pass rank 0's progress on until it ends."""
    threading.Thread(target=_end_without_peer, args=(ranks, outlived), daemon=True).start()
    rank0 = ranks[0]
    assert rank0.stdout is not None
    with rank0.stdout as lines:
        for line in lines:
            if line.startswith('{"progress"'):
                reported = json.loads(line)
                report(reported["point"], Progress(**reported["progress"]))
    rank0.wait()


def _end_without_peer(ranks: Sequence[subprocess.Popen[str]], outlived: set[int]) -> None:
    """End rank 0 where it has outlived a rank that failed by _FAILED_PEER_S, and note its pid.

    By then it has closed its record; one that waits for the dead peer in shared memory would do so for ever.
    """
    rank0, *others = ranks
    while not any(rank.poll() for rank in others):
        if rank0.poll() is not None:
            return
        time.sleep(_LOOK_S)
    try:
        rank0.wait(_FAILED_PEER_S)
    except subprocess.TimeoutExpired:
        outlived.add(rank0.pid)
        rank0.kill()


def _end(ranks: Sequence[subprocess.Popen[str]], outlived: set[int]) -> list[int]:
    """The exit codes of all ranks; those that outlive rank 0 by 5 s are ended too, and `outlived` have -SIGTERM."""
    deadline = time.monotonic() + 5.0
    for end in (subprocess.Popen.terminate, subprocess.Popen.kill):
        for rank in ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.wait(timeout=max(0.0, deadline - time.monotonic()))
        for rank in ranks:
            if rank.poll() is None:
                outlived.add(rank.pid)
                end(rank)
        deadline = time.monotonic() + 5.0
    codes = [(rank.wait(), rank.pid) for rank in ranks]
    return [-signal.SIGTERM if pid in outlived else code for code, pid in codes]


def _close_unfinished(attempt: AttemptDir, spool: Path, codes: list[int]) -> None:
    """Close the record with what the ranks themselves could not write."""
    for rank, code in enumerate(codes):
        if code < 0 and code != -signal.SIGTERM and not attempt.error_path(rank).exists():
            # it comes first, as the others saw only that a peer went away
            error = f"rank {rank} was killed: {signal.Signals(-code).name}."
            rank_errors.write(attempt, RankError(rank, 0, interrupted=False, error=error))
    ended = ", ".join(f"rank {k} with {code}" for k, code in enumerate(codes) if code)
    logs = [spool / f"rank{k}.log" for k, code in enumerate(codes) if code]
    said = next((words for words in map(last_words, logs) if words), None)
    otherwise = f"ranks ended: {ended or 'all with 0, without a record'}"
    close_left(attempt, spool, f"{otherwise}: {said}" if said else otherwise)


# --- the process of one rank ----------------------------------------------------------------------


def main(text: str) -> None:
    """Run one rank's job: `python -m wattflow.run.local JSON`."""
    die_with_parent(os.getppid())
    job = RankJob.from_json(text)
    stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between the lines of progress

    def report(point_id: str, progress: Progress) -> None:
        stdout.write(json.dumps({"progress": asdict(progress), "point": point_id}) + "\n")

    signals = Signals()
    signals.install()
    todo = Todo(SweepDir(Path(job.sweep)), job.point_ids, job.again)
    run_points(todo, job.place, signals, report, job.ends)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except WattflowError as error:
        raise SystemExit(f"wattflow: {error}") from error
