"""One command watched twice: by `wattflow measure`, and by the parts of which a sweep's own attempt is made.

Both sidecars read the same sensors over the same work, and both integrate the window that the command's spans made.
Needs no polars, as tests/gpu/measure.py runs it where there is none.
"""

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from sweeps import ABOUT, choices, id_of, make_sweep

from wattflow.collect.collect import collect
from wattflow.config.choices import Power
from wattflow.power.sidecar_client import Sidecar
from wattflow.run.spans import SpanLog, close_node
from wattflow.store.columns import POINT
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.phases import NOT_WITHIN
from wattflow.store.schema import REQUEST, SCHEMA_VERSION, SPAN, NodeInfo, Record
from wattflow.store.tables import read_table, write_table

Row = dict[str, Any]
MEASURE = [sys.executable, "-m", "wattflow.cli", "measure"]


def twice(folder: Path, command: list[str], node: str, power: Power) -> tuple[Row, Row]:
    """The rows of both: by `measure`, and by a sweep's attempt over the same window."""
    spool = folder / "spool"
    spool.mkdir(parents=True)
    sweep, attempt = new_attempt(folder / "sweep")
    with Sidecar(power, node, spool) as sidecar:
        sidecar.start(attempt)
        sidecar.mark()
        measured = by_measure(folder / "measured", command, power)
        sidecar.mark()
        info = sidecar.stop()
    start_ns, end_ns, tokens = window(folder / "measured", node)
    middle_ns = (start_ns + end_ns) // 2
    paths = []
    for rank, device in enumerate(info["devices"]):
        stamps = itertools.chain((start_ns, middle_ns, middle_ns, end_ns))
        paths.append(spool / f"spans-rank{rank}.arrow")
        uuid = device["uuid"]
        log = SpanLog(paths[-1], rank=rank, node=node, gpu_uuid=uuid, edge=stamps.__next__)
        with log.span("prefill", 0):
            pass
        with log.span("decode", 0) as decode:
            decode.tokens_kept = tokens
        log.close()
    return measured, finish(sweep, attempt, info, paths, tokens)


def by_measure(folder: Path, command: list[str], power: Power) -> Row:
    """The row of a command under `wattflow measure`."""
    settings = [f"--set=power.{key}={value}" for key, value in vars(power).items()]
    subprocess.run([*MEASURE, "--out", str(folder), *settings, "--", *command], check=True)
    return row(SweepDir(folder))


def row(sweep: SweepDir) -> Row:
    """The one row of a collected sweep."""
    (found,) = read_table(sweep.points_path, POINT).to_pylist()
    return found


def window(measured: Path, node: str) -> tuple[int, int, int]:
    """Start, end and output tokens of a measurement's window on one node."""
    (path,) = measured.glob(f"points/*/attempt-1/timings/{node}.parquet")
    rows = [r for r in read_table(path, SPAN).to_pylist() if r["phase"] not in NOT_WITHIN]
    first = [r for r in rows if r["gpu_uuid"] == rows[0]["gpu_uuid"]]
    tokens = sum(r["tokens_kept"] or 0 for r in first)
    return min(r["start_ns"] for r in rows), max(r["end_ns"] for r in rows), tokens


def point_of(path: Path) -> dict[str, Any]:
    """The choices of a sweep's one point."""
    return choices(weights="hf", model__path=str(path))


def new_attempt(path: Path) -> tuple[SweepDir, AttemptDir]:
    """A sweep of one point, and the first attempt at it."""
    point = point_of(path)
    sweep = make_sweep(path, [point])
    return sweep, sweep.claim_attempt(id_of(point))


def finish(
    sweep: SweepDir, attempt: AttemptDir, info: NodeInfo, spans: list[Path], tokens: int
) -> Row:
    """Close an attempt of one node as `run` does, collect the sweep and return its row."""
    node = info["node"]
    close_node(spans, attempt.spans_path(node))
    answer = {"prompt": 0, "batch": 0, "tokens_in": 0, "tokens_kept": tokens, "stop_reason": "length"}  # fmt: skip
    table = pa.Table.from_pylist([answer], schema=REQUEST).replace_schema_metadata(ABOUT)
    write_table(attempt.requests_path, table)
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "point_id": attempt.point_id,
        "attempt": attempt.number,
        "status": "finished",
        "choices": point_of(sweep.path),
        "started_ns": time.time_ns(),
        "ended_ns": time.time_ns(),
        "ranks": [
            {"rank": i, "node": node, "local_rank": i, "gpu_uuid": device["uuid"], "device": device["name"]}
            for i, device in enumerate(info["devices"])
        ],
        "nodes": [info],
    }  # fmt: skip
    attempt.write_record(record)
    collect(sweep)
    return row(sweep)
