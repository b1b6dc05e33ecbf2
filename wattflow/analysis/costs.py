"""What the settings of a sweep cost by declared factors, over all of their attempts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wattflow.analysis.axes import axes_of
from wattflow.analysis.means import mean, nulls_last, of_mean, of_sum
from wattflow.analysis.sweep import Sweep
from wattflow.nullable import known_sum

_APART = ("boundary", "simulated")
_DECLARED = ("pue", "pue_source", "currency", "price_source", "carbon_source")
_SUMS = ("gpu_hours", "energy_kwh", "facility_energy_kwh", "price", "carbon_g")
_EXPANDED = {
    "energy_kwh": "energy_expanded_u_kwh",
    "facility_energy_kwh": "facility_energy_expanded_u_kwh",
    "price": "price_expanded_u",
    "carbon_g": "carbon_expanded_u_g",
}


@dataclass(frozen=True)
class SettingCost:
    """All attempts at one combination of axes within one boundary and under one set of factors, failed ones too."""

    chosen: dict[str, Any]  # the value of each axis
    boundary: str | None
    simulated: bool | None
    attempts: int
    unknown: int  # of them, attempts without known joules
    # sums of what is known
    gpu_hours: float | None
    energy_kwh: float | None
    facility_energy_kwh: float | None
    price: float | None
    carbon_g: float | None
    expanded: dict[str, float | None]  # uncertainties (k = 2) of these numbers, by their names
    # means over the attempts that count
    price_per_million_tokens: float | None
    carbon_g_per_million_tokens: float | None


def setting_costs(sweep: Sweep, settings: Sequence[str] = ()) -> list[SettingCost]:
    """Return the costs in order of the axes; `settings` as in `Sweep.cost`."""
    axes = axes_of(sweep.points)
    chosen = sweep.attempts.select("point_id", "attempt", *axes)
    bills = sweep.cost(settings).join(chosen, on=["point_id", "attempt"], how="left")
    bills = bills.with_columns(
        pl.col(name).fill_null(pl.col(name).drop_nulls().first().over(axes)) for name in _APART
    )
    found = [
        _setting_cost(dict(zip(axes, key, strict=False)), group)
        for key, group in bills.group_by([*axes, *_APART, *_DECLARED], maintain_order=True)
    ]
    return sorted(found, key=lambda one: nulls_last([*one.chosen.values()]))


def _setting_cost(chosen: dict[str, Any], bills: pl.DataFrame) -> SettingCost:
    counting = bills.filter("counts")
    per_million = [f"{name}_per_million_tokens" for name in ("price", "carbon_g")]
    means = {name: mean(counting[name]) for name in per_million}
    expanded = {
        name: of_sum(bills[u].filter(bills[name].is_not_null())) for name, u in _EXPANDED.items()
    }
    for name, one in means.items():
        shared = mean(counting[f"{name}_expanded_u"]).mean
        expanded[name] = None if shared is None else of_mean(shared, one.sd, len(counting))
    return SettingCost(
        chosen=chosen,
        boundary=bills["boundary"][0],
        simulated=bills["simulated"][0],
        attempts=len(bills),
        unknown=bills["energy_kwh"].null_count(),
        **{name: known_sum(bills[name]) for name in _SUMS},
        expanded=expanded,
        **{name: one.mean for name, one in means.items()},
    )


def factor_lines(sweep: Sweep, settings: Sequence[str] = ()) -> list[str]:
    """Return a sentence a declared factor, with where it is from, and one where its table is short.

    One that there is none, where none is declared.
    """
    bills = sweep.cost(settings)
    lines = []
    for name, source in (
        ("price_per_kwh", "price_source"),
        ("carbon_g_per_kwh", "carbon_source"),
        ("pue", "pue_source"),
    ):
        unit = {"price_per_kwh": " a kWh", "carbon_g_per_kwh": " g a kWh"}.get(name, "")
        for origin in bills[source].drop_nulls().unique(maintain_order=True):
            declared = bills.filter(pl.col(source) == origin)
            of_one = declared.drop_nulls(name)
            short = len(declared) - len(of_one)
            kind = name.partition("_")[0]
            if short:
                lines.append(
                    f"{kind}: the table from {origin} does not cover {short} of {len(declared)} attempts"
                )
            if of_one.is_empty():
                continue
            values = of_one[name].to_list()
            least, most = min(values), max(values)
            value = f"{least:g}" if least == most else f"{least:g} to {most:g}"
            money = f" {of_one['currency'][0]}" if name == "price_per_kwh" else ""
            lines.append(f"{kind}: {value}{money}{unit}, from {origin}")
    return lines or ["no price, carbon factor or PUE is declared (cluster.cost)"]
