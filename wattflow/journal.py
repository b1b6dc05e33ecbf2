"""What a sweep sent, as its journal tells: which submission holds which points, and under which job.

INTENT is written before sbatch is called and SUBMITTED after it answered, so a submission that was cut short in
between is known, and is looked up by its name.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wattflow.schema import JournalLine, Record
from wattflow.sweepdir import SweepDir

LOCAL = "local:"  # how job ids begin that are a process of some machine and no job of Slurm's
LOCAL_LOG = "local"  # stands in a local job's logs where Slurm's have the task's name


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
    by: str | None = None  # the process that sends it, as process.job_id names it

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
        if self.is_local:
            return record["started_ns"] >= self.time_ns
        return record["job"]["job_id"] == self.key(task)

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
            "by": str(sent.by),
        }
    )


def read(sweep: SweepDir) -> list[Sent]:
    """All submissions, oldest first; DamagedError names a line that is not the journal's."""
    by_name: dict[str, Sent] = {}
    for line in sweep.journal():
        name = line["submission"]
        if line["event"] == "intent":
            folder = sweep.path / line["folder"]
            by_name[name] = Sent(name, line["kind"], line["tasks"], folder, line["time_ns"])
            by_name[name].by = line.get("by")
        elif (sent := by_name.get(name)) is not None:
            sent.job_id = line.get("job_id", sent.job_id)
            sent.released = sent.released or line["event"] == "released"
            sent.refused = sent.refused or line["event"] == "failed"
            sent.cancelled = sent.cancelled or line["event"] == "cancelled"
    return list(by_name.values())


def newest_task(sents: list[Sent]) -> dict[str, tuple[Sent, int]]:
    """For each point ever sent, the newest submission that holds it and its task there; refused ones sent nothing."""
    newest = {}
    for sent in sents:
        if sent.refused:
            continue
        for task, point_ids in enumerate(sent.tasks):
            for point_id in point_ids:
                newest[point_id] = (sent, task)
    return newest
