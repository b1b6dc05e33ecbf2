"""The points of one Slurm task: which of them run, and when the task goes back into the queue."""

import os
import subprocess
import sys

import pytest
from local_runs import one_rank
from partial_attempts import slow
from sweeps import Gpu, Made, id_of, make_attempt, make_sweep

from wattflow.errors import SlurmError
from wattflow.run import task
from wattflow.run.place import Progress
from wattflow.run.task import Todo, run_points
from wattflow.slurm import client


@pytest.fixture
def finished(tmp_path):
    """A sweep of two points, of which the first has a finished attempt."""
    points = [slow(seed=seed, engine__synthetic_ms_per_token=0.1) for seed in (1, 2)]
    sweep = make_sweep(tmp_path / "demo", points)
    make_attempt(sweep, points[0], Made([Gpu("GPU-0")]))
    return sweep, [id_of(point) for point in points]


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_ARRAY_JOB_ID": "5",
    "SLURM_ARRAY_TASK_ID": "2",
    "SLURM_RESTART_COUNT": "1",
    "SLURM_JOB_NODELIST": "n7",
    "SLURMD_NODENAME": "n7",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NTASKS": "1",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SUBMITIT_EXECUTOR": "slurm",
}


class SlurmCalls:
    """What the task asks of Slurm, and what it prints."""

    def __init__(self, capsys):
        self.preempted, self.refuses, self.requeued = None, False, []
        self.printed = lambda: capsys.readouterr().out

    def requeue(self, task_id):
        if self.refuses:
            raise SlurmError("Requested operation is disabled")
        self.requeued.append(task_id)


@pytest.fixture
def slurm_calls(monkeypatch, capsys):
    calls = SlurmCalls(capsys)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(client, "was_preempted", lambda job_id: calls.preempted)
    monkeypatch.setattr(client, "requeue", calls.requeue)
    return calls


def test_what_finished_is_left_alone(finished, tmp_path):
    """Only the second point gets an attempt."""
    sweep, ids = finished
    with one_rank(tmp_path) as (place, signals):
        run_points(Todo(sweep, ids, {}), place, signals, lambda point_id, progress: None)
    assert [len(sweep.attempts(point_id)) for point_id in ids] == [1, 1]
    assert [sweep.is_finished(point_id) for point_id in ids] == [True, True]


def test_a_forced_point_runs_until_a_newer_attempt_finished(finished):
    """`resume --force` names attempt 1: it does not count, an attempt 2 would."""
    sweep, (first, second) = finished
    todo = Todo(sweep, [first, second], {first: 1})
    assert not todo.is_finished(first)
    assert Todo(sweep, [first, second], {}).is_finished(first)
    assert todo.finished() == [(False, 0), (False, 0)]


@pytest.mark.parametrize(
    ("preempted", "ran_s", "progressed", "requeued"),
    [
        (True, 10.0, False, True),  # a preemption: always
        (False, 3500.0, True, True),  # near the limit, with a point or batch finished
        (False, 3500.0, False, False),  # near it without: it would outlast the limit again
        (None, 1000.0, False, True),  # Slurm does not say, and the limit is far
        (None, 3500.0, False, False),  # nor here, and it is near
    ],
)
def test_a_task_goes_back_into_the_queue(preempted, ran_s, progressed, requeued, slurm_calls):
    """With a limit of 60 minutes, of which Slurm warns 150 s ahead at most."""
    slurm_calls.preempted = preempted
    task._requeue("5_2", 60, ran_s, progressed)
    assert slurm_calls.requeued == (["5_2"] if requeued else [])
    assert ("outlasts cluster.time_min=60" in slurm_calls.printed()) == (not requeued)


def test_a_site_that_does_not_requeue_leaves_the_point_to_resume(slurm_calls):
    """Slurm's refusal is a line in the log, not an error."""
    slurm_calls.preempted, slurm_calls.refuses = True, True
    task._requeue("5_2", 60, 10.0, progressed=False)
    assert "wattflow resume" in slurm_calls.printed()


@pytest.mark.parametrize("pack", [False, True])
def test_a_task_of_slurm_s_runs_its_points_and_leaves_no_spool(pack, tmp_path):
    """By Slurm's variables this is task 2 of array 5, begun for the second time: the record says so, packed or not."""
    spool = str(tmp_path / "spool")
    point = slow(engine__synthetic_ms_per_token=0.1, cluster__spool_dir=spool, cluster__pack=pack)
    (tmp_path / "spool").mkdir()
    sweep = make_sweep(tmp_path / "demo", [point])
    point_id = id_of(point)
    code = (
        "import sys; from wattflow.run.task import run_task; run_task(sys.argv[1], [sys.argv[2]])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(sweep.path), point_id],
        env={**os.environ, **SLURM},
        check=True,
        timeout=600,
    )
    (attempt,) = sweep.attempts(point_id)
    record = attempt.read_record()
    assert record["status"] == "finished"
    assert attempt.record_path.is_file() != pack
    job = {"job_id": "5_2", "array_task": "2", "restart": 1, "cluster": "local"}
    assert record["job"] == job
    assert record["ranks"][0]["node"] == "n7"
    assert list((tmp_path / "spool").iterdir()) == []


def test_progress_is_printed_at_each_change_of_phase_and_at_its_end(capsys):
    """Three reports of one phase within 15 s are the first and the last one."""
    report = task.progress_printer()
    for progress in (Progress("idle", 0, 3), *(Progress("batches", k, 3) for k in (0, 1, 3))):
        report("0123456789ab", progress)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["idle: 0/3 batches", "batches: 0/3 batches", "batches: 3/3 batches"]
