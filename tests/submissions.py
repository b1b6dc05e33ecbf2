"""Plans of points for the fake Slurm, and what their submissions left."""

from pathlib import Path
from typing import Any

from sweeps import choices, plan_point

from wattflow.plan.points import Plan, Point
from wattflow.store.layout import SweepDir
from wattflow.submit import journal


def point(**over: Any) -> Point:
    made = choices(**{"cluster__launcher": "slurm", "cluster__name": "site", **over})
    return plan_point(made)


def plan(folder: Path, *points: Point) -> Plan:
    return Plan("demo", SweepDir(folder / "demo"), ["seed=1,2"], list(points), 0)


def seeds(count: int, **over: Any) -> list[Point]:
    return [point(seed=seed, **over) for seed in range(count)]


def intents(sweep: SweepDir) -> list[journal.Submission]:
    return [sent for sent in journal.read(sweep) if sent.kind == "points"]
