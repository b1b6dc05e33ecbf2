"""results/traces: a second copy of every trace, the attempts of 1/256 of the points a file.

    results/traces/<first two hex digits>.parquet       a row group a device; metadata: attempts, pruned

`wattflow prune --copies` leaves such a file without rows, and with the list of the attempts that it held.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from wattflow.collect.reading import DeviceKey
from wattflow.store.columns import COLLECTED_TRACE, collected_trace
from wattflow.store.files import has_own
from wattflow.store.kept import Key
from wattflow.store.layout import SweepDir
from wattflow.store.schema import SCHEMA_VERSION, TRACE
from wattflow.store.tables import GroupedTable, read_columns, read_schema, read_table, write_tables

Traces = Mapping[DeviceKey, Path]  # an attempt's own


@dataclass(frozen=True)
class CopiedAttempts:
    """The attempts of one file of copies."""

    attempts: frozenset[Key] = frozenset()
    pruned: frozenset[Key] = frozenset()  # those of them whose copies were removed

    @classmethod
    def read(cls, path: Path) -> "CopiedAttempts":
        """Read a file's metadata; no attempts where it is absent or damaged."""
        try:
            about = read_schema(path).metadata or {}
            return cls(*(_keys(about.get(name, b"[]")) for name in (b"attempts", b"pruned")))
        except (OSError, TypeError, ValueError):
            return cls()

    def schema(self) -> pa.Schema:
        """Return the columns of a file of these, with its metadata."""
        lists = {"attempts": self.attempts, "pruned": self.pruned & self.attempts}
        texts = {name: json.dumps(sorted(keys)) for name, keys in lists.items()}
        return COLLECTED_TRACE.with_metadata({"schema_version": str(SCHEMA_VERSION), **texts})


def _keys(text: bytes) -> frozenset[Key]:
    return frozenset((str(point_id), int(attempt)) for point_id, attempt in json.loads(text))


def copy_traces(path: Path, before: CopiedAttempts, new: Mapping[Key, Traces]) -> None:
    """Replace a file of copies: what it held of other attempts, then the traces of the new ones.

    A new one without traces keeps the copies that it has: they may be the last.
    """
    replaced = {key for key, traces in new.items() if traces}
    after = CopiedAttempts(before.attempts | new.keys(), before.pruned - replaced)
    schema = after.schema()

    def tables() -> Iterator[pa.Table]:
        if before.attempts - replaced:
            old = GroupedTable(path)
            for table in map(old.read, range(len(old))):
                key = (table["point_id"][0].as_py(), table["attempt"][0].as_py())
                if key not in replaced:
                    yield table.replace_schema_metadata(schema.metadata)
        for key, traces in new.items():
            for device, trace_path in traces.items():
                trace = read_table(trace_path, TRACE)
                if trace.num_rows:
                    owned = collected_trace(in_order_of_time(trace), (*key, *device))
                    yield owned.replace_schema_metadata(schema.metadata)

    write_tables(path, schema, tables())


def last_copies(sweep: SweepDir, path: Path) -> set[Key]:
    """Return the attempts that a file has copies of, and whose own trace of some device is not there."""
    owners = COLLECTED_TRACE.names[:4]
    devices = read_columns(path, owners).group_by(owners).aggregate([]).to_pylist()
    return {
        (row["point_id"], row["attempt"])
        for row in devices
        if not has_own(
            sweep.attempt(row["point_id"], row["attempt"]).trace_path(row["node"], row["gpu_uuid"])
        )
    }


def drop_copies(paths: Sequence[Path]) -> None:
    """Replace files of copies by files without rows, which say of which attempts they were."""
    for path in paths:
        held = CopiedAttempts.read(path)
        schema = CopiedAttempts(held.attempts, held.attempts).schema()
        write_tables(path, schema, [])


def in_order_of_time(trace: pa.Table) -> pa.Table:
    """Return a trace as it is collected: sorted by its stamps where they do not rise already."""
    rising = bool(np.all(np.diff(trace["time_ns"].to_numpy()) >= 0))
    return trace if rising else trace.sort_by("time_ns")
