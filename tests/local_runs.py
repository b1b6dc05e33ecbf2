"""Sweeps that run on this machine in a moment, by the command line."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from commands import WATTFLOW
from own_signals import own_handlers

from wattflow.run.place import Place
from wattflow.run.signals import Signals

SMALL = [
    "precision=fp32",
    "n_prompts=6",
    "batch_size=4",
    "max_gen_len=8",
    "power.idle_s=0.3",
    "dataset.template=plain",
]


def call(*words, cwd, code=0):
    """Run the command line and hold it to its exit code."""
    done = subprocess.run(
        [*WATTFLOW, *words], cwd=cwd, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@contextlib.contextmanager
def one_rank(folder: Path) -> Iterator[tuple[Place, Signals]]:
    """This process as the only rank of a task on node n1, with a spool in the folder."""
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    job = {"job_id": None, "array_task": None, "restart": 0, "cluster": "local"}
    with own_handlers():
        yield Place(0, 1, 0, "n1", "file:///nowhere", str(spool), job), Signals()
