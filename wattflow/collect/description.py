"""What the record of an attempt reports beside figures: its end, its job, its devices and their sensor, versions."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from wattflow.nullable import agreed, joined_names
from wattflow.store.columns import REASONS
from wattflow.store.schema import NodeInfo, Part, Record
from wattflow.store.sources import SECOND_NS


@dataclass(frozen=True)
class Description:
    """Columns of results/points.parquet, null where the record does not have them."""

    status: str
    error: str | None = None
    record_stamp_ns: int | None = None
    attempt_s: float | None = None
    started: datetime | None = None
    job_id: str | None = None
    array_task: str | None = None
    ecc: bool | None = None
    persistence: bool | None = None
    power_limit_default_w: float | None = None
    power_limit_min_w: float | None = None
    power_limit_max_w: float | None = None
    gpu_name: str | None = None
    driver: str | None = None
    power_source: str | None = None
    boundary: str | None = None
    simulated: bool | None = None
    sidecar_restarts: int | None = None
    boards: list[str] | None = None
    node_names: list[str] | None = None
    reference_rounds: int | None = None
    prompts_sha256: str | None = None
    engine_info: str | None = None
    engine_version: str | None = None
    attention_backend: str | None = None
    cuda_graphs: str | None = None
    cache_kind: str | None = None
    compiled: bool | None = None
    quantization: str | None = None
    versions: str | None = None
    command: str | None = None
    exit_code: int | None = None


_RAN = ("engine_version", "attention_backend", "cuda_graphs", "cache_kind", "quantization")


def reason(record: Record) -> str:
    """Return the code of why an attempt has no figures, as far as its record gives one."""
    code = record.get("reason") or record["status"]
    return code if code in REASONS else "unfinished"


def describe(record: Record, stamp_ns: int) -> Description:
    """Return the description of an attempt by its record, which was written at `stamp_ns`."""
    nodes: list[NodeInfo] = record.get("nodes", [])
    devices = [device for node in nodes for device in node["devices"]]
    names = dict.fromkeys(device["name"] for device in devices)
    ranks, job, ended_ns = record.get("ranks", []), record.get("job"), record.get("ended_ns")
    # a program's record before its end has nothing to say of the command
    parts: list[Part] = record.get("parts", []) if record["status"] == "finished" else []
    codes = [part["exit_code"] for part in parts]
    return Description(
        status=record["status"],
        error=record.get("error"),
        record_stamp_ns=stamp_ns,
        attempt_s=None if ended_ns is None else (ended_ns - record["started_ns"]) / SECOND_NS,
        started=datetime.fromtimestamp(record["started_ns"] / SECOND_NS, UTC),
        job_id=job["job_id"] if job else None,
        array_task=job["array_task"] if job else None,
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
        boards=sorted({rank["gpu_uuid"] for rank in ranks}) or None,
        node_names=sorted({rank["node"] for rank in ranks}) or None,
        reference_rounds=record.get("reference_rounds"),
        prompts_sha256=record["prompts"]["sha256"] if "prompts" in record else None,
        engine_info=json.dumps(record["engine"]) if "engine" in record else None,
        **_ran(record),
        versions=json.dumps(record["versions"]) if "versions" in record else None,
        command=json.dumps(record["measure"]["command"])
        if record["status"] == "finished" and "measure" in record
        else None,
        exit_code=next((code for code in codes if code), 0 if codes else None),
    )


def _ran(record: Record) -> dict[str, Any]:
    """Return what an engine of others reports that it ran; null for what it does not report."""
    engine = record.get("engine", {})
    found = {name: engine.get(name) for name in _RAN}
    texts = {name: None if value is None else str(value) for name, value in found.items()}
    compiled = engine.get("compiled")
    return {**texts, "compiled": compiled if isinstance(compiled, bool) else None}
