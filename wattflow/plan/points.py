"""The points of a planned sweep."""

from dataclasses import dataclass, field

from wattflow.config.choices import Config
from wattflow.store.layout import SweepDir


@dataclass(frozen=True)
class Point:
    """One combination of resolved choices; `reason` says why it cannot run, null if it can."""

    point_id: str
    config: Config
    reason: str | None


@dataclass(frozen=True)
class Plan:
    """A requested sweep: its points in the order in which they are run."""

    name: str
    sweep: SweepDir
    overrides: list[str]
    points: list[Point]
    duplicates: int  # combinations that came to a point already listed
    notes: list[str] = field(default_factory=list)  # which prompts the points take, for a person

    @property
    def feasible(self) -> list[Point]:
        """The points that can run."""
        return [point for point in self.points if point.reason is None]
