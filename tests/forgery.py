"""A sweep and its bundle to be changed, and what a forger, or a fault, changes in them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.publish import archive
from wattflow.publish.bundle import bundle
from wattflow.publish.verdict import lines, table

TWO = ["GPU-0a1b2c3d-0000-4000-8000-000000000001", "GPU-0a1b2c3d-0000-4000-8000-000000000002"]
POINTS = [choices(shards=2, batch_size=batch) for batch in (4, 8)]


def make_original(folder):
    """Write the sweep `s`, its bundle `b.zip`, and that unpacked as `b`, below a folder.

    Two points on two GPUs of 80 and 120 W: 8.5 s x 200 W is 1,700 J in each window; collected.
    """
    made = make_sweep(folder / "s", POINTS)
    for i, point in enumerate(POINTS):
        gpus = [Gpu(uuid, constant(80.0 + 40.0 * k)) for k, uuid in enumerate(TWO)]
        make_attempt(made, point, Made(gpus, started_s=100.0 * i))
    collect(made)
    bundle(made, folder / "b.zip")
    archive.unpack(folder / "b.zip", folder / "b")
    return folder


def edit(path, change):
    """Rewrite a Parquet file with some cells changed: `change` is given its rows."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    kept = change(rows) or rows
    pq.write_table(pa.Table.from_pylist(kept, schema=table.schema), path)


def set_cell(column, value, row=0):
    def change(rows):
        rows[row][column] = value(rows[row][column]) if callable(value) else value

    return change


def add_watts(more, at_s=5.0):
    """Raise the one power sample of a trace next to some second of the attempt."""

    def change(rows):
        powers = [row for row in rows if row["power_w"] is not None]
        zero = powers[0]["time_ns"] + 100_000_000
        min(powers, key=lambda row: abs(row["time_ns"] - zero - at_s * 1e9))["power_w"] += more

    return change


def first_trace(sweep_path, of=0):
    return sorted(Path(sweep_path).glob("points/*/attempt-1/traces/*.parquet"))[of]


def said(verdict):
    return "\n".join([*lines(verdict), *(str(row[-1]) for row in table(verdict))])


def change_choice(key, value):
    def change(rows):
        told = json.loads(rows[0]["choices"])
        here = told
        *path, last = key.split(".")
        for part in path:
            here = here[part]
        here[last] = value
        rows[0]["choices"] = json.dumps(told)

    return change
