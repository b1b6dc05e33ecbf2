"""The tables of results/: their columns (columns.csv and one per choice), and the reason codes (reasons.csv)."""

import csv
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from wattflow.config.choices import Config
from wattflow.store.schema import TRACE, fields


class Reason(NamedTuple):
    """What a code in `reasons` means."""

    withheld: bool  # whether the row's numbers are left out of figures and means (valid = false)
    meaning: str


def _reasons() -> dict[str, Reason]:
    with Path(__file__).with_name("reasons.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return {code: Reason(effect == "withheld", meaning) for code, effect, meaning in rows}


REASONS = _reasons()


def _key_fields() -> list[tuple[str, Any]]:
    """Return every choice by dotted key with its annotated type, except those that name folders or shape the grid."""
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
    """Return the results column of a choice: its key with underscores for dots, and `model` for `model.name`."""
    return key.removesuffix(".name").replace(".", "_")


def columns_in(text: str) -> list[str]:
    """Return the columns of a list with commas, by the names of columns or of keys."""
    words = [word.strip() for word in text.split(",")]
    return [column_of(word) for word in words if word]


def _arrow_type(annotation: Any) -> pa.DataType:
    kinds = [annotation]
    if isinstance(annotation, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    known = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return known.get(kinds[0], pa.string())  # lists, mappings and the like are JSON


CHOICE_KEYS = {column_of(key): key for key, _ in _key_fields()}
_CHOICES = [
    pa.field(
        column_of(key), _arrow_type(kind), metadata={"unit": "", "meaning": f"Choice `{key}`."}
    )
    for key, kind in _key_fields()
]

# Which point a row is of and what became of it, then the point's choices, then what was measured.
_POINT = fields("points", described=True)
_FIRST_MEASURED = [field.name for field in _POINT].index("tokens_in")
POINT = pa.schema([*_POINT[:_FIRST_MEASURED], *_CHOICES, *_POINT[_FIRST_MEASURED:]])
PHASE = pa.schema(fields("phases", described=True))
# The requests of attempts whose requests came while others were in work: results/requests.parquet.
SERVED = pa.schema(fields("served", described=True))
# What each attempt costs by declared factors: computed on demand, as factors are declared at any time.
COST = pa.schema(fields("cost", described=True))
# What the site's own meters report for the same jobs and windows: results/crosscheck.parquet.
CROSSCHECK = pa.schema(fields("crosscheck", described=True))
# The readings of all devices, each with the device that it is of.
COLLECTED_TRACE = pa.schema(
    [
        pa.field("point_id", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("node", pa.string(), nullable=False),
        pa.field("gpu_uuid", pa.string(), nullable=False),
        *TRACE,
    ]
)


def collected_trace(trace: pa.Table, owner: tuple[str, int, str, str]) -> pa.Table:
    """Return a device's raw trace as rows of COLLECTED_TRACE, whose first four values `owner` has."""
    owned = zip(owner, COLLECTED_TRACE, strict=False)
    columns = [pa.repeat(pa.scalar(one, field.type), trace.num_rows) for one, field in owned]
    columns += trace.select(TRACE.names).columns
    return pa.Table.from_arrays(columns, schema=COLLECTED_TRACE)


def unit_of(column: str) -> str:
    """Return the unit of a column of points; empty for a number without one."""
    unit: bytes = POINT.field(column).metadata[b"unit"]
    return unit.decode()


_PARTS = {column: key.split(".") for column, key in CHOICE_KEYS.items()}


def choice_value(choices: Mapping[str, Any], column: str) -> Any:
    """Return one choice of a point by its results column: a list or mapping as JSON, an absent one null."""
    value: Any = choices
    for part in _PARTS[column]:
        value = value.get(part) if isinstance(value, dict) else None
    return json.dumps(value) if isinstance(value, dict | list) else value


def choice_values(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the choices of a point by results column, in the manner of `choice_value`."""
    return {column: choice_value(choices, column) for column in CHOICE_KEYS}
