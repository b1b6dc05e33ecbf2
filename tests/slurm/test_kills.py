"""Kills of submit on a real Slurm, in the windows of tests/chaos/kills.py: one resume, and each point runs once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_sweeps import QUICK, fresh, plan, states, until

from wattflow.store.layout import SweepDir
from wattflow.submit import resume

pytestmark = pytest.mark.slurm

# a submit in a process of its own, which dies at the moment that it is given; of opened files, those to append to count
SUBMIT = """
import os, signal, sys
from wattflow.plan import grid
from wattflow.submit import send
event, part, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
left = [number]
def hook(name, arguments):
    if name == event and part in str(arguments) and (name != "open" or arguments[2] & os.O_APPEND):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
made = grid.plan(sys.argv[4:])
os.environ["VICTIM"] = str(os.getpid())
sys.addaudithook(hook)
send.submit(made)
"""

WINDOWS = {
    "after sbatch accepted": None,
    "before the rename": ("os.rename", "_submitted.pkl", "1"),
    "before the journal line": ("open", "journal.jsonl", "2"),  # after that of the intent
    "before the release": ("subprocess.Popen", "'release'", "1"),
}


def killing_sbatch(folder: Path) -> str:
    """A folder for the PATH whose sbatch kills the submit once Slurm has accepted its job."""
    folder.mkdir()
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout
    shim = folder / "sbatch"
    shim.write_text(f'#!/bin/sh\n{real.strip()} "$@" > /dev/null\nkill -9 "$VICTIM"\n')
    shim.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    "window",
    [
        "after sbatch accepted",
        "before the journal line",
        pytest.param("before the rename", marks=pytest.mark.chaos),
        pytest.param("before the release", marks=pytest.mark.chaos),
    ],
)
def test_one_resume_mends_a_submit_that_was_killed(window, cluster, tmp_path):
    """Three points in an array: whatever the moment of the kill, each has one attempt in the end and no job is left."""
    words = [*QUICK, "sweep=killed", "seed=1,2,3"]
    made = plan(tmp_path, *words)
    environment = dict(os.environ)
    event = WINDOWS[window] or ("none", "none", "1")
    if WINDOWS[window] is None:
        environment["PATH"] = f"{killing_sbatch(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, *event, *made.overrides],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == -9, done.stderr
    resume.resume(made.sweep)
    until(lambda: states(made.sweep) == {"done"})
    assert attempts(made.sweep) == [1, 1, 1]
    until(lambda: not held(made.sweep))


def attempts(sweep: SweepDir) -> list[int]:
    return [row.attempts for row in fresh(sweep)]


def held(sweep: SweepDir) -> list[str]:
    """Jobs of a sweep's names that still wait or run."""
    command = ["squeue", "-h", "-o", "%j", "-t", "PENDING,RUNNING"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    return [name for name in told.split() if name.startswith(f"{sweep.name}-")]
