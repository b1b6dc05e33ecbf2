"""Commands under `wattflow measure`, as tests start them and read what they leave."""

import subprocess
import sys
from pathlib import Path

from wattflow import open_sweep
from wattflow.store.schema import SPAN
from wattflow.store.tables import read_table

ROOT = Path(__file__).parent.parent
MEASURE = [sys.executable, "-m", "wattflow.cli", "measure"]
SIMULATED = ["--set", "power.meter=simulated", "--set", "power.poll_ms=20"]
SEVENTY_W = [*SIMULATED, "--set", "power.simulated_idle_w=70", "--set", "power.simulated_full_w=70"]
UP = "import os, time; open('up', 'w').write(str(os.getpid())); time.sleep(600)"


def call(*words, code=0, out="out", options=SEVENTY_W, **more):
    """Measure a command into ./out and hold `measure` to its exit code."""
    done = subprocess.run(
        [*MEASURE, "--out", out, *options, "--", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        **more,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def python(code):
    """The words that run some Python."""
    return [sys.executable, "-c", code]


def row(folder="out"):
    """The one row of a collected measurement."""
    (found,) = open_sweep(Path(folder)).points.to_dicts()
    return found


def spans(folder="out", node=None):
    """The spans on disk as (phase, seconds, tokens_out), of the first device."""
    (path,) = Path(folder).glob(f"points/*/attempt-1/timings/{node or '*'}.parquet")
    rows = [r for r in read_table(path, SPAN).to_pylist() if r["rank"] % 1024 == 0]
    return [(r["phase"], (r["end_ns"] - r["start_ns"]) / 1e9, r["tokens_kept"]) for r in rows]


def sidecars(marker):
    """The sidecars whose words hold a marker."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text() if entry.name.isdecimal() else ""
        except OSError:
            continue
        if "wattflow.power.sidecar" in words and marker in words:
            found.append(int(entry.name))
    return found


THREE_LINES = """
import time, wattflow
with wattflow.span("load"): time.sleep(0.1)
for _ in range(2):
    with wattflow.span("prefill", tokens_in=10): time.sleep(0.1)
    with wattflow.span("decode", tokens_out=32): time.sleep(0.2)
    time.sleep(0.05)
time.sleep(0.1)
"""
