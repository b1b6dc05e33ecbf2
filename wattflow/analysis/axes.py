"""What varies over the points of a sweep: the axes of its tables and figures."""

import polars as pl

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


def varying(points: pl.DataFrame) -> list[str]:
    """The choices that tell the points apart, repeats aside; one that follows from those before it is left out."""
    columns = [*_FIRST, *(column for column in CHOICE_KEYS if column not in _FIRST)]
    axes: list[str] = []
    told = 1
    for column in columns:
        if column.startswith(_NO_AXES) or points[column].n_unique() < 2:
            continue
        count = points.select(*axes, column).n_unique()
        if count > told:
            axes.append(column)
            told = count
    return axes


def axes_of(points: pl.DataFrame) -> list[str]:
    """What to tell the points by: the choices that vary, else the model, or the command that was measured."""
    return varying(points) or ["command" if is_measured(points) else "model"]


def is_measured(points: pl.DataFrame) -> bool:
    """Whether `measure` made the points: they have a command, and no choices of a grid."""
    return points["command"].null_count() < len(points)
