"""A lock by folders: one process at a time holds it, on whatever machine that sees the disk.

PLACE/<n>/   by   ended        the highest number has the lock until it has ended
"""

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wattflow import process
from wattflow.errors import RefusedError, WattflowError
from wattflow.process import LOCAL
from wattflow.store.files import read_own, write_atomic

log = logging.getLogger(__name__)

_BEAT_S = 15.0  # how often a process that holds the lock shows that it lives
_SILENT_S = 120.0  # after so long without a sign one of another machine counts as gone
_LOOK_S = 0.5  # how often a lock that is waited for is looked at


class LostLockError(WattflowError, RuntimeError):
    """Another process has taken a lock over, because this one gave no sign for minutes."""


@dataclass(frozen=True)
class FolderLock:
    """A lock that this process holds."""

    folder: Path
    doing: str  # what its holder does, as in "another process is just submitting"

    def check(self) -> None:
        """Raise LostLockError when another process has it.

        A lock that is lost stays lost, so what was done before a check that passes was in time. What follows one may
        come too late, and has to be harmless then: a held job, a release of what the journal knows.
        """
        if max(_numbers(self.folder.parent), default=0) != int(self.folder.name):
            raise LostLockError(
                f"{self.folder.parent.parent}: this process was silent for {_SILENT_S:.0f} s while {self.doing}, and "
                "another one has taken over. Nothing more is done; `wattflow resume` sends what is left of a submit."
            )


@contextlib.contextmanager
def folder_lock(place: Path, doing: str, patience_s: float) -> Iterator[FolderLock]:
    """Hold the lock of a place within; RefusedError when another process has it for longer than `patience_s`.

    A lock is a folder whose number is one higher than the last, so that mkdir gives it to exactly one of those who
    try, and none is ever taken from under the feet of its successor. A shared disk need keep no lock for it.
    """
    mine = _wait_for(place, doing, patience_s)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(mine, ended), daemon=True)
    beating.start()
    try:
        yield mine
    finally:
        ended.set()
        beating.join()
        # taken over and cleared away, or the disk is full: then the lock ends with this process
        with contextlib.suppress(OSError):
            (mine.folder / "ended").touch(mode=0o600)


def _wait_for(turns: Path, doing: str, patience_s: float) -> FolderLock:
    """The lock, once nobody else has it."""
    end_s = time.monotonic() + patience_s
    waiting = False
    while True:
        try:
            return _take(turns, doing)
        except RefusedError as refusal:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise RefusedError(f"{refusal} Wait for its end, then try again.") from None
            if not waiting:
                log.warning("%s Waiting up to %.0f s for its end.", refusal, patience_s)
                waiting = True
            time.sleep(min(_LOOK_S, left_s))


def _take(turns: Path, doing: str) -> FolderLock:
    turns.mkdir(mode=0o700, exist_ok=True)
    last = max(_numbers(turns), default=0)
    if last:
        _refuse_living(turns / str(last), doing)
    mine = turns / str(last + 1)
    try:
        mine.mkdir(mode=0o700)
    except FileExistsError:
        raise _refusal(mine, "another process", doing) from None
    try:
        write_atomic(mine / "by", f"{process.job_id(os.getpid())}\n{process.namespace()}".encode())
    except OSError:  # a full disk
        shutil.rmtree(mine, ignore_errors=True)
        raise
    if (
        max(_numbers(turns)) != last + 1
    ):  # slept while two others had the lock, and the first was cleared away
        shutil.rmtree(mine, ignore_errors=True)
        raise _refusal(mine, "another process", doing)
    for number in _numbers(turns):
        if number < last + 1:
            shutil.rmtree(turns / str(number), ignore_errors=True)
    return FolderLock(mine, doing)


def _numbers(turns: Path) -> list[int]:
    return [int(name) for name in os.listdir(turns) if name.isdecimal()]  # noqa: PTH208 (names alone)


def _refuse_living(last: Path, doing: str) -> None:
    """Raise RefusedError unless a lock was released, or its process surely lives no more."""
    if (last / "ended").exists():
        return
    try:
        by, _, namespace = read_own(last / "by").decode(errors="replace").partition("\n")
    except FileNotFoundError:
        by = namespace = ""
    lives = process.lives(by) if by and namespace == process.namespace() else None
    if lives or (lives is None and _silence_s(last) < _SILENT_S):
        raise _refusal(last, by.removeprefix(LOCAL) or "a process that just began", doing)


def _refusal(folder: Path, by: str, doing: str) -> RefusedError:
    return RefusedError(f"{folder.parent.parent}: another process is just {doing} ({by}).")


def _silence_s(last: Path) -> float:
    """Seconds since a lock's last sign of life, both times stamped by the disk that keeps them."""
    sign = last / "by"
    now = last.parent / f".now-{os.getpid()}"
    now.touch(mode=0o600)
    now_ns = now.stat().st_mtime_ns
    now.unlink()
    with contextlib.suppress(FileNotFoundError):
        return (now_ns - sign.stat().st_mtime_ns) / 1e9
    return (now_ns - last.stat().st_mtime_ns) / 1e9


def _beat(mine: FolderLock, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(mine.folder / "by")
