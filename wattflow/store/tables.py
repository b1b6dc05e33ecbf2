"""An append-only table on disk: it grows batch by batch, is readable up to its last whole batch, and ends as Parquet.

Arrow's stream format loses nothing but the batch being written when its writer is killed. A killed stream also looks
cleanly ended to a reader, so whoever needs to know that a table is complete looks for the closed Parquet file.
"""

import bisect
import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wattflow.errors import DamagedError, WattflowError
from wattflow.store.files import create, open_own, read_own, replacing
from wattflow.store.schema import SCHEMA_VERSION

_MANY_ROWS = 20_000
_MOST_ROWS = 200_000_000  # a month of a GPU's samples is half of it


class TableStream:
    """Appends rows to an Arrow stream file; `flush` makes what was added visible to readers as one batch."""

    def __init__(
        self, path: Path, schema: pa.Schema, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Create the file (FileExistsError if it is there: attempts never reopen files)."""
        self.path = path
        about = {"schema_version": str(SCHEMA_VERSION), **(metadata or {})}
        self.schema = schema.with_metadata(about)
        self._file = create(path, buffered=False)
        self._writer = pa.ipc.new_stream(self._file, self.schema)
        self._rows: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep one row for the next flush; columns not named are null."""
        self._rows.append(row)

    def flush(self, *, durable: bool = False) -> None:
        """Write the rows kept so far as one batch; `durable` also asks the disk to keep them through a power loss."""
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self.schema))
            self._rows.clear()
        if durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and end the stream."""
        self.flush()
        self._writer.close()
        self._file.close()


def read_stream(path: Path) -> pa.Table:
    """All whole batches of a stream, closed or not; DamagedError when not even its schema can be read."""
    try:
        with open_own(path) as file, pa.ipc.open_stream(file) as reader:
            batches = []
            # the tail that was being written when its writer ended, then the end itself
            with contextlib.suppress(pa.ArrowInvalid, OSError, StopIteration):
                while True:
                    batches.append(reader.read_next_batch())
            return pa.Table.from_batches(batches, schema=reader.schema)
    except (PermissionError, WattflowError):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(f"{path}: not an Arrow stream ({error}).") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet under another name, fsync, rename; the mode is 0600."""
    write_tables(path, table.schema, [table])


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables of one schema as the row groups of one Parquet file, in the manner of `write_table`."""
    # without checksums a changed byte may be read as another number
    options = {"compression": "zstd", "write_page_checksum": True, **_encoding(schema)}
    with replacing(path) as file, pq.ParquetWriter(file, schema, **options) as writer:
        for table in tables:
            writer.write_table(table)


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """How Parquet keeps each column: stamps as differences, names once; half the time and size of the defaults."""
    names = [field.name for field in schema if pa.types.is_string(field.type)]
    stamps = {"time_ns": "DELTA_BINARY_PACKED"} if "time_ns" in schema.names else None
    return {"use_dictionary": names, "column_encoding": stamps}


@contextlib.contextmanager
def open_table(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    """Open a closed table of ours; DamagedError when it is cut, foreign, of another version, or lacks a column.

    So is what cannot be read of it meanwhile.
    """
    with _opened(path) as file:
        _check_columns(path, file.schema_arrow, schema)
        yield file


@contextlib.contextmanager
def _opened(path: Path, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, whatever its columns; DamagedError for what is none, then or while it is read.

    With its metadata, as an earlier call had it, they are not read again.
    """
    with (
        _damage_named(path),
        open_own(path) as held,
        _parquet(path, _native(held), metadata) as file,
    ):
        yield file


@contextlib.contextmanager
def _parquet(
    path: Path,
    source: str | BufferedReader | pa.BufferReader,
    metadata: pq.FileMetaData | None = None,
) -> Iterator[pq.ParquetFile]:
    """Open what a Parquet file at a path holds; DamagedError for more rows than any of ours has."""
    # not pq.read_table, which opens a data set and is three times slower for an attempt's small files
    with pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True) as file:
        if (rows := file.metadata.num_rows) > _MOST_ROWS:
            raise DamagedError(f"{path}: {rows} rows, where {_MOST_ROWS} are the most.")
        yield file


def _native(held: BufferedReader) -> str | BufferedReader:
    """A path by which Arrow reads an open file itself: its threads need no lock of Python's then."""
    path = f"/proc/self/fd/{held.fileno()}"
    return path if os.path.lexists(path) else held  # no Linux


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Within, what Arrow cannot read is DamagedError with the path; whose a file is and where it is missing stays."""
    try:
        yield
    except (FileNotFoundError, PermissionError, WattflowError):
        raise
    # ValueError: a column's name is no text; MemoryError: a length that no such file has
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DamagedError(f"{path}: not a Parquet file ({error}).") from error


def _check_columns(path: Path, found: pa.Schema, schema: pa.Schema) -> None:
    """Raise DamagedError for a table of another version, or one whose columns are not those of a schema."""
    version = (found.metadata or {}).get(b"schema_version")
    if version != str(SCHEMA_VERSION).encode():
        raise DamagedError(f"{path}: schema version {version!r}, not {SCHEMA_VERSION}.")
    for column in schema:
        if column.name not in found.names:
            if not column.nullable:
                raise DamagedError(f"{path}: no column {column.name}.")
        elif found.field(column.name).type != column.type:
            raise DamagedError(f"{path}: column {column.name} is not {column.type}.")


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a closed table of ours; DamagedError as of `open_table`.

    Columns that a later version added are kept; nullable ones that the file lacks are filled with nulls.
    """
    with open_table(path, schema) as file:
        # most of an attempt's files are too small to share out
        table = file.read(use_threads=file.metadata.num_rows > _MANY_ROWS)
    for column in schema:
        if not column.nullable and table[column.name].null_count:
            raise DamagedError(f"{path}: column {column.name} has nulls.")
        if column.name not in table.schema.names:
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    return table


def read_columns(path: Path, names: Sequence[str], newer: Sequence[str] = ()) -> pa.Table:
    """Read some columns of a table of any version; DamagedError where it lacks one, or is no Parquet file.

    `newer` ones follow, null in a table of before.
    """
    with _opened(path) as file:
        there = set(file.schema_arrow.names)
        if missing := set(names) - there:
            raise DamagedError(f"{path}: no column {min(missing)}.")
        known = [name for name in newer if name in there]
        table = file.read(columns=[*names, *known], use_threads=False)
    for name in newer:
        if name not in there:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return table.select([*names, *newer])


def read_schema(path: Path) -> pa.Schema:
    """Read the columns of a table of any version; DamagedError where it is no Parquet file."""
    with _opened(path) as file:
        return file.schema_arrow


def read_rows(path: Path, schema: pa.Schema, column: str, value: str) -> pa.Table:
    """Read the rows of a table that have a text in a column, from the row groups that may hold it; DamagedError."""
    import pyarrow.compute as pc  # noqa: PLC0415 (0.1 s, which plan and each rank would wait for)

    with open_table(path, schema) as file:
        at = file.schema_arrow.names.index(column)
        groups = []
        for group in range(file.num_row_groups):
            known = file.metadata.row_group(group).column(at).statistics
            if known is None or not known.has_min_max or known.min <= value <= known.max:
                groups.append(group)
        table = file.read_row_groups(groups, columns=schema.names, use_threads=False)
    return table.filter(pc.equal(table[column], value))


def unpacked_size(path: Path) -> tuple[int, int]:
    """The rows of a table and the bytes of its columns, as its footer has them; DamagedError for no Parquet file."""
    with _opened(path) as file:
        about = file.metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        values = max((chunk.num_values for chunk in chunks), default=0)
        return max(about.num_rows, values), sum(chunk.total_uncompressed_size for chunk in chunks)


class GroupedTable:
    """A file of collected traces, a row group a device, read group by group."""

    def __init__(self, path: Path) -> None:
        """Open it; DamagedError for what is no Parquet file."""
        self._path = path
        with _opened(path) as file:
            self._metadata = file.metadata

    def __len__(self) -> int:
        """The number of groups."""
        return int(self._metadata.num_row_groups)

    def read(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one group, or some columns of it; DamagedError where that cannot be."""
        with _opened(self._path, self._metadata) as file:
            return file.read_row_group(group, columns=columns)


class HeldTable:
    """A closed table of ours, held as the bytes of its file: a column is unpacked when it is asked for.

    So it stays what it was when the file is replaced meanwhile.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Read the file; DamagedError as of `open_table`."""
        self._path, self._data = path, read_own(path)
        with self._opened() as file:
            _check_columns(path, file.schema_arrow, schema)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._at_hand: tuple[str, int, pa.ChunkedArray] | None = None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        with (
            _damage_named(self._path),
            _parquet(self._path, pa.BufferReader(self._data)) as file,
        ):
            yield file

    def read(self, names: Sequence[str]) -> pa.Table:
        """Read some columns whole."""
        with self._opened() as file:
            return file.read(columns=list(names), use_threads=False)

    def value(self, name: str, row: int) -> Any:
        """Read one value; those of neighbouring rows are then at hand."""
        group = bisect.bisect_right(self._starts, row) - 1
        if self._at_hand is None or self._at_hand[:2] != (name, group):
            with self._opened() as file:
                column = file.read_row_group(group, columns=[name], use_threads=False)[name]
            self._at_hand = name, group, column
        return self._at_hand[2][row - self._starts[group]].as_py()
