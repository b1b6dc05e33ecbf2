"""A sweep of engine=vllm on a real Slurm: one and two shards, the latter on two nodes, by a Python of its own."""

import sys
from pathlib import Path

import polars as pl
import pytest
from slurm_sweeps import fresh, plan, states, until, with_cluster

sys.path.insert(0, str(Path(__file__).parent.parent))
from test_real_vllm import PYTHON, REQUIRED

from wattflow.submit import send

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.vllm,
    pytest.mark.skipif(
        not PYTHON.is_file() and not REQUIRED,
        reason=f"no Python with vLLM at {PYTHON}: `make vllm` makes it",
    ),
]


def test_shards_run_on_one_and_on_two_nodes(cluster, tmp_path):
    """Two points, submitted from a Python without vLLM: both done, each rank where Slurm put it, rows valid."""
    made = plan(
        tmp_path,
        *("engine=vllm", "power.meter=simulated", "power.idle_s=0.2", "precision=fp32"),
        *("n_prompts=32", "batch_size=4", "max_gen_len=32", "max_seq_len=512", "sweep=vllm"),
        *("shards=1,2", "workload.mode=offline", "cluster.gpus_per_node=1"),
    )
    made = with_cluster(
        made, python=str(PYTHON), time_min=40
    )  # a busy machine starts vLLM in minutes
    send.submit(made)
    until(lambda: not states(made.sweep) & {"waiting", "running"}, 2400)
    assert states(made.sweep) == {"done"}, fresh(made.sweep)
    until(made.sweep.points_path.is_file)
    rows = {row["shards"]: row for row in pl.read_parquet(made.sweep.points_path).to_dicts()}
    assert sorted(rows) == [1, 2]
    assert {shards: row["reasons"] for shards, row in rows.items() if not row["valid"]} == {}
    assert [rows[shards]["nodes_seen"] for shards in (1, 2)] == [1, 2]
    assert all(row["tokens_kept"] == 32 * 32 and row["full_s"] > 0 for row in rows.values())
    (folder,) = (made.sweep.path / "points").glob(f"{rows[2]['point_id']}/attempt-1/timings")
    assert len(list(folder.glob("iterations-*.parquet"))) == 2
