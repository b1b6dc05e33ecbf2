"""The setting that takes the fewest joules a token for the same work, and those that may take as few."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wattflow.analysis import statistics
from wattflow.analysis.axes import in_words, is_work, moving
from wattflow.analysis.beside import is_mixed
from wattflow.analysis.comparisons import is_other_machine, runs_of
from wattflow.analysis.statistics import Mean, Value

METRIC = "energy_per_token_j"


@dataclass(frozen=True)
class Cheapest:
    """Of the settings that do the same work the one of the fewest J/token, or why none can be named."""

    work: str  # model tiny, dataset gsm8k; empty where all points of the sweep do the same
    settings: int  # that have points which count
    without: int  # further ones, of which no point counts
    setting: str | None = None  # its choices that vary: batch_size 64, precision bf16
    mean: Mean | None = None
    next: str | None = None  # the setting of the second lowest mean
    below_next: float | None = None  # by which share the lowest mean is lower
    not_established: Sequence[str] = ()  # the others that may take as few, the nearest first
    simulated: bool = False
    why_not: str | None = None


def cheapest(points: pl.DataFrame) -> list[Cheapest]:
    """Return the setting of the lowest mean for each work of which two settings or more count, in the grid's order."""
    tried = points.filter(pl.col("status") != "infeasible")
    found = []
    for work, rows in _by(tried, [name for name in moving(tried) if is_work(name)]):
        counting = rows.filter(pl.col("counts") & (pl.col(METRIC) > 0))
        settings = list(_by(counting, moving(counting)))
        if len(settings) > 1:
            axes = moving(rows)
            without = rows.select(axes).n_unique() - counting.select(axes).n_unique()
            found.append(_cheapest(work, counting, settings, without))
    return found


def _by(rows: pl.DataFrame, axes: Sequence[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Return the rows of each combination of some choices, with that in words."""
    if not axes:
        yield "", rows
        return
    for key, group in rows.group_by(axes, maintain_order=True):
        yield _named(axes, key), group


def _named(axes: Sequence[str], key: Sequence[Any]) -> str:
    return ", ".join(f"{name} {in_words(value)}" for name, value in zip(axes, key, strict=True))


def _cheapest(
    work: str, counting: pl.DataFrame, settings: Sequence[tuple[str, pl.DataFrame]], without: int
) -> Cheapest:
    kinds = counting.select("boundary", "simulated").unique(maintain_order=True).rows()
    if len(kinds) > 1:
        named = "; ".join(f"{of}{', simulated' if made_up else ''}" for of, made_up in kinds)
        why_not = f"their joules are of several kinds ({named}), which no comparison holds against each other"
        return Cheapest(work, len(settings), without, why_not=why_not)
    if is_mixed(counting):
        why_not = "some points ran side by side with others on their node and some alone; no comparison holds them"
        return Cheapest(work, len(settings), without, why_not=f"{why_not} against each other")
    read = [
        _Setting(name, group, runs_of(group, METRIC), {*group["power_source"]})
        for name, group in settings
    ]
    first, *others = sorted(read, key=lambda one: statistics.mean(one.runs).mean)
    simulated = bool(counting["simulated"].any())
    lower = _lower(first.runs, [one.runs for one in others])
    open_ = [
        one.name
        for one, known in zip(others, lower, strict=True)
        if simulated
        or not known
        or one.sensors != first.sensors
        or is_other_machine(one.rows, first.rows)
    ]
    mean, second = statistics.mean(first.runs), others[0]
    below = 1.0 - mean.mean / statistics.mean(second.runs).mean
    return Cheapest(
        work, len(settings), without, first.name, mean, second.name, below, open_, simulated
    )


@dataclass(frozen=True)
class _Setting:
    """A setting with its repeats, and the sensors that read them: another one may make a difference by itself."""

    name: str
    rows: pl.DataFrame
    runs: list[Value]
    sensors: set[str]


def _lower(first: Sequence[Value], others: Sequence[Sequence[Value]]) -> list[bool]:
    """Return against which others the lowest mean is established.

    It is the lowest of these very runs, so that each pair of settings is a comparison that was made.
    """
    pairs = len(others) * (len(others) + 1) // 2
    ratios = [statistics.ratio(other, first) for other in others]
    return [one.established for one in statistics.family(ratios, made=pairs)]
