"""One command watched twice: by `wattflow measure`, and by the parts of which a sweep's own attempt is made.

Both sidecars read the same sensors over the same work, and both integrate the window that the command's spans made.
"""

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from sweeps import ABOUT, choices, make_sweep

from wattflow import config
from wattflow.collect import collect
from wattflow.config import Power
from wattflow.power.parent import Sidecar
from wattflow.results import open_sweep
from wattflow.schema import REQUEST, SCHEMA_VERSION, SPAN, NodeInfo, Record
from wattflow.stream import read_table, write_table
from wattflow.sweepdir import AttemptDir
from wattflow.timings import SpanLog, close_node
from wattflow.told import AROUND, OUTSIDE

Row = dict[str, Any]
MEASURE = [sys.executable, "-m", "wattflow.cli", "measure"]


def twice(folder: Path, command: list[str], node: str, power: Power) -> tuple[Row, Row]:
    """The rows of both: what `measure` told of the command, and what a sweep's attempt tells of the same window."""
    spool = folder / "spool"
    spool.mkdir(parents=True)
    settings = [f"--set=power.{key}={value}" for key, value in vars(power).items()]
    point = choices(shards=1, weights="hf", model__path=str(folder))
    sweep = make_sweep(folder / "sweep", [point])
    attempt = sweep.claim_attempt(config.point_id(point))
    began_ns = time.time_ns()
    with Sidecar(power, node, spool) as sidecar:
        sidecar.start(attempt)
        sidecar.mark()
        subprocess.run(
            [*MEASURE, "--out", str(folder / "measured"), *settings, "--", *command], check=True
        )
        sidecar.mark()
        info = sidecar.stop()
    _write_spans(attempt, spool, info, window(folder / "measured", node))
    record: Record = {
        "schema_version": SCHEMA_VERSION, "point_id": attempt.point_id, "attempt": attempt.number, "status": "finished",
        "error": None, "error_rank": None, "started_ns": began_ns, "ended_ns": time.time_ns(), "choices": point,
        "ranks": [
            {"rank": i, "node": node, "local_rank": i, "gpu_uuid": device["uuid"], "device": device["name"]}
            for i, device in enumerate(info["devices"])
        ],
        "nodes": [info],
    }  # fmt: skip
    attempt.write_record(record)
    collect(sweep)
    (measured,) = open_sweep(folder / "measured").points.to_dicts()
    (own,) = open_sweep(sweep.path).points.to_dicts()
    return measured, own


def window(measured: Path, node: str) -> tuple[int, int, int]:
    """Start, end and output tokens of a measurement's window on one node."""
    (path,) = measured.glob(f"points/*/attempt-1/timings/{node}.parquet")
    rows = [
        row for row in read_table(path, SPAN).to_pylist() if row["phase"] not in {*AROUND, OUTSIDE}
    ]
    first = [row for row in rows if row["gpu_uuid"] == rows[0]["gpu_uuid"]]
    tokens = sum(row["tokens_kept"] or 0 for row in first)
    return min(r["start_ns"] for r in rows), max(r["end_ns"] for r in rows), tokens


def _write_spans(
    attempt: AttemptDir, spool: Path, info: NodeInfo, told: tuple[int, int, int]
) -> None:
    """A rank a device, each with one prefill and one decode that make up the window."""
    start_ns, end_ns, tokens = told
    middle_ns = (start_ns + end_ns) // 2
    paths = []
    for rank, device in enumerate(info["devices"]):
        stamps = itertools.chain((start_ns, middle_ns, middle_ns, end_ns))
        paths.append(spool / f"spans-rank{rank}.arrow")
        log = SpanLog(
            paths[-1], rank=rank, node=info["node"], gpu_uuid=device["uuid"], edge=stamps.__next__
        )
        with log.span("prefill", 0):
            pass
        with log.span("decode", 0) as decode:
            decode.tokens_kept = tokens
        log.close()
    close_node(paths, attempt.spans_path(info["node"]))
    answer = {
        "prompt": 0,
        "batch": 0,
        "tokens_in": 0,
        "tokens_kept": tokens,
        "stop_reason": "length",
    }
    table = pa.Table.from_pylist([answer], schema=REQUEST).replace_schema_metadata(ABOUT)
    write_table(attempt.requests_path, table)
