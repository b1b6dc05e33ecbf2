"""Joules of the requests of a load, by models that share out what its devices' meters measured.

Rows of results/requests.parquet and columns of results/points.parquet. What is not measured here is a model's,
and says so: the meter sees seconds, not requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattflow.analysis import power_model
from wattflow.analysis.attribution import (
    Attribution,
    Measured,
    attribute,
    blocks_of,
    edges_ns,
)
from wattflow.analysis.intervals import student_t
from wattflow.analysis.power_model import TERMS, PowerModel
from wattflow.collect.latency import request_times
from wattflow.collect.quantities import PhaseEnergy
from wattflow.collect.reading import Device
from wattflow.collect.scheduling import Load
from wattflow.config.choices import Config, Model
from wattflow.energy import curve
from wattflow.store.sources import SECOND_NS
from wattflow.workload import vllm_fit

_WHOLE = 0.99  # of a block's time that was measured, for a model to be fitted to it


@dataclass(frozen=True)
class RequestEnergy:
    """Columns of results/points.parquet; null where no model was fitted."""

    power_model: str | None = None
    power_model_blocks: int | None = None
    power_model_held_out: float | None = None
    power_model_dropped: str | None = None
    model_idle_w: float | None = None
    model_busy_w: float | None = None
    input_token_j: float | None = None
    input_token_half_width_j: float | None = None
    cached_token_j: float | None = None
    cached_token_half_width_j: float | None = None
    output_token_j: float | None = None
    output_token_half_width_j: float | None = None
    decode_token_j: float | None = None
    position_j: float | None = None
    requests_energy_j: float | None = None
    requests_idle_energy_j: float | None = None
    tokens_own_energy_j: float | None = None
    models_spread: float | None = None


def served(
    load: Load, devices: Sequence[Device], phases: Sequence[PhaseEnergy], config: Config
) -> tuple[RequestEnergy, list[dict[str, Any]]]:
    """Return the columns of an attempt, and a row a request; joules are null where a model cannot be fitted."""
    if load.requests is None or not load.requests.num_rows:
        return RequestEnergy(), []
    found = _attributed(load, devices, phases, config)
    rows = _rows(load, found)
    return RequestEnergy() if found is None else _columns(found), rows


def _attributed(
    load: Load, devices: Sequence[Device], phases: Sequence[PhaseEnergy], config: Config
) -> Attribution | None:
    if load.requests is None or not devices:
        return None
    ends = blocks_of(load.first)
    blocks = []
    for one in devices:
        edges = edges_ns(load.iterations[one.key.node], ends)
        blocks.append(one.between(edges[:-1], edges[1:]))
    if any(curve.summed(one).energy_j is None for one in blocks):
        return None
    covered = [one.covered_ns >= _WHOLE * one.window_ns for one in blocks]
    measured = Measured(
        device_j=np.stack([one.energy_j for one in blocks]),
        response=devices[0].response,
        idle=_idle(phases),
        whole=np.all(covered, axis=0),
    )
    return attribute(load.requests, load.first, ends, measured, _shapes(config))


def _idle(phases: Sequence[PhaseEnergy]) -> tuple[float, float] | None:
    """Return joules and seconds of all devices while the engine stood loaded and still."""
    still = [one for one in phases if one.phase == "idle_after"]
    joules = [one.energy_j for one in still if one.energy_j is not None]
    if not still or len(joules) < len(still) or still[0].seconds < 1.0:
        return None
    return sum(joules), still[0].seconds


def _shapes(config: Config) -> Model | None:
    return config.model if config.model.path is None and vllm_fit.is_llama(config.model) else None


def _columns(found: Attribution) -> RequestEnergy:
    model, totals = found.model, found.amounts.sum(axis=0)
    joules = dict(zip(TERMS, model.joules.tolist(), strict=True))
    positions = totals[4] / totals[3] if totals[3] else 0.0
    known = {term for term in TERMS if term not in model.dropped}
    output_j, output_half = _combined(model, {"decode": 1.0, "context": float(positions)})
    shares = [found.request_j, found.tokens_j, *([] if found.work_j is None else [found.work_j])]
    spread = np.ptp(shares, axis=0) / np.maximum(np.mean(shares, axis=0), 1e-12)
    return RequestEnergy(
        power_model=power_model.VERSION,
        power_model_blocks=model.blocks,
        power_model_held_out=model.held_out,
        power_model_dropped=" ".join(model.dropped) or None,
        model_idle_w=joules["idle"] if "idle" in known else None,
        model_busy_w=joules["busy"] if "busy" in known else None,
        **_of_token("input", model, "prefill"),
        **_of_token("cached", model, "cached"),
        output_token_j=output_j if "decode" in known else None,
        output_token_half_width_j=output_half if "decode" in known else None,
        decode_token_j=joules["decode"] if "decode" in known else None,
        position_j=joules["context"] if "context" in known else None,
        requests_energy_j=float(found.request_j.sum()),
        requests_idle_energy_j=found.idle_j,
        tokens_own_energy_j=float(totals[1:] @ model.joules[2:]),
        models_spread=float(np.median(spread)),
    )


def _of_token(name: str, model: PowerModel, term: str) -> dict[str, float]:
    """Return the joules of a kind of token and the half width of their interval, where the model has them."""
    if term in model.dropped:
        return {}
    joules, half = _combined(model, {term: 1.0})
    return {f"{name}_token_j": joules, f"{name}_token_half_width_j": half}


def _combined(model: PowerModel, amounts: dict[str, float]) -> tuple[float, float]:
    """Return the joules of some amounts, and the half width of their 95 % interval."""
    weights = np.array([amounts.get(term, 0.0) for term in TERMS])
    freedom = model.blocks - (len(TERMS) - len(model.dropped))
    u_j = float(np.sqrt(max(weights @ model.covariance @ weights, 0.0)))
    return float(weights @ model.joules), student_t(freedom) * u_j


def _rows(load: Load, found: Attribution | None) -> list[dict[str, Any]]:
    """Return a row a request of results/requests.parquet."""
    assert load.requests is not None
    times = request_times(load.requests, load.first)
    slowest_s = times.slowest_s
    start_ns = load.first["start_ns"][0].as_py()
    counted = np.ones(load.requests.num_rows, bool) if load.counted is None else load.counted
    columns = {
        name: load.requests[name].to_pylist()
        for name in ("prompt", "tokens_in", "cached_tokens", "tokens_kept")
    }
    due_s = (load.requests["due_ns"].to_numpy() - start_ns) / SECOND_NS
    work_j = None if found is None else found.work_j
    return [
        {
            "prompt": columns["prompt"][k],
            "counted": bool(counted[k]),
            "tokens_in": columns["tokens_in"][k],
            "cached_tokens": columns["cached_tokens"][k],
            "tokens_kept": columns["tokens_kept"][k],
            "due_s": float(due_s[k]),
            "queue_s": _known(times.queue_s[k]),
            "ttft_s": _known(times.ttft_s[k]),
            "itl_p99_s": _known(slowest_s[k]) if len(times.gaps_s[k]) else None,
            "e2e_s": _known(times.e2e_s[k]),
            "energy_j": None if found is None else float(found.request_j[k]),
            "energy_u_j": None if found is None else float(found.request_u_j[k]),
            "tokens_energy_j": None if found is None else float(found.tokens_j[k]),
            "work_energy_j": None if work_j is None else float(work_j[k]),
            "power_model": None if found is None else power_model.VERSION,
        }
        for k in range(load.requests.num_rows)
    ]


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
