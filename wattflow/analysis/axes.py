"""What varies over the points of a sweep: the axes of its tables, figures, comparisons and papers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

from wattflow.analysis import derived
from wattflow.store.columns import CHOICE_KEYS, choice_value, choice_values

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
# Said of each row by other columns; how a point was asked for or watched, not what it did.
_NO_AXES: tuple[str, ...] = (
    "repeat",
    "power_",
    "control_by",
    "control_journal_dir",
    "engine_init_timeout_s",
)
_NO_AXES += tuple(
    f"cluster_{key}"
    for key in (
        *("account", "qos", "reservation", "wckey", "time_min", "points_per_task", "max_tasks"),
        *("side_by_side", "max_node_hours", "bills", "pack"),
        *("array_throttle", "max_array_size", "setup", "sbatch_options", "srun_options", "cost"),
        *("accounting", "comment", "python", "spool_dir", "shared_sweeps_dir", "group_readable"),
    )
)
# No axes of a table, but among compared points they may make the difference: clocks that Slurm sets, another Python.
SETUPS = ("cluster_setup", "cluster_python", "cluster_sbatch_options", "cluster_srun_options")
_CANDIDATES = [
    *_FIRST,
    *(name for name in CHOICE_KEYS if name not in _FIRST and not name.startswith(_NO_AXES)),
]
# What a file of a group, a checkpoint or a dataset brings with it, by what a person chooses.
_BROUGHT_BY = {
    ("model", "weights"): (
        *(name for name in CHOICE_KEYS if name.startswith("model_") and name != "model_chat"),
    ),
    ("dataset",): ("dataset_format", "dataset_path"),
    ("cluster",): tuple(name for name in CHOICE_KEYS if name.startswith("cluster_")),
}

# What is asked of a machine. Tokens of two models or lengths are two things: none is the cheaper way to the other.
_WORK = {
    *("model", "dataset", "weights", "max_gen_len", "max_seq_len", "n_prompts", "seed"),
    *("temperature", "top_p", "stop", "workload_mode"),
}
_WORK_OF_GROUPS = ("model_", "dataset_")


Along = dict[str, tuple[Any, Any]]  # what moved along: its value here, and in the reference


class Columns(Protocol):
    """A table by columns: a polars frame, or a dict of lists."""

    def __getitem__(self, name: str, /) -> Iterable[Any]:
        """Return the values of a column."""


def is_work(name: str) -> bool:
    """Return whether a choice says what is done, not how: settings that differ in it do not compete."""
    return name in _WORK or name.startswith(_WORK_OF_GROUPS)


def moving(points: Columns, *, meter: bool = False) -> list[str]:
    """Return the choices by which points differ, repeats aside: the axes of tables.

    One that another brings with it by a rule of ours is none: the nodes of shards, the layers of a model. One that
    somebody moved along with another is, as it may be what makes the difference.
    With `meter`, for points that are compared, also the meter, and how a site starts them: two sensors may differ as
    two settings do, and options of Slurm may lower clocks.
    """
    candidates = [*_CANDIDATES, "power_meter", *SETUPS] if meter else _CANDIDATES
    moved = [name for name in candidates if len({*points[name]}) > 1]
    return [name for name in moved if not (_brought(points, name, moved) or _ruled(points, name))]


def _brought(points: Columns, name: str, moved: Sequence[str]) -> bool:
    """Return whether what was chosen in its place says each value of a choice."""
    for choosers, brought in _BROUGHT_BY.items():
        heads = [head for head in choosers if head in moved]
        if name in brought and heads:
            return _follows(points, name, heads)
    return False


def _follows(points: Columns, name: str, heads: Sequence[str]) -> bool:
    """Return whether rows that are alike in some choices are so in another."""
    keys = list(zip(*(points[head] for head in heads), strict=True))
    return len({*zip(keys, points[name], strict=True)}) == len({*keys})


def _ruled(points: Columns, name: str) -> bool:
    """Return whether all values of a choice are those that nobody names: `resolve` fills them in."""
    if name not in derived.RULES:
        return False
    if name in derived.OF_PROMPTS and not _follows_own(points, name):
        return False
    columns = (points[column] for column in derived.READ)
    rows = [dict(zip(derived.READ, row, strict=True)) for row in {*zip(*columns, strict=True)}]
    own = name in derived.OF_PROMPTS
    return all((own and row["dataset_path"]) or derived.is_derived(name, row) for row in rows)


def _follows_own(points: Columns, name: str) -> bool:
    """Return whether a choice follows from the dataset where that is a file of one's own, of unknown length."""
    rows = zip(points["dataset"], points["dataset_path"], points[name], strict=True)
    own = {row for row in rows if row[1] is not None}
    return len({row[:2] for row in own}) == len(own)


def varying(points: Columns, beside: str | None = None) -> list[str]:
    """Return the fewest choices that distinguish points, repeats aside: what rows are grouped by.

    A choice that follows from the ones before it, or from `beside` alone, is none, nor is `beside` itself.
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


def shown_axes(points: Columns) -> list[str]:
    """Return the choices that tables show: those that distinguish points, and all that move among those that count.

    A point that never counts, with choices of its own, moves nothing.
    """
    kept = [i for i, counts in enumerate(points["counts"]) if counts is not False]
    columns = {name: list(points[name]) for name in (*_CANDIDATES, *derived.READ)}
    moved = moving({name: [values[i] for i in kept] for name, values in columns.items()})
    return sorted({*varying(points), *moved}, key=_CANDIDATES.index)


def axes_of(points: Columns) -> list[str]:
    """Return what rows of a table are named by: the choices that vary, else the model, or the measured command."""
    return shown_axes(points) or ["command" if is_measured(points) else "model"]


def is_measured(points: Columns) -> bool:
    """Return whether `measure` made the points: they have a command, and no choices of a grid."""
    return any(command is not None for command in points["command"])


def choice_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return what the functions above read of some rows, by column."""
    return {
        name: [row.get(name) for row in rows]
        for name in (*_CANDIDATES, *derived.READ, "counts", "command")
    }


@dataclass(frozen=True)
class Repeated:
    """A column whose value is the same in all rows."""

    value: Any
    rows: int

    def __iter__(self) -> Iterator[Any]:
        """Return the value, as often as there are rows."""
        return repeat(self.value, self.rows)


def columns_of(choices: Iterable[Mapping[str, Any]]) -> dict[str, Iterable[Any]]:
    """Return the choices of points by results column, one point at a time: what all share is held once."""
    first: Mapping[str, Any] = {}
    shared: dict[str, Any] = {}
    found: dict[str, list[Any]] = {}
    rows = 0
    for rows, one in enumerate(choices, 1):
        if rows == 1:
            first, shared = one, choice_values(dict(one))
        moved = {key for key in {*first, *one} if first.get(key) != one.get(key)}
        for column in (column for key in moved for column in _COLUMNS_OF.get(key, ())):
            if column not in found and choice_value(one, column) != shared[column]:
                found[column] = [shared[column]] * (rows - 1)
        for column, held in found.items():
            apart = CHOICE_KEYS[column].partition(".")[0] in moved
            held.append(choice_value(one, column) if apart else shared[column])
    return {
        **{column: Repeated(value, rows) for column, value in shared.items()},
        **dict.fromkeys(("counts", "command"), Repeated(None, rows)),
        **found,
    }


_COLUMNS_OF: dict[str, list[str]] = {}  # by the first part of their keys
for _column, _key in CHOICE_KEYS.items():
    _COLUMNS_OF.setdefault(_key.partition(".")[0], []).append(_column)


def heading(name: str) -> str:
    """Return a column's name as a heading: blanks for underscores."""
    return name.replace("_", " ")


def in_words(value: object) -> str:
    """Return the value of a choice as a person writes it."""
    return "null" if value is None else str(value)


def along_in_words(along: Along) -> str:
    """Return what moved along for a sentence: `batch_size 8 against 64, ...`; empty where nothing did."""
    return ", ".join(
        f"{name} {in_words(here)} against {in_words(there)}"
        for name, (here, there) in along.items()
    )
