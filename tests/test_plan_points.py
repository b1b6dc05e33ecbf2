"""The points of a plan."""

from pathlib import Path

from sweeps import choices, plan_point

from wattflow.plan.points import Plan
from wattflow.store.layout import SweepDir


def test_points_with_a_reason_cannot_run():
    """Of three points two have none."""
    points = [
        plan_point(choices(seed=seed), why) for seed, why in enumerate((None, "too big", None))
    ]
    planned = Plan("demo", SweepDir(Path("demo")), [], points, 0)
    assert [point.config.seed for point in planned.feasible] == [0, 2]
