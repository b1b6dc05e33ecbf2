"""Energy against throughput or latency: the settings that no other beats in both, and those of which it is not known.

One setting dominates another where it is better in both figures. By means alone, whatever lies a hair behind the front
would be off it; here a setting is off only where some setting of the front is established to be better in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import polars as pl

from wattflow.analysis import statistics
from wattflow.analysis.axes import is_work, moving
from wattflow.analysis.beside import is_mixed
from wattflow.analysis.comparisons import is_other_machine, of_watts, runs_of
from wattflow.analysis.statistics import Mean, Ratio
from wattflow.errors import RefusedError
from wattflow.store.columns import POINT

State = Literal["front", "not established", "dominated"]


@dataclass(frozen=True)
class Candidate:
    """A setting and its two figures.

    `front`: no setting is better in both by its means; `dominated`: one is established to be, `by` says which;
    `not established`: one is better in both by its means, and it may be chance.
    """

    chosen: dict[str, Any]  # the value of each choice that varies
    energy: Mean
    other: Mean
    state: State
    by: dict[str, Any] | None  # of those that are better in both, the one that is most surely


def pareto(points: pl.DataFrame, metric: str, against: str) -> list[Candidate]:
    """Return the settings that count, the best in `metric` first; those that do other work have a front of their own.

    A figure a second is better high, any other low. All pairs of settings are one family, corrected by Holm.
    RefusedError for a column that is no number, fewer than two settings, or joules of several kinds.
    """
    rows = _comparable(points, metric, against)
    axes = moving(rows)
    work = [name for name in axes if is_work(name)]
    found: list[_Setting] = []
    for key, group in rows.group_by(axes, maintain_order=True) if axes else ():
        chosen = dict(zip(axes, key, strict=True))
        values = [runs_of(group, name) for name in (metric, against)]
        means = (statistics.mean(values[0]), statistics.mean(values[1]))
        found.append(_Setting(chosen, group, tuple(chosen[name] for name in work), values, means))
    if len(found) < 2:
        raise RefusedError("one setting counts: a front needs two or more.")
    signs = (_sign(metric), _sign(against))
    simulated = bool(rows["simulated"].any()) and (of_watts(metric) or of_watts(against))
    judged = _judged(found, signs, simulated=simulated)
    return sorted(judged, key=lambda one: signs[0] * one.energy.mean)


@dataclass(frozen=True)
class _Setting:
    chosen: dict[str, Any]
    rows: pl.DataFrame
    work: tuple[Any, ...]
    values: list[list[statistics.Value]]  # of each figure
    means: tuple[Mean, Mean]


def _comparable(points: pl.DataFrame, *metrics: str) -> pl.DataFrame:
    """Return the points that count and have both figures."""
    for name in metrics:
        if name not in POINT.names or not points[name].dtype.is_numeric():
            raise RefusedError(f"{name}: not a number's column; docs/results.md has them.")
    rows = points.filter(pl.col("counts") & pl.all_horizontal(pl.col(name) > 0 for name in metrics))
    kinds = rows.select("boundary", "simulated").n_unique()
    if kinds > 1 and any(map(of_watts, metrics)):
        raise RefusedError(
            f"the points that count have joules of {kinds} kinds (boundary, measured or simulated), which share no "
            "front. Make a sweep a kind."
        )
    if is_mixed(rows):
        raise RefusedError(
            "some points ran side by side with others on their node and some alone; they share no front. Make a sweep "
            "a kind."
        )
    return rows


def _sign(metric: str) -> int:
    return -1 if metric.endswith("_per_s") else 1


def _better(one: _Setting, other: _Setting, signs: Sequence[int]) -> bool:
    """Return whether a setting is as good in both figures and better in one, by its means."""
    gains = [
        sign * (theirs.mean - ours.mean)
        for sign, ours, theirs in zip(signs, one.means, other.means, strict=True)
    ]
    return one.work == other.work and min(gains) >= 0 and max(gains) > 0


def _judged(
    settings: Sequence[_Setting], signs: Sequence[int], *, simulated: bool
) -> list[Candidate]:
    front = [one for one in settings if not any(_better(a, one, signs) for a in settings)]
    pairs = [(a, one) for one in settings for a in front if _better(a, one, signs)]
    # which pairs these are was chosen by these very runs, so that each pair that does the same work was a comparison
    made = sum(a.work == b.work for a, b in combinations(settings, 2))
    ratios = statistics.family([_weaker(a, one) for a, one in pairs], made=made)
    found = []
    for one in settings:
        against = [(r, a) for r, (a, b) in zip(ratios, pairs, strict=True) if b is one]
        if not against:
            found.append(Candidate(one.chosen, *one.means, "front", None))
            continue
        surest, by = min(against, key=lambda pair: (not pair[0].established, pair[0].p or 1.0))
        sure = surest.established and not simulated
        state: State = "dominated" if sure else "not established"
        found.append(Candidate(one.chosen, *one.means, state, by.chosen))
    return found


def _weaker(one: _Setting, other: _Setting) -> Ratio:
    """Return of both figures' ratios the less sure one: better in both is established where both are.

    On another model of GPU, or started in another way, neither is: that may make the difference.

    By the intersection-union test (Berger, Technometrics 24, 1982) the larger p is that of both together.
    """
    ratios = [statistics.ratio(a, b) for a, b in zip(one.values, other.values, strict=True)]
    weaker = max(ratios, key=lambda r: (not r.established, 1.0 if r.p is None else r.p))
    if is_other_machine(one.rows, other.rows):
        weaker = replace(weaker, established=False, why_not="another machine")
    return replace(weaker, p=1.0 if weaker.p is None else weaker.p)
