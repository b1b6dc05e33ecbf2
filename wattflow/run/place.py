"""The values that ranks pass to each other and to the process that started them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wattflow.power.sidecar_connection import Common
from wattflow.run.continuation import Continuation
from wattflow.store.schema import JobInfo


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
    common: Common | None = None  # the sidecar of the points beside this one; null: one of its own

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Place":
        """Read what `dataclasses.asdict` makes of a place."""
        common = fields.get("common")
        return cls(**{**fields, "common": None if common is None else Common(**common)})


@dataclass(frozen=True)
class TaskEnds:
    """Whether a point is the first of its task, and whether it is the last."""

    first: bool = True
    last: bool = True


@dataclass(frozen=True)
class Claim:
    """The attempt that rank 0 claimed, and what it continues."""

    number: int
    continuation: Continuation

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Claim":
        """Read what `dataclasses.asdict` makes of a claim."""
        return cls(fields["number"], Continuation(**fields["continuation"]))


@dataclass(frozen=True)
class Progress:
    """The phase of an attempt, and the batches done of all."""

    phase: str
    done: int = 0
    of: int = 0


Report = Callable[[Progress], None]
PointReport = Callable[[str, Progress], None]  # by point_id
