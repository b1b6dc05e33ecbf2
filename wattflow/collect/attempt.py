"""What one attempt cost: its traces joined with its spans on (node, GPU UUID), as rows of results/.

Each node's spans and traces carry that node's own clock, so its windows are integrated there and only joules are
added up. Joules are summed over the distinct devices of the job's ranks, so that ranks which share a device bill it
once and a device that no rank used is never billed.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from wattflow.collect import conditions, merge, partial, roofline
from wattflow.collect.figures import (
    fill_joules,
    fill_samples,
    self_checks,
    throughput,
    told_throughput,
)
from wattflow.collect.reading import (
    Collected,
    Row,
    Who,
    check_trace,
    of_batches,
    power_curve,
    read_devices,
    read_spans,
    u_of,
)
from wattflow.config.choices import from_dict
from wattflow.energy import curve
from wattflow.energy.curve import Joules
from wattflow.errors import DamagedError
from wattflow.nullable import agreed, complete_sum, joined_names, quotient
from wattflow.store.columns import POINT, REASONS, choice_values
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import REQUEST, TRACE, PartialAttempt, Record
from wattflow.store.sources import SECOND_NS
from wattflow.store.tables import read_table


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
        row |= partial.took(attempt, record)
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
        ecc=agreed(device.get("ecc") for device in devices),
        persistence=agreed(device.get("persistence") for device in devices),
        power_limit_default_w=agreed(device.get("power_limit_default_w") for device in devices),
        power_limit_min_w=agreed(device.get("power_limit_min_w") for device in devices),
        power_limit_max_w=agreed(device.get("power_limit_max_w") for device in devices),
        gpu_name=" + ".join(names) or None,
        driver=joined_names(node["driver"] for node in nodes),
        power_source=joined_names(node["source"] for node in nodes),
        boundary=joined_names(node["boundary"] for node in nodes),
        simulated=any(node["source"] == "simulated" for node in nodes) if nodes else None,
        sidecar_restarts=sum(node["sidecar_restarts"] for node in nodes) if nodes else None,
        boards=sorted({rank["gpu_uuid"] for rank in record.get("ranks", [])}) or None,
        reference_rounds=record.get("reference_rounds"),
        node_names=sorted({rank["node"] for rank in record.get("ranks", [])}) or None,
        prompts_sha256=record["prompts"]["sha256"] if "prompts" in record else None,
        engine_info=json.dumps(record["engine"]) if "engine" in record else None,
        versions=json.dumps(record["versions"]) if "versions" in record else None,
    )


def _is_in_pieces(record: Record) -> bool:
    """Whether an attempt went on from earlier ones."""
    return any(piece["attempt"] != record["attempt"] for piece in record.get("pieces", []))


def _own_piece(record: Record) -> PartialAttempt | None:
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
    whole = merge.join([part.point for part in parts], choice_values(choices), row)
    phases = [phase for part in parts for phase in part.phases]
    whole["reasons"] += ["in_pieces", *self_checks(whole, phases)]
    whole["reasons"] = list(dict.fromkeys(whole["reasons"]))
    whole["valid"], whole["counts"] = False, False
    own = parts[-1] if record["pieces"][-1]["attempt"] == attempt.number else None
    return Collected(whole, own.phases if own else [], own.traces if own else {})


def _piece(attempt: AttemptDir, piece: PartialAttempt, choices: dict[str, Any]) -> Collected:
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


def _finished(
    attempt: AttemptDir, record: Record, row: Row, batches: tuple[int, int] | None = None
) -> Collected:
    """Rows of a finished attempt: throughput from spans and requests, joules from the traces where all are there.

    With `batches` those of its spans and requests alone, first and count.
    """
    reasons: list[str] = []
    ranks = read_spans(attempt, record, reasons, batches)
    if "measure" in record:
        told_throughput(row, ranks, record, reasons)
    else:
        if len(record["ranks"]) < row["shards"]:
            reasons.append("missing_rank")
        requests = of_batches(read_table(attempt.requests_path, REQUEST), batches)
        throughput(row, ranks, requests, reasons)
    if record.get("load_shared"):
        reasons.append("load_shared")
    devices = read_devices(attempt, record, ranks, reasons)
    row.update(
        gpus=len({(rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}),
        nodes_seen=len({spans.who[0] for spans in ranks.values()}),
    )
    if "measure" not in record and row["boundary"] == "gpu" and row["gpus"] < row["shards"]:
        reasons.append("missing_gpu")
    phases: list[Row] = []
    if devices:
        phases = fill_joules(row, devices, reasons)
        fill_samples(row, devices, reasons)
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
        check_trace(traces[who], trace, node=node, gpu_uuid=host["uuid"], source=host["source"])
        power = power_curve(trace, host["source"], host["period_ms"])
        parts.append(curve.summed(curve.between(power, [start], [end])))
    if parts and len(parts) == len(windows):
        row["host_energy_j"] = complete_sum([part.energy_j for part in parts])
    if row["host_energy_j"] is not None:
        row["host_energy_u_j"] = u_of(parts)
        row["host_power_w"] = quotient(row["host_energy_j"], row["duration_s"])
    return traces
