"""The command line as a process."""

import os
import subprocess
import sys

WATTFLOW = [sys.executable, "-m", "wattflow.cli"]


def call(*words, cwd, **env):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [*WATTFLOW, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
        timeout=600,
    )
