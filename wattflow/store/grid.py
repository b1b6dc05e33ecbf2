"""grid.parquet: one row a point of a sweep, in the order in which points are run."""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from wattflow.config.choices import Config, from_dict, to_dict
from wattflow.errors import DamagedError, RefusedError
from wattflow.store.schema import GRID, SCHEMA_VERSION
from wattflow.store.tables import HeldTable, open_table, write_tables

_ROWS_A_GROUP = 1000  # of the file, so that one point is read without all others


class GridPoint:
    """One row. Its choices are text that is read when they are asked for: most readers want those of few points."""

    __slots__ = ("_text", "point_id", "position", "reason")

    def __init__(
        self, point_id: str, position: int, reason: str | None, text: "str | Callable[[], str]"
    ) -> None:
        """`reason` says why the point cannot run, null for one that can; `text` is its choices as JSON, or reads it."""
        self.point_id = point_id
        self.position = position
        self.reason = reason
        self._text = text

    @property
    def text(self) -> str:
        """The resolved choices, as JSON; DamagedError where they cannot be read."""
        return self._text if isinstance(self._text, str) else self._text()

    def __eq__(self, other: object) -> bool:
        """Return whether another has the same id, place, reason and choices."""
        return isinstance(other, GridPoint) and self._values() == other._values()

    def __hash__(self) -> int:
        """Return what equal points share."""
        return hash(self.point_id)

    def _values(self) -> tuple[object, ...]:
        return self.point_id, self.position, self.reason, self.text

    def choices(self) -> dict[str, Any]:
        """Decode the resolved choices as they are written; DamagedError where they are no JSON object."""
        try:
            choices = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise self._damaged(error) from error
        if not isinstance(choices, dict):
            raise self._damaged(TypeError(f"{type(choices).__name__}, not an object"))
        return choices

    def config(self) -> Config:
        """Decode the resolved choices; DamagedError where they are none of this version's.

        A measured command has `power` and the cluster's name, and defaults for all else.
        """
        choices = self.choices()
        choices.pop("measure", None)
        try:
            return from_dict(choices)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._damaged(error) from error

    def command(self) -> list[str] | None:
        """Decode the command that `measure` ran; null for a point that was planned."""
        measured = self.choices().get("measure")
        return None if measured is None else list(measured["command"])

    def _damaged(self, error: Exception) -> DamagedError:
        return DamagedError(f"grid.parquet, point {self.point_id}: its choices are none ({error}).")


def read_grid(path: Path) -> list[GridPoint]:
    """Read all points, in the order in which they are run; DamagedError where the file is none of ours.

    Their choices stay packed until they are asked for, best in this order.
    """
    held = HeldTable(path, GRID)
    table = held.read(_ABOUT)
    texts = [functools.partial(_text, path, held, row) for row in range(table.num_rows)]
    points = _points(path, table, texts)
    seen: set[str] = set()
    for point in points:
        if point.point_id in seen:
            raise DamagedError(f"{path}: names point {point.point_id!a} twice; no sweep does.")
        seen.add(point.point_id)
    return points


_ABOUT = [name for name in GRID.names if name != "choices"]


def _text(path: Path, held: HeldTable, row: int) -> str:
    """Return the choices of a row; DamagedError where they are none."""
    try:
        text = held.value("choices", row)
    except ValueError as error:  # bytes that are no text
        raise DamagedError(f"{path}: not the points of a sweep ({error}).") from error
    if not isinstance(text, str):
        raise DamagedError(f"{path}: column choices has nulls.")
    return text


def read_point(path: Path, point_id: str) -> GridPoint:
    """Read one point and little else of the file; RefusedError where the sweep has no such point."""
    with open_table(path, GRID) as file:
        # as a list: pyarrow.compute takes 0.1 s to import, which each rank of each job would wait for
        ids = file.read(columns=["point_id"], use_threads=False)["point_id"].to_pylist()
        if point_id not in ids:
            raise RefusedError(
                f"{point_id}: no such point in {path.parent}. `wattflow status {path.parent}` lists them."
            )
        row, group = ids.index(point_id), 0
        while row >= (rows := file.metadata.row_group(group).num_rows):
            row, group = row - rows, group + 1
        table = file.read_row_group(group, columns=GRID.names, use_threads=False)
        one = table.slice(row, 1)
        return _points(path, one, one["choices"].to_pylist())[0]


def _points(path: Path, table: pa.Table, texts: Sequence[Any]) -> list[GridPoint]:
    try:
        rows = list(zip(*(table[name].to_pylist() for name in _ABOUT), texts, strict=True))
        for name in ("point_id", "position"):
            if table[name].null_count:
                raise DamagedError(f"{path}: column {name} has nulls.")
        return sorted((GridPoint(*row) for row in rows), key=lambda point: point.position)
    except (TypeError, ValueError) as error:  # a null position, bytes that are no text
        raise DamagedError(f"{path}: not the points of a sweep ({error}).") from error


def encoded(configs: Iterable[Config]) -> list[str]:
    """Encode choices as JSON, each part that points share once."""
    shared: dict[int, str] = {}
    out = []
    for config in configs:
        parts = []
        for key, value in vars(config).items():
            text = shared.get(id(value)) if is_dataclass(value) else json.dumps(value)
            if text is None:
                text = shared[id(value)] = json.dumps(to_dict(value))
            parts.append(f"{json.dumps(key)}: {text}")
        out.append("{" + ", ".join(parts) + "}")
    return out


def write_grid(path: Path, points: Sequence[GridPoint]) -> None:
    """Replace the file."""
    columns = [
        [point.point_id for point in points],
        [point.position for point in points],
        [point.reason for point in points],
        [point.text for point in points],
    ]
    schema = GRID.with_metadata({"schema_version": str(SCHEMA_VERSION)})
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema)
    starts = range(0, max(1, len(points)), _ROWS_A_GROUP)
    write_tables(path, schema, (table.slice(start, _ROWS_A_GROUP) for start in starts))
