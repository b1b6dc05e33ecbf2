"""Join the figures of partial attempts, of which each measured some batches of one point, to those of the whole.

What adds up is added, ratios are formed anew of the sums, the rest is null. Each partial attempt is measured by itself,
between its own first prefill and last decode, so what lies between two of them, the batch that was cut and the next
load, is in none. What lies around the window, and what the attempt took in all, is that of the row's own attempt:
whoever adds up a bill finds the others' in their rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from wattflow.collect.conditions import Conditions
from wattflow.collect.description import Description
from wattflow.collect.neighbours import Neighbours
from wattflow.collect.quantities import Amount, Budget, Energy, Sampling, Throughput
from wattflow.collect.row import Figures
from wattflow.nullable import agreed, complete, joined_names
from wattflow.store.phases import AROUND, WITHIN

_COUNTED = (
    *("tokens_in", "tokens_kept", "computed_tokens", "words", "responses"),
    *("duration_s", "prefill_s", "decode_s", "other_s"),
)
_AGREED = (
    *("ecc", "persistence", "prompts_sha256", "engine_info", "versions"),
    *("engine_version", "attention_backend", "cuda_graphs", "quantization"),
    *("power_limit_default_w", "power_limit_min_w", "power_limit_max_w"),
)
_JOINED = ("gpu_name", "driver", "power_source", "boundary")
_NAMES = ("boards", "node_names")


def join(parts: Sequence[Figures], about: Description, own: Figures | None) -> Figures:
    """Return the figures of partial attempts, in the order of their batches, as those of one attempt.

    `about` describes the attempt whose row it is; `own` is its own part, null where it finished no batch itself.
    """
    described = _description([part.about for part in parts], about, own)
    mixed = " + " in (described.boundary or "")
    samples = [part.sampling for part in parts]
    found = [part.conditions for part in parts]
    own_throughput = own.throughput if own else Throughput()
    return Figures(
        about=described,
        reasons=(
            *(code for part in parts for code in part.reasons),
            *(["mixed_boundary"] if mixed else []),
        ),
        throughput=Throughput(
            **_sums([part.throughput for part in parts], _COUNTED),
            load_s=own_throughput.load_s,
            warmup_s=own_throughput.warmup_s,
            reference_s=own_throughput.reference_s,
        ),
        energy=Energy() if mixed else _energy([part.energy for part in parts], own),
        sampling=Sampling(
            coverage=_complete(min, samples, "coverage"),
            longest_gap_s=_complete(max, samples, "longest_gap_s"),
            **_sums(samples, ("samples", "samples_expected")),
        ),
        host=Amount() if mixed else _sum([part.host for part in parts]),
        node=Amount() if mixed else _sum([part.node for part in parts]),
        accelerators=Amount() if mixed else _sum([part.accelerators for part in parts]),
        conditions=Conditions(
            temperature_c=_complete(max, found, "temperature_c"),
            memory_used_bytes=_complete(max, found, "memory_used_bytes"),
            power_limit_w=agreed(one.power_limit_w for one in found),
        ),
        neighbours=_neighbours([part.neighbours for part in parts]),
        gpus=agreed(part.gpus for part in parts),
        nodes_seen=agreed(part.nodes_seen for part in parts),
        pieces=len(parts),
        phases=own.phases if own else (),
        traces=own.traces if own else {},
    )


def _description(
    parts: Sequence[Description], about: Description, own: Figures | None
) -> Description:
    """Return the description of the attempt whose row it is, with the devices and versions of all parts."""
    joined: dict[str, Any] = {
        **{name: agreed(getattr(part, name) for part in parts) for name in _AGREED},
        **{name: _joined(parts, name) for name in _JOINED},
        **{name: sorted({n for p in parts for n in getattr(p, name) or ()}) for name in _NAMES},
    }
    return replace(
        about,
        **joined,
        simulated=any(part.simulated for part in parts),
        sidecar_restarts=_complete(sum, parts, "sidecar_restarts"),
        reference_rounds=own.about.reference_rounds if own else None,
    )


def _energy(parts: Sequence[Energy], own: Figures | None) -> Energy:
    """Return what adds up of several windows, and what lies around that of the row's own attempt."""
    around = own.energy if own else Energy()
    return replace(
        around,
        window=_sum([part.window for part in parts]),
        counter=_sum([part.counter for part in parts]),
        net=_sum([part.net for part in parts]),
        steady=Amount(),
        phases={
            **{phase: around.phases.get(phase, Amount()) for phase in AROUND},
            **{p: _sum([part.phases.get(p, Amount()) for part in parts]) for p in WITHIN},
        },
        budget=_budget([part.budget for part in parts]),
        **_sums(parts, ("dummy_data_u_j",)),
    )


def _neighbours(parts: Sequence[Neighbours]) -> Neighbours:
    """Return whether others ran beside a part, of so many slots; null where neither is known of all of them.

    What the others took is that of windows apart, and has no mean.
    """
    beside = [part.beside for part in parts]
    return Neighbours(
        slots=agreed(part.slots for part in parts),
        beside=True if True in beside else _complete(any, parts, "beside"),
    )


def _budget(parts: Sequence[Budget | None]) -> Budget | None:
    """Return the budget of a sum: parts in one direction, as their sensor is one."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Budget(**_sums(known, [one.name for one in fields(Budget)]))


def _sums(parts: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: _complete(sum, parts, name) for name in names}


def _complete(of: Callable[[list[Any]], Any], parts: Sequence[Any], name: str) -> Any:
    """Return a function of one field's values; null where one of them is."""
    return complete(of, [getattr(part, name) for part in parts])


def _sum(parts: Sequence[Amount]) -> Amount:
    """Return a sum with the sum of uncertainties, no less than the true one: a sensor may be off in one direction."""
    return Amount(**_sums(parts, ("energy_j", "u_j")))


def _joined(parts: Sequence[Description], name: str) -> str | None:
    """Return the distinct names of a field, which may itself be joined, joined once more."""
    values = [getattr(part, name) or "" for part in parts]
    return joined_names(one for value in values for one in value.split(" + "))
