"""`wattflow init-site` on the real test cluster: its profile is one by which a sweep runs there."""

import subprocess
import sys

import pytest
from slurm_sweeps import QUICK, fresh, states, until

from wattflow.plan import grid
from wattflow.submit import send

pytestmark = [pytest.mark.slurm]


def test_a_first_profile_of_the_test_cluster_runs_a_sweep(cluster, tmp_path, monkeypatch):
    """Partition gpu of two GPUs a node, Slurm's own MaxArraySize; a point submitted by it is done."""
    monkeypatch.chdir(tmp_path)
    wattflow = [sys.executable, "-m", "wattflow"]
    words = [*wattflow, "init-site", "here", "--partition", "gpu"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "conf" / "cluster" / "here.yaml").read_text()
    for line in ("partition: gpu", "gpus_per_node: 2", "gpu_request: gpus-per-node"):
        assert any(found.startswith(line) for found in text.splitlines()), text
    assert "# not answered" not in text
    words = ["cluster=here", "engine.device=cpu", f"sweeps_dir={tmp_path}/sweeps", *QUICK]
    made = grid.plan([*words, "sweep=first"], repeats=1)
    assert made.points[0].config.cluster.max_array_size == 1001
    send.submit(made)
    until(lambda: not states(made.sweep) & {"waiting", "running"})
    assert states(made.sweep) == {"done"}, fresh(made.sweep)
    words = [*wattflow, "doctor", "--cluster"]
    listed = subprocess.run(words, check=False, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "preempt" in listed.stdout
