"""What a token and a request cost in joules, by the power model that `collect` fitted to each load.

Own joules are those of a request's tokens: what the load would take less without them. The constant watts of a load,
idle and busy, are shared in proportion to own joules: at a light load they are most of what a request costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from wattflow.errors import RefusedError

LOAD = (
    "workload_mode",
    "workload_rate_per_s",
    "workload_concurrency",
    "batch_size",
    "precision",
    "repeat",
)


@dataclass(frozen=True)
class Lengths:
    """The tokens of a request."""

    tokens_in: int
    tokens_out: int
    tokens_cached: int = 0  # of tokens_in, that the prefix cache has


@dataclass(frozen=True)
class Price:
    """What one load's tokens cost, J, and half widths of 95 % intervals; null where its model cannot tell."""

    point_id: str
    load: dict[str, object]
    simulated: bool
    held_out: float
    input_token_j: float | None
    input_token_half_width_j: float | None
    cached_token_j: float | None
    cached_token_half_width_j: float | None
    output_token_j: float | None
    output_token_half_width_j: float | None
    own_request_j: float | None = None
    request_j: float | None = None  # with its share of constant watts


def prices(points: pl.DataFrame, lengths: Lengths | None = None) -> list[Price]:
    """Return the prices of all loads of a sweep that have a model; RefusedError where none has."""
    found = points.filter(pl.col("power_model").is_not_null() & pl.col("counts"))
    if found.is_empty():
        raise RefusedError(
            "no load with a power model: joules of tokens come of workload.mode=closed or open, with windows of some "
            "ten seconds and more (`wattflow collect` fits them)."
        )
    return [_price(row, lengths) for row in found.sort(*_varied(found)).to_dicts()]


def _varied(found: pl.DataFrame) -> Sequence[str]:
    return [name for name in LOAD if name in found.columns]


def _price(row: dict[str, object], lengths: Lengths | None) -> Price:
    names = [
        name for name in Price.__dataclass_fields__ if name.endswith("token_j") or "half" in name
    ]
    own_j = None if lengths is None else own_joules(row, lengths)
    whole_j = None
    if own_j is not None:
        total, own = _number(row["requests_energy_j"]), _number(row["tokens_own_energy_j"])
        idle = _number(row["requests_idle_energy_j"])
        whole_j = None if None in (total, own, idle) or not own else own_j * (total + idle) / own  # type: ignore[operator]
    return Price(
        point_id=str(row["point_id"]),
        load={name: row[name] for name in LOAD if row.get(name) is not None},
        simulated=bool(row["simulated"]),
        held_out=_number(row["power_model_held_out"]) or 0.0,
        own_request_j=own_j,
        request_j=whole_j,
        **{name: _number(row[name]) for name in names},
    )


def own_joules(row: dict[str, object], lengths: Lengths) -> float | None:
    """Return the joules of a request's tokens at a load; null where the model lacks a term that they need.

    Output token k reads the prompt and the k tokens before it; the first one comes with the prompt. What the cache has
    costs nothing where no load showed it by itself.
    """
    token_j, decode_j = _number(row["input_token_j"]), _number(row["decode_token_j"])
    if decode_j is None or (token_j is None and lengths.tokens_in > lengths.tokens_cached):
        return None
    later = max(lengths.tokens_out - 1, 0)
    positions = later * (lengths.tokens_in + 1) + later * (later - 1) / 2
    return (
        (token_j or 0.0) * (lengths.tokens_in - lengths.tokens_cached)
        + (_number(row["cached_token_j"]) or 0.0) * lengths.tokens_cached
        + decode_j * later
        + (_number(row["position_j"]) or 0.0) * positions
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
