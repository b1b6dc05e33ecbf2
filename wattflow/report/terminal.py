"""The tables of a report as rows of text, for a terminal."""

from collections.abc import Sequence

from wattflow.analysis.axes import axes_of
from wattflow.analysis.costs import setting_costs
from wattflow.analysis.means import Setting, settings
from wattflow.analysis.sweep import Sweep
from wattflow.nullable import with_doubt
from wattflow.report.text import NUMBERS, choice, mark, plain, source

_COSTS = (
    ("gpu_hours", "GPU-hours"),
    ("energy_kwh", "kWh"),
    ("facility_energy_kwh", "kWh x PUE"),
    ("price", "price"),
    ("price_per_million_tokens", "price / M tokens"),
    ("carbon_g", "g CO2e"),
    ("carbon_g_per_million_tokens", "g / M tokens"),
)


def table(sweep: Sweep) -> list[dict[str, str]]:
    """Return the closing table: a dict a row from heading to cell, means over repeats.

    Watts and joules have their expanded uncertainty (k = 2) behind them. `~` stands before those that were
    simulated; `-` where there is no number, its reason under `source`.
    """
    axes = axes_of(sweep.points)
    return [_cells(one) for one in settings(sweep.points.to_dicts(), axes)]


def _cells(one: Setting) -> dict[str, str]:
    return {
        **{axis: choice(axis, value) for axis, value in one.chosen.items()},
        "n": str(one.n),
        **{
            shown.heading: with_doubt(
                one.means[shown.column].mean,
                one.expanded_u(shown.column),
                mark=mark(shown.power and one.simulated),
            )
            for shown in NUMBERS
        },
        "source": source(one),
    }


def cost_table(sweep: Sweep, factors: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return what each setting cost: a dict a row from heading to cell; `~` before what was simulated.

    Columns of factors that are not declared are left out. `factors` are `cluster.cost.KEY=VALUE`.
    """
    costs = setting_costs(sweep, factors)
    names = [name for name, _ in _COSTS if any(vars(one)[name] is not None for one in costs)]
    rows = []
    for one in costs:
        cells = {axis: choice(axis, value) for axis, value in one.chosen.items()}
        cells |= {"attempts": str(one.attempts), "unknown": str(one.unknown)}
        for name, heading in _COSTS:
            if name in names or name == "gpu_hours":
                simulated = one.simulated and name != "gpu_hours"
                doubt = one.expanded.get(name)
                cells[heading] = with_doubt(vars(one)[name], doubt, mark=mark(simulated))
        rows.append({**cells, "boundary": plain(one.boundary)})
    return rows
