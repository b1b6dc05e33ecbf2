"""What varies over the points of a sweep: the axes of its tables, figures, comparisons and papers."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, Protocol

from wattflow.store.columns import CHOICE_KEYS

# The axes that a person names first; others follow in the order of the columns.
_FIRST = (
    "model",
    "dataset",
    "shards",
    "batch_size",
    "max_gen_len",
    "precision",
    "engine",
    "weights",
)
# Said of each row by other columns, or how a point was watched, not what it did.
_NO_AXES = ("repeat", "power_", "cluster_setup", "cluster_sbatch_options", "cluster_srun_options")
_CANDIDATES = [
    *_FIRST,
    *(name for name in CHOICE_KEYS if name not in _FIRST and not name.startswith(_NO_AXES)),
]


class Columns(Protocol):
    """A table by columns: a polars frame, or a dict of lists."""

    def __getitem__(self, name: str, /) -> Iterable[Any]:
        """Return the values of a column."""


def varying(points: Columns, beside: str | None = None) -> list[str]:
    """Return the choices by which points differ, repeats aside: the axes.

    A choice that follows from the axes before it, or from `beside` alone, is no axis, nor is `beside` itself.
    """
    given = None if beside is None else list(points[beside])
    axes: list[str] = []
    groups: Iterable[int] = repeat(0)  # of each point; the axes so far are alike within one group
    count = 1
    for name in _CANDIDATES:
        values = list(points[name])
        if name == beside or (given and len({*zip(given, values, strict=True)}) == len({*given})):
            continue
        numbers: dict[tuple[int, Any], int] = {}
        finer = [numbers.setdefault(pair, len(numbers)) for pair in zip(groups, values)]  # noqa: B905 (repeat is endless)
        if len(numbers) > count:
            axes.append(name)
            groups, count = finer, len(numbers)
    return axes


def axes_of(points: Columns) -> list[str]:
    """Return what rows of a table are named by: the choices that vary, else the model, or the measured command."""
    return varying(points) or ["command" if is_measured(points) else "model"]


def is_measured(points: Columns) -> bool:
    """Return whether `measure` made the points: they have a command, and no choices of a grid."""
    return any(command is not None for command in points["command"])


def choice_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return what the functions above read of some rows, by column."""
    return {name: [row.get(name) for row in rows] for name in (*_CANDIDATES, "command")}
