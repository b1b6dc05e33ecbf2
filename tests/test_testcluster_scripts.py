"""The scripts of the test cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on the PATH")
def test_the_test_clusters_scripts_pass_shellcheck():
    """No warning, settings.sh followed."""
    root = Path(__file__).parents[1]
    scripts = sorted(str(p.relative_to(root)) for p in (root / "slurm").rglob("*.sh"))
    done = subprocess.run(
        ["shellcheck", "-x", *scripts], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_a_daemon_of_the_test_cluster_keeps_no_lock_of_its_caller(tmp_path):
    """Brought up under `flock FILE`, it would hold FILE for as long as it lives."""
    settings = Path(__file__).parents[1] / "slurm" / "testcluster" / "settings.sh"
    script = (
        'set -e; . "$0"; mkdir -p "$RUN" "$LOG"; exec 9>"$CLUSTER_DIR/lock"; flock 9\n'
        "start sleeper sleep sleep 600; exec 9>&-\n"
        'wait_until 300 flock -n "$CLUSTER_DIR/lock" true && echo free; pid_of sleeper sleep\n'
        "stop sleeper sleep\n"
    )
    done = subprocess.run(
        ["bash", "-c", script, str(settings)],
        env={**os.environ, "CLUSTER_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    free, pid = done.stdout.split()
    assert free == "free"
    assert pid.isdecimal()
