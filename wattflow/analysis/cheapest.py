"""The setting of a sweep that takes the fewest joules a token, and those that may take as few."""

from dataclasses import dataclass

import polars as pl

from wattflow.analysis import statistics
from wattflow.analysis.axes import in_words, moving
from wattflow.analysis.comparisons import runs_of
from wattflow.analysis.statistics import Mean

METRIC = "energy_per_token_j"


@dataclass(frozen=True)
class Cheapest:
    """A setting, its J/token, and the others that it is not established against, the nearest first."""

    setting: str  # its choices that vary: batch_size 64, precision bf16
    mean: Mean
    settings: int  # of which it is the cheapest
    not_established: list[str]
    simulated: bool


def cheapest(points: pl.DataFrame) -> Cheapest | None:
    """Return the setting of the lowest mean among points that count.

    Null where there are less than two settings, or joules of several kinds, of which none is the lowest.
    """
    rows = points.filter(pl.col("counts") & (pl.col(METRIC) > 0))
    axes = moving(rows)
    if not axes or rows.select("boundary", "simulated").n_unique() > 1:
        return None
    groups = {
        ", ".join(f"{name} {in_words(value)}" for name, value in zip(axes, key, strict=True)): group
        for key, group in rows.group_by(axes, maintain_order=True)
    }
    if len(groups) < 2:
        return None
    means = {name: statistics.mean(runs_of(group, METRIC)) for name, group in groups.items()}
    first, *others = sorted(groups, key=lambda name: means[name].mean)
    reference = runs_of(groups[first], METRIC)
    ratios = statistics.family(
        [statistics.ratio(runs_of(groups[name], METRIC), reference) for name in others]
    )
    simulated = bool(rows["simulated"].any())
    open_ = [
        name for name, one in zip(others, ratios, strict=True) if simulated or not one.established
    ]
    return Cheapest(first, means[first], len(groups), open_, simulated)
