"""What changed between two sweeps: each setting that both ran, the later one's figure over the earlier one's.

A change is established as every other ratio is (analysis/statistics.py), as one family of all settings. Software and
drivers may differ between the two, since they are what is tested; between two models of GPU nothing is established.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from wattflow.analysis import statistics
from wattflow.analysis.axes import Along, choice_columns, moving
from wattflow.analysis.beside import is_mixed
from wattflow.analysis.comparisons import (
    OTHER_MODELS,
    has_other_models,
    moved_along,
    of_watts,
    runs_of,
)
from wattflow.analysis.statistics import Mean, Ratio
from wattflow.analysis.sweep import Sweep
from wattflow.config.identity import point_id
from wattflow.errors import RefusedError
from wattflow.store.columns import CHOICE_KEYS, POINT


@dataclass(frozen=True)
class Change:
    """One setting that both sweeps ran."""

    chosen: dict[str, Any]  # the choices that vary among such settings
    before: Mean
    after: Mean
    ratio: Ratio  # after over before
    along: Along  # what else differs: versions, driver

    def is_worse(self, share: float, *, more_is_better: bool) -> bool:
        """Return whether the figure is established to be worse, and by more than a share."""
        worse = 1 / self.ratio.ratio if more_is_better else self.ratio.ratio
        return self.ratio.established and worse > 1 + share


@dataclass(frozen=True)
class Changes:
    """All settings that both sweeps ran, and how many only one of them did."""

    changes: list[Change]
    only_before: int
    only_after: int
    simulated: bool


def changes(before: Sweep, after: Sweep, metric: str) -> Changes:
    """Return the changes of a figure from one sweep to another.

    RefusedError for a column that is no number, without a setting that counts in both, and for joules of two kinds.
    """
    if metric not in POINT.names or not before.points[metric].dtype.is_numeric():
        raise RefusedError(f"--metric {metric}: not a number's column; docs/results.md has them.")
    old, new = _counting(before, metric), _counting(after, metric)
    both = [name for name in new if name in old]
    if not both:
        raise RefusedError(
            f"{before.name} and {after.name}: no setting counts in both ({len(old)} and {len(new)} settings count). "
            "Run the same choices in both."
        )
    rows = pl.concat([*(old[name] for name in both), *(new[name] for name in both)])
    _refuse_kinds(rows, metric)
    simulated = of_watts(metric) and bool(rows["simulated"].any())
    axes = moving(choice_columns(rows.select(*CHOICE_KEYS, "counts", "command").to_dicts()))
    ratios = statistics.family([_ratio(new[name], old[name], metric) for name in both])
    if simulated:
        ratios = [replace(one, established=False, why_not="simulated") for one in ratios]
    found = [
        Change(
            {axis: new[name][axis][0] for axis in axes},
            statistics.mean(runs_of(old[name], metric)),
            statistics.mean(runs_of(new[name], metric)),
            ratio,
            moved_along(new[name], old[name], ""),
        )
        for name, ratio in zip(both, ratios, strict=True)
    ]
    return Changes(found, len(old) - len(both), len(new) - len(both), simulated)


def _counting(sweep: Sweep, metric: str) -> Mapping[str, pl.DataFrame]:
    """Return the rows that count and have a figure, by their setting: the choices that make a point, repeats aside."""
    names = {
        point.point_id: point_id(replace(point.config(), repeat=0))
        for point in sweep.directory.points()
        if point.command() is None
    }
    rows = sweep.points.filter(pl.col("counts") & (pl.col(metric) > 0))
    settings = [names.get(one, "") for one in rows["point_id"]]
    named = rows.with_columns(pl.Series("setting_", settings, pl.String))
    return {
        str(key[0]): group.drop("setting_")
        for key, group in named.group_by("setting_", maintain_order=True)
        if key[0]
    }


def _ratio(new: pl.DataFrame, old: pl.DataFrame, metric: str) -> Ratio:
    found = statistics.ratio(runs_of(new, metric), runs_of(old, metric))
    if has_other_models(pl.concat([new, old])):
        return replace(found, established=False, why_not=OTHER_MODELS)
    return found


def _refuse_kinds(rows: pl.DataFrame, metric: str) -> None:
    kinds: Sequence[Any] = rows.select("boundary", "simulated").unique().rows()
    if of_watts(metric) and len(kinds) > 1:
        raise RefusedError(
            f"the two sweeps have joules of {len(kinds)} kinds (boundary, measured or simulated), of which there is no "
            "ratio."
        )
    if is_mixed(rows):
        raise RefusedError(
            "some points ran side by side with others and some alone; no ratio holds them."
        )
