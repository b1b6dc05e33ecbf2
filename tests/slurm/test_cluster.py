"""wattflow's submission on a real Slurm: points run by the synthetic engine, so that each takes a moment."""

import os
import subprocess
from dataclasses import replace

import pytest
from slurm_sweeps import QUICK, fresh, plan, states, until, with_cluster

from wattflow.analysis.crosscheck import crosscheck
from wattflow.analysis.sweep import open_sweep
from wattflow.slurm import client
from wattflow.store.layout import SweepDir
from wattflow.submit import logs, resume, send, status
from wattflow.submit.journal import read

pytestmark = pytest.mark.slurm


def test_points_of_two_shapes_run_and_are_collected_by_the_job_after_them(cluster, tmp_path):
    """One and two ranks make two arrays and one collect job; all points finish, and results/ is there after them."""
    made = plan(tmp_path, *QUICK, "sweep=two", "shards=1,2", "seed=1,2")
    sent = send.submit(made)
    assert (sent.points, len(sent.job_ids)) == (4, 2)
    until(lambda: states(made.sweep) == {"done"})
    until(made.sweep.points_path.is_file)
    assert status.exit_code(fresh(made.sweep)) == 0


def test_the_accounting_says_that_it_keeps_no_energy(cluster, tmp_path):
    """The real sacct knows the field; without an energy plugin a job has our joules, and why not Slurm's."""
    made = plan(tmp_path, *QUICK, "sweep=energy")
    send.submit(made)
    until(
        lambda: (
            made.sweep.points_path.is_file() and open_sweep(made.sweep.path).points["counts"].all()
        )
    )
    (row,) = crosscheck(open_sweep(made.sweep.path), None)
    assert row.source == "sacct ConsumedEnergy"
    assert row.energy_j > 0
    assert (row.site_energy_j, row.ratio) == (None, None)
    assert "AcctGatherEnergyType" in row.why_not


def test_a_path_with_spaces_and_quotes_reaches_the_tasks_whole(cluster, tmp_path):
    """Slurm's own log files and submitit's pickles lie below a folder whose name holds what shells stumble over."""
    folder = tmp_path / "it's a b $HOME #1 (x)&"
    made = replace(plan(tmp_path, *QUICK, "sweep=odd"), sweep=SweepDir(folder / "odd"))
    send.submit(made)
    until(lambda: states(made.sweep) == {"done"})
    assert any(log.text for log in logs.logs(made.sweep, made.points[0].point_id))


def test_each_task_leaves_one_archive_of_its_points(cluster, tmp_path):
    """cluster.pack: four points in two tasks are two archives and no folder; all are done and collected from there."""
    words = ("sweep=archives", "seed=1,2,3,4", "cluster.points_per_task=2", "cluster.pack=true")
    made = plan(tmp_path, *QUICK, *words)
    send.submit(made)
    until(lambda: states(made.sweep) == {"done"})
    until(lambda: not list((made.sweep.path / "points").iterdir()))
    assert len(list((made.sweep.path / "packed").iterdir())) == 2
    until(made.sweep.points_path.is_file)
    assert open_sweep(made.sweep.path).points["counts"].all()
    assert send.submit(made).points == 0


def test_packed_points_share_one_task_and_each_finishes(cluster, tmp_path):
    """points_per_task=3 sends four points as two tasks."""
    made = plan(tmp_path, *QUICK, "sweep=packed", "seed=1,2,3,4", "cluster.points_per_task=3")
    send.submit(made)
    tasks = [len(task) for sent in read(made.sweep) if sent.kind == "points" for task in sent.tasks]
    assert tasks == [3, 1]
    until(lambda: states(made.sweep) == {"done"})


def test_cancelled_points_are_interrupted_and_resume_runs_those_alone(cluster, tmp_path):
    """Cancel ends waiting and running tasks; resume sends exactly the points without a finished attempt."""
    made = plan(tmp_path, *QUICK, "sweep=cancel", "seed=1,2", "engine.synthetic_ms_per_token=5000")
    first = send.submit(made)
    until(lambda: "running" in states(made.sweep))
    assert resume.resume(made.sweep, dry_run=True).points == 0
    ended = resume.cancel(made.sweep)
    assert ended == [f"{first.job_ids[0]}_0", f"{first.job_ids[0]}_1", first.collect_job]
    until(lambda: states(made.sweep) == {"interrupted"})
    assert status.exit_code(fresh(made.sweep)) == 3
    one = made.points[1].point_id
    again = resume.resume(made.sweep, only={one})
    assert again.points == 1
    until(lambda: {row.point_id: row.state for row in fresh(made.sweep)}[one] == "running")
    resume.cancel(made.sweep)


def test_a_tried_point_is_asked_for_anew(cluster, tmp_path):
    """Its python was none: resume takes another one and another limit, and Slurm and the grid have them."""
    made = plan(tmp_path, *QUICK, "sweep=anew", "cluster.python=/no/such/python")
    send.submit(made)
    until(lambda: states(made.sweep) == {"failed"})
    settings = {"cluster.python": None, "cluster.time_min": 7}
    (job,) = resume.resume(made.sweep, settings=settings).job_ids
    shown = subprocess.run(
        ["scontrol", "show", "job", job], capture_output=True, text=True, check=True, timeout=60
    )
    assert "TimeLimit=00:07:00" in shown.stdout
    until(lambda: states(made.sweep) == {"done"})
    assert made.sweep.points()[0].config().cluster.time_min == 7


def test_a_task_of_one_minute_has_most_of_it(cluster, tmp_path):
    """Slurm warns it up to a minute early, at its very start: a point of half a minute finishes all the same."""
    slow = ("engine.synthetic_ms_per_token=3500", "cluster.time_min=1")  # 4 steps, twice
    made = plan(tmp_path, *QUICK, *slow, "sweep=minute", "n_prompts=2")
    send.submit(made)
    until(lambda: states(made.sweep) == {"done"})
    (row,) = fresh(made.sweep)
    assert row.attempts == 1


def test_a_submit_from_inside_a_job_is_not_bent_by_its_variables(cluster, tmp_path, monkeypatch):
    """SLURM_* of a surrounding job would be options of sbatch; SLURM_CONF stays, and the points run."""
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "64",
        "SLURM_MEM_PER_NODE": "9999999",
    }.items():
        monkeypatch.setenv(name, value)
    made = plan(tmp_path, *QUICK, "sweep=inside")
    send.submit(made)
    assert os.environ["SLURM_NTASKS"] == "64"
    until(lambda: states(made.sweep) == {"done"})


def test_a_lost_node_is_told_in_slurms_word_and_costs_its_points_alone(cluster, tmp_path):
    """A node that is killed under a running point: the point does not end as done, and runs again elsewhere."""
    made = plan(tmp_path, *QUICK, "sweep=lost", "engine.synthetic_ms_per_token=700")
    made = with_cluster(made, sbatch_options={"nodelist": "node4", "no-requeue": ""})
    send.submit(made)
    until(lambda: "running" in states(made.sweep))
    cluster.node("kill", "node4")
    try:
        until(lambda: states(made.sweep) == {"failed"})
        (row,) = fresh(made.sweep)
        assert "NODE_FAIL" in str(row.reason)
        assert row.rerun == f"wattflow resume {made.sweep.path} --only {row.point_id}"
    finally:
        cluster.node("start", "node4")
        subprocess.run(
            ["scontrol", "update", "nodename=node4", "state=resume"], check=False, timeout=600
        )


def test_a_cluster_of_this_machine_alone_has_no_other_node(cluster):
    """All nodes answer at loopback addresses, so that a sweep below /tmp is seen by each of them."""
    assert client.other_node() is None


def test_slurm_says_of_each_array_when_it_would_start_and_sends_none(cluster, tmp_path):
    """Two arrays would start on the cluster's nodes; one for a partition that is not there is refused."""
    made = plan(tmp_path, *QUICK, "sweep=asked", "seed=1,2,3", "cluster.max_array_size=2")
    tested = send.test_only(made)
    assert [one.tasks for one in tested] == [2, 1]
    assert all(one.accepted and "to start at" in one.answer for one in tested), tested
    wide = with_cluster(plan(tmp_path, *QUICK, "sweep=wide"), partition="nowhere")
    (refused,) = send.test_only(wide)
    assert not refused.accepted
    assert "partition" in refused.answer
    assert not made.sweep.path.exists()
