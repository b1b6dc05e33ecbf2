"""What points ask for, what they will be billed, leave on the disk and use, before any of them is sent."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from wattflow.config.choices import Config
from wattflow.nullable import complete, with_doubt
from wattflow.plan import estimate
from wattflow.plan.estimate import Expected, Past
from wattflow.slurm.shapes import Shape, fitting, shapes
from wattflow.submit.footprint import Footprint, footprint

if TYPE_CHECKING:  # importing it loads Hydra, which resume does not need
    from wattflow.plan.points import Plan


@dataclass(frozen=True)
class Bill:
    """Hours in the unit that one site bills."""

    unit: str  # node-hours | GPU-hours
    at_most: float  # by time limits
    expected: float | None  # of points whose time is known, by finished ones; null where none is


@dataclass(frozen=True)
class Quote:
    """What a submit will cost: hours billed, files and bytes, kWh, each with what it rests on."""

    bills: list[Bill]  # none for points of this machine
    footprint: Footprint
    points: int
    energy: estimate.Sum
    energy_at_most_kwh: (
        float | None
    )  # by time limits and the power limits of boards; null where one is not known

    def words(self) -> str:
        """Return it as one line."""
        left = self.footprint
        parts = [_billed(bill) for bill in self.bills] or ["no hours billed"]
        parts.append(f"{left.files} files and folders")
        parts.append(left.size_words())
        parts.append(self._energy())
        return f"cost: {', '.join(parts)}"

    def _energy(self) -> str:
        known = self.energy.same + self.energy.shape
        parts = []
        if known and self.energy.energy_kwh is not None:
            mark = "~" if self.energy.simulated else ""
            kwh = with_doubt(self.energy.energy_kwh, self.energy.energy_expanded_u_kwh, "kWh", mark)
            parts.append(f"{kwh} predicted for {known} of {self.points} points by finished ones")
        if self.energy_at_most_kwh is not None:
            parts.append(
                f"at most {self.energy_at_most_kwh:.3g} kWh of GPUs by time and power limits"
            )
        return ", ".join(parts) or "kWh unknown: no finished point is alike, no power limit known"

    def as_json(self) -> dict[str, Any]:
        """Return its figures by name."""
        return {
            "billed": [asdict(bill) for bill in self.bills],
            "files": self.footprint.files,
            "bytes": self.footprint.bytes,
            "energy_kwh": self.energy.energy_kwh if self.energy.same + self.energy.shape else None,
            "energy_expanded_u_kwh": self.energy.energy_expanded_u_kwh,
            "energy_simulated": self.energy.simulated,
            "energy_known_points": self.energy.same + self.energy.shape,
            "energy_at_most_kwh": self.energy_at_most_kwh,
        }


def _billed(bill: Bill) -> str:
    expected = "" if bill.expected is None else f" ({bill.expected:.3g} expected)"
    return f"at most {bill.at_most:.4g} {bill.unit} billed{expected}"


@dataclass(frozen=True)
class Preview:
    """What points ask for and what they will cost: shapes, and a row of each with what it should take."""

    shapes: list[Shape]
    rows: list[dict[str, Any]]
    quote: Quote


def preview(plan: "Plan") -> Preview:
    """Return what a submit of a whole plan would ask for and cost."""
    points = [(point.point_id, point.config) for point in plan.feasible]
    return of_points(plan.sweep.path.parent, points, fitting(shapes(points)))


def of_points(
    sweeps_dir: Path, points: Sequence[tuple[str, Config]], requested: list[Shape]
) -> Preview:
    """Return what points in these shapes ask for and cost, by what finished in a folder of sweeps."""
    configs = dict(points)
    past = estimate.past_of(sweeps_dir, configs.values())
    tasks = [
        [[past.expect(configs[point_id]) for point_id in task] for task in shape.tasks]
        for shape in requested
    ]
    rows = [
        {**shape.row(), "expected": _expected(shape, expected, past)}
        for shape, expected in zip(requested, tasks, strict=True)
    ]
    everything = [
        (shape.nodes * shape.ranks_per_node, one)
        for shape, expected in zip(requested, tasks, strict=True)
        for task in expected
        for one in task
    ]
    quote = Quote(
        _bills(requested, tasks),
        footprint(requested, configs, past),
        len(points),
        past.add_up(everything),
        complete(sum, [_at_most_kwh(shape, configs, past) for shape in requested]),
    )
    return Preview(requested, rows, quote)


Tasks = list[list[Expected | None]]  # of each task, what its points should take


def _expected(shape: Shape, tasks: Tasks, past: Past) -> dict[str, Any]:
    """What a shape should take: GPU-hours and kWh of its known points, and the minutes of its longest known task."""
    gpus = shape.nodes * shape.ranks_per_node
    known = [_task_s(shape, task) for task in tasks if None not in task]
    return {
        **asdict(past.add_up([(gpus, one) for task in tasks for one in task])),
        "longest_task_min": max(known) / 60.0 if known else None,
    }


def _task_s(shape: Shape, task: Sequence[Expected | None]) -> float:
    """Return how long a task's known points take in its slots, each begun where one is free first."""
    seconds = [one.seconds for one in task if one is not None]
    if not seconds:
        return 0.0
    if shape.takes_all:  # of 2 points a slot, half run alone and half with all others
        return fmean(seconds) * len(seconds) / (2 * shape.slots) * (shape.slots + 1)
    free_s = [0.0] * shape.slots
    for one in seconds:
        heapq.heapreplace(free_s, free_s[0] + one)
    return max(free_s)


def _bills(requested: Sequence[Shape], tasks: Sequence[Tasks]) -> list[Bill]:
    """Return the hours of all shapes by the unit in which their sites bill them."""
    out: dict[str, Bill] = {}
    for shape, expected in zip(requested, tasks, strict=True):
        if shape.is_local:
            continue
        by_gpu = shape.cluster.bills == "gpu"
        unit, each = ("GPU-hours", shape.gpus_per_node) if by_gpu else ("node-hours", 1)
        each *= shape.nodes
        known = [task for task in expected if any(task)]
        hours = sum(_task_s(shape, task) for task in known) / 3600.0 * each if known else None
        before = out.get(unit, Bill(unit, 0.0, None))
        both = [one for one in (before.expected, hours) if one is not None]
        limit = len(shape.tasks) * shape.cluster.time_min / 60.0 * each
        out[unit] = Bill(unit, before.at_most + limit, sum(both) if both else None)
    return list(out.values())


def _at_most_kwh(shape: Shape, configs: Mapping[str, Config], past: Past) -> float | None:
    """Return what a shape's GPUs can take until its time limits; null where a board's power limit is not known."""
    if shape.is_local:
        return None
    limits = [past.power_limit_w(configs[point_id]) for point_id in shape.point_ids]
    known = [limit for limit in limits if limit is not None]
    if len(known) < len(limits) or not known:
        return None
    hours = len(shape.tasks) * shape.cluster.time_min / 60.0 * shape.nodes * shape.gpus_per_node
    return max(known) * hours / 1000.0
