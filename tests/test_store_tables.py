"""Tables on disk that grow: what a reader finds of one whose writer was killed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wattflow.errors import DamagedError
from wattflow.store.grid import GridPoint, write_grid
from wattflow.store.schema import GRID, SCHEMA_VERSION, TRACE
from wattflow.store.tables import HeldTable, TableStream, read_stream, read_table, write_table

# the columns that no trace lacks; all behave alike, and a short file has fewer places to be cut at
SHORT = pa.schema([TRACE.field(name) for name in ("time_ns", "source", "power_w", "gap")])


def sample(time_ns):
    return {"time_ns": time_ns, "source": "nvml_buffer", "power_w": time_ns / 2, "gap": False}


def test_a_stream_cut_at_any_byte_keeps_its_whole_batches(tmp_path):
    """Killed at each byte offset in turn, a trace loses the batch that was being written and no other row."""
    path = tmp_path / "trace.arrow"
    stream = TableStream(path, SHORT)
    ends = []  # of each batch; the schema is written with the first
    for batch in range(4):
        for row in range(3):
            stream.add(sample(3 * batch + row))
        stream.flush()
        ends.append(path.stat().st_size)
    stream.close()
    data, cut = path.read_bytes(), tmp_path / "cut.arrow"
    readable = 0
    for length in range(len(data) + 1):
        cut.write_bytes(data[:length])
        whole = sum(length >= end for end in ends)
        try:
            told = read_stream(cut)["time_ns"].to_pylist()
        except DamagedError:
            assert whole == 0, length  # not even the schema is there
            continue
        readable += 1
        assert told == list(range(3 * whole)), length
    assert readable > len(data) - ends[0]


def test_a_table_cut_at_any_byte_is_damaged(tmp_path):
    """A closed trace that lost its end, wherever, is named as damaged: no row of it is taken for all of them."""
    path = tmp_path / "trace.parquet"
    told = pa.schema([TRACE.field("time_ns")], {"schema_version": str(SCHEMA_VERSION)})
    write_table(path, pa.table({"time_ns": range(50)}, schema=told))
    data = path.read_bytes()
    assert read_table(path, told).num_rows == 50
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedError, match="not a Parquet file"):
            read_table(path, told)


def test_a_large_table_is_read_like_a_small_one(tmp_path):
    """Beyond 20,000 rows columns are read by threads: the rows and their order are the same."""
    path = tmp_path / "trace.parquet"
    told = TRACE.with_metadata({"schema_version": str(SCHEMA_VERSION)})
    write_table(path, pa.Table.from_pylist([sample(i) for i in range(25_000)], schema=told))
    assert read_table(path, TRACE).equals(pq.read_table(path))


def test_a_held_table_is_what_it_was_when_its_file_is_replaced(tmp_path):
    """Values in any order, from several row groups; columns whole; damage is named when it is met."""
    path = tmp_path / "grid.parquet"
    points = [GridPoint(f"{i:012x}", i, None, f"text {i}") for i in range(2500)]
    write_grid(path, points)
    held = HeldTable(path, GRID)
    write_grid(path, points[:1])
    assert held.read(["position"])["position"].to_pylist() == list(range(2500))
    for row in (0, 999, 1000, 2499, 5):
        assert held.value("choices", row) == f"text {row}"
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(3)
    at, size = column.data_page_offset, column.total_compressed_size
    data[at : at + size] = b"\xff" * size
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedError, match=r"grid\.parquet"):
        HeldTable(path, GRID).value("choices", 0)
    path.write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match=r"grid\.parquet"):
        HeldTable(path, GRID)
