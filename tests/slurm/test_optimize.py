"""A search on a real Slurm whose optimum is known, killed in the middle and gone on with."""

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import WATTFLOW
from slurm_sweeps import until

from wattflow.store.layout import SweepDir
from wattflow.submit import journal

pytest_plugins = ("fake_nvml.fixtures",)
pytestmark = [pytest.mark.slurm, pytest.mark.fake_nvml]

# each step sleeps, and each GPU draws 300 W: J/token is 300 W x ms / batch, least at batch 8 and 40 ms on one shard
WORDS = (
    "cluster=testcluster",
    "engine=synthetic",
    "engine.device=cpu",
    "engine.synthetic_ms_per_token=40,80,160",
    "power.meter=nvml",
    "power.idle_s=0.2",
    "precision=fp32",
    "n_prompts=8",
    "batch_size=2,4,8",
    "shards=1,2",
    "max_gen_len=12",
    "max_seq_len=512",
    "dataset.on_bad=truncate",
    "sweep.repeats=2",
    "sweep=search",
)
OPTIONS = ("--parallel", "4")


def test_a_search_that_is_killed_goes_on_and_finds_the_optimum(
    gpus: Any, nvml_folder: Path, tmp_path: Path
) -> None:
    """No point runs twice, and fewer run than the grid has."""
    environment = (
        f"LD_LIBRARY_PATH={nvml_folder}",
        "FAKE_NVML_GPUS=2",
        "FAKE_NVML_CURVE=constant:300",
    )
    setup = "cluster.setup=[" + ",".join(f"'export {one}'" for one in environment) + "]"
    command = [*WATTFLOW, "optimize", *WORDS, setup, f"sweeps_dir={tmp_path}", *OPTIONS]
    sweep = SweepDir(tmp_path / "search")

    def finished() -> int:
        return sum(sweep.is_finished(point) for point in sweep.points_on_disk())

    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as search:
        until(lambda: finished() >= 3 or search.poll() is not None)
        assert search.poll() is None, search.communicate()[1]
        search.kill()
    asked = set(journal.newest_task(journal.read(sweep)))
    done = subprocess.run(
        [*command, "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    best = found["best"]
    assert (best["batch_size"], best["engine_synthetic_ms_per_token"]) == (8, 40.0), done.stderr
    assert best["shards"] == 1
    tasks = Counter(
        point
        for submission in journal.read(sweep)
        for task in submission.tasks
        for point in task
        if submission.job_id is not None
    )
    assert set(tasks.values()) == {1}
    assert asked <= set(tasks)
    assert found["spent"]["points"] == len(tasks) < 36
    assert found["stopped_by"] == "no further run is worth it"
