"""Find and follow the logs of a point."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from wattflow.errors import RefusedError
from wattflow.store import rank_errors
from wattflow.store.files import changed_ns, open_own, own_files
from wattflow.store.layout import SweepDir
from wattflow.store.regular import check_folder
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

    A rank's error that stands in what it printed is not shown once more. RefusedError for a point that the sweep does
    not have or that left no log.
    """
    paths = _log_paths(sweep, point_id, rank)
    if not paths:
        raise _no_log(sweep, point_id, rank)
    errors = [path for path in paths if _is_error(path)]
    found = [Log(path, _text(path)) for path in paths if path not in errors]
    return found + _further(errors, "".join(log.text for log in found))


def newest_failure(sweep: SweepDir) -> str:
    """Return the point whose attempt failed last, by the time of its newest log; RefusedError where none failed."""
    failed = [row.point_id for row in states(sweep) if row.state in ("failed", "interrupted")]
    times_ns = {
        point_id: max(map(changed_ns, paths), default=0)
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
    printed = ""
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
            if _is_error(path):
                continue
            data, start = _read_from(path, read_to.get(path))
            whole = len(data) if ended else data.rfind(b"\n") + 1
            read_to[path] = start + whole
            if whole:
                log = Log(path, data[:whole].decode(errors="replace"))
                printed = (printed + log.text)[-_LOG_TAIL_BYTES:]
                yield log
        if not ended:
            time.sleep(_LOOK_S)
    yield from _further([path for path in paths if _is_error(path)], printed)
    if not paths:
        raise _no_log(sweep, point_id, rank)


def _is_error(path: Path) -> bool:
    return fnmatch(path.name, rank_errors.FILES)


def _further(errors: Sequence[Path], printed: str) -> list[Log]:
    """Return the errors of ranks as they read, without those whose traceback stands in what was printed.

    There it begins further out, so that the last of its parts is looked for.
    """
    found = []
    for path in errors:
        error = rank_errors.read(path)
        if error is None:
            found.append(Log(path, _text(path)))
            continue
        text = error.traceback or f"{error.error}\n"
        if text.rpartition(_BEGINS)[2].strip() not in printed:
            found.append(Log(path, text))
            printed += text
    return found


_BEGINS = "Traceback (most recent call last):\n"


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
        check_folder(submission.folder)
        paths += submission.folder.glob(
            submission.log_path(task).name.replace("_0_log.err", "_*_log.*")
        )
    if attempts:
        # a file manager's or an editor's files are no logs
        paths += [
            path
            for pattern in ("*.log", "*.err", "*.out", "*.json")
            for path in own_files(attempts[-1].logs, pattern)
        ]
    if rank is not None:
        paths = [path for path in paths if re.search(rf"(_|-rank){rank}(_log)?\.\w+$", path.name)]
    return sorted(paths)


def _text(path: Path) -> str:
    return _read_from(path, None)[0].decode(errors="replace")


def _read_from(path: Path, start: int | None) -> tuple[bytes, int]:
    """What a file has from a byte on, by default its last megabyte; and from which byte that is."""
    with open_own(path) as file:
        if start is None:
            start = max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES)
        file.seek(start)
        return file.read(), start
