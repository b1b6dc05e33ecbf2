"""What one attempt cost: its traces joined with its spans on (node, GPU UUID), as rows of results/.

Each node's spans and traces carry that node's own clock, so its windows are integrated there and only joules are
added up. Joules are summed over the distinct devices of the job's ranks, so that ranks which share a device bill it
once and a device that no rank used is never billed.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow import conditions, energy, joined, roofline, unfinished
from wattflow.columns import POINT, REASONS, choice_values
from wattflow.config import from_dict
from wattflow.energy import SECOND_NS, Counter, Curve, Joules
from wattflow.errors import DamagedError
from wattflow.schema import REQUEST, SPAN, TRACE, NodeInfo, Piece, Record
from wattflow.stream import read_table
from wattflow.sweepdir import AttemptDir
from wattflow.told import AROUND, OUTSIDE, known_sum

Row = dict[str, Any]
Who = tuple[str, str]  # node, GPU UUID
WITHIN = ("prefill", "decode", "other")
NOT_WITHIN = {*AROUND, OUTSIDE}  # all others are, also those of a program's own naming
COUNTER_CONTRADICTS = 0.25
LEAST_AVERAGED_S = 10.0
BOARD_GAIN = (
    0.05  # a sensor's gain is off by up to this, at random from board to board (arXiv 2312.02741)
)
# joules of dummy weights may be off those of real ones by this much: the widest difference between kinds of weights
# and tokens with its 95 % interval, LLaMA-7B's decode at batch 1 and 64 on an H100 (docs/measurement.md)
DUMMY_DATA = 0.017
LEAST_SAMPLES = 0.9


@dataclass(frozen=True)
class Collected:
    """One attempt's row of points.parquet, its rows of phases.parquet, and where its devices' traces lie.

    An hour of 32 GPUs is half a gigabyte of readings, so they are kept on the disk.
    """

    point: Row
    phases: list[Row]
    traces: dict[Who, Path]


@dataclass(frozen=True)
class _Spans:
    """The spans of one rank in order of start; columns of equal length.

    `measured`: those of a command under `measure`, whose window any phase may begin and end.
    """

    measured: bool
    rank: int
    who: Who
    phase: list[str]
    start_ns: energy.Ints
    end_ns: energy.Ints
    tokens: dict[str, list[int | None]]

    def edges(self, phase: str) -> tuple[energy.Ints, energy.Ints]:
        """Starts and ends of the spans of one phase."""
        of_phase = np.array([name == phase for name in self.phase], dtype=bool)
        return self.start_ns[of_phase], self.end_ns[of_phase]

    def within(self) -> tuple[energy.Ints, energy.Ints]:
        """Starts and ends of the spans inside the measured window, in order of start."""
        inside = np.array([name not in NOT_WITHIN for name in self.phase], dtype=bool)
        return self.start_ns[inside], self.end_ns[inside]

    def window(self) -> tuple[int, int] | None:
        """From the first prefill's start to the last decode's end; null without either."""
        starts, ends = self.edges("prefill")[0], self.edges("decode")[1]
        if self.measured:
            starts, ends = self.within()
        return (int(starts.min()), int(ends.max())) if len(starts) and len(ends) else None

    def seconds(self, phase: str) -> float | None:
        """The time in one phase; null where the rank has no such span."""
        starts, ends = self.edges(phase)
        return float((ends - starts).sum()) / SECOND_NS if len(starts) else None

    def count(self, column: str, phase: str) -> int | None:
        """The sum of one token column over a phase; null where nothing was counted."""
        return known_sum(
            n for n, name in zip(self.tokens[column], self.phase, strict=True) if name == phase
        )

    def steady(self) -> tuple[int, int] | None:
        """From the second prefill's start to the last but one decode's end; null with fewer than three batches."""
        starts, ends = self.edges("prefill")[0], self.edges("decode")[1]
        if len(starts) < 3 or len(ends) != len(starts):
            return None
        return int(np.sort(starts)[1]), int(np.sort(ends)[-2])

    def between(self, window: tuple[int, int]) -> tuple[energy.Ints, energy.Ints]:
        """The edges of what is in no phase inside the window."""
        starts, ends = self.within()
        return np.append(window[0], ends), np.append(starts, window[1])


@dataclass(frozen=True)
class _Device:
    """One device of the job: what its sensor told, by which ranks' spans it is billed, and its node's window."""

    who: Who
    source: str
    period_ms: float
    spans: _Spans
    window: tuple[int, int]
    readings: pa.Table  # its trace without the power samples
    power: Curve
    counter: Counter
    clock_stepped: bool  # its node's wall clock, inside the window

    def windows(self, start_ns: energy.Ints, end_ns: energy.Ints) -> energy.Windows:
        """What was measured in some windows, by the sensor that the device's node names."""
        if self.source == "nvml_counter":
            return energy.counter_between(self.counter, start_ns, end_ns)
        return energy.between(self.power, start_ns, end_ns)

    def by_phase(self) -> dict[str, Joules]:
        """The device's energy in each phase that its spans tell, between batches, and in the whole window."""
        own = dict.fromkeys((*AROUND, "prefill", "decode", *self.spans.phase))
        edges = {phase: self.spans.edges(phase) for phase in own}
        edges["other"] = self.spans.between(self.window)
        edges["window"] = np.array(self.window[:1]), np.array(self.window[1:])
        if (steady := self.spans.steady()) is not None:
            edges["steady"] = np.array(steady[:1]), np.array(steady[1:])
        # all at once: ten thousand attempts of a few spans each are slow one phase at a time
        starts, ends = (np.concatenate([pair[side] for pair in edges.values()]) for side in (0, 1))
        found = self.windows(starts, ends)
        bounds = np.cumsum([0, *(len(pair[0]) for pair in edges.values())])
        return {
            phase: energy.summed(found.part(int(first), int(last)))
            for phase, first, last in zip(edges, bounds[:-1], bounds[1:], strict=True)
            if last > first
        }


def blank(
    point_id: str, choices: dict[str, Any], status: str, reason: str, error: str | None
) -> Row:
    """The row of a point without a finished attempt: its choices, and why it has no numbers."""
    row = dict.fromkeys(POINT.names)
    row.update(choice_values(choices))
    row.update(
        point_id=point_id, status=status, counts=False, valid=False, reasons=[reason], error=error
    )
    return row


def collect_attempt(attempt: AttemptDir, choices: dict[str, Any]) -> Collected:
    """What one attempt cost. Never raises for what lies in its files: a damaged one is a reason in the row."""
    row = blank(attempt.point_id, choices, "running", "unfinished", None)
    row["attempt"] = attempt.number
    try:
        record = attempt.read_record()
        if record is None:
            return Collected(row, [], {})
        _describe(row, record, attempt)
        if record["status"] == "finished" and _is_in_pieces(record):
            return _in_pieces(attempt, record, row, choices)
        if record["status"] == "finished":
            return _finished(attempt, record, row)
        row |= unfinished.took(attempt, record)
        own = _own_piece(record)
        if own is None:
            return Collected(row, [], {})
        part = _piece(attempt, own, choices)  # its window is in the row of who went on from it
        return Collected(row, part.phases, part.traces)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
        pa.ArrowException,
    ) as error:
        # whatever a cut page, a foreign value or a record without a field leads to costs this attempt alone
        row.update(valid=False, reasons=["damaged"], error=_told(attempt, error))
        return Collected(row, [], {})


def _told(attempt: AttemptDir, error: Exception) -> str:
    if isinstance(error, DamagedError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: not there, though the record says finished."
    return f"{attempt.path}: a file there is not whole ({type(error).__name__}: {error})."


def _describe(row: Row, record: Record, attempt: AttemptDir) -> None:
    """Fill in what the record says of any attempt."""
    status = record["status"]
    row["status"] = status
    why = record.get("reason") or status
    row["reasons"] = [why if why in REASONS else "unfinished"]
    row["error"] = record.get("error")
    row["record_stamp_ns"] = attempt.record_path.stat().st_mtime_ns
    if record.get("ended_ns") is not None:
        row["attempt_s"] = (cast(int, record["ended_ns"]) - record["started_ns"]) / SECOND_NS
    row["started"] = datetime.fromtimestamp(record["started_ns"] / SECOND_NS, UTC)
    job = record.get("job")
    if job:
        row.update(job_id=job["job_id"], array_task=job["array_task"])
    nodes = record.get("nodes", [])
    devices = [device for node in nodes for device in node["devices"]]
    names = dict.fromkeys(device["name"] for device in devices)
    row.update(
        ecc=_agreed(device.get("ecc") for device in devices),
        persistence=_agreed(device.get("persistence") for device in devices),
        power_limit_default_w=_agreed(device.get("power_limit_default_w") for device in devices),
        power_limit_min_w=_agreed(device.get("power_limit_min_w") for device in devices),
        power_limit_max_w=_agreed(device.get("power_limit_max_w") for device in devices),
        gpu_name=" + ".join(names) or None,
        driver=_joined(node["driver"] for node in nodes),
        power_source=_joined(node["source"] for node in nodes),
        boundary=_joined(node["boundary"] for node in nodes),
        simulated=any(node["source"] == "simulated" for node in nodes) if nodes else None,
        sidecar_restarts=sum(node["sidecar_restarts"] for node in nodes) if nodes else None,
        boards=sorted({rank["gpu_uuid"] for rank in record.get("ranks", [])}) or None,
        reference_rounds=record.get("reference_rounds"),
        node_names=sorted({rank["node"] for rank in record.get("ranks", [])}) or None,
        prompts_sha256=record["prompts"]["sha256"] if "prompts" in record else None,
        engine_info=json.dumps(record["engine"]) if "engine" in record else None,
        versions=json.dumps(record["versions"]) if "versions" in record else None,
    )


def _agreed(values: Iterable[Any]) -> Any:
    """What all say; null where they differ or say nothing."""
    told = set(values)
    return told.pop() if len(told) == 1 else None


def _joined(names: Any) -> str | None:
    """The distinct names, joined; null where there are none."""
    return " + ".join(sorted({name for name in names if name})) or None


def _is_in_pieces(record: Record) -> bool:
    """Whether an attempt went on from earlier ones."""
    return any(piece["attempt"] != record["attempt"] for piece in record.get("pieces", []))


def _own_piece(record: Record) -> Piece | None:
    """The batches that an attempt itself finished, where it says so."""
    own = [piece for piece in record.get("pieces", []) if piece["attempt"] == record["attempt"]]
    return own[-1] if own else None


def _in_pieces(attempt: AttemptDir, record: Record, row: Row, choices: dict[str, Any]) -> Collected:
    """The rows of a point that several attempts measured one after another: one row over all, phases of its own part.

    The phases and traces of each earlier piece are told with the attempt that made it.
    """
    parts = []
    for piece in record["pieces"]:
        path = attempt.path.parent / f"attempt-{piece['attempt']}"
        made = AttemptDir(path, attempt.point_id, piece["attempt"])
        parts.append(_piece(made, piece, choices))
    whole = joined.join([part.point for part in parts], choice_values(choices), row)
    phases = [phase for part in parts for phase in part.phases]
    whole["reasons"] += ["in_pieces", *self_checks(whole, phases)]
    whole["reasons"] = list(dict.fromkeys(whole["reasons"]))
    whole["valid"], whole["counts"] = False, False
    own = parts[-1] if record["pieces"][-1]["attempt"] == attempt.number else None
    return Collected(whole, own.phases if own else [], own.traces if own else {})


def _piece(attempt: AttemptDir, piece: Piece, choices: dict[str, Any]) -> Collected:
    """What one attempt measured of its own batches, as if they were a whole point."""
    row = blank(attempt.point_id, choices, "finished", "in_pieces", None)
    row["attempt"] = attempt.number
    record = attempt.read_record()
    if record is None:
        raise DamagedError(
            f"{attempt.record_path}: not there, though a later attempt goes on from it."
        )
    _describe(row, record, attempt)
    return _finished(attempt, record, row, (piece["first_batch"], piece["batches"]))


def _of_batches(table: pa.Table, batches: tuple[int, int] | None) -> pa.Table:
    """The rows of some batches, first and count, and those of none; all for null."""
    if batches is None:
        return table
    first, count = batches
    inside = pc.and_(
        pc.greater_equal(table["batch"], first), pc.less(table["batch"], first + count)
    )
    if "phase" in table.schema.names:
        counted = pc.is_in(table["phase"], value_set=pa.array(["prefill", "decode"]))
        inside = pc.or_(pc.invert(counted), pc.fill_null(inside, fill_value=False))
    return table.filter(inside)


def _finished(
    attempt: AttemptDir, record: Record, row: Row, batches: tuple[int, int] | None = None
) -> Collected:
    """Rows of a finished attempt: throughput from spans and requests, joules from the traces where all are there.

    With `batches` those of its spans and requests alone, first and count.
    """
    reasons: list[str] = []
    ranks = _read_spans(attempt, record, reasons, batches)
    if "measure" in record:
        _told_throughput(row, ranks, record, reasons)
    else:
        if len(record["ranks"]) < row["shards"]:
            reasons.append("missing_rank")
        requests = _of_batches(read_table(attempt.requests_path, REQUEST), batches)
        _throughput(row, ranks, requests, reasons)
    if record.get("load_shared"):
        reasons.append("load_shared")
    devices = _read_devices(attempt, record, ranks, reasons)
    row.update(
        gpus=len({(rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}),
        nodes_seen=len({spans.who[0] for spans in ranks.values()}),
    )
    if "measure" not in record and row["boundary"] == "gpu" and row["gpus"] < row["shards"]:
        reasons.append("missing_gpu")
    phases: list[Row] = []
    if devices:
        phases = _joules(row, devices, reasons)
        _samples(row, devices, reasons)
        # the meter of a measured command leaves the command's own processes out of its count
        counted = [] if "measure" in record else record["ranks"]
        found, doubts = conditions.of_window(
            devices, counted, row["control_power_limit_w"], row["control_sm_clock_mhz"]
        )
        row.update(found)
        reasons += doubts
    if "measure" not in record and batches is None and row["decode_s"] is not None:
        row.update(_roofline(row, record))
    if row["sidecar_restarts"]:
        reasons.append("sidecar_restarted")
    reasons += self_checks(row, phases)
    row["reasons"] = list(dict.fromkeys(reasons))
    row["valid"] = not any(REASONS[reason][0] for reason in row["reasons"])
    traces = {device.who: attempt.trace_path(*device.who) for device in devices}
    traces |= _hosts(row, attempt, record, {device.who[0]: device.window for device in devices})
    return Collected(row, phases, traces)


def _roofline(row: Row, record: Record) -> Row:
    """How near the attempt came to its devices' limits, as far as its record tells."""
    if "work" not in record and "ceilings" not in record:
        return {}
    told = record.get("engine", {}).get("allreduce_us") or {}
    by_rows = {int(rows): float(us) for rows, us in cast(dict[str, float], told).items()}
    allreduce_us = by_rows[max(by_rows)] if by_rows else None
    return roofline.columns(
        from_dict(record["choices"]),
        record.get("work"),
        record.get("ceilings"),
        (row["prefill_s"], row["decode_s"]),
        allreduce_us,
    )


def _read_spans(
    attempt: AttemptDir,
    record: Record,
    reasons: list[str],
    batches: tuple[int, int] | None,
) -> dict[int, _Spans]:
    """The spans of each rank of the record; what is missing is a reason, what contradicts the record is damaged."""
    expected = {rank["rank"]: (rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}
    found: dict[int, _Spans] = {}
    if "measure" in record and len(record["nodes"]) < record["measure"]["nodes"]:
        reasons.append("missing_node")
    for node in sorted({node for node, _ in expected.values()}):
        path = attempt.spans_path(node)
        try:
            table = _of_batches(read_table(path, SPAN), batches)
        except FileNotFoundError:
            reasons.append("missing_node")
            continue
        for spans in _by_rank(table, measured="measure" in record):
            if expected.get(spans.rank) != spans.who or spans.who[0] != node:
                raise DamagedError(
                    f"{path}: rank {spans.rank} on {spans.who[0]} with {spans.who[1]} is not in the record."
                )
            if np.any(spans.end_ns < spans.start_ns) or _overlap(spans):
                reasons.append("spans_overlap")
            found[spans.rank] = spans
    if "missing_node" not in reasons and len(found) < len(expected):
        reasons.append("missing_rank")
    return found


def _by_rank(table: pa.Table, *, measured: bool) -> list[_Spans]:
    columns = table.sort_by([("rank", "ascending"), ("start_ns", "ascending")]).to_pydict()
    rows: dict[int, list[int]] = defaultdict(list)
    for i, rank in enumerate(columns["rank"]):
        rows[rank].append(i)
    return [
        _Spans(
            measured=measured,
            rank=rank,
            who=(columns["node"][at[0]], columns["gpu_uuid"][at[0]]),
            phase=[columns["phase"][i] for i in at],
            start_ns=np.array([columns["start_ns"][i] for i in at], dtype=np.int64),
            end_ns=np.array([columns["end_ns"][i] for i in at], dtype=np.int64),
            tokens={
                name: [columns[name][i] for i in at]
                for name in ("tokens_in", "tokens_kept", "tokens_computed")
            },
        )
        for rank, at in rows.items()
    ]


def _overlap(spans: _Spans) -> bool:
    return bool(np.any(spans.start_ns[1:] < spans.end_ns[:-1]))


def _throughput(row: Row, ranks: dict[int, _Spans], requests: pa.Table, reasons: list[str]) -> None:
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
        row["steady_tokens_per_s"] = _ratio(row["steady_tokens_kept"], row["steady_s"])
    row["other_s"] = row["duration_s"] - row["prefill_s"] - row["decode_s"]
    if not kept:
        reasons.append("no_tokens")
    if kept != pc.sum(requests["tokens_kept"]).as_py():
        reasons.append("tokens_differ")
    row["tokens_per_s"] = _ratio(kept, row["duration_s"])
    row["words_per_s"] = _ratio(row["words"], row["duration_s"])
    row["responses_per_s"] = _ratio(row["responses"], row["duration_s"])


def _told_throughput(
    row: Row, ranks: dict[int, _Spans], record: Record, reasons: list[str]
) -> None:
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
    lowest: dict[str, _Spans] = {}  # all devices of a node have the same spans
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
        tokens_per_s=_ratio(kept, (window[1] - window[0]) / SECOND_NS),
    )
    starts, ends = first.between(window)
    row["other_s"] = float((ends - starts).sum()) / SECOND_NS


def _ratio(value: float | None, by: float | None) -> float | None:
    """The ratio value / by; null where either is missing or the denominator is 0."""
    return value / by if value is not None and by else None


def _read_devices(
    attempt: AttemptDir, record: Record, ranks: dict[int, _Spans], reasons: list[str]
) -> list[_Device]:
    """The job's devices in the order of their lowest ranks, or none where one is missing: then no total is known."""
    if set(reasons) & {"missing_node", "missing_rank", "no_window", "spans_overlap"}:
        return []
    meters = {info["node"]: info for info in record.get("nodes", [])}
    lowest: dict[Who, _Spans] = {}
    for _, spans in sorted(ranks.items()):
        lowest.setdefault(spans.who, spans)
    if any(node not in meters for node, _ in lowest):
        reasons.append("missing_node")
        return []
    if len({meters[node]["boundary"] for node, _ in lowest}) > 1:
        reasons.append("mixed_boundary")
        return []
    devices = []
    for who, spans in lowest.items():
        window = _node_window(who[0], ranks)
        if window is None:
            reasons.append("no_window")
            return []
        try:
            trace = read_table(attempt.trace_path(*who), TRACE)
        except FileNotFoundError:
            reasons.append("missing_trace")
            continue
        _check_trace(
            attempt.trace_path(*who),
            trace,
            node=who[0],
            gpu_uuid=who[1],
            source=meters[who[0]]["source"],
            scope=meters[who[0]]["boundary"],
        )
        devices.append(_device(who, meters[who[0]], spans, window, trace))
    return devices if len(devices) == len(lowest) else []


def _node_window(node: str, ranks: dict[int, _Spans]) -> tuple[int, int] | None:
    """From the first prefill's start to the last decode's end over all ranks of a node."""
    windows = [spans.window() for spans in ranks.values() if spans.who[0] == node]
    known = [window for window in windows if window is not None]
    if len(known) < len(windows):
        return None
    return min(start for start, _ in known), max(end for _, end in known)


def _check_trace(path: Path, trace: pa.Table, **expected: str) -> None:
    """DamagedError when a trace does not say whose it is and what measured it, or says another than the record."""
    found = {
        k.decode(): v.decode(errors="replace") for k, v in (trace.schema.metadata or {}).items()
    }
    for key, value in expected.items():
        if found.get(key) != value:
            told = f"{key} {found[key]!r}" if key in found else f"no {key}"
            raise DamagedError(f"{path}: its metadata tell {told}, the record {key} {value!r}.")


def _device(
    who: Who, meter: NodeInfo, spans: _Spans, window: tuple[int, int], trace: pa.Table
) -> _Device:
    source, period_ms = meter["source"], meter["period_ms"]
    counted = _where(trace, pc.is_valid(trace["counter_mj"]), "counter_mj")
    paired = _where(trace, pc.is_valid(trace["monotonic_ns"]), "monotonic_ns")
    stamps = paired["time_ns"].to_numpy(), paired["monotonic_ns"].to_numpy()
    return _Device(
        who=who,
        source=source,
        period_ms=period_ms,
        spans=spans,
        window=window,
        readings=trace.filter(pc.not_equal(trace["source"], source)),
        power=_curve(trace, source, period_ms),
        counter=energy.counter(
            counted["time_ns"].to_numpy(),
            counted["counter_mj"].to_numpy(),
            age_ns=energy.DCGM_COUNTER_AGE_NS if source in energy.CACHED else 0,
        ),
        clock_stepped=energy.clock_stepped(*stamps, *window),
    )


def _where(trace: pa.Table, mask: pa.ChunkedArray, *columns: str) -> pa.Table:
    """Stamps and some columns of the readings under a mask: a trace has many columns, and each costs its time."""
    return trace.select(["time_ns", *columns]).filter(mask)


def _curve(trace: pa.Table, source: str, period_ms: float) -> Curve:
    # a row of the sensor without a value, flagged as a gap, is a reading that failed
    samples = _where(trace, pc.equal(trace["source"], source), "power_w", "gap")
    return energy.curve_of(
        source,
        period_ms,
        samples["time_ns"].to_numpy(),
        samples["power_w"].to_numpy(),
        samples["gap"].to_numpy(),
    )


def _joules(row: Row, devices: list[_Device], reasons: list[str]) -> list[Row]:
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
    row["energy_u_j"] = _u_of(totals)
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
    row["power_w"] = _ratio(row["energy_j"], row["duration_s"])
    row["power_u_w"] = _ratio(row["energy_u_j"], row["duration_s"])
    row["energy_per_token_j"] = _ratio(row["energy_j"], row["tokens_kept"])
    row["energy_per_token_u_j"] = _ratio(row["energy_u_j"], row["tokens_kept"])
    row["energy_per_computed_token_j"] = _ratio(row["energy_j"], row["computed_tokens"])
    row["energy_per_word_j"] = _ratio(row["energy_j"], row["words"])
    row["energy_per_response_j"] = _ratio(row["energy_j"], row["responses"])
    row["energy_per_computed_token_u_j"] = _ratio(row["energy_u_j"], row["computed_tokens"])
    row["energy_per_word_u_j"] = _ratio(row["energy_u_j"], row["words"])
    row["energy_per_response_u_j"] = _ratio(row["energy_u_j"], row["responses"])
    mean_w = sum(cast(float, _ratio(t.energy_j, t.seconds)) for t in totals)
    # a command begins and ends on each node by itself, the batches of a sweep's point on all at once
    alike = not devices[0].spans.measured or len({device.who[0] for device in devices}) == 1
    if alike and not _close(row["energy_j"], mean_w * row["duration_s"], 0.01):
        reasons.append("energy_power_time")
    return rows


def _phases(row: Row, by_phase: list[dict[str, Joules]], reasons: list[str]) -> None:
    """Fill in the joules of each phase of a sweep's point, all of which every device has."""
    for phase in (*AROUND, *WITHIN):
        parts = [phases.get(phase) for phases in by_phase]
        row[f"{phase}_energy_j"] = _sum([None if part is None else part.energy_j for part in parts])
        row[f"{phase}_energy_u_j"] = _u_of(parts)
    if any(row[f"{phase}_energy_j"] is None for phase in WITHIN):
        reasons.append("phase_gap")
    # the reference load is no part of the job; attempts of before idle_after was recorded end with their last batch
    around = ["idle", "load", "warmup", *(["idle_after"] if "idle_after" in by_phase[0] else [])]
    row["job_energy_j"] = _sum([row["energy_j"], *(row[f"{phase}_energy_j"] for phase in around)])
    us_j = [row["energy_u_j"], *(row[f"{phase}_energy_u_j"] for phase in around)]
    row["job_energy_u_j"] = _quadrature(us_j)


def _told_phases(row: Row, by_phase: list[dict[str, Joules]], reasons: list[str]) -> None:
    """Fill in the joules of the phases that a command told; a node that did not tell one spent none in it."""
    told = {
        phase: [phases[phase] for phases in by_phase if phase in phases]
        for phase in dict.fromkeys(phase for phases in by_phase for phase in phases)
    }
    found = {phase: _sum([part.energy_j for part in parts]) for phase, parts in told.items()}
    us_j = {phase: _u_of(parts) for phase, parts in told.items()}
    for phase in (*AROUND, *WITHIN):
        row[f"{phase}_energy_j"] = found.get(phase)
        row[f"{phase}_energy_u_j"] = us_j.get(phase)
    if any(energy_j is None for phase, energy_j in found.items() if phase not in NOT_WITHIN):
        reasons.append("phase_gap")
    outside = [phase for phase in found if phase in NOT_WITHIN]
    row["job_energy_j"] = _sum([row["energy_j"], *(found[phase] for phase in outside)])
    row["job_energy_u_j"] = _quadrature([row["energy_u_j"], *(us_j[phase] for phase in outside)])


def _idle_and_net(row: Row, by_phase: list[dict[str, Joules]]) -> None:
    for phase in ("idle", "idle_after"):
        row[f"{phase}_power_w"] = _sum(
            [_ratio(p[phase].energy_j, p[phase].seconds) if phase in p else None for p in by_phase]
        )
    if row["idle_power_w"] is not None:
        row["net_energy_j"] = row["energy_j"] - row["idle_power_w"] * row["duration_s"]
        idle_u_w = _quadrature([_ratio(p["idle"].u_j, p["idle"].seconds) for p in by_phase])
        if idle_u_w is not None:
            row["net_energy_u_j"] = _quadrature([row["energy_u_j"], idle_u_w * row["duration_s"]])


def _steady(row: Row, parts: list[Joules | None]) -> None:
    """The batches but the first and the last: no ramp at the start, no short batch at the end."""
    known = [part for part in parts if part is not None and part.energy_j is not None]
    if not known or len(known) < len(parts) or row["steady_tokens_kept"] is None:
        return
    row["steady_energy_j"] = sum(cast(float, part.energy_j) for part in known)
    row["steady_energy_u_j"] = _u_of(known)
    row["steady_power_w"] = _ratio(row["steady_energy_j"], row["steady_s"])
    row["steady_energy_per_token_j"] = _ratio(row["steady_energy_j"], row["steady_tokens_kept"])
    u_j = row["steady_energy_u_j"]
    row["steady_energy_per_token_u_j"] = _ratio(u_j, row["steady_tokens_kept"])


_WITHHOLD = {"no_power", "not_bracketed", "gap", "short_window", "clock_step"}


def _hosts(
    row: Row, attempt: AttemptDir, record: Record, windows: dict[str, tuple[int, int]]
) -> dict[Who, Path]:
    """Fill in the joules of the nodes' hosts in the same windows, null unless each node tells them; their traces."""
    hosts = {info["node"]: host for info in record.get("nodes", []) if (host := info.get("host"))}
    parts: list[Joules] = []
    traces: dict[Who, Path] = {}
    for node, (start, end) in windows.items():
        if node not in hosts:
            continue
        host = hosts[node]
        who = node, host["uuid"]
        try:
            trace = read_table(attempt.trace_path(*who), TRACE)
        except FileNotFoundError:
            continue
        traces[who] = attempt.trace_path(*who)
        _check_trace(traces[who], trace, node=node, gpu_uuid=host["uuid"], source=host["source"])
        power = _curve(trace, host["source"], host["period_ms"])
        parts.append(energy.summed(energy.between(power, [start], [end])))
    if parts and len(parts) == len(windows):
        row["host_energy_j"] = _sum([part.energy_j for part in parts])
    if row["host_energy_j"] is not None:
        row["host_energy_u_j"] = _u_of(parts)
        row["host_power_w"] = _ratio(row["host_energy_j"], row["duration_s"])
    return traces


def _withheld(device: _Device, total: Joules) -> list[str]:
    """Why a device's joules, and with them the job's, are not told."""
    reasons = []
    readings = device.counter if device.source == "nvml_counter" else device.power
    if len(readings.time_ns) == 0:
        reasons.append("no_power")
    elif total.reason is not None:
        reasons.append(total.reason)
    if device.source in energy.AVERAGING_NS and total.seconds < LEAST_AVERAGED_S:
        reasons.append("short_window")
    if device.clock_stepped:
        reasons.append("clock_step")
    return reasons


def _sum(parts: list[float | None]) -> float | None:
    """The sum, or null where a part is missing."""
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def _quadrature(us: list[float | None]) -> float | None:
    """Of independent parts, or null where one is missing."""
    squares = _sum([None if u is None else u**2 for u in us])
    return None if squares is None else squares**0.5


def _u_of(parts: Sequence[Joules | None]) -> float | None:
    """The standard uncertainty of the sum over devices, each with a sensor of its own."""
    return _quadrature([None if part is None else part.u_j for part in parts])


def _phase_row(row: Row, device: _Device, phase: str, joules: Joules) -> Row:
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
        "power_w": _ratio(joules.energy_j, joules.seconds),
        "tokens": counted.get(phase),
        "source": device.source,
        "coverage": joules.coverage,
        "reason": joules.reason,
    }


def _by_counter(row: Row, devices: list[_Device], reasons: list[str]) -> None:
    """The same window by the energy counters, as a check on the integral; null unless every device has one."""
    if any(device.source == "nvml_counter" for device in devices):
        return
    parts = []
    for device in devices:
        start, end = device.window
        by_counter = energy.counter_between(device.counter, [start], [end], device.power)
        parts.append(energy.summed(by_counter))
        if energy.resets_between(device.counter, start, end):
            reasons.append("counter_reset")
    row["counter_energy_j"] = _sum([part.energy_j for part in parts])
    row["counter_ratio"] = _ratio(row["energy_j"], row["counter_energy_j"])
    if row["counter_energy_j"] is not None:
        row["counter_energy_u_j"] = _u_of(parts)


def _samples(row: Row, devices: list[_Device], reasons: list[str]) -> None:
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
    parts = _sum([row[f"{phase}_energy_j"] for phase in WITHIN])
    if row["command"] is None and parts is not None and not _close(total, parts, 0.005):
        failed.append("phases_sum")
    of_gpus = _sum([phase["energy_j"] for phase in phases if phase["phase"] not in NOT_WITHIN])
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
