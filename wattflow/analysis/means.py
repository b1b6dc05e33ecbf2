"""Means over repeats: one row of a table for each setting, that is each combination of the axes under one sensor."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattflow.nullable import COVERAGE, complete_sum

Row = Mapping[str, Any]  # of results/points.parquet

FIGURES = (
    "tokens_per_s",
    "words_per_s",
    "responses_per_s",
    "power_w",
    "energy_per_token_j",
    "energy_per_response_j",
    # expanded uncertainties: what repeats on the same boards share, so that their mean is that of each
    "power_expanded_u_w",
    "energy_per_token_expanded_u_j",
    "energy_per_response_expanded_u_j",
)
# joules that differ in one of these have no mean
APART = ("boundary", "simulated", "power_source", "beside")


@dataclass(frozen=True)
class Mean:
    """The mean of a figure over repeats, and their standard deviation; null where it is not known, or of one repeat."""

    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Setting:
    """The repeats of one combination of axes under one sensor."""

    chosen: dict[str, Any]  # the value of each axis
    boundary: str | None
    simulated: bool | None
    power_source: str | None
    n: int  # repeats that count
    means: dict[str, Mean]  # over these, by column
    reasons: list[str]  # of all of them
    beside: bool | None = None  # whether other points ran on the node's other GPUs

    def expanded_u(self, column: str) -> float | None:
        """Return the expanded uncertainty (k = 2) of the mean of a column: its rows' own, and their scatter."""
        own = self.means.get(expanded_column(column))
        if own is None or own.mean is None or own is self.means[column]:
            return None
        return of_mean(own.mean, self.means[column].sd, self.n)


def settings(
    rows: Iterable[Row],
    axes: Sequence[str],
    columns: Sequence[str] = FIGURES,
    apart: Sequence[str] = APART,
) -> list[Setting]:
    """Return the settings in order of their axes, also those of which no repeat counts.

    A repeat that never came to measure belongs to the others of its combination.
    """
    combinations: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        combinations.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    found = []
    for key in sorted(combinations, key=nulls_last):
        alike = combinations[key]
        first = {
            name: next((kind for r in alike if (kind := _kind(r, name)) is not None), None)
            for name in APART
        }
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in alike:
            kinds = {name: _kind(row, name) for name in apart}
            known = {name: first[name] if kind is None else kind for name, kind in kinds.items()}
            groups.setdefault(tuple(known.values()), []).append(row)
        for values, repeats in groups.items():
            kind = {**first, **dict(zip(apart, values, strict=True))}
            found.append(_setting(dict(zip(axes, key, strict=True)), kind, repeats, columns))
    return found


def _kind(row: Row, name: str) -> Any:
    """Return what joules are apart by; points that count had no neighbours before there could be any."""
    kind = row.get(name)
    return False if name == "beside" and row["counts"] and kind is None else kind


def _setting(
    chosen: dict[str, Any], kind: Mapping[str, Any], repeats: Sequence[Row], columns: Sequence[str]
) -> Setting:
    counting = [row for row in repeats if row["counts"]]
    return Setting(
        chosen=chosen,
        boundary=kind["boundary"],
        simulated=kind["simulated"],
        power_source=kind["power_source"],
        n=len(counting),
        means={name: mean([row[name] for row in counting]) for name in columns},
        reasons=list(dict.fromkeys(reason for row in repeats for reason in row["reasons"])),
        beside=kind["beside"],
    )


def mean(values: Iterable[float | None]) -> Mean:
    """Return the mean and the standard deviation of what is known."""
    known = [value for value in values if value is not None]
    return Mean(
        statistics.fmean(known) if known else None,
        statistics.stdev(known) if len(known) > 1 else None,
    )


def expanded_column(column: str) -> str:
    """Return the column of a figure's expanded uncertainty: `power_expanded_u_w` of `power_w`; of rates itself."""
    return re.sub(r"_(j|w)$", r"_expanded_u_\1", column)


def of_mean(shared: float, scatter: float | None, n: int) -> float:
    """Return the expanded uncertainty (k = 2) of a mean of n repeats: what they share, and their scatter."""
    return math.hypot(shared, COVERAGE * (scatter or 0.0) / math.sqrt(max(1, n)))


def nulls_last(key: Sequence[Any]) -> list[tuple[bool, Any]]:
    """Return what a combination of choices is sorted by."""
    return [(value is None, value) for value in key]


@dataclass(frozen=True)
class Energy:
    """The joules of the points that count, of one boundary, either measured or simulated: others make no sum."""

    energy_j: float
    boundary: str
    simulated: bool
    expanded_u_j: float | None = None  # k = 2; null where that of a point is not known


def energies(rows: Iterable[Row]) -> list[Energy]:
    """Return the joules that count, those of each boundary and what was simulated apart."""
    kinds: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        if row["counts"]:
            kinds.setdefault((row["boundary"], row["simulated"]), []).append(row)
    return [
        Energy(
            sum(row["energy_j"] or 0.0 for row in alike),
            *kind,
            expanded_u_j=of_sum(row["energy_expanded_u_j"] for row in alike),
        )
        for kind, alike in kinds.items()
    ]


def of_sum(expanded: Iterable[float | None]) -> float | None:
    """Return the expanded uncertainty of a sum over runs, which may share their boards; null where one is unknown.

    What a sensor is off is the same in each run on its board, so that uncertainties add up as they are; of runs on
    different boards that is more than it needs to be.
    """
    return complete_sum(expanded)
