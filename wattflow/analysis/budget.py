"""The budget of one row's energy, as a table that a reviewer can follow: each input, its share, its distribution."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattflow.errors import RefusedError
from wattflow.store.sources import source_of

_METERED = "19 metered boards (arXiv 2312.02741), t with 18 degrees of freedom"
_INPUTS = (
    ("sampling", "rectangular in each step between samples", "the window's own samples"),
    ("edges", "rectangular, within a lag of the stamps", "the sensor's period"),
    ("response", "rectangular, late by up to a period", "the sensor's period"),
    ("aliasing", "arcsine, of unknown phase", "lines of the load at multiples of the sampling"),
    ("missing", "rectangular, up to the highest power seen", "time without samples"),
    ("ticks", "rectangular, within a tick of the counter", "the counter's readings"),
)


@dataclass(frozen=True)
class Input:
    """One line of a budget: its standard uncertainty in J, signed where it is a covariance, and what it rests on."""

    name: str
    u_j: float
    share: float  # of the combined variance
    distribution: str
    source: str


def budget(row: Mapping[str, Any]) -> list[Input]:
    """Return the inputs of energy_j with their shares; they add up, squared, to the combined uncertainty.

    RefusedError where the row has no measured energy, or was collected before it had a budget.
    """
    if row["energy_expanded_u_j"] is None:
        why = (
            ", ".join(row["reasons"]) or "collected by an older version: `wattflow collect` it anew"
        )
        if row["simulated"]:
            why = "its joules are simulated, and no sensor made them"
        raise RefusedError(f"point {row['point_id']}: no budget of uncertainty ({why}).")
    total_j2 = (row["energy_expanded_u_j"] / 2) ** 2
    metered = row["board_reference"] or _METERED
    gain_j, offset_j = row["board_gain_u_j"], row["board_offset_u_j"]
    shared_j2 = row["board_u_j"] ** 2 - gain_j**2 - offset_j**2
    lines = [(name, row[f"{name}_u_j"], by, source) for name, by, source in _INPUTS]
    lines += [
        ("gain", gain_j, "bivariate t", metered),
        ("offset", offset_j, "bivariate t", metered),
        (
            "gain with offset",
            math.copysign(abs(shared_j2) ** 0.5, shared_j2),
            "correlated",
            metered,
        ),
    ]
    return [
        Input(name, u_j, math.copysign(u_j**2, u_j) / total_j2 if total_j2 else 0.0, by, source)
        for name, u_j, by, source in lines
    ]


def heading(row: Mapping[str, Any]) -> str:
    """Return the measurement equation and what measured it, for a person."""
    sensor = source_of(str(row["power_source"]).split(" + ")[0]).description
    return f"E = integral of (reading - offset) / (1 + gain) over {row['duration_s']:.3f} s, by {sensor}"
