"""Collects sweeps for tests, and changes traces before it does."""

import pyarrow as pa
import pyarrow.parquet as pq
from sweeps import START_NS, Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.store.schema import TRACE
from wattflow.store.tables import write_table


def rows(sweep):
    collect(sweep)
    return pq.read_table(sweep.points_path).to_pylist()


def phases(sweep):
    return pq.read_table(sweep.phases_path).to_pylist()


def one(tmp_path, made, **over):
    """The sweep, attempt and collected row of one attempt at one point."""
    point = choices(shards=sum(gpu.ranks for gpu in made.gpus), **over)
    sweep = make_sweep(tmp_path / "s", [point])
    attempt = make_attempt(sweep, point, made)
    (row,) = rows(sweep)
    return sweep, attempt, row


def retraced(tmp_path, change, **made):
    """The row of an attempt whose trace was changed, as rows, before it was collected."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a")], **made)
    attempt = make_attempt(sweep, point, made)
    path = attempt.trace_path("node1", "GPU-a")
    found = pq.read_table(path)
    changed = change(found.to_pylist())
    write_table(path, pa.Table.from_pylist(changed, schema=found.schema))
    (row,) = rows(sweep)
    return row


def at(reading):
    return (reading["time_ns"] - START_NS) / 1e9


def readings_of(source, **columns):
    """Rows of one sensor as dictionaries; `columns` map to lists of values by time in seconds."""
    times = columns.pop("at_s")
    blank = dict.fromkeys(TRACE.names)
    return [
        {
            **blank,
            "time_ns": START_NS + round(at_s * 1e9),
            "source": source,
            "gap": False,
            **{name: values[i] for name, values in columns.items()},
        }
        for i, at_s in enumerate(times)
    ]


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def text(path):
    path.write_text("not what you think")


def relabelled(attempt, **changed):
    """Change the metadata of an attempt's trace; null takes one away."""
    path = attempt.trace_path("node1", "GPU-a")
    trace = pq.read_table(path)
    about = {key.decode(): value.decode() for key, value in trace.schema.metadata.items()} | changed
    about = {key: value for key, value in about.items() if value is not None}
    write_table(path, trace.replace_schema_metadata(about))
