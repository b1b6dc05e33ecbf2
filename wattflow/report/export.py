"""What other programs read: one JSON an attempt, and one OpenMetrics text of all attempts of a sweep.

    wattflow export SWEEP [--out DIR]

    DIR/attempts/<point_id>-<attempt>.json     DIR/attempt.schema.json says what each field is
    DIR/openmetrics.txt                        for node_exporter's textfile collector, or with times for promtool

Neither holds users, accounts, hosts, paths, commands or prompts. Units are in the names; missing is null, or no sample.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from wattflow import __version__
from wattflow.analysis.expanded import expanded
from wattflow.analysis.sweep import Sweep
from wattflow.config.identity import is_hashed
from wattflow.errors import RefusedError
from wattflow.nullable import complete_sum, quadrature
from wattflow.report.text import BOUNDARIES
from wattflow.store.columns import CHOICE_KEYS, COST, POINT
from wattflow.store.files import write_atomic, write_json

Row = dict[str, Any]

JSON_VERSION = 1
# what names somebody's machine, command or person, or stands elsewhere in the document
_LEFT_OUT = {
    *("point_id", "attempt", "status", "counts", "valid", "reasons", "error", "started", "job_id"),
    *("array_task", "node_names", "boards", "command", "engine_info", "versions"),
    *("record_stamp_ns", "boundary", "power_source", "simulated"),
}
FIGURES = [name for name in POINT.names if name not in CHOICE_KEYS and name not in _LEFT_OUT]
CHOICES = {column: key for column, key in CHOICE_KEYS.items() if is_hashed(key)}
COSTS = [
    name
    for name in COST.names
    if name
    not in ("point_id", "attempt", "status", "counts", "boundary", "power_source", "simulated")
]
PHASE_FIGURES = ("seconds", "energy_j", "energy_u_j", "energy_expanded_u_j")


def export(sweep: Sweep, out: Path, *, timestamps: bool = False) -> list[Path]:
    """Write a JSON an attempt, its schema and the OpenMetrics text below a folder; the paths, the text last.

    RefusedError where the folder cannot be made.
    """
    documents = attempts(sweep)
    folder = out / "attempts"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            f"{folder}: cannot be made ({error.strerror}). Name another folder by --out."
        ) from error
    paths = []
    for one in documents:
        paths.append(folder / f"{one['point_id']}-{one['attempt']}.json")
        write_json(paths[-1], one)
    paths += [out / "attempt.schema.json", out / "openmetrics.txt"]
    write_json(paths[-2], json_schema())
    write_atomic(paths[-1], openmetrics(documents, timestamps=timestamps).encode())
    return paths


# --- JSON -----------------------------------------------------------------------------------------


def attempts(sweep: Sweep) -> list[Row]:
    """Return one document an attempt, in the order of the grid."""
    tried = sweep.attempts.filter(pl.col("attempt").is_not_null())
    costs = {(row["point_id"], row["attempt"]): row for row in sweep.cost().to_dicts()}
    phases: dict[tuple[str, int], list[Row]] = {}
    for row in sweep.phases.to_dicts():
        phases.setdefault((row["point_id"], row["attempt"]), []).append(row)
    return [
        _document(sweep.name, row, phases.get(key, []), costs[key])
        for row in tried.to_dicts()
        for key in [(row["point_id"], row["attempt"])]
    ]


def _document(sweep: str, row: Row, phases: Sequence[Row], cost: Row) -> Row:
    started = row["started"]
    return {
        "schema": "wattflow/attempt",
        "schema_version": JSON_VERSION,
        "wattflow": __version__,
        "sweep": sweep,
        **{name: row[name] for name in ("point_id", "attempt", "status", "counts", "valid")},
        "reasons": row["reasons"],
        "job_id": row["job_id"],
        "array_task": row["array_task"],
        "started": None if started is None else started.isoformat(),
        # of whatever joules there are, also those of an attempt that did not finish
        **{name: cost[name] for name in ("boundary", "power_source", "simulated")},
        "choices": {key: row[column] for column, key in CHOICES.items()},
        "figures": {name: row[name] for name in FIGURES},
        "phases": _by_phase(row, phases),
        "cost": {name: cost[name] for name in COSTS},
    }


def _by_phase(row: Row, rows: Iterable[Row]) -> list[Row]:
    """Return each phase over all devices: their joules together, null where one is unknown, and the longest time."""
    of_phase: dict[str, list[Row]] = {}
    for one in rows:
        of_phase.setdefault(one["phase"], []).append(one)
    found = []
    for phase, devices in of_phase.items():
        seconds = max(one["seconds"] for one in devices)
        energy_j = complete_sum([one["energy_j"] for one in devices])
        u_j = quadrature([one["energy_u_j"] for one in devices])
        values = (seconds, energy_j, u_j, expanded(row, energy_j, seconds, u_j))
        found.append({"phase": phase, **dict(zip(PHASE_FIGURES, values, strict=True))})
    return found


def json_schema() -> Row:
    """Return the JSON Schema of such a document, with the unit and meaning of each field."""
    text, boolean, integer = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
    maybe = {"type": ["string", "null"]}
    phase = {"phase": text, **{n: {"type": ["number", "null"]} for n in PHASE_FIGURES}}
    properties: Row = {
        "schema": {"const": "wattflow/attempt"},
        "schema_version": {"const": JSON_VERSION},
        "wattflow": {**text, "description": "The version that wrote this."},
        "sweep": text,
        "point_id": {**text, "pattern": "^[0-9a-f]{12}$"},
        "attempt": {**integer, "minimum": 1},
        "status": {"enum": ["finished", "failed", "interrupted", "running"]},
        "counts": boolean,
        "valid": boolean,
        "reasons": {"type": "array", "items": text},
        "job_id": {**maybe, "description": "Slurm's."},
        "array_task": maybe,
        "started": {**maybe, "description": "ISO 8601."},
        "boundary": {"enum": [*BOUNDARIES, None], "description": "What the joules are of."},
        "power_source": {**maybe, "description": "The sensor that they come from."},
        "simulated": {
            "type": ["boolean", "null"],
            "description": "True for what no sensor measured.",
        },
        "choices": {
            "type": "object",
            "description": "The choices that make the point_id, by key.",
        },
        "figures": _object(_fields(POINT, FIGURES)),
        "phases": {"type": "array", "items": _object(phase)},
        "cost": _object(_fields(COST, COSTS)),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An attempt at a point, as `wattflow export` writes it",
        **_object(properties),
    }


def _object(properties: Row) -> Row:
    required = list(properties)
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _fields(schema: pa.Schema, names: Sequence[str]) -> Row:
    return {name: _field(schema.field(name)) for name in names}


def _field(field: pa.Field) -> Row:
    kinds = {"double": "number", "bool": "boolean", "string": "string"}
    about = {key.decode(): value.decode() for key, value in field.metadata.items()}
    unit = f" [{about['unit']}]" if about["unit"] else ""
    return {
        "type": [kinds.get(str(field.type), "integer"), "null"],
        "description": about["meaning"] + unit,
    }


# --- OpenMetrics ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """One family of metrics: its type, unit and help, and the samples of its attempts."""

    name: str
    # counter or gauge: info is unknown to the older text format, which node_exporter reads
    kind: str
    unit: str  # the end of the name; empty for none
    about: str


_ENERGY = "joules of an attempt by phase, whose sum is all that it took within its boundary"
_OF_IT = "Its expanded uncertainty (k = 2)."
_OF_ENERGY = "Its expanded uncertainty (k = 2), by that of the energy."
_FAMILIES = (
    _Family("wattflow_attempt_info", "gauge", "", "1: an attempt, and the choices of its point."),
    _Family("wattflow_energy_joules", "counter", "joules", f"Measured {_ENERGY}."),
    _Family("wattflow_simulated_energy_joules", "counter", "joules", f"Simulated, not measured: {_ENERGY}."),
    _Family("wattflow_energy_expanded_uncertainty_joules", "gauge", "joules", f"Uncertainty (k = 2) of {_ENERGY}."),
    _Family("wattflow_tokens", "counter", "", "Tokens of the measured window: in, kept, computed."),
    _Family("wattflow_gpu_seconds", "counter", "seconds", "GPUs times the attempt's time."),
    _Family("wattflow_window_seconds", "gauge", "seconds", "The measured window."),
    _Family("wattflow_power_watts", "gauge", "watts", "Mean power of all devices in the measured window."),
    _Family("wattflow_power_expanded_uncertainty_watts", "gauge", "watts", _OF_IT),
    _Family("wattflow_energy_per_token_joules", "gauge", "joules", "Joules a kept output token."),
    _Family("wattflow_energy_per_token_expanded_uncertainty_joules", "gauge", "joules", _OF_IT),
    _Family("wattflow_carbon_grams", "counter", "grams", "CO2 equivalents by the declared factor."),
    _Family("wattflow_carbon_expanded_uncertainty_grams", "gauge", "grams", _OF_ENERGY),
    _Family("wattflow_price", "counter", "", "Price by the declared factor, in its currency."),
    _Family("wattflow_price_expanded_uncertainty", "gauge", "", _OF_ENERGY),
)  # fmt: skip


def openmetrics(documents: Sequence[Row], *, timestamps: bool = False) -> str:
    """Return the OpenMetrics text of some attempts; with `timestamps` each sample has its attempt's end.

    What is not known has no sample. Simulated joules are a family of their own, so that no sum takes them for measured.
    """
    samples: dict[str, list[str]] = {family.name: [] for family in _FAMILIES}
    for one in documents:
        at = _ended(one) if timestamps else ""
        if timestamps and not at:
            continue  # it has not ended
        own = {"sweep": one["sweep"], "point_id": one["point_id"], "attempt": one["attempt"]}
        own["job_id"] = one["job_id"] or ""
        for name, labels, value in _values(one):
            if value is not None:
                samples[name].append(_sample(name, {**own, **labels}, value, at))
    lines = []
    for family in _FAMILIES:
        if samples[family.name]:
            lines += [f"# TYPE {family.name} {family.kind}"]
            lines += [f"# UNIT {family.name} {family.unit}"] if family.unit else []
            lines += [f"# HELP {family.name} {family.about}", *samples[family.name]]
    return "".join(f"{line}\n" for line in [*lines, "# EOF"])


_DOUBT = "wattflow_energy_expanded_uncertainty_joules"
_SUFFIX = {family.name: "_total" if family.kind == "counter" else "" for family in _FAMILIES}


# of an attempt's choices: those by which the points of most sweeps differ, as more labels cost every reader
_LABELS = (
    *("model.name", "dataset.name", "engine.name", "weights", "precision", "shards", "nodes"),
    *("batch_size", "max_gen_len", "control.power_limit_w", "control.sm_clock_mhz", "repeat"),
)


def _values(one: Row) -> Iterable[tuple[str, dict[str, Any], float | None]]:
    """Return the family, labels beside the attempt's own, and value of each sample of one attempt."""
    figures, cost = one["figures"], one["cost"]
    choices = {_label(key): one["choices"][key] for key in _LABELS}
    yield "wattflow_attempt_info", {**choices, "status": one["status"], "counts": one["counts"]}, 1
    source = {"boundary": one["boundary"], "source": one["power_source"]}
    name = "wattflow_simulated_energy_joules" if one["simulated"] else "wattflow_energy_joules"
    # those of a piece that was kept of an attempt that was cut short are in its unfinished joules
    for phase in one["phases"] if one["status"] == "finished" else ():
        yield name, {**source, "phase": phase["phase"]}, phase["energy_j"]
        yield _DOUBT, {**source, "phase": phase["phase"]}, phase["energy_expanded_u_j"]
    unfinished = {**source, "phase": "unfinished"}
    yield name, unfinished, figures["unfinished_energy_j"]
    yield _DOUBT, unfinished, figures["unfinished_energy_expanded_u_j"]
    for kind, column in (
        ("in", "tokens_in"),
        ("kept", "tokens_kept"),
        ("computed", "computed_tokens"),
    ):
        yield "wattflow_tokens", {"kind": kind}, figures[column]
    hours = cost["gpu_hours"]
    yield "wattflow_gpu_seconds", {}, None if hours is None else hours * 3600.0
    yield "wattflow_window_seconds", {}, figures["duration_s"]
    marks = {**source, "simulated": bool(one["simulated"])}
    yield "wattflow_power_watts", marks, figures["power_w"]
    yield "wattflow_power_expanded_uncertainty_watts", marks, figures["power_expanded_u_w"]
    yield "wattflow_energy_per_token_joules", marks, figures["energy_per_token_j"]
    per_token = figures["energy_per_token_expanded_u_j"]
    yield "wattflow_energy_per_token_expanded_uncertainty_joules", marks, per_token
    emitted = {"factor": cost["carbon_source"], **marks}
    yield "wattflow_carbon_grams", emitted, cost["carbon_g"]
    yield "wattflow_carbon_expanded_uncertainty_grams", emitted, cost["carbon_expanded_u_g"]
    priced = {"currency": cost["currency"], "factor": cost["price_source"], **marks}
    yield "wattflow_price", priced, cost["price"]
    yield "wattflow_price_expanded_uncertainty", priced, cost["price_expanded_u"]


def _label(key: str) -> str:
    return key.removesuffix(".name").replace(".", "_")


def _sample(name: str, labels: Mapping[str, Any], value: float, at: str) -> str:
    known = {key: value for key, value in labels.items() if value is not None}
    text = ",".join(f'{key}="{_escaped(value)}"' for key, value in known.items())
    return f"{name}{_SUFFIX[name]}{{{text}}} {value!r}{at}"


def _escaped(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _ended(one: Row) -> str:
    """Return a blank and the unix time at which an attempt ended; empty for one that did not say."""
    seconds = one["figures"]["attempt_s"]
    if one["started"] is None or seconds is None:
        return ""
    return f" {datetime.fromisoformat(one['started']).timestamp() + seconds:.3f}"
