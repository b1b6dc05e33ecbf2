"""The columns of results/: each with its type, unit and meaning, declared once.

A test holds docs/results.md to them.
"""

import dataclasses
import json
import types
import typing
from typing import Any

import pyarrow as pa

from wattflow.config.choices import Config
from wattflow.store.schema import TRACE

# Reason codes: whether the row's numbers are then left out (valid = false), and what the code says.
REASONS: dict[str, tuple[bool, str]] = {
    "infeasible": (True, "The point cannot run; `error` has the figures."),
    "waiting": (True, "No attempt was made yet."),
    "unfinished": (True, "The attempt has not ended, or ended without a word."),
    "failed": (True, "The attempt failed; `error` says how."),
    "hung": (True, "Nothing moved for sweep.hang_s; the ranks' stacks are in their logs."),
    "interrupted": (True, "The attempt was cut short by a time limit, a requeue or a cancel."),
    "in_pieces": (
        True,
        "Measured in pieces by attempts that were interrupted; its sums are told, and kept out of figures.",
    ),
    "damaged": (True, "A file of the attempt is cut, foreign or missing; `error` names it."),
    "missing_trace": (True, "A GPU of the job has no trace, so the job's joules are not known."),
    "missing_node": (True, "The record lacks a node's meter, or a node's spans are not there."),
    "missing_rank": (True, "Fewer ranks ran, or told their spans, than the point has shards."),
    "missing_gpu": (True, "Fewer GPUs were used than the point has shards: ranks shared one."),
    "no_window": (True, "No rank 0 prefill and decode on record, or a node without any."),
    "no_tokens": (True, "The spans count no output tokens, so no joule has a denominator."),
    "spans_overlap": (True, "Two spans of one rank overlap: its phases cannot be told apart."),
    "mixed_boundary": (
        True,
        "Nodes measured different boundaries, whose joules must not be added.",
    ),
    "no_power": (True, "No sensor told the power of a GPU."),
    "not_bracketed": (True, "No sample before the start or after the end of the window."),
    "gap": (True, "Less than 99 % of the window was measured."),
    "short_window": (True, "A sensor that averages over 1 s cannot tell a window under 10 s."),
    "clock_step": (True, "The node's wall clock jumped inside the window."),
    "energy_power_time": (True, "energy_j differs from the devices' mean power times duration_s."),
    "energy_per_token": (True, "energy_per_token_j times tokens_kept is not energy_j."),
    "phases_sum": (True, "Prefill, decode and other do not add up to energy_j."),
    "gpus_sum": (True, "The GPUs' joules do not add up to energy_j."),
    "tokens_differ": (True, "The spans' output tokens are not those of the requests."),
    "counter_contradicts": (True, "Integral and counter differ by more than 25 %."),
    "other_process": (True, "Another process had a GPU of the job, before or after the window."),
    "not_applied": (
        True,
        "The power limit or clock asked for was not in force on every GPU at every reading.",
    ),
    "did_not_bind": (False, "The power limit asked for held no GPU back: the cap changed nothing."),
    "counter_differs": (
        False,
        "Integral and counter differ by more than 2 u of both and 1 % (3 % below 10 s).",
    ),
    "samples_missing": (False, "Less than 90 % of the samples that the sensor's period promises."),
    "throttled": (False, "Heat or the power supply lowered clocks inside the window."),
    "counter_reset": (False, "The counter was reset in the window; power bridges the reset."),
    "phase_gap": (False, "A phase, not the whole window, was measured too little to have joules."),
    "sidecar_restarted": (False, "The sidecar was restarted during the attempt."),
    "load_shared": (
        False,
        "Weights were loaded before the idle window, for several points: no point's joules have that load.",
    ),
    "command_failed": (True, "The measured command ended with another exit code than 0."),
    "tokens_untold": (
        False,
        "The measured command told no output tokens, so no joule has a denominator.",
    ),
    "no_requests": (False, "A measured command tells no prompts: words and responses are null."),
    "bad_spans": (False, "Lines that the measured command wrote for spans are none; passed over."),
    "still_running": (
        False,
        "Processes of the measured command outlived it; their joules after its end are not in.",
    ),
    "dummy_text": (False, "Dummy weights: the text means nothing, so words are null."),
}


# The sensors of `power_source` in words.
SENSORS = {
    "nvml_buffer": "the driver's own sample buffer (a reading each 20 ms, with the driver's time stamps)",
    "nvml_instant": "NVML's instantaneous power, polled",
    "nvml_average": "NVML's one-second average of power, polled",
    "nvml_usage": "NVML's instantaneous power usage, polled",
    "nvml_usage_mean": "NVML's power usage, a mean over one second, polled",
    "nvml_counter": "the hardware energy counter",
    "dcgm": "DCGM's cache of instantaneous power, stamped when it arrived",
    "dcgm_mean": "DCGM's cache of a one-second average of power, stamped when it arrived",
    "rapl": "RAPL's counters of the host's CPU packages and DRAM, polled",
    "simulated": "arithmetic on the CPU's load",
}


def _field(name: str, kind: pa.DataType, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"unit": unit, "meaning": meaning})


def _key_fields() -> list[tuple[str, Any]]:
    """Every choice by dotted key with its annotated type, but for those that say where things lie or shape the grid."""
    out: list[tuple[str, Any]] = []
    for name, kind in typing.get_type_hints(Config).items():
        if name in ("sweep", "sweeps_dir"):
            continue
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            out.extend((f"{name}.{inner}", hints[inner]) for inner in hints)
        else:
            out.append((name, kind))
    return out


def column_of(key: str) -> str:
    """The results column of a choice: its key with underscores for dots, and `model` for `model.name`."""
    return key.removesuffix(".name").replace(".", "_")


def _arrow_type(annotation: Any) -> pa.DataType:
    kinds = [annotation]
    if isinstance(annotation, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    known = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return known.get(kinds[0], pa.string())  # lists, mappings and the like are JSON


CHOICE_KEYS = {column_of(key): key for key, _ in _key_fields()}
_CHOICES = [
    _field(column_of(key), _arrow_type(kind), "", f"Choice `{key}`.") for key, kind in _key_fields()
]

_STRING, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_NAMES = pa.list_(pa.string())

_IDENTITY = [
    _field("point_id", _STRING, "", "The point: 12 hex digits, a hash of its choices."),
    _field("attempt", _INT, "", "Which try at the point, from 1; null where none was made."),
    _field("status", _STRING, "", "finished, failed, interrupted, running, waiting or infeasible."),
    _field("counts", _BOOL, "", "True for the newest valid attempt of the point, and no other."),
    _field("valid", _BOOL, "", "Finished, measured, and all self-checks passed."),
    _field("reasons", _NAMES, "", "Codes of what is missing, doubtful or failed; see below."),
    _field(
        "error", _STRING, "", "Why the attempt failed, which file is damaged, or why it cannot run."
    ),
]

_MEASURED = [
    _field("tokens_in", _INT, "tokens", "Prompt tokens; in no denominator."),
    _field("tokens_kept", _INT, "tokens", "Output tokens after the stop rule."),
    _field(
        "computed_tokens",
        _INT,
        "tokens",
        "Token positions that decode steps worked on, cut ones too.",
    ),
    _field("words", _INT, "words", "Output split on white space; null for dummy weights."),
    _field("responses", _INT, "responses", "Prompts answered."),
    _field("duration_s", _FLOAT, "s", "Rank 0's first prefill's start to its last decode's end."),
    _field("tokens_per_s", _FLOAT, "tokens/s", "tokens_kept / duration_s."),
    _field("words_per_s", _FLOAT, "words/s", "words / duration_s."),
    _field("responses_per_s", _FLOAT, "responses/s", "responses / duration_s."),
    _field(
        "power_w",
        _FLOAT,
        "W",
        "energy_j / duration_s: mean power of all devices of the job together.",
    ),
    _field("energy_j", _FLOAT, "J", "Energy of the job's devices in the measured window, gross."),
    _field("energy_per_token_j", _FLOAT, "J/token", "energy_j / tokens_kept."),
    _field("energy_per_computed_token_j", _FLOAT, "J/token", "energy_j / computed_tokens."),
    _field("energy_per_word_j", _FLOAT, "J/word", "energy_j / words."),
    _field("energy_per_response_j", _FLOAT, "J/response", "energy_j / responses."),
    _field(
        "energy_u_j",
        _FLOAT,
        "J",
        "Standard uncertainty (k = 1) of energy_j by sampling; no board gain.",
    ),
    _field("power_u_w", _FLOAT, "W", "energy_u_j / duration_s."),
    _field("energy_per_token_u_j", _FLOAT, "J/token", "energy_u_j / tokens_kept."),
    _field("energy_per_computed_token_u_j", _FLOAT, "J/token", "energy_u_j / computed_tokens."),
    _field("energy_per_word_u_j", _FLOAT, "J/word", "energy_u_j / words."),
    _field("energy_per_response_u_j", _FLOAT, "J/response", "energy_u_j / responses."),
    _field(
        "board_gain_u_j",
        _FLOAT,
        "J",
        "Standard uncertainty by the gain of the boards' sensors, apart from energy_u_j.",
    ),
    _field(
        "dummy_data_u_j",
        _FLOAT,
        "J",
        "Standard uncertainty of taking dummy weights for real ones, apart from energy_u_j; null for real ones.",
    ),
    _field("counter_energy_j", _FLOAT, "J", "The same window by the hardware energy counter."),
    _field("counter_energy_u_j", _FLOAT, "J", "Its standard uncertainty by the counter's ticks."),
    _field("counter_ratio", _FLOAT, "", "energy_j / counter_energy_j: consistency, not accuracy."),
    _field("prefill_energy_j", _FLOAT, "J", "Energy of the prefills."),
    _field("prefill_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("prefill_s", _FLOAT, "s", "Rank 0's time in prefills."),
    _field("decode_energy_j", _FLOAT, "J", "Energy of the decodes."),
    _field("decode_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("decode_s", _FLOAT, "s", "Rank 0's time in decodes."),
    _field("other_energy_j", _FLOAT, "J", "Energy between batches, inside the window."),
    _field("other_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("other_s", _FLOAT, "s", "Rank 0's time between batches."),
    _field(
        "idle_power_w", _FLOAT, "W", "Mean power of the devices in the idle window before the load."
    ),
    _field("idle_energy_j", _FLOAT, "J", "Energy of that idle window."),
    _field("idle_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field(
        "idle_after_power_w",
        _FLOAT,
        "W",
        "Mean power of the devices in the idle window after the last batch, weights still on them.",
    ),
    _field("idle_after_energy_j", _FLOAT, "J", "Energy of that idle window."),
    _field("idle_after_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field(
        "net_energy_j",
        _FLOAT,
        "J",
        "energy_j without idle_power_w x duration_s: beside the gross joules, never for them.",
    ),
    _field("net_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("load_energy_j", _FLOAT, "J", "Energy of loading the weights."),
    _field("load_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("load_s", _FLOAT, "s", "Rank 0's time of loading."),
    _field("warmup_energy_j", _FLOAT, "J", "Energy of the uncounted batch."),
    _field("warmup_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("warmup_s", _FLOAT, "s", "Rank 0's time of the uncounted batch."),
    _field(
        "job_energy_j",
        _FLOAT,
        "J",
        "All phases: idle, load, warm-up, the measured window and idle after it.",
    ),
    _field("job_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("attempt_s", _FLOAT, "s", "The attempt's time, from its claim to its closed record."),
    _field(
        "unfinished_energy_j",
        _FLOAT,
        "J",
        "Of an attempt that did not finish: its devices' first to last sample on disk; in no other column.",
    ),
    _field("unfinished_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("unfinished_s", _FLOAT, "s", "The time from that first sample to that last one."),
    _field("unfinished_source", _STRING, "", "The sensor of those joules."),
    _field(
        "reference_s",
        _FLOAT,
        "s",
        "Time under the fixed reference load, where sweep.reference_s asks for it.",
    ),
    _field("reference_energy_j", _FLOAT, "J", "Its energy; in no other column."),
    _field("reference_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("reference_rounds", _INT, "rounds", "Rounds of that load by rank 0."),
    _field(
        "host_energy_j",
        _FLOAT,
        "J",
        "RAPL: CPU packages and DRAM of the job's nodes in the same window, whoever used them; in no other column.",
    ),
    _field("host_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("host_power_w", _FLOAT, "W", "host_energy_j / duration_s."),
    _field("steady_s", _FLOAT, "s", "Rank 0's time of all batches but the first and the last."),
    _field("steady_tokens_kept", _INT, "tokens", "Output tokens of those batches."),
    _field("steady_tokens_per_s", _FLOAT, "tokens/s", "steady_tokens_kept / steady_s."),
    _field(
        "steady_energy_j",
        _FLOAT,
        "J",
        "Energy from the second batch's start to the last but one's end.",
    ),
    _field("steady_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
    _field("steady_power_w", _FLOAT, "W", "steady_energy_j / steady_s."),
    _field("steady_energy_per_token_j", _FLOAT, "J/token", "steady_energy_j / steady_tokens_kept."),
    _field(
        "steady_energy_per_token_u_j", _FLOAT, "J/token", "steady_energy_u_j / steady_tokens_kept."
    ),
    _field("power_source", _STRING, "", "The sensor that the joules come from."),
    _field("boundary", _STRING, "", "What the joules are of: gpu, or host where there is none."),
    _field("simulated", _BOOL, "", "True where the watts are arithmetic and nothing was measured."),
    _field(
        "coverage", _FLOAT, "", "Least share of the window that was measured, over the devices."
    ),
    _field(
        "longest_gap_s",
        _FLOAT,
        "s",
        "Longest time without a sample in the window, over the devices.",
    ),
    _field("samples", _INT, "", "Power samples in the window, of all devices."),
    _field("samples_expected", _INT, "", "As many as the sensors' periods promise."),
    _field("gpus", _INT, "", "Devices of the job, each billed once."),
    _field(
        "boards", _NAMES, "", "The UUIDs of those devices, sorted: what a comparison is paired by."
    ),
    _field("nodes_seen", _INT, "", "Nodes that told spans."),
    _field("gpu_name", _STRING, "", "The devices' name; several are joined by ` + `."),
    _field("driver", _STRING, "", "The driver's version."),
    _field(
        "gpu_activity_pct",
        _FLOAT,
        "%",
        "Mean share of time in which any kernel ran; spinning counts.",
    ),
    _field(
        "memory_activity_pct",
        _FLOAT,
        "%",
        "Mean share of time in which memory was read or written.",
    ),
    _field(
        "sm_activity_pct", _FLOAT, "%", "GPM: mean share of SMs at work, of what they could be."
    ),
    _field("sm_occupancy_pct", _FLOAT, "%", "GPM: mean share of an SM's warps that were resident."),
    _field("tensor_activity_pct", _FLOAT, "%", "GPM: mean activity of the tensor cores."),
    _field("dram_activity_pct", _FLOAT, "%", "GPM: mean share of the memory's bandwidth in use."),
    _field("pcie_tx_mib_s", _FLOAT, "MiB/s", "GPM: mean rate sent over PCIe by one device."),
    _field("pcie_rx_mib_s", _FLOAT, "MiB/s", "GPM: mean rate received over PCIe by one device."),
    _field("nvlink_tx_mib_s", _FLOAT, "MiB/s", "GPM: mean rate sent over NVLink by one device."),
    _field(
        "nvlink_rx_mib_s", _FLOAT, "MiB/s", "GPM: mean rate received over NVLink by one device."
    ),
    _field("memory_used_bytes", _INT, "bytes", "Most memory in use on one device."),
    _field("sm_clock_mhz", _FLOAT, "MHz", "Mean SM clock."),
    _field("temperature_c", _FLOAT, "degC", "Highest temperature of any device in the window."),
    _field("power_limit_w", _FLOAT, "W", "Lowest power limit in force on any device."),
    _field(
        "power_limit_default_w",
        _FLOAT,
        "W",
        "The maker's default limit; null where devices differ.",
    ),
    _field("power_limit_min_w", _FLOAT, "W", "The least limit that the devices accept."),
    _field("power_limit_max_w", _FLOAT, "W", "The highest limit that the devices accept."),
    _field(
        "ecc", _BOOL, "", "Whether memory is error-corrected; null where unknown or devices differ."
    ),
    _field(
        "persistence", _BOOL, "", "Whether the driver stays loaded without clients; null likewise."
    ),
    _field(
        "throttle_reasons",
        pa.uint64(),
        "",
        "NVML's clock-event bits seen in the window, all or-ed.",
    ),
    _field(
        "under_cap_s",
        _FLOAT,
        "s",
        "Time that the power cap held devices back, summed over devices.",
    ),
    _field(
        "cap_bound",
        _BOOL,
        "",
        "Whether the power limit in force held any device back: by time under cap, reasons and samples.",
    ),
    _field(
        "power_profiles",
        _STRING,
        "",
        "Ids of NVML's workload power profiles in force; null where the driver knows of none.",
    ),
    _field(
        "pieces",
        _INT,
        "",
        "Attempts that measured the point's batches one after another; null for one attempt alone.",
    ),
    _field("decode_steps", _INT, "steps", "Decode steps of the measured window, of rank 0."),
    _field(
        "step_bytes",
        _FLOAT,
        "bytes",
        "The least that one device reads in a mean decode step: its weights, and the cached keys and values.",
    ),
    _field("step_flops", _FLOAT, "FLOP", "The least that one device computes in that step."),
    _field("decode_bytes_per_s", _FLOAT, "bytes/s", "step_bytes x decode_steps / decode_s."),
    _field(
        "copy_bytes_per_s",
        _FLOAT,
        "bytes/s",
        "Ceiling: a copy on the slowest device, bytes read and written, after the batches.",
    ),
    _field(
        "product_flops_per_s",
        _FLOAT,
        "FLOP/s",
        "Ceiling: a matrix product in the point's precision on the slowest device, likewise.",
    ),
    _field("ceilings_source", _STRING, "", "How and when both ceilings were measured."),
    _field(
        "decode_roofline_share",
        _FLOAT,
        "",
        "The least time of the decode steps by both ceilings, without communication, / decode_s.",
    ),
    _field(
        "prefill_roofline_share",
        _FLOAT,
        "",
        "The least time of the prefills by both ceilings, without padding, / prefill_s.",
    ),
    _field(
        "allreduce_us",
        _FLOAT,
        "us",
        "One sum over ranks of a full batch's rows, measured when the engine loaded; null for one shard.",
    ),
    _field("allreduces_per_step", _INT, "", "Such sums in a decode step: two a layer."),
    _field(
        "communication_s",
        _FLOAT,
        "s",
        "Estimate: decode_steps x allreduces_per_step x allreduce_us; waiting for slower ranks is not in it.",
    ),
    _field("communication_share", _FLOAT, "", "communication_s / decode_s."),
    _field("sidecar_restarts", _INT, "", "How often a sidecar was restarted."),
    _field("command", _STRING, "", "What `measure` ran, as JSON; null in a sweep."),
    _field(
        "exit_code",
        _INT,
        "",
        "The measured command's exit code; of the first node where it is not 0; a signal is 128 + its number.",
    ),
    _field("engine_info", _STRING, "", "What the engine said of itself, as JSON."),
    _field("versions", _STRING, "", "Versions of software, as JSON."),
    _field("prompts_sha256", _STRING, "", "Hash of the prompts as sent."),
    _field("started", pa.timestamp("us", "UTC"), "", "When the attempt began."),
    _field("job_id", _STRING, "", "Slurm's job."),
    _field("array_task", _STRING, "", "Its array task."),
    _field("node_names", _NAMES, "", "The nodes that ran."),
    _field(
        "record_stamp_ns",
        _INT,
        "ns",
        "The record's time of change; a row is made anew when it moves.",
    ),
]

POINT = pa.schema(_IDENTITY + _CHOICES + _MEASURED)

PHASE = pa.schema(
    [
        _field("point_id", _STRING, "", "The point."),
        _field("attempt", _INT, "", "The attempt."),
        _field(
            "phase",
            _STRING,
            "",
            "idle, load, warmup, prefill, decode, other (between batches), idle_after or reference; "
            "or what a measured command told.",
        ),
        _field("node", _STRING, "", "The node."),
        _field("gpu_uuid", _STRING, "", "The GPU; `host-<node>` where there is none."),
        _field("seconds", _FLOAT, "s", "Time in the phase, by the device's lowest rank."),
        _field("energy_j", _FLOAT, "J", "Energy of the device in the phase."),
        _field("energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling."),
        _field("power_w", _FLOAT, "W", "energy_j / seconds."),
        _field(
            "tokens",
            _INT,
            "tokens",
            "Prompt tokens for prefill, kept output tokens for decode (of the job; of the node for `measure`).",
        ),
        _field("source", _STRING, "", "The sensor."),
        _field("coverage", _FLOAT, "", "Share of the time that was measured."),
        _field("reason", _STRING, "", "Why energy_j is null: not_bracketed or gap."),
    ]
)

# What each attempt costs by declared factors: made when asked for, since factors are declared at any time.
COST = pa.schema(
    [
        _field("point_id", _STRING, "", "The point."),
        _field("attempt", _INT, "", "The attempt."),
        _field("status", _STRING, "", "finished, failed, interrupted or running."),
        _field("counts", _BOOL, "", "True for the newest valid attempt of the point."),
        _field("boundary", _STRING, "", "What the joules are of: gpu, or host."),
        _field("power_source", _STRING, "", "The sensor that the joules come from."),
        _field("simulated", _BOOL, "", "True where nothing was measured."),
        _field("gpu_hours", _FLOAT, "GPU h", "GPUs times attempt_s; null where there is no GPU."),
        _field(
            "energy_kwh",
            _FLOAT,
            "kWh",
            "All that the attempt took: job_energy_j with reference_energy_j, or unfinished_energy_j.",
        ),
        _field(
            "pue", _FLOAT, "", "Declared: what the facility takes over what its computers take."
        ),
        _field("pue_source", _STRING, "", "Where that is from."),
        _field("facility_energy_kwh", _FLOAT, "kWh", "energy_kwh x pue; still of that boundary."),
        _field("price_per_kwh", _FLOAT, "currency/kWh", "Declared: the mean over the attempt."),
        _field("price_source", _STRING, "", "Where that is from."),
        _field("currency", _STRING, "", "Of the price."),
        _field("price", _FLOAT, "currency", "price_per_kwh x facility_energy_kwh, or energy_kwh."),
        _field(
            "price_per_million_tokens",
            _FLOAT,
            "currency",
            "Of the measured window alone, a million output tokens.",
        ),
        _field("carbon_g_per_kwh", _FLOAT, "g/kWh", "Declared: the mean over the attempt."),
        _field("carbon_source", _STRING, "", "Where that is from."),
        _field("carbon_g", _FLOAT, "g", "carbon_g_per_kwh x facility_energy_kwh, or energy_kwh."),
        _field(
            "carbon_g_per_million_tokens",
            _FLOAT,
            "g",
            "Of the measured window alone, a million output tokens.",
        ),
        _field("why_not", _STRING, "", "Why a number is null."),
    ]
)

# What the site's own meters say of the same jobs and windows: results/crosscheck.parquet.
CROSSCHECK = pa.schema(
    [
        _field("point_id", _STRING, "", "The point; null where a job had several attempts."),
        _field("attempt", _INT, "", "The attempt; null likewise."),
        _field("job_id", _STRING, "", "Slurm's job."),
        _field("source", _STRING, "", "Whose figure it is: the exporter and its metric, or sacct."),
        _field("window", _STRING, "", "What both are of: measured window, or job."),
        _field("seconds", _FLOAT, "s", "Its length; null for a job."),
        _field("boundary", _STRING, "", "The boundary of energy_j."),
        _field(
            "site_boundary",
            _STRING,
            "",
            "That of site_energy_j: gpu, or node without NVIDIA GPUs.",
        ),
        _field("simulated", _BOOL, "", "True where energy_j was not measured."),
        _field(
            "energy_j",
            _FLOAT,
            "J",
            "By wattflow: energy_j, or for a job job_energy_j of all its attempts.",
        ),
        _field("site_energy_j", _FLOAT, "J", "By the site."),
        _field(
            "site_energy_u_j", _FLOAT, "J", "Its standard uncertainty by sampling; null for sacct."
        ),
        _field("ratio", _FLOAT, "", "site_energy_j / energy_j."),
        _field("samples", _INT, "", "The site's samples in the window, of all GPUs."),
        _field("spacing_s", _FLOAT, "s", "Median time between two of them, of the worst GPU."),
        _field("remark", _STRING, "", "What to know of the source."),
        _field("why_not", _STRING, "", "Why there is no ratio."),
    ]
)

# One row a reading, as the sidecar wrote it, with whose it is.
COLLECTED_TRACE = pa.schema(
    [
        pa.field("point_id", _STRING, nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("node", _STRING, nullable=False),
        pa.field("gpu_uuid", _STRING, nullable=False),
        *TRACE,
    ]
)


def choice_values(choices: dict[str, Any]) -> dict[str, Any]:
    """The choices of a point by results column; lists and mappings as JSON, absent ones null."""
    out: dict[str, Any] = {}
    for column, key in CHOICE_KEYS.items():
        value: Any = choices
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        out[column] = json.dumps(value) if isinstance(value, dict | list) else value
    return out
