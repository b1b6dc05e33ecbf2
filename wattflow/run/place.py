"""Where a process stands among the ranks of a task."""

from collections.abc import Callable
from dataclasses import dataclass

from wattflow.run.continuation import Left
from wattflow.store.schema import JobInfo

Progress = Callable[[str, int, int], None]  # phase, batches done, batches in all


@dataclass(frozen=True)
class Place:
    """Where this process stands among the ranks of a task."""

    rank: int
    world: int
    local_rank: int
    node: str
    init_method: str  # how ranks find each other: tcp://host:port, or file://path on one node
    spool: str  # a private folder of this node that its ranks share
    job: JobInfo


@dataclass(frozen=True)
class Claim:
    """What rank 0 found when it claimed an attempt, for all ranks."""

    number: int
    left: Left
    first_of_task: bool
    last_of_task: bool
