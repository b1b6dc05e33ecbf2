"""One row from the rows of a point's pieces: what adds up is added, ratios are formed anew, the rest is null.

Each piece is measured by itself, between its own first prefill and last decode, so what lies between two pieces, the
batch that was cut and the next load, is in none of them. What lies around the window, and what the attempt took in all,
is that of the row's own attempt: whoever adds up a bill finds the others' in their rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

from wattflow.store.columns import POINT

Row = dict[str, Any]

_OF_WINDOW = ("", "prefill_", "decode_", "other_", "net_", "host_", "counter_")
_SUMS = (
    *("tokens_in", "tokens_kept", "computed_tokens", "words", "responses"),
    *("duration_s", "prefill_s", "decode_s", "other_s"),
    *(f"{part}energy_j" for part in _OF_WINDOW),
    # no less than their true sum, as one sensor may be off in one direction
    *(u for part in _OF_WINDOW if (u := f"{part}energy_u_j") in POINT.names),
    *("board_gain_u_j", "dummy_data_u_j", "samples", "samples_expected", "sidecar_restarts"),
)
_OWN = (
    *("point_id", "attempt", "status", "error", "record_stamp_ns", "job_id", "array_task"),
    *("started", "attempt_s"),
)
_AROUND = (
    *("job_energy_j", "job_energy_u_j", "reference_s", "reference_rounds"),
    *("reference_energy_j", "reference_energy_u_j"),
    *(
        f"{phase}_{what}"
        for phase in ("idle", "load", "warmup", "idle_after")
        for what in ("s", "energy_j", "energy_u_j", "power_w")
    ),
)
_NAMES = ("boards", "node_names")
_JOINED = ("gpu_name", "driver", "power_source", "boundary")
_RATIOS = {
    "tokens_per_s": ("tokens_kept", "duration_s"),
    "words_per_s": ("words", "duration_s"),
    "responses_per_s": ("responses", "duration_s"),
    "power_w": ("energy_j", "duration_s"),
    "power_u_w": ("energy_u_j", "duration_s"),
    "host_power_w": ("host_energy_j", "duration_s"),
    "energy_per_token_j": ("energy_j", "tokens_kept"),
    "energy_per_token_u_j": ("energy_u_j", "tokens_kept"),
    "energy_per_computed_token_j": ("energy_j", "computed_tokens"),
    "energy_per_computed_token_u_j": ("energy_u_j", "computed_tokens"),
    "energy_per_word_j": ("energy_j", "words"),
    "energy_per_word_u_j": ("energy_u_j", "words"),
    "energy_per_response_j": ("energy_j", "responses"),
    "energy_per_response_u_j": ("energy_u_j", "responses"),
    "counter_ratio": ("energy_j", "counter_energy_j"),
}
_AGREED = (
    *("ecc", "persistence", "prompts_sha256", "engine_info", "versions", "gpus", "nodes_seen"),
    *("power_limit_w", "power_limit_default_w", "power_limit_min_w", "power_limit_max_w"),
)


def join(parts: Sequence[Row], choices: Row, attempt: Row) -> Row:
    """A row of results/points.parquet over pieces in their order; `attempt` says whose it is."""
    row: Row = dict.fromkeys(POINT.names)
    row.update(choices)
    row.update({name: attempt[name] for name in _OWN})
    if parts[-1]["attempt"] == attempt["attempt"]:
        row.update({name: parts[-1][name] for name in _AROUND if name in POINT.names})
    row.update({name: _all(sum, parts, name) for name in _SUMS})
    row.update({name: sorted({n for p in parts for n in p[name] or ()}) for name in _NAMES})
    row.update({name: _distinct(parts, name) for name in _JOINED})
    row.update({name: _agreed(parts, name) for name in _AGREED})
    row.update(
        coverage=_all(min, parts, "coverage"),
        longest_gap_s=_all(max, parts, "longest_gap_s"),
        temperature_c=_all(max, parts, "temperature_c"),
        memory_used_bytes=_all(max, parts, "memory_used_bytes"),
        simulated=any(part["simulated"] for part in parts),
        pieces=len(parts),
    )
    for name, (value, by) in _RATIOS.items():
        row[name] = row[value] / row[by] if row[value] is not None and row[by] else None
    reasons = list(dict.fromkeys(code for part in parts for code in part["reasons"]))
    if " + " in (row["boundary"] or ""):
        reasons.append("mixed_boundary")
        row.update({name: None for name in POINT.names if name.endswith(("_j", "_w"))})
    row["reasons"] = reasons
    return row


def _all(of: Callable[[list[Any]], Any], parts: Sequence[Row], name: str) -> Any:
    """A function of one column's values; null where one of them is missing."""
    values = [part[name] for part in parts]
    return None if None in values else of(values)


def _agreed(parts: Sequence[Row], name: str) -> Any:
    told = [part[name] for part in parts]
    return told[0] if all(value == told[0] for value in told) else None


def _distinct(parts: Sequence[Row], name: str) -> str | None:
    names = {one for part in parts if part[name] for one in part[name].split(" + ")}
    return " + ".join(sorted(names)) or None
