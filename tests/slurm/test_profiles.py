"""Sites that break an assumption each, as a real Slurm set up like them."""

import subprocess
from typing import Any

import pytest
from slurm_sweeps import QUICK, fresh, jobs_of, plan, states, until, with_cluster

from wattflow.errors import SlurmError
from wattflow.submit import send, status

pytestmark = pytest.mark.slurm

# what a profile of the strict site says; conftest.py has the site
STRICT: dict[str, Any] = {
    "accounting": False,
    "account": "energy",
    "wckey": "watts",
    "gpu_request": "gres",
    "gpu_type": "fake",
    "comment": False,
    "mem_gb_per_node": None,
}


def test_more_points_than_a_strict_site_takes_jobs_finish_by_sharing_tasks(strict_site, tmp_path):
    """36 points go as 18 tasks in two arrays, and all finish and are collected.

    The site has no accounting, typed GPUs, arrays of 11, 30 jobs in all; it wants an account and a wckey and forbids
    memory and comments. The profile says nothing of the limits: Slurm is asked for them.
    """
    seeds = ",".join(map(str, range(36)))
    made = plan(tmp_path, *QUICK, "sweep=narrow", f"seed={seeds}")
    sent = send.submit(with_cluster(made, **STRICT))
    assert [len(array) for array in sent.shapes[0].arrays] == [11, 7]
    until(lambda: states(made.sweep) == {"done"})
    until(made.sweep.points_path.is_file)
    assert status.exit_code(fresh(made.sweep)) == 0


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ({"account": None}, "account"),
        ({"wckey": None}, "wckey"),
        ({"gpu_type": None}, "type"),
        ({"comment": True}, "comment"),
        ({"mem_gb_per_node": 1.0}, "memory"),
    ],
    ids=["account", "wckey", "typed GPUs", "comment", "memory"],
)
def test_a_site_that_refuses_is_told_and_a_mended_profile_sends_the_same_points(
    missing, told, strict_site, tmp_path
):
    """Each line of the profile is needed: without it the site's own message comes out, no job and no loss is left."""
    made = plan(tmp_path, *QUICK, "sweep=refused")
    with pytest.raises(SlurmError, match=told):
        send.submit(with_cluster(made, **{**STRICT, **missing}))
    assert jobs_of(made) == []
    send.submit(with_cluster(made, **STRICT))
    assert len(jobs_of(made)) == 2
    subprocess.run(["scancel", *jobs_of(made)], check=True, timeout=600)


def test_memory_that_runs_out_fails_the_point_with_slurms_word(strict_site, tmp_path):
    """Weights of 1 GB in a job of 600 MB: Slurm kills it, status says so and how to go on, the next point runs."""
    shape = ("model.dim=2048", "model.n_layers=5", "model.n_heads=16", "model.n_kv_heads=16")
    big = ("engine=paper", *shape, "model.ffn_dim=5504", "precision=fp32", "n_prompts=2")
    made = plan(tmp_path, *QUICK, *big, "sweep=memory")
    send.submit(with_cluster(made, **STRICT))
    until(lambda: not states(made.sweep) & {"waiting", "running"})
    (row,) = fresh(made.sweep)
    assert row.state == "failed"
    assert row.rerun == f"wattflow resume {made.sweep.path} --only {row.point_id}"
    small = plan(tmp_path, *QUICK, "sweep=small")
    send.submit(with_cluster(small, **STRICT))
    until(lambda: states(small.sweep) == {"done"})
