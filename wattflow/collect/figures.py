"""Compute throughput and energy of one attempt from its spans and devices."""

import json
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.collect.reading import Device, Row, Spans, u_of
from wattflow.energy import counter, curve
from wattflow.energy.curve import Joules
from wattflow.nullable import complete_sum, known_sum, quadrature, quotient
from wattflow.store.phases import AROUND, NOT_WITHIN, WITHIN
from wattflow.store.schema import Record
from wattflow.store.sources import SECOND_NS, source_of

COUNTER_CONTRADICTS = 0.25
LEAST_AVERAGED_S = 10.0
BOARD_GAIN = (
    0.05  # a sensor's gain is off by up to this, at random from board to board (arXiv 2312.02741)
)
# joules of dummy weights may be off those of real ones by this much: the widest difference between kinds of weights
# and tokens with its 95 % interval, LLaMA-7B's decode at batch 1 and 64 on an H100 (docs/measurement.md)
DUMMY_DATA = 0.017
LEAST_SAMPLES = 0.9


def throughput(row: Row, ranks: dict[int, Spans], requests: pa.Table, reasons: list[str]) -> None:
    """Tokens and times of rank 0, words and responses of the requests."""
    words = requests["words"]
    row["responses"] = requests.num_rows
    row["words"] = None if words.null_count else pc.sum(words).as_py()
    if row["words"] is None:
        reasons.append("dummy_text")
    first = ranks.get(0)
    window = first.window() if first else None
    if first is None or window is None:
        reasons.append("no_window")
        return
    kept = first.count("tokens_kept", "decode")
    row.update(
        tokens_in=first.count("tokens_in", "prefill"),
        tokens_kept=kept,
        computed_tokens=first.count("tokens_computed", "decode"),
        duration_s=(window[1] - window[0]) / SECOND_NS,
        prefill_s=first.seconds("prefill"),
        decode_s=first.seconds("decode"),
        load_s=first.seconds("load"),
        warmup_s=first.seconds("warmup"),
        reference_s=first.seconds("reference"),
    )
    steady = first.steady()
    if steady is not None:
        row["steady_s"] = (steady[1] - steady[0]) / SECOND_NS
        inner = [
            n
            for n, phase in zip(first.tokens["tokens_kept"], first.phase, strict=True)
            if phase == "decode"
        ][1:-1]
        row["steady_tokens_kept"] = None if None in inner else sum(cast(list[int], inner))
        row["steady_tokens_per_s"] = quotient(row["steady_tokens_kept"], row["steady_s"])
    row["other_s"] = row["duration_s"] - row["prefill_s"] - row["decode_s"]
    if not kept:
        reasons.append("no_tokens")
    if kept != pc.sum(requests["tokens_kept"]).as_py():
        reasons.append("tokens_differ")
    row["tokens_per_s"] = quotient(kept, row["duration_s"])
    row["words_per_s"] = quotient(row["words"], row["duration_s"])
    row["responses_per_s"] = quotient(row["responses"], row["duration_s"])


def told_throughput(row: Row, ranks: dict[int, Spans], record: Record, reasons: list[str]) -> None:
    """Tokens and times of a measured command: tokens are all nodes', times those of the node that wrote the record."""
    parts = record["parts"]
    codes = [part["exit_code"] for part in parts]
    row["command"] = json.dumps(record["measure"]["command"])
    row["exit_code"] = next((code for code in codes if code), 0 if codes else None)
    if row["exit_code"]:
        reasons.append("command_failed")
    if any(part["still_running"] for part in parts):
        reasons.append("still_running")
    if any(part["bad_lines"] for part in parts):
        reasons.append("bad_spans")
    reasons.append("no_requests")
    lowest: dict[str, Spans] = {}  # all devices of a node have the same spans
    for _, spans in sorted(ranks.items()):
        lowest.setdefault(spans.who[0], spans)
    first = ranks.get(0)
    window = first.window() if first else None
    if first is None or window is None:
        reasons.append("no_window")
        return
    by_spans = known_sum(
        n
        for spans in lowest.values()
        for n, phase in zip(spans.tokens["tokens_kept"], spans.phase, strict=True)
        if phase not in NOT_WITHIN
    )
    by_file = known_sum(part["tokens_out"] for part in parts)
    kept = by_spans if by_file is None else by_file
    if not kept:
        reasons.append("tokens_untold")
    if by_spans is not None and by_spans != kept:
        reasons.append("tokens_differ")
    row.update(
        tokens_in=known_sum(
            n for spans in lowest.values() for n in spans.tokens["tokens_in"] if n is not None
        ),
        tokens_kept=kept,
        duration_s=(window[1] - window[0]) / SECOND_NS,
        prefill_s=first.seconds("prefill"),
        decode_s=first.seconds("decode"),
        load_s=first.seconds("load"),
        warmup_s=first.seconds("warmup"),
        tokens_per_s=quotient(kept, (window[1] - window[0]) / SECOND_NS),
    )
    starts, ends = first.between(window)
    row["other_s"] = float((ends - starts).sum()) / SECOND_NS


def fill_joules(row: Row, devices: list[Device], reasons: list[str]) -> list[Row]:
    """Fill in the joules of the row and return its rows of phases.parquet."""
    by_phase = [device.by_phase() for device in devices]
    totals = [phases.pop("window") for phases in by_phase]
    steady = [phases.pop("steady", None) for phases in by_phase]
    row["coverage"] = min(total.coverage for total in totals)
    row["longest_gap_s"] = max(total.longest_gap_s for total in totals)
    for device, total in zip(devices, totals, strict=True):
        reasons += _withheld(device, total)
    rows = [
        _phase_row(row, device, phase, joules)
        for device, phases in zip(devices, by_phase, strict=True)
        for phase, joules in phases.items()
    ]
    if set(reasons) & _WITHHOLD:
        return rows
    row["energy_j"] = sum(cast(float, total.energy_j) for total in totals)
    row["energy_u_j"] = u_of(totals)
    if not row["simulated"]:
        # rectangular between the gain's bounds, each board by itself (JCGM 100:2008, 4.3.7)
        gains_j = [BOARD_GAIN * cast(float, total.energy_j) / 3**0.5 for total in totals]
        row["board_gain_u_j"] = sum(gain_j**2 for gain_j in gains_j) ** 0.5
    if row["weights"] == "dummy" and not row["simulated"]:
        row["dummy_data_u_j"] = DUMMY_DATA * row["energy_j"] / 3**0.5
    if devices[0].spans.measured:
        _told_phases(row, by_phase, reasons)
    else:
        _phases(row, by_phase, reasons)
    _idle_and_net(row, by_phase)
    _steady(row, steady)
    _by_counter(row, devices, reasons)
    row["power_w"] = quotient(row["energy_j"], row["duration_s"])
    row["power_u_w"] = quotient(row["energy_u_j"], row["duration_s"])
    row["energy_per_token_j"] = quotient(row["energy_j"], row["tokens_kept"])
    row["energy_per_token_u_j"] = quotient(row["energy_u_j"], row["tokens_kept"])
    row["energy_per_computed_token_j"] = quotient(row["energy_j"], row["computed_tokens"])
    row["energy_per_word_j"] = quotient(row["energy_j"], row["words"])
    row["energy_per_response_j"] = quotient(row["energy_j"], row["responses"])
    row["energy_per_computed_token_u_j"] = quotient(row["energy_u_j"], row["computed_tokens"])
    row["energy_per_word_u_j"] = quotient(row["energy_u_j"], row["words"])
    row["energy_per_response_u_j"] = quotient(row["energy_u_j"], row["responses"])
    mean_w = sum(cast(float, quotient(t.energy_j, t.seconds)) for t in totals)
    # a command begins and ends on each node by itself, the batches of a sweep's point on all at once
    alike = not devices[0].spans.measured or len({device.who[0] for device in devices}) == 1
    if alike and not _close(row["energy_j"], mean_w * row["duration_s"], 0.01):
        reasons.append("energy_power_time")
    return rows


def _phases(row: Row, by_phase: list[dict[str, Joules]], reasons: list[str]) -> None:
    """Fill in the joules of each phase of a sweep's point, all of which every device has."""
    for phase in (*AROUND, *WITHIN):
        parts = [phases.get(phase) for phases in by_phase]
        row[f"{phase}_energy_j"] = complete_sum(
            [None if part is None else part.energy_j for part in parts]
        )
        row[f"{phase}_energy_u_j"] = u_of(parts)
    if any(row[f"{phase}_energy_j"] is None for phase in WITHIN):
        reasons.append("phase_gap")
    # the reference load is no part of the job; attempts of before idle_after was recorded end with their last batch
    around = ["idle", "load", "warmup", *(["idle_after"] if "idle_after" in by_phase[0] else [])]
    row["job_energy_j"] = complete_sum(
        [row["energy_j"], *(row[f"{phase}_energy_j"] for phase in around)]
    )
    us_j = [row["energy_u_j"], *(row[f"{phase}_energy_u_j"] for phase in around)]
    row["job_energy_u_j"] = quadrature(us_j)


def _told_phases(row: Row, by_phase: list[dict[str, Joules]], reasons: list[str]) -> None:
    """Fill in the joules of the phases that a command told; a node that did not tell one spent none in it."""
    told = {
        phase: [phases[phase] for phases in by_phase if phase in phases]
        for phase in dict.fromkeys(phase for phases in by_phase for phase in phases)
    }
    found = {
        phase: complete_sum([part.energy_j for part in parts]) for phase, parts in told.items()
    }
    us_j = {phase: u_of(parts) for phase, parts in told.items()}
    for phase in (*AROUND, *WITHIN):
        row[f"{phase}_energy_j"] = found.get(phase)
        row[f"{phase}_energy_u_j"] = us_j.get(phase)
    if any(energy_j is None for phase, energy_j in found.items() if phase not in NOT_WITHIN):
        reasons.append("phase_gap")
    outside = [phase for phase in found if phase in NOT_WITHIN]
    row["job_energy_j"] = complete_sum([row["energy_j"], *(found[phase] for phase in outside)])
    row["job_energy_u_j"] = quadrature([row["energy_u_j"], *(us_j[phase] for phase in outside)])


def _idle_and_net(row: Row, by_phase: list[dict[str, Joules]]) -> None:
    for phase in ("idle", "idle_after"):
        row[f"{phase}_power_w"] = complete_sum(
            [
                quotient(p[phase].energy_j, p[phase].seconds) if phase in p else None
                for p in by_phase
            ]
        )
    if row["idle_power_w"] is not None:
        row["net_energy_j"] = row["energy_j"] - row["idle_power_w"] * row["duration_s"]
        idle_u_w = quadrature([quotient(p["idle"].u_j, p["idle"].seconds) for p in by_phase])
        if idle_u_w is not None:
            row["net_energy_u_j"] = quadrature([row["energy_u_j"], idle_u_w * row["duration_s"]])


def _steady(row: Row, parts: list[Joules | None]) -> None:
    """The batches but the first and the last: no ramp at the start, no short batch at the end."""
    known = [part for part in parts if part is not None and part.energy_j is not None]
    if not known or len(known) < len(parts) or row["steady_tokens_kept"] is None:
        return
    row["steady_energy_j"] = sum(cast(float, part.energy_j) for part in known)
    row["steady_energy_u_j"] = u_of(known)
    row["steady_power_w"] = quotient(row["steady_energy_j"], row["steady_s"])
    row["steady_energy_per_token_j"] = quotient(row["steady_energy_j"], row["steady_tokens_kept"])
    u_j = row["steady_energy_u_j"]
    row["steady_energy_per_token_u_j"] = quotient(u_j, row["steady_tokens_kept"])


_WITHHOLD = {"no_power", "not_bracketed", "gap", "short_window", "clock_step"}


def _withheld(device: Device, total: Joules) -> list[str]:
    """Why a device's joules, and with them the job's, are not told."""
    reasons = []
    readings = device.counter if device.source == "nvml_counter" else device.power
    if len(readings.time_ns) == 0:
        reasons.append("no_power")
    elif total.reason is not None:
        reasons.append(total.reason)
    if source_of(device.source).averaging_ns and total.seconds < LEAST_AVERAGED_S:
        reasons.append("short_window")
    if device.clock_stepped:
        reasons.append("clock_step")
    return reasons


def _phase_row(row: Row, device: Device, phase: str, joules: Joules) -> Row:
    counted = {"prefill": row["tokens_in"], "decode": row["tokens_kept"]}
    if device.spans.measured:
        column = "tokens_in" if phase == "prefill" else "tokens_kept"
        counted = {phase: device.spans.count(column, phase)}
    return {
        "point_id": row["point_id"],
        "attempt": row["attempt"],
        "phase": phase,
        "node": device.who[0],
        "gpu_uuid": device.who[1],
        "seconds": joules.seconds,
        "energy_j": joules.energy_j,
        "energy_u_j": joules.u_j,
        "power_w": quotient(joules.energy_j, joules.seconds),
        "tokens": counted.get(phase),
        "source": device.source,
        "coverage": joules.coverage,
        "reason": joules.reason,
    }


def _by_counter(row: Row, devices: list[Device], reasons: list[str]) -> None:
    """The same window by the energy counters, as a check on the integral; null unless every device has one."""
    if any(device.source == "nvml_counter" for device in devices):
        return
    parts = []
    for device in devices:
        start, end = device.window
        by_counter = counter.counter_between(device.counter, [start], [end], device.power)
        parts.append(curve.summed(by_counter))
        if counter.resets_between(device.counter, start, end):
            reasons.append("counter_reset")
    row["counter_energy_j"] = complete_sum([part.energy_j for part in parts])
    row["counter_ratio"] = quotient(row["energy_j"], row["counter_energy_j"])
    if row["counter_energy_j"] is not None:
        row["counter_energy_u_j"] = u_of(parts)


def fill_samples(row: Row, devices: list[Device], reasons: list[str]) -> None:
    """How many samples the window has, and how many its sensors' periods promise."""
    if any(device.source == "nvml_counter" for device in devices):
        return
    row["samples"] = row["samples_expected"] = 0
    for device in devices:
        start, end = device.window
        at = np.searchsorted(device.power.time_ns, [start, end])
        row["samples"] += int(at[1] - at[0])
        row["samples_expected"] += int((end - start) / (device.period_ms * 1e6))
    if row["samples"] < LEAST_SAMPLES * row["samples_expected"]:
        reasons.append("samples_missing")


def self_checks(row: Row, phases: list[Row]) -> list[str]:
    """Reason codes of the sums and products that do not hold among the published numbers of one attempt."""
    total = row["energy_j"]
    if total is None:
        return []
    failed = []
    if not _close(total, row["power_w"] * row["duration_s"], 1e-6):
        failed.append("energy_power_time")
    per_token = row["energy_per_token_j"]
    if per_token is not None and not _close(total, per_token * row["tokens_kept"], 1e-6):
        failed.append("energy_per_token")
    parts = complete_sum([row[f"{phase}_energy_j"] for phase in WITHIN])
    if row["command"] is None and parts is not None and not _close(total, parts, 0.005):
        failed.append("phases_sum")
    of_gpus = complete_sum(
        [phase["energy_j"] for phase in phases if phase["phase"] not in NOT_WITHIN]
    )
    if of_gpus is not None and not _close(total, of_gpus, 0.005):
        failed.append("gpus_sum")
    ratio, seconds = row["counter_ratio"], row["duration_s"]
    if ratio is not None and seconds > 1.0:  # below, a tick at each edge alone explains much
        u_of_both = np.hypot(row["energy_u_j"], row["counter_energy_u_j"]) / total
        if abs(ratio - 1) > (0.01 if seconds >= 10 else 0.03) + 2 * u_of_both:
            failed.append("counter_differs")
        if abs(ratio - 1) > COUNTER_CONTRADICTS:
            failed.append("counter_contradicts")
    return failed


def _close(value: float, other: float, tolerance: float) -> bool:
    return abs(value - other) <= tolerance * max(abs(value), abs(other)) + 1e-9
