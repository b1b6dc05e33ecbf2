"""Thousands of points on a real Slurm: how many commands a person's command asks of it, and how long one waits.

pytest tests/slurm/test_scale.py -m chaos -s      # prints what it measured
"""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_sweeps import QUICK, fresh, plan, states, until, with_cluster

from wattflow.errors import SlurmError
from wattflow.store.layout import SweepDir
from wattflow.submit import journal, resume, send, status

pytestmark = [pytest.mark.slurm, pytest.mark.chaos]

COMMANDS = ("sbatch", "squeue", "sacct", "sacctmgr", "scontrol", "scancel", "sinfo")
WIDE = (  # six shapes on four nodes of eight processors, without GPUs
    "cluster.gpus_per_node=8",
    "cluster.gpu_request=none",
    "shards=1,2,4,8,16,32",
)


@dataclass(frozen=True)
class Calls:
    """Which of Slurm's commands were called since it was asked last."""

    path: Path

    def since(self) -> Counter[str]:
        """How often each was called."""
        told = Counter(self.path.read_text().split())
        self.path.write_text("")
        return told


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Shims first on the PATH, which write their name down and call the real command."""
    shims = tmp_path / "shims"
    shims.mkdir()
    path = tmp_path / "calls"
    path.write_text("")
    for name in COMMANDS:
        shim = shims / name
        shim.write_text(f'#!/bin/sh\necho {name} >> "{path}"\nexec {shutil.which(name)} "$@"\n')
        shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shims}{os.pathsep}{os.environ['PATH']}")
    return Calls(path)


@pytest.fixture
def drained(cluster: object) -> Iterator[None]:
    """Nodes that start nothing meanwhile."""
    nodes = ["scontrol", "update", "nodename=ALL"]
    subprocess.run([*nodes, "state=drain", "reason=test"], check=True, timeout=600)
    yield
    subprocess.run([*nodes, "state=resume"], check=True, timeout=600)


def wattflow(*words: str) -> float:
    """How long a command takes from its start to its end; its exit code is 0 or one of status's."""
    began = time.monotonic()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("wattflow")), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 3, 4), done.stderr
    return time.monotonic() - began


def test_ten_thousand_points_are_sent_by_thirteen_sbatches(cluster, drained, calls, tmp_path):
    """MaxArraySize=1001, six shapes of 1,680 points: 12 arrays and a collect job; status asks one squeue."""
    sizes, lengths = ",".join(map(str, range(1, 61))), ",".join(map(str, range(100, 128)))
    axes = [f"batch_size={sizes}", f"max_gen_len={lengths}"]
    made = plan(tmp_path, *QUICK, *WIDE, "sweep=large", *axes)
    assert len(made.points) == 10080
    calls.since()
    submit_s = wattflow("submit", *made.overrides)
    sent = calls.since()
    status_s = wattflow("status", str(made.sweep.path), "--json")
    asked = calls.since()
    files = sum(path.is_file() for path in made.sweep.path.rglob("*"))
    cancel_s = wattflow("cancel", str(made.sweep.path), "--yes")
    ended = calls.since()
    until(lambda: not states(made.sweep) & {"waiting", "running"}, 120)
    print(f"\nsubmit of 10,080 points: {submit_s:.1f} s, {dict(sent)}, {files} files", end="")
    print(f"; status {status_s:.1f} s, {dict(asked)}; cancel {cancel_s:.1f} s, {dict(ended)}")
    assert sent["sbatch"] <= 13
    assert asked == Counter(squeue=1)
    assert files <= 1 + 0.02 * 10080
    assert ended["scancel"] == 1


def test_a_thousand_points_finish_and_are_collected_without_a_login_process(
    cluster, calls, tmp_path
):
    """Packed fifty a task: all end as done, and the collect job's tables lie there within a minute of the last."""
    seeds = ",".join(map(str, range(1000)))
    packed = ["cluster.points_per_task=50", "cluster.array_throttle=4", "cluster.time_min=60"]
    made = plan(tmp_path, *QUICK, "power.idle_s=0.01", "sweep=many", *packed, f"seed={seeds}")
    began = time.monotonic()
    wattflow("submit", *made.overrides)
    sent = calls.since()
    sents = journal.read(made.sweep)
    assert [len(one.tasks) for one in sents if one.kind == "points"] == [20]
    until(lambda: finished(made.sweep) == 1000, 3600)
    ran_s = time.monotonic() - began
    until(made.sweep.points_path.is_file, 60)
    collected_s = time.monotonic() - began - ran_s
    rows = fresh(made.sweep)
    print(f"\n1,000 points: {ran_s:.0f} s, {dict(sent)}; collected {collected_s:.1f} s later")
    assert status.counts(rows) == {"done": 1000}
    assert {row.attempts for row in rows} == {1}
    for one in sents:
        for task in range(len(one.tasks)):
            assert one.log_path(task).is_file()


def test_a_thousand_points_finish_where_slurm_takes_five_hundred_jobs(
    crowded_cluster, calls, tmp_path
):
    """MaxJobCount=500 and nothing said of packing: 334 tasks of three points in one array, and all finish."""
    made = plan(
        tmp_path,
        *QUICK,
        "power.idle_s=0.01",
        "sweep=crowded",
        f"seed={','.join(map(str, range(1000)))}",
    )
    began = time.monotonic()
    wattflow("submit", *made.overrides)
    sent = calls.since()
    sents = [one for one in journal.read(made.sweep) if one.kind == "points"]
    assert [len(one.tasks) for one in sents] == [334]
    until(lambda: finished(made.sweep) == 1000, 1800)
    print(f"\n1,000 points in 334 tasks: {time.monotonic() - began:.0f} s, {dict(sent)}")
    assert sent["sbatch"] == 2
    until(made.sweep.points_path.is_file, 60)


@pytest.fixture
def limited_account(limited_cluster: object) -> None:
    """An account of which root may have at most 20 jobs in the queue."""
    known = "account=energy"
    for words in (["account", "energy"], ["user", "root", known, "MaxSubmitJobs=20"]):
        add = ["sacctmgr", "-Qi", "add", *words]
        subprocess.run(add, check=True, timeout=600)
    default = ["sacctmgr", "-Qi", "modify", "user", "root", "set", "DefaultAccount=energy"]
    subprocess.run(default, check=True, timeout=600)


def test_more_points_than_ones_account_may_submit_finish_by_sharing_tasks(
    limited_account, tmp_path
):
    """MaxSubmitJobs=20: 40 tasks are refused with the way out; 40 points go as 14 tasks and a collect job."""
    words = [*QUICK, f"seed={','.join(map(str, range(40)))}", "cluster.account=energy"]
    with pytest.raises(SlurmError, match=r"MaxSubmitJob.*cluster\.max_tasks at what this site"):
        send.submit(plan(tmp_path, *words, "sweep=refused", "cluster.max_tasks=40"))
    made = plan(tmp_path, *words, "sweep=limited")
    sent = send.submit(made)
    assert sum(len(shape.tasks) for shape in sent.shapes) == 14
    assert sent.collect_job is not None
    until(lambda: states(made.sweep) == {"done"}, 180)


def finished(sweep: SweepDir) -> int:
    """How many points have a finished attempt."""
    return sum(sweep.is_finished(point) for point in sweep.points_on_disk())


def test_resume_sends_what_is_unfinished_in_as_many_sbatches_as_arrays_and_one(
    cluster, drained, calls, tmp_path
):
    """Of 600 points in two shapes, all cancelled: four arrays of at most 200 tasks and a collect job, 5 sbatch."""
    seeds = ",".join(map(str, range(300)))
    made = plan(tmp_path, *QUICK, "sweep=again", "shards=1,2", f"seed={seeds}")
    made = with_cluster(made, max_array_size=200)
    send.submit(made)
    resume.cancel(made.sweep)
    until(lambda: states(made.sweep) == {"interrupted"}, 60)
    calls.since()
    sent = resume.resume(made.sweep)
    asked = calls.since()
    resume.cancel(made.sweep)
    print(f"\nresume of 600 points: {dict(asked)}")
    assert (sent.points, len(sent.job_ids)) == (600, 4)
    assert asked["sbatch"] == 5
    assert asked["squeue"] == 1
