"""Where one setting stops being dearer than another: their ratio over a third choice, and where it crosses 1.

A side is known where its ratio is established: its interval leaves out 1, corrected for how many were made. Between two
neighbours that are known and on different sides lies a crossing; where in between, a straight line of logarithms
estimates. What lies between them and is not known cannot be said.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import polars as pl

from wattflow.analysis import comparisons
from wattflow.analysis.axes import in_words
from wattflow.analysis.comparisons import Arm
from wattflow.analysis.controls import Control
from wattflow.errors import RefusedError


@dataclass(frozen=True)
class Crossing:
    """Two values of the choice between which the ratio crosses 1."""

    low: float  # the last one that is known on the side before
    high: float  # the first one that is known on the other side
    estimate: float  # between the two, by a straight line of logarithms
    dearer_below: bool  # whether the setting is dearer below and cheaper above


@dataclass(frozen=True)
class Crossover:
    """One setting against another over a third choice."""

    chosen: dict[str, Any]  # the choices that all arms share
    value: Any
    against: Any
    over: str
    arms: list[Arm]  # in the order of `over`
    crossings: list[Crossing]

    def sides(self) -> list[tuple[float, int]]:
        """Return each value of `over`, with 1 where the setting is dearer, -1 where cheaper, 0 where nobody can say."""
        return [(float(arm.chosen[self.over]), _side(arm)) for arm in self.arms]

    def sentences(self) -> list[str]:
        """Return what can be said, in words."""
        name = f"{in_words(self.value)} against {in_words(self.against)}"
        sides = self.sides()
        known = {side for _, side in sides if side}
        parts = [f"{_WORDS[side]} at {self.over} {_listed(of)}" for side, of in _runs(sides)]
        said = [f"{name}: {'; '.join(parts)}."]
        for one in self.crossings:
            between = f"between {self.over} {one.low:g} and {one.high:g}"
            way = (
                "dearer below, cheaper above" if one.dearer_below else "cheaper below, dearer above"
            )
            said.append(f"It crosses {between}, at about {one.estimate:.3g}: {way}.")
        if not self.crossings:
            said.append(
                "Whether it crosses cannot be said."
                if not known or any(side == 0 for _, side in sides)
                else "It crosses nowhere among these."
            )
        return said


_WORDS = {1: "dearer", -1: "cheaper", 0: "cannot be said"}


def _side(arm: Arm) -> int:
    ratio = arm.ratio
    if ratio is None or not ratio.established:
        return 0
    return 1 if ratio.ratio > 1 else -1


def _runs(sides: Sequence[tuple[float, int]]) -> list[tuple[int, list[float]]]:
    """Return neighbours on one side together."""
    return [(side, [x for x, _ in of]) for side, of in groupby(sides, key=lambda one: one[1])]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def crossovers(
    points: pl.DataFrame,
    by: str,
    over: str,
    metric: str = "energy_per_token_j",
    *,
    reference: object = None,
    along: Collection[str] = (),
    controls: Sequence[Control] = (),
) -> list[Crossover]:
    """Return where each value of `by` crosses the reference over a number, for each combination of the other choices.

    `controls` say what neighbours change, as in `comparisons.arms`. RefusedError for what cannot be compared, and for
    an `over` that is no number or has one value.
    """
    if over == by or over not in points.columns or not points[over].dtype.is_numeric():
        raise RefusedError(f"--over {over}: not a choice that is a number.")
    counting = points.filter(pl.col("counts"))
    if counting[over].n_unique() < 2:
        raise RefusedError(
            f"--over {over}: one value among the points that count; a crossing needs two."
        )
    found = comparisons.arms(points, by, metric, reference, along, controls=controls)
    compared = [arm for arm in found if arm.ratio is not None]
    if any(over not in arm.chosen or arm.chosen[over] is None for arm in compared):
        raise RefusedError(
            f"--over {over}: moves along with {by}, so that no two points share it. Add points by `wattflow submit`."
        )
    groups: dict[str, list[Arm]] = {}
    for arm in compared:
        rest = {name: value for name, value in arm.chosen.items() if name != over}
        groups.setdefault(repr((rest, arm.value)), []).append(arm)
    return [_crossover(of, over) for of in groups.values()]


def _crossover(arms: Sequence[Arm], over: str) -> Crossover:
    ordered = sorted(arms, key=lambda arm: float(arm.chosen[over]))
    first = ordered[0]
    chosen = {name: value for name, value in first.chosen.items() if name != over}
    known = [arm for arm in ordered if _side(arm)]
    crossings = [
        _crossing(one, other, ordered, over)
        for one, other in pairwise(known)
        if _side(one) != _side(other)
    ]
    return Crossover(chosen, first.value, first.against, over, list(ordered), crossings)


def _crossing(one: Arm, other: Arm, ordered: Sequence[Arm], over: str) -> Crossing:
    """Return a crossing between two arms; estimated between the neighbours where the ratio itself changes sides."""
    low, high = float(one.chosen[over]), float(other.chosen[over])
    between = [arm for arm in ordered if low <= float(arm.chosen[over]) <= high]
    before = _side(one) > 0
    at = high
    for left, right in pairwise(between):
        if (_log(left) > 0) == before and (_log(right) > 0) != before:
            at = _where(left, right, over)
            break
    return Crossing(low, high, at, before)


def _log(arm: Arm) -> float:
    assert arm.ratio is not None
    return math.log(arm.ratio.ratio)


def _where(left: Arm, right: Arm, over: str) -> float:
    """Return where a straight line through two ratios meets 1: of logarithms, or of values where one is 0 or less."""
    first, last = float(left.chosen[over]), float(right.chosen[over])
    share = _log(left) / (_log(left) - _log(right))
    if first <= 0:
        return first + share * (last - first)
    return first * math.exp(share * math.log(last / first))
