"""What each value of one choice costs beside another, over points that share all other choices."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from wattflow.analysis import statistics
from wattflow.analysis.axes import varying
from wattflow.analysis.statistics import BreakEven, Mean, Ratio, Run, Value
from wattflow.errors import RefusedError
from wattflow.store.columns import CHOICE_KEYS, POINT

NO_TOKENS = BreakEven(None, None, None, "no output tokens are known")


@dataclass(frozen=True)
class Arm:
    """One value of the choice that is compared, among points that share `chosen`, the other choices that vary."""

    chosen: dict[str, Any]
    value: Any
    mean: Mean
    against: Any = None  # the value that the ratio is to
    ratio: Ratio | None = None  # null for the reference
    break_even: BreakEven | None = None

    def row(self, by: str) -> dict[str, Any]:
        """Return the arm as a row of `Sweep.compare`."""
        none = dict.fromkeys(("low", "high", "ratio", "how", "established", "why_not"))
        ratio = none if self.ratio is None else vars(self.ratio)
        even = vars(self.break_even or statistics.NO_BREAK_EVEN)
        return {
            **self.chosen,
            by: self.value,
            **vars(self.mean),
            **{f"ratio_{name}": ratio[name] for name in ("low", "high")},
            **{name: ratio[name] for name in ("ratio", "how", "established", "why_not")},
            **{f"break_even_{name}": value for name, value in even.items()},
        }


def arms(points: pl.DataFrame, by: str, metric: str, reference: object = None) -> list[Arm]:
    """Return an arm a value of `by`, in order, for each combination of the other choices that vary.

    RefusedError for a column that is no choice, no number, or has one value only.
    """
    rows = _comparable(points, by, metric)
    values = rows[by].unique().sort().to_list()
    if reference is not None and str(reference) not in map(str, values):
        there = ", ".join(map(str, values))
        raise RefusedError(f"{by}={reference}: no point that counts. There are {there}.")
    return [
        arm
        for chosen, group in alike(rows, by)
        for arm in _arms_of(group, chosen, by, metric, reference)
    ]


def alike(rows: pl.DataFrame, by: str) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    """Return the rows of each combination of the choices that vary beside `by`, in order, with that combination."""
    others = varying(rows, by)
    if not others:
        yield {}, rows
        return
    ordered = rows.sort(others, nulls_last=True, maintain_order=True)
    for key, group in ordered.group_by(others, maintain_order=True):
        yield dict(zip(others, key, strict=True)), group


def _arms_of(
    group: pl.DataFrame, chosen: dict[str, Any], by: str, metric: str, reference: object
) -> Iterator[Arm]:
    """Return the arms of one combination."""
    values = group[by].unique().sort().to_list()
    of_value = {value: group.filter(pl.col(by) == value) for value in values}
    base = next((v for v in of_value if str(v) == str(reference)), next(iter(of_value)))
    simulated = of_watts(metric) and bool(group["simulated"].any())
    for value, rows in of_value.items():
        mean = statistics.mean(_values(rows, metric))
        if value == base:
            yield Arm(chosen, value, mean)
            continue
        ratio = statistics.ratio(_values(rows, metric), _values(of_value[base], metric))
        if simulated:
            ratio = replace(ratio, established=False, why_not="simulated")
        yield Arm(chosen, value, mean, base, ratio, _break_even(rows, of_value[base]))


def of_watts(metric: str) -> bool:
    """Return whether a column holds watts or joules, which a simulated meter makes up."""
    return "energy" in metric or "power" in metric


def _comparable(points: pl.DataFrame, by: str, metric: str) -> pl.DataFrame:
    """Return the points that count and have the metric; RefusedError where no comparison can be made of them."""
    if by not in CHOICE_KEYS:
        raise RefusedError(
            f"--by {by}: not a choice. The sweep varies {', '.join(varying(points))}."
        )
    if metric not in POINT.names or not points[metric].dtype.is_numeric():
        raise RefusedError(f"--metric {metric}: not a number's column; docs/results.md has them.")
    rows = points.filter(pl.col("counts") & (pl.col(metric) > 0))
    if rows[by].n_unique() < 2:
        raise RefusedError(
            f"{by}: {rows[by].n_unique()} value among the {len(rows)} points that count and have {metric}; "
            "a comparison needs two."
        )
    kinds = rows.select("boundary", "simulated").unique(maintain_order=True).rows()
    if of_watts(metric) and len(kinds) > 1:
        named = ", ".join(
            f"{boundary}{', simulated' if simulated else ''}" for boundary, simulated in kinds
        )
        raise RefusedError(
            f"--metric {metric}: the points that count have joules of several kinds ({named}), of which there is no "
            "ratio. Compare another metric, such as tokens_per_s."
        )
    return rows


def _values(rows: pl.DataFrame, metric: str) -> list[Value]:
    """Return the repeats of one arm, with their sampling uncertainty where the metric is joules, and their boards."""
    own = re.sub(r"_(j|w)$", r"_u_\1", metric)
    u = pl.lit(0.0)
    if own != metric and own in rows.columns:
        u = pl.col(own)
    elif of_watts(metric):
        u = pl.col(metric) * pl.col("energy_u_j") / pl.col("energy_j")
    found = rows.select(pl.col(metric).cast(pl.Float64), u.fill_null(0.0).alias("u"), "boards")
    return [Value(value, u_of, tuple(boards or ())) for value, u_of, boards in found.iter_rows()]


def _break_even(rows: pl.DataFrame, base: pl.DataFrame) -> BreakEven:
    """Return the extra host watts at which two arms cost the same energy a token."""
    arms: list[list[Run]] = []
    for of in (rows, base):
        known = of.filter((pl.col("energy_per_token_j") > 0) & (pl.col("tokens_per_s") > 0))
        found = known.select("energy_per_token_j", 1.0 / pl.col("tokens_per_s"), "boards")
        arms.append(
            [(energy_j, s, tuple(boards or ())) for energy_j, s, boards in found.iter_rows()]
        )
    return statistics.break_even(*arms) if all(arms) else NO_TOKENS
