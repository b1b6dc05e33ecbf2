"""Whether the process behind an attempt lives, and how far it is: a small file that the process renews.

    points/<point_id>/attempt-<n>/heartbeat.json        there from the claim on, gone once the record is closed

Slurm may start a task again while its old processes still run, where a node only lost its slurmd: then one gives way.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from wattflow import process
from wattflow.errors import DamagedError
from wattflow.store.files import read_json, write_atomic
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import EnergySoFar

BEAT_S = 15.0  # no more often, for the sake of a shared disk
SILENT_S = 40.0  # a process that was silent for so long is gone
_POLL_S = 1.0


@dataclass(frozen=True)
class Beat:
    """One heartbeat: the process that renews it, how often it did, and the attempt's progress and energy so far."""

    by: str  # the process, as `process.job_id` names it
    beat: int | None
    phase: str | None
    done: int | None  # batches
    of: int | None  # batches
    energy_j: float | None  # of rank 0's node
    power_w: float | None
    source: str | None  # the sensor
    seconds: float | None  # in which the energy was taken
    devices: int | None  # of rank 0's node
    nodes: int | None  # of the attempt


class Heartbeat:
    """Renews an attempt's heartbeat from a thread of its own, until `stop`."""

    def __init__(self, sweep: SweepDir, attempt: AttemptDir) -> None:
        """Write the first one."""
        self.attempt = attempt
        self._sweep = sweep
        self._count = 0
        self._progress: dict[str, object] = {}
        self._energy: dict[str, object] = {}
        self._nodes = 1
        self._read_energy: Callable[[], EnergySoFar | None] = lambda: None
        self._ended = threading.Event()
        self._renew()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """The heartbeat itself, which beats already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the heartbeat away."""
        self.stop()

    def report_progress(self, phase: str, done: int, of: int) -> None:
        """Set the phase, and the batches done of all, that the next heartbeats report."""
        self._progress = {"phase": phase, "done": done, "of": of}

    def report_energy(self, read: Callable[[], EnergySoFar | None], nodes: int) -> None:
        """Call `read` at each next heartbeat and report what it returns, with the attempt's number of nodes."""
        self._read_energy, self._nodes = read, nodes

    def stop(self) -> None:
        """Take the heartbeat away."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            _path(self.attempt).unlink()

    def _renew(self) -> None:
        self._count += 1
        if (energy := self._read_energy()) is not None:
            self._energy = {**energy, "nodes": self._nodes}
        beat = {"by": process.job_id(os.getpid()), "beat": self._count}
        path = _path(self.attempt)
        text = json.dumps({**beat, **self._progress, **self._energy})
        write_atomic(path, text.encode(), durable=False)

    def _keep_renewing(self) -> None:
        while not self._ended.wait(BEAT_S):
            # a disk that is full or away for a moment costs beats, not the attempt
            with contextlib.suppress(OSError, DamagedError):
                self._renew()
                if _is_replaced(self._sweep, self.attempt):
                    os.kill(os.getpid(), signal.SIGTERM)


def _is_replaced(sweep: SweepDir, attempt: AttemptDir) -> bool:
    """Whether a later attempt has a record: this process was silent for so long that it counted as gone."""
    later = [one for one in sweep.attempts(attempt.point_id) if one.number > attempt.number]
    return any(one.read_record() is not None for one in later)


def _path(attempt: AttemptDir) -> Path:
    return attempt.path / "heartbeat.json"


def read(attempt: AttemptDir) -> Beat | None:
    """The newest heartbeat, a field of another type as null; null where there is none or it is damaged."""
    with contextlib.suppress(FileNotFoundError, DamagedError):
        fields = read_json(_path(attempt))
        if isinstance(fields, dict) and isinstance(fields.get("by"), str):
            return _beat(fields)
    return None


def _beat(fields: dict[str, Any]) -> Beat:
    return Beat(
        by=fields["by"],
        beat=_count(fields.get("beat")),
        phase=_text(fields.get("phase")),
        done=_count(fields.get("done")),
        of=_count(fields.get("of")),
        energy_j=_number(fields.get("energy_j")),
        power_w=_number(fields.get("power_w")),
        source=_text(fields.get("source")),
        seconds=_number(fields.get("seconds")),
        devices=_count(fields.get("devices")),
        nodes=_count(fields.get("nodes")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def silence_s(attempt: AttemptDir) -> float:
    """Seconds since an attempt's heartbeat was renewed; infinite where there is none."""
    try:
        return time.time() - _path(attempt).stat().st_mtime
    except FileNotFoundError:
        return math.inf


def lives(attempt: AttemptDir) -> bool:
    """Whether the process behind an attempt lives; where it may run on another machine, this takes up to SILENT_S."""
    first = read(attempt)
    alive = None if first is None else process.lives(first.by)
    if alive is not None:
        return alive
    end = time.monotonic() + SILENT_S
    while time.monotonic() < end:
        time.sleep(_POLL_S)
        if not attempt.path.is_dir():
            return False  # it gave way
        if (now := read(attempt)) is not None and now != first:
            return True
    return False


def claim(sweep: SweepDir, point_id: str) -> Heartbeat | None:
    """Start a new attempt, with its heartbeat; null where another attempt at this point is running.

    Of two that begin at once the one with the lower number stays. A record is written only after this, so whoever
    has one has made sure that none before it runs.
    """
    heart = Heartbeat(sweep, sweep.claim_attempt(point_id))
    for earlier in reversed(sweep.attempts(point_id)):
        if earlier.number >= heart.attempt.number:
            continue
        with contextlib.suppress(DamagedError):
            record = earlier.read_record()
            if record is not None and record["status"] != "running":
                break
            gone = record is not None and read(earlier) is None
            if not gone and lives(earlier):
                heart.stop()
                shutil.rmtree(heart.attempt.path, ignore_errors=True)
                return None
            if record is not None:
                break
    return heart
