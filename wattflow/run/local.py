"""Run points one after another on this machine, each rank a process of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from wattflow.config.choices import Config
from wattflow.errors import WattflowError
from wattflow.process import die_with_parent, node_name
from wattflow.run.attempt import close_failed
from wattflow.run.device_locks import device_locks, visible_devices
from wattflow.run.place import Place
from wattflow.run.signals import Signals
from wattflow.run.task import run_points
from wattflow.store.files import write_json
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import SCHEMA_VERSION

# --- this machine ---------------------------------------------------------------------------------

PointProgress = Callable[
    [str, str, int, int], None
]  # point_id, phase, batches done, batches in all


def run_serially(
    sweep_path: str,
    point_ids: Sequence[str],
    again: Mapping[str, int] | None = None,
    report: PointProgress | None = None,
) -> list[str]:
    """Run points one after another on this machine, each rank a process of its own; the ids that failed."""
    sweep = SweepDir(Path(sweep_path))
    failed = []
    for point_id in point_ids:
        after = (again or {}).get(point_id, 0)
        if not sweep.is_finished(point_id, after):
            ends = point_id == point_ids[0], point_id == point_ids[-1]
            _run_locally(sweep, point_id, after, ends, report or _print_point_progress)
            if not sweep.is_finished(point_id, after):
                failed.append(point_id)
    return failed


def _print_point_progress(point_id: str, phase: str, done: int, of: int) -> None:
    print(f"{point_id}: {phase}{f', {done} of {of} batches' if of else ''}", flush=True)


def _run_locally(
    sweep: SweepDir, point_id: str, after: int, ends: tuple[bool, bool], report: PointProgress
) -> None:
    """One attempt at a point by local processes; it lies closed on disk afterwards, finished or not."""
    chosen = sweep.point(point_id).config()
    before = {attempt.number for attempt in sweep.attempts(point_id)}
    base = chosen.cluster.spool_dir or tempfile.gettempdir()
    wait = partial(report, point_id, "waiting for another sweep on this machine", 0, 0)
    with (
        visible_devices(chosen.shards),
        device_locks(chosen.power, wait),
        tempfile.TemporaryDirectory(prefix="wattflow-", dir=base) as spool,
    ):
        ranks: list[subprocess.Popen[str]] = []
        try:
            told = {
                "sweep": str(sweep.path),
                "point_id": point_id,
                "after": after,
                "ends": ends,
            }
            ranks += [_spawn(told, chosen, rank, spool) for rank in range(chosen.shards)]
            _follow(ranks[0], point_id, report)
        finally:
            codes = _end(ranks)
            attempts = [a for a in sweep.attempts(point_id) if a.number not in before]
            attempt = attempts[-1] if attempts else sweep.claim_attempt(point_id)
            if not sweep.is_finished(point_id, after):
                _close_unfinished(attempt, Path(spool), codes)


def _spawn(told: dict[str, object], chosen: Config, rank: int, spool: str) -> subprocess.Popen[str]:
    """Start one rank; its stdout tells progress (rank 0), its stderr goes to a log in the spool."""
    place = Place(
        rank=rank,
        world=chosen.shards,
        local_rank=rank,
        node=node_name(),
        init_method=f"file://{spool}/rendezvous",
        spool=spool,
        job={
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "array_task": None,
            "restart": 0,
            "cluster": chosen.cluster.name,
        },
    )
    words = json.dumps({**told, "place": asdict(place)})
    env = {**os.environ, "OMP_NUM_THREADS": str(chosen.engine.threads_per_rank)}
    with (Path(spool) / f"rank{rank}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "wattflow.run.local", words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if rank == 0 else log,
            stderr=log,
            env=env,
            text=True,
        )


def _follow(rank0: subprocess.Popen[str], point_id: str, report: PointProgress) -> None:
    """Pass rank 0's progress on until it ends."""
    assert rank0.stdout is not None
    with rank0.stdout as lines:
        for line in lines:
            if line.startswith('{"progress"'):
                phase, done, of = json.loads(line)["progress"]
                report(point_id, phase, done, of)
    rank0.wait()


def _end(ranks: Sequence[subprocess.Popen[str]]) -> list[int]:
    """The exit codes of all ranks; those that outlive rank 0 by 5 s are ended, and have -SIGTERM however they end."""
    deadline = time.monotonic() + 5.0
    outlived: set[int] = set()
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
    """Keep the ranks' logs, and close the record with what the ranks themselves could not say."""
    for log in spool.glob("rank*.log"):
        shutil.copy(log, attempt.logs / log.name)
    for rank, code in enumerate(codes):
        if code < 0 and code != -signal.SIGTERM and not attempt.error_path(rank).exists():
            # the others saw only that a peer went away
            how = signal.Signals(-code).name
            told = {"rank": rank, "time_ns": 0, "interrupted": False, "traceback": ""}
            write_json(
                attempt.error_path(rank), {**told, "error": f"rank {rank} was killed: {how}."}
            )
    record = attempt.read_record() or {
        "schema_version": SCHEMA_VERSION,
        "point_id": attempt.point_id,
        "attempt": attempt.number,
    }
    ended = ", ".join(f"rank {k} with {code}" for k, code in enumerate(codes) if code)
    close_failed(attempt, record, f"ranks ended: {ended or 'all with 0, without a record'}")


def main(told: str) -> None:
    """One rank that `_run_locally` started: `python -m wattflow.run.local JSON`."""
    die_with_parent(os.getppid())
    given = json.loads(told)
    stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between the lines of progress

    def progress(phase: str, done: int, of: int) -> None:
        stdout.write(json.dumps({"progress": [phase, done, of]}) + "\n")

    place = Place(**given["place"])
    point_id = given["point_id"]
    again = {point_id: given["after"]}
    ends = bool(given["ends"][0]), bool(given["ends"][1])
    signals = Signals()
    signals.heed()
    run_points(SweepDir(Path(given["sweep"])), [point_id], place, progress, again, signals, ends)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except WattflowError as error:
        raise SystemExit(f"wattflow: {error}") from error
