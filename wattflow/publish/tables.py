"""What a bundle carries of a sweep's Parquet tables: the columns known here, names in them replaced by column."""

import json
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wattflow.publish.pseudonyms import Pseudonyms, is_public
from wattflow.publish.records import (
    WITHHELD,
    published_choices,
    published_command,
    published_versions,
)
from wattflow.store.columns import CHOICE_KEYS, PHASE, POINT, choice_values
from wattflow.store.schema import ITERATION, REQUEST, SPAN, TRACE

Row = dict[str, Any]
Rename = Callable[[str], str]

# texts of these columns are the format's own words, digits, or what a vendor calls its product or version
_AS_THEY_ARE = {
    *("status", "source", "power_source", "unfinished_source", "boundary", "stop_reason", "reason"),
    *("gpu_name", "driver", "power_profiles", "array_task", "prompts_sha256"),
    *("engine_version", "attention_backend", "cuda_graphs", "quantization"),
    *("cache_kind", "dummy_bias", "board_reference"),
    *("power_model", "power_model_dropped"),
}

_TABLE_METADATA = (b"schema_version", b"wattflow")
_TRACE_METADATA = {
    *(b"schema_version", b"gpu_name", b"driver", b"meter", b"source", b"boundary", b"scope", b"period_ms"),
    *(b"attempt", b"restarts", b"dcgm_version", b"dcgm_field", b"averaging", b"stamped", b"age_ms"),
    b"counter_age_ms",
}  # fmt: skip


def published_trace(table: pa.Table, names: Pseudonyms) -> pa.Table:
    """Return a trace, with what its metadata say about the sensor."""
    found = table.schema.metadata or {}
    about = {key: value for key, value in found.items() if key in _TRACE_METADATA}
    about |= {
        name.encode(): _rename(name, names)(found[name.encode()].decode()).encode()
        for name in ("node", "gpu_uuid", "point_id")
        if name.encode() in found
    }
    return _renamed(table, TRACE, names).replace_schema_metadata(about)


def published_spans(table: pa.Table, names: Pseudonyms) -> pa.Table:
    """Return the spans of a node."""
    return _renamed(table, SPAN, names)


def published_iterations(table: pa.Table, names: Pseudonyms) -> pa.Table:
    """Return the iterations of a node."""
    return _renamed(table, ITERATION, names)


def published_requests(table: pa.Table, names: Pseudonyms) -> pa.Table:
    """Return the requests, without the text of the answers."""
    at = table.schema.get_field_index("text")
    table = table.set_column(at, REQUEST.field("text"), pa.nulls(table.num_rows, pa.string()))
    return _renamed(table, REQUEST, names)


def published_phases(table: pa.Table, names: Pseudonyms) -> pa.Table:
    """Return results/phases.parquet."""
    return _renamed(table, PHASE, names)


def _rename(column: str, names: Pseudonyms) -> Rename:
    """Return what a bundle makes of the texts in a column: by what it holds, never by what a text looks like."""
    if column in _AS_THEY_ARE:
        return str
    of_names: dict[str, Rename] = {
        "point_id": names.point,
        "node": names.node,
        "node_names": names.node,
        "gpu_uuid": names.device,
        "boards": names.device,
        "phase": names.phase,
        "job_id": lambda job_id: names.job(job_id) or "",
        "engine_info": lambda text: json.dumps(names.value(json.loads(text))),
        "versions": lambda text: json.dumps(_versions(json.loads(text), names)),
        "command": lambda text: json.dumps(published_command(json.loads(text))),
        "ceilings_source": names.term,
        "workload_trace": lambda path: PurePath(path).name,  # as in the point's choices
    }
    return of_names.get(column, names.text)


def _versions(versions: Any, names: Pseudonyms) -> Any:
    # of a damaged record they may be anything
    return published_versions(versions, names) if isinstance(versions, dict) else None


def _renamed(table: pa.Table, schema: pa.Schema, names: Pseudonyms) -> pa.Table:
    """Return the columns of a schema that a table has, names in them replaced."""
    kept = [column for column in schema if column.name in table.schema.names]
    columns = [
        _replaced(table[column.name], _rename(column.name, names))
        if pa.types.is_string(column.type)
        else table[column.name].cast(column.type)
        for column in kept
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(kept, metadata=_metadata(table)))


def _metadata(table: pa.Table) -> dict[bytes, bytes]:
    found = table.schema.metadata or {}
    return {key: found[key] for key in _TABLE_METADATA if key in found}


def _replaced(column: pa.ChunkedArray, rename: Rename) -> pa.ChunkedArray:
    """Return a column of texts, each distinct one replaced."""
    encoded = column.combine_chunks().dictionary_encode()
    renamed = pa.array([rename(text) for text in encoded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([pc.take(renamed, encoded.indices)])


def published_points(
    table: pa.Table,
    choices: Mapping[str, Mapping[str, Any]],
    traced: set[tuple[str, int]],
    names: Pseudonyms,
) -> pa.Table:
    """Return results/points.parquet; `choices` are the grid's by point_id, `traced` the attempts that have traces here.

    Of another attempt the joules that it took are left out, as nobody could check them.
    """
    rows = []
    for row in table.to_pylist():
        published = _point(row, choices[row["point_id"]], names)
        if (row["point_id"], row["attempt"]) not in traced:
            unchecked = [name for name in published if name.startswith("unfinished_")]
            published |= dict.fromkeys(unchecked)
        rows.append(published)
    kept = [column for column in POINT if column.name in table.schema.names]
    return pa.Table.from_pylist(rows, schema=pa.schema(kept, metadata=_metadata(table)))


def _point(row: Row, choices: Mapping[str, Any], names: Pseudonyms) -> Row:
    own = choice_values(published_choices(choices, names))
    out: Row = {}
    for column, value in row.items():
        key = CHOICE_KEYS.get(column)
        if key is None:
            out[column] = _replaced_value(value, _rename(column, names))
        else:
            carried = is_public(key) or not isinstance(value, str)
            out[column] = value if carried and key != "cluster.name" else own[column]
    if row["error"] and row["attempt"] is not None:
        out["error"] = WITHHELD
    out["reasons"] = row["reasons"]
    out["record_stamp_ns"] = None
    return out


def _replaced_value(value: Any, rename: Rename) -> Any:
    """Return a text, or the sorted texts of a list, replaced; whatever else as it is."""
    if isinstance(value, list):
        return sorted(map(rename, value)) if value else value
    return rename(value) if isinstance(value, str) else value
