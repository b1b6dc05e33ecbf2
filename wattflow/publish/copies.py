"""The second copy of each trace, collected in results/traces, held to the raw one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from wattflow.collect.copies import CopiedAttempts, in_order_of_time
from wattflow.collect.row import AttemptRows
from wattflow.errors import DamagedError
from wattflow.store.columns import COLLECTED_TRACE
from wattflow.store.layout import SweepDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import GroupedTable, read_table


class Copies:
    """results/traces, the collected copies of the raw traces, where they are there."""

    def __init__(self, sweep: SweepDir) -> None:
        self._sweep = sweep
        self._path: Path | None = None
        self._groups: dict[tuple[str, int, str, str], int] = {}
        self._file: GroupedTable | None = None
        self._pruned: frozenset[tuple[str, int]] = frozenset()

    def wrong(self, one: AttemptRows, key: tuple[str, int]) -> list[str]:
        """Return which raw traces of an attempt are not the copies that were collected of them."""
        if not self._sweep.traces.is_dir():
            return []
        wrong = []
        self._open(self._sweep.copies_path(key[0]))
        if key in self._pruned:  # `Results.notes` says so
            return []
        for (node, uuid), path in one.traces.items():
            group = self._groups.get((*key, node, uuid))
            trace = read_table(path, TRACE)
            if self._file is None or group is None:
                if trace.num_rows:
                    wrong.append(f"the trace of {uuid} has no copy in results/traces.")
                continue
            copied = self._file.read(group)
            # those of before lack columns that traces have by now
            names = [name for name in TRACE.names if name in copied.schema.names]
            raw = in_order_of_time(trace).select(names).replace_schema_metadata(None)
            copy = copied.select(names).replace_schema_metadata(None)
            if raw.num_rows != copy.num_rows:
                wrong.append(
                    f"the trace of {uuid} has {raw.num_rows} rows, its copy in results/traces {copy.num_rows}."
                )
            elif not all(_same(raw[name], copy[name]) for name in names):
                wrong.append(
                    f"the trace of {uuid} is not its copy in results/traces: {_first(raw, copy)}."
                )
        return wrong

    def _open(self, path: Path) -> None:
        if path == self._path:
            return
        self._path, self._groups, self._file = path, {}, None
        self._pruned = CopiedAttempts.read(path).pruned
        try:
            self._file = GroupedTable(path)
            owner = COLLECTED_TRACE.names[:4]
            for group in range(len(self._file)):
                first = self._file.read(group, owner).slice(0, 1).to_pylist()[0]
                self._groups[
                    first["point_id"], first["attempt"], first["node"], first["gpu_uuid"]
                ] = group
        except (OSError, DamagedError, LookupError):
            self._file = None


def _same(mine: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Return whether two columns are equal; a NaN, which GPM reads at times, equals another."""
    if mine.equals(other):
        return True
    if not pa.types.is_floating(mine.type) or mine.type != other.type:
        return False
    nans = pc.is_nan(mine), pc.is_nan(other)
    none = pa.scalar(0.0, mine.type)
    values = pc.if_else(nans[0], none, mine), pc.if_else(nans[1], none, other)
    return bool(nans[0].equals(nans[1]) and values[0].equals(values[1]))


def _first(raw: pa.Table, copy: pa.Table) -> str:
    """Return the first value in which two tables of equal length differ."""
    name = next(name for name in raw.column_names if not _same(raw[name], copy[name]))
    pairs = zip(raw[name].to_pylist(), copy[name].to_pylist(), strict=True)
    found = (
        f"{name} of row {row} is {mine}, was {other}"
        for row, (mine, other) in enumerate(pairs)
        if mine != other and not (mine != mine and other != other)  # noqa: PLR0124 - NaN
    )
    return next(found, f"{name} is of another type")
