"""Make a control of neighbours from the collected points of grid=neighbours."""

import math
from collections.abc import Sequence

import polars as pl

from wattflow.analysis import statistics
from wattflow.analysis.comparisons import alike, runs_of
from wattflow.analysis.controls import METRICS, Bound, Control, kind_of

_ALL = 0.05  # of a neighbour may be missing in a window of which all slots are full


def measure(sweep: str, points: pl.DataFrame) -> list[Control]:
    """Return the controls that a sweep of grid=neighbours made, one a kind of node and number of slots.

    A kind whose boards did not run both ways, or twice each, has none. Over several points a bound holds for all.
    """
    rows = points.filter(pl.col("counts") & pl.col("slots").is_not_null())
    found: dict[tuple[str, str, str, int], dict[str, list[Bound]]] = {}
    for _, group in alike(rows, "repeat") if len(rows) else ():
        alone = group.filter(~pl.col("beside"))
        full = group.filter(pl.col("neighbours") >= pl.col("slots") - 1 - _ALL)
        if alone.is_empty() or full.is_empty():
            continue
        one = group.row(0, named=True)
        kind = (*kind_of(one), int(one["slots"]))
        bounds = found.setdefault(kind, {name: [] for name in METRICS})
        for name, metric in METRICS.items():
            ratio = statistics.ratio(runs_of(full, metric), runs_of(alone, metric))
            if ratio.pairs and ratio.low is not None and ratio.high is not None:
                bounds[name].append(Bound(ratio.ratio, ratio.low, ratio.high, ratio.pairs))
    return [
        Control(sweep, *kind, {name: _of_all(some) for name, some in bounds.items()})
        for kind, bounds in found.items()
        if all(bounds.values())
    ]


def _of_all(bounds: Sequence[Bound]) -> Bound:
    """Return the bound that holds for several points."""
    return Bound(
        math.exp(sum(math.log(one.ratio) for one in bounds) / len(bounds)),
        min(one.low for one in bounds),
        max(one.high for one in bounds),
        min(one.pairs for one in bounds),
    )
