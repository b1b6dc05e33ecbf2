"""Read and write the journal of a sweep: which submission holds which points, and under which job.

INTENT is written before sbatch is called and SUBMITTED after it answered, so a submission that was cut short in
between is known, and is looked up by its name. One process at a time holds the submit lock, and sends and writes here:

    sweeps/<name>/turns/<n>/   by   ended        the highest number has the lock until it has ended
"""

import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wattflow.errors import DamagedError, RefusedError
from wattflow.process import LOCAL
from wattflow.store.files import check_name
from wattflow.store.layout import SweepDir
from wattflow.store.schema import JournalLine, Record

log = logging.getLogger(__name__)

# Raised when what a job names has moved (functions in pickles, `python -m` paths): jobs of another version cannot run.
VERSION = 2
LOCAL_LOG = "local"  # stands in a local job's logs where Slurm's have the task's name


@dataclass(eq=False)
class Submission:
    """One submission: an array of tasks, a single task, or a collect job."""

    name: str  # unique; also the Slurm job's name
    kind: Literal["points", "collect"]
    tasks: list[list[str]]  # the point ids of each task
    folder: Path  # where submitit keeps its pickles and the job's logs
    time_ns: int
    job_id: str | None = None  # null until Slurm has accepted it
    released: bool = False
    refused: bool = False  # Slurm did not take it
    version: int = VERSION  # the journal's when it was sent
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
        """Whether one of its tasks made the attempt of a record; a local one is known by its clock."""
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
    sha256: str | None = None,
) -> None:
    """Add what became of a submission."""
    line: JournalLine = {"time_ns": time.time_ns(), "event": event, "submission": submission}
    if job_id is not None:
        line["job_id"] = job_id
    if error is not None:
        line["error"] = error
    if sha256 is not None:
        line["sha256"] = sha256
    sweep.append_journal(line)


def intend(sweep: SweepDir, sent: Submission) -> None:
    """Add what is about to be submitted."""
    sweep.append_journal(
        {
            "time_ns": sent.time_ns,
            "event": "intent",
            "journal_version": sent.version,
            "submission": sent.name,
            "kind": sent.kind,
            "tasks": sent.tasks,
            "folder": str(sent.folder.relative_to(sweep.path)),
        }
    )


def note_prune(
    sweep: SweepDir, kinds: Sequence[str], removed: tuple[int, int] | None = None
) -> None:
    """Add that files of some kinds are about to be removed; then how many were, and their bytes."""
    line: JournalLine = {
        "time_ns": time.time_ns(),
        "event": "pruning" if removed is None else "pruned",
        "submission": "prune",  # of which an older version knows that it is none of its submissions
        "kinds": list(kinds),
    }
    if removed is not None:
        line["files"], line["bytes"] = removed
    sweep.append_journal(line)


def unfinished_prune(sweep: SweepDir) -> list[str]:
    """Return the kinds of files whose removal was begun and cut short."""
    kinds: set[str] = set()
    for line in sweep.journal():
        if line.get("event") == "pruning":
            kinds |= set(line.get("kinds", []))
        elif line.get("event") == "pruned":
            kinds -= set(line.get("kinds", []))
    return sorted(kinds)


def begin(
    sweep: SweepDir, kind: Literal["points", "collect"], tasks: list[list[str]]
) -> Submission:
    """Return a new submission, written down before it is sent; its name is also its folder's and its job's."""
    name = f"{sweep.name}-{secrets.token_hex(4)}"
    submission = Submission(name, kind, tasks, sweep.submitit / name, time.time_ns())
    intend(sweep, submission)
    return submission


def read(sweep: SweepDir) -> list[Submission]:
    """All submissions, oldest first; DamagedError names a line that is not the journal's."""
    by_name: dict[str, Submission] = {}
    for line in sweep.journal():
        try:
            _add(by_name, line, sweep)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(
                f"{sweep.journal_path}: not a journal line: {str(line)[:200]} ({error})."
            ) from error
    return list(by_name.values())


def refuse_other_versions(sweep: SweepDir, submissions: Sequence[Submission]) -> None:
    """Raise RefusedError for a sweep that another version of wattflow submitted: what its jobs name is not here."""
    others = sorted({sent.version for sent in submissions if sent.version != VERSION})
    if others:
        raise RefusedError(
            f"{sweep.path}: submitted by another version of wattflow (journal version {others[0]}, this one writes "
            f"{VERSION}). `wattflow status` and `collect` read it; submit what is left under a new sweep=NAME."
        )


def _add(by_name: dict[str, Submission], line: JournalLine, sweep: SweepDir) -> None:
    name = check_name(line["submission"], "submission")
    if line["event"] == "intent":
        for point_ids in line["tasks"]:
            for point_id in point_ids:
                sweep.point_path(point_id)  # refuses what is no point_id
        folder = sweep.path / _below(line["folder"])
        by_name[name] = Submission(
            name,
            line["kind"],
            line["tasks"],
            folder,
            int(line["time_ns"]),
            version=int(line.get("journal_version", 1)),
        )
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


def times_sent(submissions: Sequence[Submission]) -> Counter[str]:
    """Return how many submissions that Slurm accepted hold each point."""
    sent = (one for one in submissions if one.job_id is not None and not one.refused)
    return Counter(point_id for one in sent for task in one.tasks for point_id in task)


def newest_task(submissions: Sequence[Submission]) -> dict[str, tuple[Submission, int]]:
    """For each point ever sent, the newest submission that holds it and its task there; refused ones sent nothing."""
    newest = {}
    for sent in submissions:
        if sent.refused:
            continue
        for task, point_ids in enumerate(sent.tasks):
            for point_id in point_ids:
                newest[point_id] = (sent, task)
    return newest
