"""Compute throughput and energy of one attempt from its spans and devices.

The fields of each result are columns of results/points.parquet, null where unknown. What is doubtful comes beside it
as reason codes. Each node's spans and traces carry that node's own clock, so its windows are integrated there and only
joules are added up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.analysis.expanded import board_parts, has_stated_gain, of_board
from wattflow.collect.dummy import Bias
from wattflow.collect.reading import (
    MOST_TOKENS,
    Device,
    DeviceEnergy,
    Spans,
    Window,
)
from wattflow.energy import counter
from wattflow.energy.curve import Joules
from wattflow.errors import DamagedError
from wattflow.nullable import COVERAGE, complete_sum, known_sum, quadrature, quotient
from wattflow.store.phases import AROUND, IN_JOB, NOT_WITHIN, WITHIN
from wattflow.store.schema import Part
from wattflow.store.sources import SECOND_NS, source_of

LEAST_AVERAGED_S = 10.0  # of a window, where a sensor averages over 1 s
LEAST_SAMPLES = 0.9
MOST_TOKENS_PER_S = 1e9  # of a node: a count beyond that is none
EDGES_APART_S = 0.1  # ranks of a node begin and end a batch this near to each other
POWER_TIME = 0.01  # how far energy may be off the devices' mean power times the duration


# --- throughput -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Throughput:
    """Tokens, words and times of the measured window."""

    tokens_in: int | None = None
    tokens_kept: int | None = None
    computed_tokens: int | None = None
    words: int | None = None
    responses: int | None = None
    duration_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    other_s: float | None = None
    load_s: float | None = None
    warmup_s: float | None = None
    reference_s: float | None = None
    steady_s: float | None = None
    steady_tokens_kept: int | None = None


def throughput(first: Spans | None, requests: pa.Table) -> tuple[Throughput, list[str]]:
    """Return the tokens and times of rank 0, the words and responses of its requests, and reason codes."""
    responses, words = requests.num_rows, requests["words"]
    words = None if words.null_count else pc.sum(words).as_py()
    reasons = ["dummy_text"] if words is None else []
    window = first.window() if first else None
    if first is None or window is None:
        return Throughput(words=words, responses=responses), [*reasons, "no_window"]
    kept = first.count("tokens_kept", "decode")
    if not kept:
        reasons.append("no_tokens")
    if kept != pc.sum(requests["tokens_kept"]).as_py():
        reasons.append("tokens_differ")
    duration_s = (window[1] - window[0]) / SECOND_NS
    prefill_s, decode_s = first.seconds("prefill"), first.seconds("decode")
    steady = first.steady()
    inner = first.counts("tokens_kept", "decode")[1:-1]
    found = Throughput(
        tokens_in=first.count("tokens_in", "prefill"),
        tokens_kept=kept,
        computed_tokens=cast(
            "int | None",
            complete_sum(first.count("tokens_computed", phase) for phase in ("prefill", "decode")),
        ),
        words=words,
        responses=responses,
        duration_s=duration_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
        other_s=duration_s - cast(float, prefill_s) - cast(float, decode_s),
        load_s=first.seconds("load"),
        warmup_s=first.seconds("warmup"),
        reference_s=first.seconds("reference"),
        steady_s=None if steady is None else (steady[1] - steady[0]) / SECOND_NS,
        steady_tokens_kept=None if steady is None else cast("int | None", complete_sum(inner)),
    )
    return found, reasons


def command_throughput(
    ranks: Mapping[int, Spans], parts: Sequence[Part]
) -> tuple[Throughput, list[str]]:
    """Return tokens and times of a measured command, and reason codes.

    Tokens are those of all nodes, times those of the node that wrote the record.
    """
    found = {
        "command_failed": any(part["exit_code"] for part in parts),
        "still_running": any(part["still_running"] for part in parts),
        "bad_spans": any(part["bad_lines"] for part in parts),
        "no_requests": True,
    }
    reasons = [code for code, holds in found.items() if holds]
    first = ranks.get(0)
    window = first.window() if first else None
    if first is None or window is None:
        return Throughput(), [*reasons, "no_window"]
    # all devices of a node have the same spans
    nodes = {spans.device.node: spans for _, spans in sorted(ranks.items(), reverse=True)}
    by_spans = known_sum(
        n
        for spans in nodes.values()
        for n, phase in zip(spans.tokens["tokens_kept"], spans.phase, strict=True)
        if phase not in NOT_WITHIN
    )
    by_file = known_sum(part["tokens_out"] for part in parts)
    for part in parts:
        if part["tokens_out"] is not None and not 0 <= part["tokens_out"] <= MOST_TOKENS:
            raise DamagedError(f"timings/{part['node']}.json: {part['tokens_out']} tokens.")
    kept = by_spans if by_file is None else by_file
    if kept is not None and kept > MOST_TOKENS_PER_S * len(nodes) * _seconds(window):
        kept = by_spans = None
    if not kept:
        reasons.append("tokens_untold")
    if by_spans is not None and by_spans != kept:
        reasons.append("tokens_differ")
    starts, ends = first.between(window)
    return Throughput(
        tokens_in=known_sum(n for spans in nodes.values() for n in spans.tokens["tokens_in"]),
        tokens_kept=kept,
        duration_s=_seconds(window),
        prefill_s=first.seconds("prefill"),
        decode_s=first.seconds("decode"),
        other_s=float((ends - starts).sum()) / SECOND_NS,
        load_s=first.seconds("load"),
        warmup_s=first.seconds("warmup"),
    ), reasons


def _seconds(window: Window) -> float:
    return (window[1] - window[0]) / SECOND_NS


# --- energy ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amount:
    """An energy and its standard uncertainty, J; each null where a part of it is unknown."""

    energy_j: float | None = None
    u_j: float | None = None

    def columns(self, prefix: str) -> dict[str, float | None]:
        """Return the two columns of the energy that a prefix names."""
        return {f"{prefix}energy_j": self.energy_j, f"{prefix}energy_u_j": self.u_j}


@dataclass(frozen=True)
class Budget:
    """The parts of the uncertainty of the window's energy, standard ones in J, and all of them expanded (k = 2).

    `board_u_j` holds gain and offset, which are correlated; null, as the expanded one, where nobody states them.
    """

    sampling_u_j: float | None = None
    edges_u_j: float | None = None
    response_u_j: float | None = None
    aliasing_u_j: float | None = None
    missing_u_j: float | None = None
    ticks_u_j: float | None = None
    board_gain_u_j: float | None = None
    board_offset_u_j: float | None = None
    board_u_j: float | None = None
    energy_expanded_u_j: float | None = None
    board_reference: str | None = None


_PARTS = ("edges", "response", "aliasing", "missing")  # of the uncertainty of one device's window


def uncertainty_budget(devices: Sequence[Device], windows: Sequence[Joules]) -> Budget:
    """Return the budget of the sum over devices, whose sensors are independent of each other."""
    own = dict.fromkeys((*_PARTS, "ticks", "sampling"), 0.0)
    for device, window in zip(devices, windows, strict=True):
        parts_j2 = {name: getattr(window, f"{name}_u_j") ** 2 for name in _PARTS}
        rest_j2 = max(cast(float, window.u_j) ** 2 - sum(parts_j2.values()), 0.0)
        for name, j2 in parts_j2.items():
            own[name] += j2
        own["ticks" if device.by_counter else "sampling"] += rest_j2
    sampling_u = {f"{name}_u_j": j2**0.5 for name, j2 in own.items()}
    if not all(has_stated_gain(device.source) for device in devices):
        return Budget(**sampling_u)
    energies_j = [cast(float, window.energy_j) for window in windows]
    seconds = [window.seconds for window in windows]
    of_boards = board_parts(energies_j, seconds, [device.reference for device in devices])
    total_j2 = sum(own.values()) + of_boards["board_u_j"] ** 2
    return Budget(**sampling_u, **of_boards, energy_expanded_u_j=COVERAGE * total_j2**0.5)


@dataclass(frozen=True)
class Energy:
    """The energy of all devices of the job; null where that of one is withheld."""

    window: Amount = Amount()
    counter: Amount = Amount()
    net: Amount = Amount()  # of the window, above idle
    job: Amount = Amount()  # of the window and of the job's phases around it
    steady: Amount = Amount()  # of the window without the first and the last batch
    phases: Mapping[str, Amount] = field(default_factory=dict)
    budget: Budget | None = None
    dummy_data_u_j: float | None = None
    dummy_bias: str | None = None
    idle_power_w: float | None = None
    idle_after_power_w: float | None = None

    def columns(self) -> dict[str, Any]:
        """Return the columns: energy_j and energy_u_j of the window, counter_energy_j ..., prefill_energy_j ..."""
        amounts = {
            "": self.window,
            "counter_": self.counter,
            "net_": self.net,
            "job_": self.job,
            "steady_": self.steady,
            **{f"{phase}_": self.phases.get(phase, Amount()) for phase in (*AROUND, *WITHIN)},
        }
        return {
            **{
                k: v
                for prefix, amount in amounts.items()
                for k, v in amount.columns(prefix).items()
            },
            **vars(self.budget or Budget()),
            "dummy_data_u_j": self.dummy_data_u_j,
            "dummy_bias": self.dummy_bias,
            "idle_power_w": self.idle_power_w,
            "idle_after_power_w": self.idle_after_power_w,
        }


@dataclass(frozen=True)
class PhaseEnergy:
    """One row of results/phases.parquet: what one device took in one phase."""

    phase: str
    node: str
    gpu_uuid: str
    seconds: float
    energy_j: float | None
    energy_u_j: float | None
    energy_expanded_u_j: float | None
    power_w: float | None
    tokens: int | None
    source: str
    coverage: float
    reason: str | None


def phase_energies(
    devices: Sequence[Device], parts: Sequence[DeviceEnergy], known: Throughput
) -> list[PhaseEnergy]:
    """Return the energy of each device in each of its phases."""
    return [
        PhaseEnergy(
            phase=phase,
            node=device.key.node,
            gpu_uuid=device.key.gpu_uuid,
            seconds=joules.seconds,
            energy_j=joules.energy_j,
            energy_u_j=joules.u_j,
            energy_expanded_u_j=of_board(device.source, joules, device.reference),
            power_w=quotient(joules.energy_j, joules.seconds),
            tokens=_tokens(device, phase, known),
            source=device.source,
            coverage=joules.coverage,
            reason=joules.reason,
        )
        for device, part in zip(devices, parts, strict=True)
        for phase, joules in part.phases.items()
    ]


def _tokens(device: Device, phase: str, known: Throughput) -> int | None:
    if device.spans.measured:
        return device.spans.count("tokens_in" if phase == "prefill" else "tokens_kept", phase)
    return {"prefill": known.tokens_in, "decode": known.tokens_kept}.get(phase)


def withholding_reasons(device: Device, window: Joules) -> list[str]:
    """Return the reasons for withholding a device's energy, and with it the job's."""
    reasons = []
    readings = device.counter if device.by_counter else device.power
    if len(readings.time_ns) == 0:
        reasons.append("no_power")
    elif window.reason is not None:
        reasons.append(window.reason)
    if source_of(device.source).averaging_ns and window.seconds < LEAST_AVERAGED_S:
        reasons.append("short_window")
    if device.clock_stepped:
        reasons.append("clock_step")
    return reasons


def energy(
    devices: Sequence[Device],
    parts: Sequence[DeviceEnergy],
    known: Throughput,
    *,
    simulated: bool,
    dummy: Bias | None,
) -> tuple[Energy, list[str]]:
    """Return the energy of all devices, whose own `parts` are in the same order, and reason codes."""
    windows = [part.window for part in parts]
    reasons = [
        code for pair in zip(devices, windows, strict=True) for code in withholding_reasons(*pair)
    ]
    if reasons:
        return Energy(), reasons
    energies_j = [cast(float, window.energy_j) for window in windows]
    total = Amount(sum(energies_j), amount(windows).u_j)
    measured = devices[0].spans.measured
    phases, complete = _measured_phases(parts) if measured else _point_phases(parts)
    if not complete:
        reasons.append("phase_gap")
    by_counter, resets = _by_counter(devices)
    reasons += ["counter_reset"] * resets
    reasons += ["may_alias"] * any(device.may_alias for device in devices)
    duration_s = cast(float, known.duration_s)
    mean_w = sum(cast(float, window.energy_j) / window.seconds for window in windows)
    # a command begins and ends on each node by itself, the batches of a sweep's point on all at once
    alike = not measured or len({device.key.node for device in devices}) == 1
    if alike and not close(sum(energies_j), mean_w * duration_s, POWER_TIME):
        apart_s = max(abs(window.seconds - duration_s) for window in windows)
        reasons.append("window_too_short" if apart_s < EDGES_APART_S else "energy_power_time")
    idle_w = complete_sum(_mean_w(part, "idle") for part in parts)
    dummy = None if simulated else dummy
    bound = None if dummy is None else dummy.share
    return Energy(
        window=total,
        counter=by_counter,
        net=_net(total, parts, None if measured else duration_s),
        job=_job(total, phases, parts[0], measured=measured),
        steady=_steady(parts, known),
        phases=phases,
        budget=None if simulated else uncertainty_budget(devices, windows),
        dummy_data_u_j=None if bound is None else bound * sum(energies_j) / 3**0.5,
        dummy_bias=None if dummy is None else dummy.words,
        idle_power_w=idle_w,
        idle_after_power_w=complete_sum(_mean_w(part, "idle_after") for part in parts),
    ), reasons


def amount(parts: Sequence[Joules | None]) -> Amount:
    """Return the energy of several devices, each with a sensor of its own, whose uncertainties are independent."""
    return Amount(
        complete_sum(None if part is None else part.energy_j for part in parts),
        quadrature(None if part is None else part.u_j for part in parts),
    )


def _point_phases(parts: Sequence[DeviceEnergy]) -> tuple[dict[str, Amount], bool]:
    """Return the energy of each phase of a sweep's point, and whether those in the window are all known."""
    phases = {
        phase: amount([part.phases.get(phase) for part in parts]) for phase in (*AROUND, *WITHIN)
    }
    return phases, all(phases[phase].energy_j is not None for phase in WITHIN)


def _measured_phases(parts: Sequence[DeviceEnergy]) -> tuple[dict[str, Amount], bool]:
    """Return the same of a command's own phases; a node that did not report one spent nothing in it."""
    names = dict.fromkeys(phase for part in parts for phase in part.phases)
    phases = {
        name: amount([part.phases[name] for part in parts if name in part.phases]) for name in names
    }
    return phases, all(phases[n].energy_j is not None for n in names if n not in NOT_WITHIN)


def _mean_w(part: DeviceEnergy, phase: str) -> float | None:
    joules = part.phases.get(phase)
    return None if joules is None else quotient(joules.energy_j, joules.seconds)


def _job(
    total: Amount, phases: Mapping[str, Amount], first: DeviceEnergy, *, measured: bool
) -> Amount:
    """Return the energy of the window and of all phases around it that are part of the job."""
    around = [phase for phase in phases if phase in (NOT_WITHIN if measured else IN_JOB)]
    if not measured and "idle_after" not in first.phases:
        around.remove("idle_after")  # an attempt of before it was recorded ends with its last batch
    parts = [total, *(phases[phase] for phase in around)]
    return Amount(
        complete_sum(part.energy_j for part in parts), quadrature(part.u_j for part in parts)
    )


def _net(total: Amount, parts: Sequence[DeviceEnergy], duration_s: float | None) -> Amount:
    """Return the energy above what the devices would have taken idle.

    Each device's own window counts where `duration_s` is null: a command begins and ends on each node by itself.
    """
    idle = [(part, part.phases.get("idle"), duration_s or part.window.seconds) for part in parts]
    idle_j = complete_sum(
        None if (watts := _mean_w(part, "idle")) is None else watts * seconds
        for part, _, seconds in idle
    )
    if idle_j is None:
        return Amount()
    idle_u_j = quadrature(
        None if joules is None or joules.u_j is None else joules.u_j / joules.seconds * seconds
        for _, joules, seconds in idle
    )
    u_j = None if idle_u_j is None else quadrature([total.u_j, idle_u_j])
    return Amount(cast(float, total.energy_j) - idle_j, u_j)


def _steady(parts: Sequence[DeviceEnergy], known: Throughput) -> Amount:
    """Return the energy of the batches but the first and the last: no ramp at the start, no short batch at the end."""
    steady = amount([part.steady for part in parts])
    return Amount() if steady.energy_j is None or known.steady_tokens_kept is None else steady


def _by_counter(devices: Sequence[Device]) -> tuple[Amount, int]:
    """Return the energy by the counters, as a check on the integral, and how many were reset in the window.

    It is null unless every device has one.
    """
    if any(device.by_counter for device in devices):
        return Amount(), 0
    resets = sum(counter.resets_between(device.counter, *device.window) > 0 for device in devices)
    total = amount([device.counted for device in devices])
    return Amount() if total.energy_j is None else total, resets


def close(value: float, other: float, tolerance: float) -> bool:
    """Return whether two numbers differ by no more than a share of the larger."""
    return abs(value - other) <= tolerance * max(abs(value), abs(other)) + 1e-9


# --- samples ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How much of the window was measured, and how many samples it has of those that the sensors' periods promise."""

    coverage: float | None = None
    longest_gap_s: float | None = None
    samples: int | None = None
    samples_expected: int | None = None


def sampling(
    devices: Sequence[Device], parts: Sequence[DeviceEnergy]
) -> tuple[Sampling, list[str]]:
    """Return the sampling of all devices, and reason codes; no samples of an energy counter."""
    coverage = min(part.window.coverage for part in parts)
    longest_gap_s = max(part.window.longest_gap_s for part in parts)
    if any(device.by_counter for device in devices):
        return Sampling(coverage, longest_gap_s), []
    samples = expected = 0
    for device in devices:
        start, end = device.window
        at = np.searchsorted(device.power.time_ns, [start, end])
        samples += int(at[1] - at[0])
        expected += int((end - start) / (device.period_ms * 1e6))
    reasons = ["samples_missing"] if samples < LEAST_SAMPLES * expected else []
    return Sampling(coverage, longest_gap_s, samples, expected), reasons
