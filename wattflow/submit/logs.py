"""Find and follow the logs of a point."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wattflow.errors import RefusedError
from wattflow.store.files import open_own
from wattflow.store.layout import SweepDir
from wattflow.submit import journal
from wattflow.submit.status import decisive_record, states

_LOG_TAIL_BYTES = 1_000_000
_LOOK_S = 1.0  # how often a followed log is looked at
_ASK_S = 30.0  # and what became of its point, as long as its record does not change


@dataclass(frozen=True)
class Log:
    """One log of an attempt, and its last megabyte."""

    path: Path
    text: str


def logs(sweep: SweepDir, point_id: str, rank: int | None = None) -> list[Log]:
    """The logs of a point's newest attempt: what each rank of its task printed, then the attempt's own.

    RefusedError for a point that the sweep does not have or that left no log.
    """
    paths = _log_paths(sweep, point_id, rank)
    if not paths:
        raise _no_log(sweep, point_id, rank)
    return [Log(path, _read_from(path, None)[0].decode(errors="replace")) for path in paths]


def newest_failure(sweep: SweepDir) -> str:
    """Return the point whose attempt failed last, by the time of its newest log; RefusedError where none failed."""
    failed = [row.point_id for row in states(sweep) if row.state in ("failed", "interrupted")]
    times_ns = {
        point_id: max((path.stat().st_mtime_ns for path in paths), default=0)
        for point_id in failed
        if (paths := _log_paths(sweep, point_id, None))
    }
    if not times_ns:
        raise RefusedError(
            f"{sweep.path}: no point that failed has a log. Name a point; `wattflow status {sweep.path}` lists them."
        )
    return max(times_ns, key=lambda point_id: times_ns[point_id])


def follow(sweep: SweepDir, point_id: str, rank: int | None = None) -> Iterator[Log]:
    """The logs of a point's newest attempt, then what is added to them, until the point neither waits nor runs.

    RefusedError for a point that the sweep does not have, or that ended and left no log.
    """
    read_to: dict[Path, int] = {}
    paths: list[Path] = []
    seen: object = None
    ask_at_s = 0.0
    ended = False
    while not ended:
        newest = sweep.attempts(point_id)[-1:]
        record, damage = decisive_record(newest)
        now = [attempt.number for attempt in newest], record and record["status"], damage
        if now != seen or time.monotonic() >= ask_at_s:
            seen, ask_at_s = now, time.monotonic() + _ASK_S
            ended = not any(
                row.state in ("running", "waiting") for row in states(sweep, {point_id})
            )
        # new files may come at any time: those of a rank that starts late, of a sidecar, of an error
        paths = _log_paths(sweep, point_id, rank)
        for path in paths:
            data, start = _read_from(path, read_to.get(path))
            whole = len(data) if ended else data.rfind(b"\n") + 1
            read_to[path] = start + whole
            if whole:
                yield Log(path, data[:whole].decode(errors="replace"))
        if not ended:
            time.sleep(_LOOK_S)
    if not paths:
        raise _no_log(sweep, point_id, rank)


def _no_log(sweep: SweepDir, point_id: str, rank: int | None) -> RefusedError:
    of = "" if rank is None else f" of rank {rank}"
    return RefusedError(
        f"point {point_id}: no log{of} yet in {sweep.path}. `wattflow status {sweep.path}` lists points and states."
    )


def _log_paths(sweep: SweepDir, point_id: str, rank: int | None) -> list[Path]:
    """The logs of a point's newest task and attempt (of one rank), sorted."""
    attempts = sweep.attempts(point_id)
    at = journal.newest_task(journal.read(sweep)).get(point_id)
    paths: list[Path] = []
    if at is not None:
        submission, task = at
        paths += submission.folder.glob(
            submission.log_path(task).name.replace("_0_log.err", "_*_log.*")
        )
    if attempts:
        paths += attempts[-1].logs.glob("*")
    if rank is not None:
        paths = [path for path in paths if re.search(rf"(_|-rank){rank}(_log)?\.\w+$", path.name)]
    return sorted(paths)


def _read_from(path: Path, start: int | None) -> tuple[bytes, int]:
    """What a file has from a byte on, by default its last megabyte; and from which byte that is."""
    with open_own(path) as file:
        if start is None:
            start = max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES)
        file.seek(start)
        return file.read(), start
