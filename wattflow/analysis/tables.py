"""Means over repeats, and costs by declared factors, as rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wattflow.analysis.axes import axes_of
from wattflow.analysis.sweep import Sweep

Row = dict[str, Any]


@dataclass(frozen=True)
class Number:
    """A column of the tables: its heading, and whether it is joules or watts, which simulation makes `~`."""

    column: str
    heading: str
    power: bool


NUMBERS = (
    Number("tokens_per_s", "tokens/s", power=False),
    Number("words_per_s", "words/s", power=False),
    Number("responses_per_s", "responses/s", power=False),
    Number("power_w", "W", power=True),
    Number("energy_per_token_j", "J/token", power=True),
    Number("energy_per_response_j", "J/response", power=True),
)


def means(points: pl.DataFrame, axes: list[str]) -> pl.DataFrame:
    """One row a combination of axes and boundary, over the points that count: n, means, and `_sd` where n > 1.

    Combinations of which no repeat counts are there too, with n = 0 and nulls, and their reasons.
    """
    by = axes or ["model"]
    columns = [number.column for number in NUMBERS]
    good = pl.col("counts")
    watts = ["boundary", "simulated", "power_source"]
    # a repeat that never came to measure belongs to the others of its combination
    told = points.with_columns(
        pl.col(c).fill_null(pl.col(c).drop_nulls().first().over(by)) for c in watts
    )
    grouped = told.group_by([*by, *watts], maintain_order=True).agg(
        good.sum().alias("n"),
        *(pl.col(c).filter(good).mean() for c in columns),
        *(pl.col(c).filter(good).std().alias(f"{c}_sd") for c in columns),
        pl.col("reasons").explode().unique(maintain_order=True).alias("reasons"),
        pl.col("status").unique(maintain_order=True).alias("statuses"),
    )
    return grouped.sort(by, nulls_last=True, maintain_order=True)


def costs(sweep: Sweep, settings: Sequence[str] = ()) -> pl.DataFrame:
    """One row a combination of axes, boundary and declared factors, over all of its attempts, what failed among them.

    Columns attempts, untold (attempts without known joules), sums of gpu_hours, energy_kwh, facility_energy_kwh, price
    and carbon_g, and means over the points that count of price and carbon_g a million tokens. `settings` as in
    `Sweep.cost`.
    """
    axes = axes_of(sweep.points)
    chosen = sweep.attempts.select("point_id", "attempt", *axes)
    declared = ["pue", "pue_source", "currency", "price_source", "carbon_source"]
    told = sweep.cost(settings).join(chosen, on=["point_id", "attempt"], how="left")
    watts = ["boundary", "simulated"]
    told = told.with_columns(
        pl.col(c).fill_null(pl.col(c).drop_nulls().first().over(axes)) for c in watts
    )
    sums = ("gpu_hours", "energy_kwh", "facility_energy_kwh", "price", "carbon_g")
    grouped = told.group_by([*axes, *watts, *declared], maintain_order=True).agg(
        pl.len().alias("attempts"),
        pl.col("energy_kwh").null_count().alias("untold"),
        *(pl.when(pl.col(c).count() > 0).then(pl.col(c).sum()).alias(c) for c in sums),
        *(pl.col(f"{c}_per_million_tokens").filter("counts").mean() for c in ("price", "carbon_g")),
    )
    return grouped.sort(axes, nulls_last=True, maintain_order=True)


def factor_lines(sweep: Sweep, settings: Sequence[str] = ()) -> list[str]:
    """A sentence a declared factor, with the words of where it is from, and one where its table is short.

    One that there is none, where none is declared.
    """
    told = sweep.cost(settings)
    lines = []
    for name, source in (
        ("price_per_kwh", "price_source"),
        ("carbon_g_per_kwh", "carbon_source"),
        ("pue", "pue_source"),
    ):
        unit = {"price_per_kwh": " a kWh", "carbon_g_per_kwh": " g a kWh"}.get(name, "")
        for words in told[source].drop_nulls().unique(maintain_order=True):
            declared = told.filter(pl.col(source) == words)
            of_one = declared.drop_nulls(name)
            short = len(declared) - len(of_one)
            kind = name.partition("_")[0]
            if short:
                lines.append(
                    f"{kind}: the table from {words} does not cover {short} of {len(declared)} attempts"
                )
            if of_one.is_empty():
                continue
            values = of_one[name].to_list()
            least, most = min(values), max(values)
            value = f"{least:g}" if least == most else f"{least:g} to {most:g}"
            money = f" {of_one['currency'][0]}" if name == "price_per_kwh" else ""
            lines.append(f"{kind}: {value}{money}{unit}, from {words}")
    return lines or ["no price, carbon factor or PUE is declared (cluster.cost)"]


def number(value: float | None) -> str:
    """A number as a person reads it: three digits, or all before the point; `-` for null."""
    if value is None:
        return "-"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value else "0"
