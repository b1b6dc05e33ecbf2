"""Refuse to add points to a sweep that differ from its own in other choices than these do among each other.

Such a sweep would compare what nobody set out to compare: a precision of today with the batch size of last week.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from wattflow.analysis.axes import choice_columns, moving
from wattflow.config.choices import to_dict
from wattflow.config.identity import is_hashed
from wattflow.errors import RefusedError
from wattflow.store.columns import CHOICE_KEYS, choice_values

if TYPE_CHECKING:  # importing it loads Hydra, which resume and cancel do not need
    from wattflow.plan.points import Plan


def check_axes(plan: "Plan") -> None:
    """Raise RefusedError where a plan would give its existing sweep further axes; a first axis may be added."""
    if not plan.sweep.grid_path.is_file():
        return
    old = {point.point_id: point for point in plan.sweep.points()}
    added = [p.config for p in plan.points if p.point_id not in old]
    if not added:
        return
    there = _rows(point.choices() for point in old.values())
    new = _rows(map(to_dict, added))
    axes, together = _axes(there), _axes([*there, *new])
    if together == axes or (not axes and len(together) == 1):
        return
    asked = _axes(_rows(to_dict(point.config) for point in plan.points))
    further = [key for key in together if key not in axes]
    raise RefusedError(
        f"{plan.sweep.path}: its points vary in {_listed(axes)}, these in {_listed(asked)}; both together would vary "
        f"in {_listed(further)}, too. Name a sweep of their own with sweep=NAME, or ask for the values of "
        f"{_listed(further)} that the sweep has."
    )


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys) or "nothing"


def _rows(choices: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the distinct choices by column, repeats aside."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in choices:
        row = {**choice_values(one), "repeat": None}
        found.setdefault(tuple(row.values()), row)
    return list(found.values())


def _axes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys by which points differ, of those that make a point; a site stands for the GPUs that it names."""
    of = choice_columns(rows)
    sites = len({row["cluster_gpu_model"] for row in rows}) > 1
    kept = [
        name for name in moving(of) if is_hashed(CHOICE_KEYS[name]) or (name == "cluster" and sites)
    ]
    return [CHOICE_KEYS[name].removesuffix(".name") for name in kept]
