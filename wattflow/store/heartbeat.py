"""Whether the process behind an attempt lives: a small file that it renews, and what it tells of its progress.

    points/<point_id>/attempt-<n>/heartbeat.json        there from the claim on, gone once the record is closed

Slurm may start a task again beside its old processes, where a node only lost its slurmd: then one steps aside.
"""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from wattflow import process
from wattflow.errors import DamagedError
from wattflow.store.files import read_json
from wattflow.store.layout import AttemptDir, SweepDir

BEAT_S = 15.0  # a shared disk sees no more than this
SILENT_S = 40.0  # a process that was silent for so long is gone
_LOOK_S = 1.0


class Heartbeat:
    """Renews an attempt's heartbeat from a thread of its own, until `stop`."""

    def __init__(self, sweep: SweepDir, attempt: AttemptDir) -> None:
        """Write the first one."""
        self._sweep, self._attempt = sweep, attempt
        self._told: dict[str, Any] = {"by": process.job_id(os.getpid()), "beat": 0}
        self._ask: Callable[[], Mapping[str, object]] = dict
        self._ended = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:  # noqa: D105 (the class says it)
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105 (the class says it)
        self.stop()

    def tell(self, phase: str, done: int, of: int) -> None:
        """What the next heartbeat says of the attempt's progress."""
        self._told = {**self._told, "phase": phase, "done": done, "of": of}

    def ask(self, power: Callable[[], Mapping[str, object]]) -> None:
        """Have each next heartbeat also tell what this says then."""
        self._ask = power

    def stop(self) -> None:
        """Take the heartbeat away."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            _path(self._attempt).unlink()

    def _beat(self) -> None:
        self._told = {**self._told, **self._ask(), "beat": self._told["beat"] + 1}
        path = _path(self._attempt)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps(self._told))
        temporary.replace(path)

    def _go_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            # a disk that is full or away for a moment costs beats, not the attempt
            with contextlib.suppress(OSError, DamagedError):
                self._beat()
                if _is_taken_over(self._sweep, self._attempt):
                    os.kill(os.getpid(), signal.SIGTERM)


def _is_taken_over(sweep: SweepDir, attempt: AttemptDir) -> bool:
    """Whether a later attempt runs or ran: this process was frozen for so long that it counted as gone."""
    later = [one for one in sweep.attempts(attempt.point_id) if one.number > attempt.number]
    return any(one.read_record() is not None for one in later)


def _path(attempt: AttemptDir) -> Path:
    return attempt.path / "heartbeat.json"


def read(attempt: AttemptDir) -> dict[str, Any] | None:
    """The newest heartbeat: by, beat and, once told, phase, done, of, energy_j, power_w; null where there is none."""
    with contextlib.suppress(FileNotFoundError, DamagedError):
        told = read_json(_path(attempt))
        if isinstance(told, dict) and isinstance(told.get("by"), str):
            return told
    return None


def lives(attempt: AttemptDir) -> bool:
    """Whether the process behind an attempt lives; where it may run on another machine, this takes up to SILENT_S."""
    first = read(attempt)
    alive = None if first is None else process.lives(first["by"])
    if alive is not None:
        return alive
    end = time.monotonic() + SILENT_S
    while time.monotonic() < end:
        time.sleep(_LOOK_S)
        if not attempt.path.is_dir():
            return False  # it stepped aside
        if (now := read(attempt)) is not None and now != first:
            return True
    return False


def claim(sweep: SweepDir, point_id: str) -> tuple[AttemptDir, Heartbeat] | None:
    """A new attempt with its heartbeat, or null where another one at this point is running.

    Of two that begin at once the one with the lower number stays. A record is written after this alone, so whoever
    has one has made sure that none before it runs.
    """
    attempt = sweep.claim_attempt(point_id)
    heart = Heartbeat(sweep, attempt)
    for earlier in reversed(sweep.attempts(point_id)):
        if earlier.number >= attempt.number:
            continue
        with contextlib.suppress(DamagedError):
            record = earlier.read_record()
            if record is not None and record["status"] != "running":
                break
            gone = record is not None and read(earlier) is None
            if not gone and lives(earlier):
                heart.stop()
                shutil.rmtree(attempt.path, ignore_errors=True)
                return None
            if record is not None:
                break
    return attempt, heart
