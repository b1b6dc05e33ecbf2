"""What a sweep sent, as its journal tells: which submission holds which points, and under which job.

INTENT is written before sbatch is called and SUBMITTED after it answered, so a submission that was cut short in
between is known, and is looked up by its name. One process at a time has the turn to send and to write here:

    sweeps/<name>/turns/<n>/   by   ended        the highest number has the turn until it has ended
"""

import contextlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wattflow import process
from wattflow.errors import DamagedError, RefusedError, WattflowError
from wattflow.process import LOCAL
from wattflow.schema import JournalLine, Record
from wattflow.sweepdir import SweepDir, check_name

log = logging.getLogger(__name__)

LOCAL_LOG = "local"  # stands in a local job's logs where Slurm's have the task's name

_BEAT_S = 15.0  # how often a process that has the turn shows that it lives
_SILENT_S = 120.0  # after so long without a sign one of another machine counts as gone
_PATIENCE_S = (
    30.0  # a collect job has the turn for a second or two, a submit of 10,000 points for some more
)
_LOOK_S = 0.5  # how often a turn that is waited for is looked at


@dataclass(eq=False)
class Sent:
    """One submission: an array of tasks, a single task, or a collect job."""

    name: str  # unique; also the Slurm job's name
    kind: Literal["points", "collect"]
    tasks: list[list[str]]  # the point ids of each task
    folder: Path  # where submitit keeps its pickles and the job's logs
    time_ns: int
    job_id: str | None = None  # null until Slurm has accepted it
    released: bool = False
    refused: bool = False  # Slurm did not take it
    cancelled: bool = False  # cut short, and taken back by `resume`

    @property
    def is_open(self) -> bool:
        """Whether its sending has not come to an end: it is under way, or was cut short."""
        return not (self.released or self.refused or self.cancelled or self.is_local)

    def key(self, task: int) -> str:
        """Slurm's name of one task: 123_4, or 123 where submitit made no array of a single task."""
        job = self.job_id or self.name  # a name of its own also before Slurm gave one
        return f"{job}_{task}" if len(self.tasks) > 1 else job

    def log_path(self, task: int, rank: int = 0, stream: Literal["out", "err"] = "err") -> Path:
        """Where what a rank of a task prints goes, as submitit names it."""
        return self.folder / f"{LOCAL_LOG if self.is_local else self.key(task)}_{rank}_log.{stream}"

    def made(self, record: Record, task: int) -> bool:
        """Whether one of its tasks made the attempt that a record tells of; a local one is known by its clock."""
        started_ns, job = record.get("started_ns"), record.get("job")
        if self.is_local:
            return isinstance(started_ns, int) and started_ns >= self.time_ns
        return isinstance(job, dict) and job.get("job_id") == self.key(task)

    @property
    def is_local(self) -> bool:
        """Whether it is a process of some machine."""
        return self.job_id is not None and self.job_id.startswith(LOCAL)


def write(
    sweep: SweepDir,
    event: Literal["submitted", "released", "failed", "cancelled"],
    submission: str,
    *,
    job_id: str | None = None,
    error: str | None = None,
) -> None:
    """Add what became of a submission."""
    line: JournalLine = {"time_ns": time.time_ns(), "event": event, "submission": submission}
    if job_id is not None:
        line["job_id"] = job_id
    if error is not None:
        line["error"] = error
    sweep.append_journal(line)


def intend(sweep: SweepDir, sent: Sent) -> None:
    """Add what is about to be submitted."""
    sweep.append_journal(
        {
            "time_ns": sent.time_ns,
            "event": "intent",
            "submission": sent.name,
            "kind": sent.kind,
            "tasks": sent.tasks,
            "folder": str(sent.folder.relative_to(sweep.path)),
        }
    )


def read(sweep: SweepDir) -> list[Sent]:
    """All submissions, oldest first; DamagedError names a line that is not the journal's."""
    by_name: dict[str, Sent] = {}
    for line in sweep.journal():
        try:
            _add(by_name, line, sweep)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(
                f"{sweep.journal_path}: not a journal line: {str(line)[:200]} ({error})."
            ) from error
    return list(by_name.values())


def _add(by_name: dict[str, Sent], line: JournalLine, sweep: SweepDir) -> None:
    name = check_name(line["submission"], "submission")
    if line["event"] == "intent":
        for point_ids in line["tasks"]:
            for point_id in point_ids:
                sweep.point_path(point_id)  # refuses what is no point_id
        folder = sweep.path / _below(line["folder"])
        by_name[name] = Sent(name, line["kind"], line["tasks"], folder, int(line["time_ns"]))
    elif (sent := by_name.get(name)) is not None:
        job_id = line.get("job_id", sent.job_id)
        if job_id is not None and not re.fullmatch(r"\d+|local:.+:\d+:\d+|local:.+:None", job_id):
            raise ValueError(f"job_id {job_id!r}")
        sent.job_id = job_id
        sent.released = sent.released or line["event"] == "released"
        sent.refused = sent.refused or line["event"] == "failed"
        sent.cancelled = sent.cancelled or line["event"] == "cancelled"


def _below(text: str) -> Path:
    """ValueError for a path that leads out of the sweep."""
    path = Path(text)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"folder {text!r}")
    return path


def newest_task(sents: Sequence[Sent]) -> dict[str, tuple[Sent, int]]:
    """For each point ever sent, the newest submission that holds it and its task there; refused ones sent nothing."""
    newest = {}
    for sent in sents:
        if sent.refused:
            continue
        for task, point_ids in enumerate(sent.tasks):
            for point_id in point_ids:
                newest[point_id] = (sent, task)
    return newest


# --- one writer at a time -------------------------------------------------------------------------


class LostTurnError(WattflowError, RuntimeError):
    """Another process has taken the turn over, because this one gave no sign for minutes."""


@dataclass(frozen=True)
class Turn:
    """The right to send points of a sweep and to write to its journal."""

    folder: Path

    def check(self) -> None:
        """LostTurnError when another process has it.

        A turn that is lost stays lost, so what was done before a check that passes was in time. What follows one may
        come too late, and has to be harmless then: a held job, a release of what the journal knows.
        """
        if max(_numbers(self.folder.parent), default=0) != int(self.folder.name):
            raise LostTurnError(
                f"{self.folder.parent.parent}: this process was silent for {_SILENT_S:.0f} s and another one has "
                "taken over. Nothing more is sent; `wattflow resume` sends what is left."
            )


@contextlib.contextmanager
def turn(sweep: SweepDir, patience_s: float = _PATIENCE_S) -> Iterator[Turn]:
    """Have the turn within; RefusedError when another process has it for longer than `patience_s`.

    A turn is a folder whose number is one higher than the last, so that mkdir gives it to exactly one of those who
    try, and none is ever taken from under the feet of its successor. A shared disk need keep no lock for it.
    """
    mine = _wait_for(sweep.path / "turns", patience_s)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(mine, ended), daemon=True)
    beating.start()
    try:
        yield mine
    finally:
        ended.set()
        beating.join()
        # taken over and cleared away, or the disk is full: then the turn ends with this process
        with contextlib.suppress(OSError):
            (mine.folder / "ended").touch(mode=0o600)


def _wait_for(turns: Path, patience_s: float) -> Turn:
    """The turn, once nobody else has it."""
    end_s = time.monotonic() + patience_s
    told = False
    while True:
        try:
            return _take(turns)
        except RefusedError as refusal:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise RefusedError(f"{refusal} Wait for its end, then try again.") from None
            if not told:
                log.warning("%s Waiting up to %.0f s for its end.", refusal, patience_s)
                told = True
            time.sleep(min(_LOOK_S, left_s))


def _take(turns: Path) -> Turn:
    turns.mkdir(mode=0o700, exist_ok=True)
    last = max(_numbers(turns), default=0)
    if last:
        _refuse_living(turns / str(last))
    mine = turns / str(last + 1)
    try:
        mine.mkdir(mode=0o700)
    except FileExistsError:
        raise _refusal(mine, "another process") from None
    try:
        (mine / "by").write_text(f"{process.job_id(os.getpid())}\n{process.namespace()}")
    except OSError:  # a full disk
        shutil.rmtree(mine, ignore_errors=True)
        raise
    if (
        max(_numbers(turns)) != last + 1
    ):  # slept while two others had their turns, and the first was cleared away
        shutil.rmtree(mine, ignore_errors=True)
        raise _refusal(mine, "another process")
    for number in _numbers(turns):
        if number < last + 1:
            shutil.rmtree(turns / str(number), ignore_errors=True)
    return Turn(mine)


def _numbers(turns: Path) -> list[int]:
    return [int(name) for name in os.listdir(turns) if name.isdecimal()]  # noqa: PTH208 (names alone)


def _refuse_living(last: Path) -> None:
    """RefusedError unless a turn has ended, or its process surely lives no more."""
    if (last / "ended").exists():
        return
    try:
        by, _, namespace = (last / "by").read_text().partition("\n")
    except FileNotFoundError:
        by = namespace = ""
    lives = process.lives(by) if by and namespace == process.namespace() else None
    if lives or (lives is None and _silence_s(last) < _SILENT_S):
        raise _refusal(last, by.removeprefix(LOCAL) or "a process that just began")


def _refusal(turn_folder: Path, by: str) -> RefusedError:
    return RefusedError(f"{turn_folder.parent.parent}: another process is just submitting ({by}).")


def _silence_s(last: Path) -> float:
    """Seconds since a turn's last sign of life, both times stamped by the disk that keeps them."""
    sign = last / "by"
    now = last.parent / f".now-{os.getpid()}"
    now.touch(mode=0o600)
    now_ns = now.stat().st_mtime_ns
    now.unlink()
    with contextlib.suppress(FileNotFoundError):
        return (now_ns - sign.stat().st_mtime_ns) / 1e9
    return (now_ns - last.stat().st_mtime_ns) / 1e9


def _beat(mine: Turn, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(mine.folder / "by")
