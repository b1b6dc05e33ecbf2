"""`wattflow measure` as a step over two nodes of a real Slurm: each writes its part, and collect merges them."""

import json
import subprocess
import sys

import pytest
from fake_nvml import curves
from slurm_sweeps import until

from wattflow.analysis.sweep import open_sweep
from wattflow.collect.collect import collect
from wattflow.store.layout import SweepDir
from wattflow.store.schema import SPAN
from wattflow.store.tables import read_table

pytestmark = [pytest.mark.slurm, pytest.mark.fake_nvml]
pytest_plugins = ("fake_nvml.fixtures",)

PROGRAM = """
import os, time, wattflow
first = os.environ["SLURM_NODEID"] == "0"
for _ in range(2):
    with wattflow.span("decode", tokens_out=30 if first else 20):
        time.sleep(0.4 if first else 0.5)
"""


def srun(nodes, *words, tasks_a_node=1, **more):
    """A step of so many nodes, its environment that of the test."""
    asked = [
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks_a_node}",
        f"--ntasks={nodes * tasks_a_node}",
    ]
    return subprocess.run(
        ["srun", *asked, sys.executable, "-m", "wattflow.cli", "measure", *words],
        capture_output=True, text=True, check=False, timeout=600, **more,
    )  # fmt: skip


@pytest.fixture
def nodes(gpus, tmp_path, monkeypatch):
    """The cluster, with one fake GPU a node that each knows by its own name."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "1")
    monkeypatch.chdir(tmp_path)
    return gpus


def true_joules(attempt):
    """What the nodes' curves hold in their own windows."""
    total = 0.0
    for path in (attempt / "timings").glob("*.parquet"):
        rows = read_table(path, SPAN).to_pylist()
        inside = [row for row in rows if row["phase"] != "outside"]
        start_ns, end_ns = min(r["start_ns"] for r in inside), max(r["end_ns"] for r in inside)
        total += curves.curve(rows[0]["gpu_uuid"]).joules(start_ns, end_ns)
    return total


def test_two_nodes_write_their_parts_and_collect_merges_them(nodes, tmp_path):
    """Joules of both nodes' GPUs to 0.5 %, all their tokens, one row; without one node's part the total is withheld."""
    done = srun(2, "--out", "out", "--set", "power.meter=nvml", "--", sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    sweep = SweepDir(tmp_path / "out")
    collect(sweep)
    (row,) = open_sweep(sweep.path).points.to_dicts()
    (attempt,) = sweep.path.glob("points/*/attempt-*")
    assert row["valid"], row["reasons"]
    assert row["energy_j"] == pytest.approx(true_joules(attempt), rel=0.005)
    assert (row["gpus"], row["nodes_seen"], len(row["node_names"])) == (2, 2, 2)
    assert row["tokens_kept"] == 2 * 30 + 2 * 20
    assert json.loads((attempt / "record.json").read_text())["job"]["step"] == "0"

    (attempt / "timings" / f"{row['node_names'][1]}.json").unlink()
    sweep.points_path.unlink()
    collect(sweep)
    (row,) = open_sweep(sweep.path).points.to_dicts()
    assert "missing_node" in row["reasons"]
    assert row["energy_j"] is None


def test_a_code_of_any_node_is_the_steps_and_the_rows(nodes, tmp_path):
    """Node 1 exits with 3: srun says 3, and so does the row."""
    code = "import os, sys; sys.exit(3 * int(os.environ['SLURM_NODEID']))"
    done = srun(2, "--out", "out", "--set", "power.meter=nvml", "--", sys.executable, "-c", code)
    assert done.returncode == 3, done.stderr
    sweep = SweepDir(tmp_path / "out")
    collect(sweep)
    (row,) = open_sweep(sweep.path).points.to_dicts()
    assert row["exit_code"] == 3
    assert "command_failed" in row["reasons"]


def test_several_tasks_of_a_node_are_refused_in_a_step(nodes, tmp_path):
    """Two tasks on one node would bill it twice: exit code 2, and the command is not run."""
    done = srun(1, "--out", "out", "--", "touch", str(tmp_path / "ran"), tasks_a_node=2)
    assert done.returncode == 2, done.stderr
    assert "one `wattflow measure` a node" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_batch_script_without_srun_measures_its_first_node(nodes, tmp_path):
    """In a job of two nodes `measure` outside a step is one node's, collected when it ends."""
    words = [sys.executable, "-m", "wattflow.cli", "measure", "--out", "out"]
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\nexec {' '.join(words)} --set power.meter=nvml sleep 0.3\n")
    subprocess.run(
        ["sbatch", "--nodes=2", f"--output={tmp_path}/log", str(script)], check=True, timeout=600
    )
    until((tmp_path / "out" / "results" / "points.parquet").is_file)
    (row,) = open_sweep(tmp_path / "out").points.to_dicts()
    assert (row["valid"], row["nodes_seen"]) == (True, 1)


def test_a_running_job_is_measured_from_a_step_of_it_until_it_ends(nodes, tmp_path, monkeypatch):
    """One of a node's two GPUs is the job's: that one alone, by Slurm's number of it; elsewhere srun is advised."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "2")
    monkeypatch.setenv("FAKE_NVML_PROCESSES", "0")
    asked = ["sbatch", "--parsable", "--nodes=1", "--gpus-per-node=1", "--output=/dev/null"]
    script = f"until [ -e {tmp_path / 'over'} ]; do sleep 0.2; done"
    job = subprocess.check_output([*asked, "--wrap", script], text=True, timeout=600).strip()
    wattflow = [sys.executable, "-m", "wattflow.cli", "measure", "--out", "out"]
    words = [*wattflow, "--set", "power.meter=nvml", "--job", job]
    state = ["squeue", "-h", "-o", "%T", "-j", job]
    until(lambda: subprocess.check_output(state, text=True, timeout=600).strip() == "RUNNING")
    away = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert away.returncode == 2
    step = ["srun", "--overlap", f"--jobid={job}", "--ntasks-per-node=1"]
    watching = subprocess.Popen([*step, *words], stderr=subprocess.PIPE, text=True)
    until(lambda: list((tmp_path / "out").glob("points/*/attempt-1/traces/*")))
    (tmp_path / "over").touch()
    said = watching.communicate(timeout=600)[1]
    assert "the window was closed: it ended" in said, said
    (row,) = open_sweep(tmp_path / "out").points.to_dicts()
    assert row["gpus"] == 1
    assert json.loads(row["command"])[:2] == ["--job", job]
