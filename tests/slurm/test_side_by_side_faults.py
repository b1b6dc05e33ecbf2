"""What ends points side by side on a real Slurm: preemption, cancel, kills of the task and of its sidecar."""

import os
import signal
from pathlib import Path

import polars as pl
import pytest
from processes import gone
from slurm_sweeps import fresh, plan, states, until, with_cluster
from test_cluster_faults import is_sidecar, preempt, processes, raw_id, records, sh
from test_side_by_side import BESIDE, POINT, check_joules, collected, rank_of, seeds

from wattflow.submit import resume, send

pytestmark = [pytest.mark.slurm, pytest.mark.fake_nvml]
pytest_plugins = ("fake_nvml.fixtures",)

SLOW = "engine.synthetic_ms_per_token=400"


@pytest.fixture
def running(gpus, tmp_path):
    """A function that sends two points side by side and returns once both are measured."""

    def start(*words):
        made = plan(tmp_path, *POINT, SLOW, "sweep=faults", seeds(2), BESIDE, *words)
        send.submit(made)
        until(lambda: all(rank_of(p.point_id, made.sweep) is not None for p in made.points))
        return made

    return start


def test_a_preempted_task_of_two_points_runs_both_again(running):
    """Both steps close their attempts as interrupted; the same job runs both points once more, in its second run."""
    made = running("cluster.partition=preempt", "n_prompts=8")
    preempt(made.sweep, made.points[0].point_id)
    until(lambda: states(made.sweep) == {"done"})
    for point in made.points:
        first, second = records(made.sweep, point.point_id)
        assert (first["status"], second["status"]) == ("interrupted", "finished")
        assert "preempted" in str(first["error"])
        assert second["job"]["restart"] == 1
    check_joules(made.sweep, collected(made).filter("counts"))


@pytest.mark.slow
def test_a_cancelled_task_leaves_no_process_and_resume_runs_its_points(running):
    """Both points are interrupted; nothing of the job is left on the node."""
    made = running()
    job = raw_id(fresh(made.sweep)[0].job)
    ours = processes(job)
    resume.cancel(made.sweep)
    until(lambda: states(made.sweep) == {"interrupted"})
    until(lambda: all(gone(pid) for pid in ours))
    assert resume.resume(made.sweep).points == 2
    until(lambda: states(made.sweep) == {"done"})


@pytest.mark.slow
def test_a_task_that_is_killed_takes_its_steps_and_its_sidecar_along(running):
    """kill -9 of the process that starts the steps: nothing outlives it, both points failed, and resume runs them."""
    made = running()
    job = raw_id(fresh(made.sweep)[0].job)
    ours = processes(job)
    (task,) = [pid for pid in ours if b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(task, signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in ours))
    until(lambda: not states(made.sweep) & {"running", "waiting"})
    assert states(made.sweep) <= {"failed", "interrupted"}
    assert resume.resume(made.sweep).points == 2
    until(lambda: states(made.sweep) == {"done"})


def test_a_killed_common_sidecar_costs_no_point(running):
    """Both points go on with the next one and finish with their own joules; what neighbours did is not known."""
    made = running("n_prompts=4")
    job = raw_id(fresh(made.sweep)[0].job)
    (sidecar,) = [pid for pid in processes(job) if is_sidecar(pid)]
    os.kill(sidecar, signal.SIGKILL)
    until(lambda: states(made.sweep) == {"done"})
    rows = collected(made)
    assert all("sidecar_restarted" in reasons for reasons in rows["reasons"])
    assert rows["beside"].to_list() == [True, True]
    check_joules(made.sweep, rows)


def node_s(made) -> float:
    """How long the nodes of a sweep's jobs were taken, by the accounting."""
    jobs = {row.job.partition("_")[0] for row in fresh(made.sweep)}
    lines = sh("sacct", "-X", "-n", "-P", "-o", "ElapsedRaw,NNodes", "-j", ",".join(jobs)).split()
    return float(sum(int(s) * int(nodes) for s, nodes in (line.split("|") for line in lines)))


@pytest.mark.slow
def test_sixty_four_points_take_half_the_node_hours(gpus, tmp_path):
    """Whole nodes of two GPUs: a task a point, then two points a task, one of them killed in its middle.

    Half as many hours are asked for. Of those taken somewhat more than half are left, as steps begin after their task.
    """
    where = ("cluster.array_throttle=4", "engine.synthetic_ms_per_token=500", seeds(64))
    whole = {"sbatch_options": {"exclusive": ""}}
    alone = with_cluster(plan(tmp_path, *POINT, "sweep=alone", *where), **whole)
    beside = with_cluster(plan(tmp_path, *POINT, "sweep=beside", BESIDE, *where), **whole)
    asked = [send.submit(alone).shapes[0].row()["node_hours"]]
    until(lambda: states(alone.sweep) == {"done"}, 1800)
    asked.append(send.submit(beside).shapes[0].row()["node_hours"])
    assert asked[1] == pytest.approx(asked[0] / 2, abs=1e-3)  # rows have three decimals
    victim = beside.points[31].point_id
    until(lambda: rank_of(victim, beside.sweep) is not None, 1800)
    gpus.inside("kill", "-KILL", str(rank_of(victim, beside.sweep)))
    until(lambda: states(beside.sweep) == {"done", "failed"}, 1800)
    rows = collected(beside).filter(pl.col("status") == "finished")
    assert len(rows) == 63
    check_joules(beside.sweep, rows)
    took = node_s(alone), node_s(beside)
    print(
        f"\n64 points: {took[0]:.0f} s of nodes one by one, {took[1]:.0f} side by side: {took[1] / took[0]:.2f}"
    )
    assert took[1] < 0.75 * took[0]
