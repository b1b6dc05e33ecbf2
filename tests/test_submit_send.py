"""submit sends held arrays, a collector, then lets all start."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from submissions import intents, plan, point, seeds
from submitit.core.utils import DelayedSubmission

from wattflow import process
from wattflow.errors import RefusedError, SlurmError
from wattflow.plan.points import Plan, Point
from wattflow.slurm import sbatch
from wattflow.submit import journal, resume, send


def test_each_array_is_tested_by_slurm_and_none_is_sent(fake, tmp_path):
    """Two arrays of 3 and 2 tasks: each script is given to sbatch --test-only with its own range, and nothing else."""
    made = plan(tmp_path, *seeds(5, cluster__max_array_size=3), point(cluster__launcher="local"))
    tested = send.test_only(made)
    answer = (
        "Job 7 to start at 2030-01-01T00:00:00 using 2 processors on nodes node1 in partition gpu"
    )
    assert tested == [send.Tested("site", 1, 1, count, True, answer) for count in (3, 2)]
    assert all(call.startswith("--test-only ") for call in fake.calls("sbatch"))
    told = (fake.folder / "tested").read_text()
    assert re.findall(r"--array=(.*)", told) == ["0-2%3", "0-1%2"]
    assert not made.sweep.path.exists()


def test_an_array_that_slurm_would_refuse_is_told_with_its_words(fake, tmp_path):
    """The reason is sbatch's own."""
    fake.refuse("sbatch: error: Invalid account", "allocation failure: Invalid account")
    (tested,) = send.test_only(plan(tmp_path, *seeds(2)))
    assert (tested.accepted, tested.answer) == (
        False,
        "error: Invalid account allocation failure: Invalid account",
    )


def test_a_test_without_slurm_is_refused(tmp_path, monkeypatch):
    """There is nobody to ask."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RefusedError, match="no sbatch"):
        send.test_only(plan(tmp_path, *seeds(1)))


NOWHERE = Path("/dev/shm/wattflow-test-that-writes-nothing")


def test_a_sweep_that_other_nodes_cannot_see_is_refused_before_anything_is_written(fake):
    """The sweep lies in this machine's memory and node2 is another machine: one line says where and what to do."""
    fake.nodes(f"{platform.node()}|127.0.0.1", "node2|10.0.0.2")
    with pytest.raises(RefusedError, match=r"tmpfs at /dev/shm.*node2.*sweeps_dir=DIR") as told:
        send.submit(plan(NOWHERE, *seeds(1)), dry_run=True)
    assert "\n" not in str(told.value)
    assert not NOWHERE.exists()


def test_a_profile_can_say_that_the_folder_is_shared_after_all(fake):
    """cluster.shared_sweeps_dir stands for what the list of mounts cannot tell, and Slurm is not asked."""
    fake.nodes("node2|10.0.0.2")
    points = seeds(1, cluster__shared_sweeps_dir=True)
    assert send.submit(plan(NOWHERE, *points), dry_run=True).points == 1
    assert fake.calls("sinfo") == []


@pytest.mark.parametrize(
    "nodes", [[], ["node1|127.0.1.1", "node2|127.0.1.2"], [f"{platform.node()}|10.0.0.7"]]
)
def test_a_cluster_of_this_machine_alone_may_use_any_folder(nodes, fake):
    """A Slurm for tests, or of one workstation, has no node that could not see the folder; nor has one that is mute."""
    fake.nodes(*nodes)
    assert send.submit(plan(NOWHERE, *seeds(1)), dry_run=True).points == 1


def test_local_points_may_lie_in_any_folder(fake):
    """They run on this machine, so that Slurm is not asked either."""
    fake.nodes("node2|10.0.0.2")
    local = seeds(1, cluster__launcher="local")
    assert send.submit(plan(NOWHERE, *local), dry_run=True).points == 1
    assert fake.calls("sinfo") == []


# --- submit ---------------------------------------------------------------------------------------


def test_a_submit_sends_held_arrays_then_a_collector_then_releases_all(fake, tmp_path):
    """Two shapes are two arrays; the collect job waits for both with afterany and asks for no GPU."""
    wide = seeds(2, shards=2, cluster__gpus_per_node=2)
    made = plan(tmp_path, *seeds(3, cluster__gpus_per_node=2), *wide)
    sent = send.submit(made)
    assert (sent.job_ids, sent.collect_job, sent.points) == (["101", "102"], "103", 5)
    scripts = fake.scripts()
    assert all("#SBATCH --hold\n" in text for text in scripts.values())
    assert "--array=0-2%3\n" in scripts["101"]
    assert "--array=0-1%2\n" in scripts["102"]
    assert "#SBATCH --dependency=afterany:101:102\n" in scripts["103"]
    assert "gpu" not in scripts["103"]
    assert fake.calls("scontrol") == ["release 101,102,103"]


def test_jobs_that_start_though_scontrol_failed_are_a_whole_submit(fake, tmp_path):
    """It ended with 1 and scontrol's error, though all points were queued; those that stay held are named."""
    made = plan(tmp_path, *seeds(2))
    path = fake.folder / "bin" / "scontrol"
    path.write_text(path.read_text() + 'echo "scontrol: error: timed out" >&2; exit 1\n')
    assert send.submit(made).job_ids == ["101"]
    assert all(sent.released for sent in journal.read(made.sweep))
    more = plan(tmp_path, *seeds(3))
    fake.queue("103|PENDING|JobHeldUser|demo")
    with pytest.raises(
        SlurmError, match=r"all jobs of demo are queued, and 103 held: .* lets them start"
    ):
        send.submit(more)
    assert {s.job_id: s.released for s in journal.read(made.sweep)}["103"] is False


def test_the_pickles_lie_where_the_tasks_look_before_the_release(fake, tmp_path):
    """One pickle of ours for all tasks of an array, in a folder of mode 0700; it names the points of each."""
    made = plan(tmp_path, *seeds(3, cluster__points_per_task=2))
    send.submit(made)
    (sent,) = intents(made.sweep)
    assert sent.folder.stat().st_mode & 0o777 == 0o700
    loaded = DelayedSubmission.load(sent.folder / "101_submitted.pkl")
    ids = [p.point_id for p in made.points]
    path = str(made.sweep.path)
    assert loaded.function == sbatch.OneOf(
        (
            sbatch.Call("wattflow.run.task:run_task", (path, ids[:2], {})),
            sbatch.Call("wattflow.run.task:run_task", (path, ids[2:], {})),
        )
    )


def test_a_submit_writes_a_handful_of_files_however_many_tasks_it_sends(fake, tmp_path):
    """Five of the sweep and its turn; of each of two jobs its script under two names, and its pickle."""
    counts = []
    for tasks in (2, 200):
        made = plan(tmp_path / str(tasks), *seeds(tasks))
        send.submit(made)
        counts.append(sum(path.is_file() for path in made.sweep.path.rglob("*")))
    assert counts == [11, 11]


def test_every_intent_is_journalled_before_the_first_sbatch(fake, tmp_path):
    """An sbatch that fails at once finds the intents of all arrays already on disk."""
    fake.refuse("sbatch: error: Invalid account")
    made = plan(tmp_path, *seeds(4, cluster__max_array_size=2))
    with pytest.raises(SlurmError, match=r"Invalid account.*4 tasks of demo were not sent"):
        send.submit(made)
    events = [line["event"] for line in made.sweep.journal()]
    assert events == ["intent", "intent", "failed", "failed"]


def test_what_slurm_refused_is_never_tried_and_the_same_submit_sends_it(fake, tmp_path):
    """After a refusal of the second array the first runs, and submitting again sends the second alone."""
    made = plan(tmp_path, *seeds(4, cluster__max_array_size=2))
    (fake.folder / "last").write_text("100\n")
    fake.refuse()
    first = send.submit(plan(tmp_path, *made.points[:2]))
    fake.refuse("sbatch: error: QOSMaxSubmitJobPerUserLimit")
    with pytest.raises(SlurmError, match=r"QOSMaxSubmitJobPerUserLimit.*with cluster\.max_tasks"):
        send.submit(made)
    again = send.submit(made)
    assert (first.points, again.points, again.tried) == (2, 2, 2)
    assert len(made.sweep.points()) == 4


def test_submit_adds_only_points_never_tried(fake, tmp_path):
    """Points that a submission holds, or that have an attempt, are resume's."""
    points = seeds(4)
    send.submit(plan(tmp_path, *points[:1]))
    made = plan(tmp_path, *points)
    made.sweep.claim_attempt(points[1].point_id)
    assert send.submit(made, dry_run=True).points == 2
    sent = send.submit(made)
    assert (sent.points, sent.tried) == (2, 2)
    assert intents(made.sweep)[-1].tasks == [[points[2].point_id], [points[3].point_id]]


def test_points_that_cannot_run_are_kept_with_their_reason_and_not_sent(fake, tmp_path):
    """grid.parquet lists them; no task holds them."""
    good, bad = seeds(2)
    made = plan(tmp_path, good, Point(bad.point_id, bad.config, "needs 99 GiB of 80"))
    sent = send.submit(made)
    assert (sent.points, sent.infeasible) == (1, 1)
    assert [point.reason for point in made.sweep.points()] == [None, "needs 99 GiB of 80"]


def test_only_chosen_points_are_sent(fake, tmp_path):
    """`only` picks points by id."""
    made = plan(tmp_path, *seeds(3))
    chosen = made.points[1].point_id
    send.submit(made, only={chosen})
    assert intents(made.sweep)[0].tasks == [[chosen]]


def test_a_dry_run_writes_and_sends_nothing(fake, tmp_path):
    """The counts are those of the real call; there is no folder and no sbatch."""
    made = plan(tmp_path, *seeds(3))
    assert send.submit(made, dry_run=True).points == 3
    assert not made.sweep.path.exists()
    assert fake.calls("sbatch") == []


def test_a_sweep_of_somebody_else_is_refused(fake, tmp_path):
    """Nobody submits to a folder that others may write to: pickles there could be theirs."""
    made = plan(tmp_path, *seeds(1))
    made.sweep.make()
    made.sweep.submitit.chmod(0o777)
    with pytest.raises(RefusedError, match="nobody else may be able to write"):
        send.submit(made)
    assert fake.calls("sbatch") == []


def test_without_slurm_a_slurm_profile_is_refused(tmp_path, monkeypatch):
    """The message says that cluster=local needs none, and nothing is written."""
    monkeypatch.setenv("PATH", "/nonexistent")
    made = plan(tmp_path, *seeds(1))
    with pytest.raises(RefusedError, match="cluster=local"):
        send.submit(made)
    assert not made.sweep.path.exists()


def test_more_tasks_than_a_profile_allows_share_time_and_tasks(fake, tmp_path):
    """Ten points, at most four tasks: three points a task, and three times the minutes."""
    (shape,) = send.submit(
        plan(tmp_path, *seeds(10, cluster__max_tasks=4, cluster__time_min=7))
    ).shapes
    assert [len(task) for task in shape.tasks] == [3, 3, 3, 1]
    assert shape.cluster.time_min == 21
    assert "#SBATCH --time=21\n" in fake.scripts()["101"]


@pytest.mark.parametrize(("account", "tasks"), [(None, 8), ("b", 16), ("c", 40)])
def test_more_tasks_than_an_account_may_submit_share_tasks(account, tasks, fake, tmp_path):
    """80 % of MaxSubmitJobs, the smallest where no account is named: 40 points in 8 or 16 tasks at most."""
    fake.associations("a|10", "b|20", "c|")
    asked = {} if account is None else {"cluster__account": account}
    sent = send.submit(plan(tmp_path, *seeds(40, **asked)), dry_run=True)
    (shape,) = sent.shapes
    assert len(shape.tasks) <= tasks
    assert len(shape.tasks) > tasks // 2


# --- the collect job that sends the next one ------------------------------------------------------


def collected_while(fake: FakeSlurm, made: Plan, earlier: list[int]) -> list[str]:
    """The scripts that a collect job sends while the points' job is in the queue again."""
    send.submit(made)
    name = intents(made.sweep)[0].name
    fake.queue(f"101_0|PENDING|None|{name}", f"101_1|PENDING|None|{name}")
    before = len(fake.scripts())
    send.collect_task(str(made.sweep.path), earlier)
    return list(fake.scripts().values())[before:]


@pytest.mark.parametrize(("earlier", "wait_s"), [([], 60), ([4], 120), ([6, 4], 240)])
def test_a_collect_job_before_the_last_point_sends_another_and_waits_longer(
    earlier, wait_s, fake, tmp_path
):
    """Requeued tasks end after their array did: the next job waits for them, each round twice as long."""
    (script,) = collected_while(fake, plan(tmp_path, *seeds(2)), earlier)
    assert "#SBATCH --dependency=afterany:101\n" in script
    assert f"#SBATCH --begin=now+{wait_s}\n" in script


@pytest.mark.parametrize("earlier", [[2], [20, 18, 16, 14, 12, 10, 8, 6, 4]])
def test_collect_jobs_stop_without_progress_and_after_ten(earlier, fake, tmp_path):
    """Two points are unfinished: as many as the round before left, or in the tenth round."""
    assert collected_while(fake, plan(tmp_path, *seeds(2)), earlier) == []


def test_a_collect_job_after_the_last_task_sends_none(fake, tmp_path):
    """Nothing of the sweep is in the queue, so waiting would help nobody."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    send.collect_task(str(made.sweep.path), [])
    assert len(fake.scripts()) == 2


# --- without Slurm --------------------------------------------------------------------------------


def test_local_points_become_one_detached_process_in_the_plans_order(tmp_path, monkeypatch):
    """cluster=local needs no Slurm; the process is no child of the terminal's session, and is journalled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}")
    slow = {"engine__name": "synthetic", "engine__synthetic_ms_per_token": 60000.0}
    points = [
        point(seed=s, cluster__launcher="local", cluster__name="local", **slow) for s in (2, 1)
    ]
    made = plan(tmp_path, *points)
    sent = send.submit(made)
    (job,) = sent.job_ids
    pid = int(job.split(":")[2])
    try:
        assert process.lives(job)
        assert os.getsid(pid) == pid
        assert intents(made.sweep)[0].tasks == [[p.point_id for p in points]]
        assert resume.resume(made.sweep).points == 0
        assert resume.cancel(made.sweep) == [job]
    finally:
        os.waitpid(pid, 0)
    assert process.lives(job) is False


def test_submitting_loads_neither_torch_nor_pynvml_nor_altair(tmp_path):
    """A login node has no GPU, and a person waits for the prompt."""
    code = (
        "import sys, wattflow.submit.send, wattflow.submit.status;"
        "print([m for m in ('torch', 'pynvml', 'altair', 'polars', 'hydra', 'submitit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_more_node_hours_than_the_bound_are_refused_and_nothing_is_written(fake, tmp_path):
    """Five tasks of an hour against 4.5: neither a job nor a folder; side by side they are three, and are sent."""
    bound = {"cluster__max_node_hours": 4.5, "cluster__time_min": 60, "cluster__gpus_per_node": 2}
    with pytest.raises(RefusedError, match=r"5 node-hours .*max_node_hours is 4\.5"):
        send.submit(plan(tmp_path, *seeds(5, **bound)))
    assert fake.scripts() == {}
    assert not (tmp_path / "demo").exists()
    sent = send.submit(plan(tmp_path, *seeds(5, **bound, cluster__side_by_side=True)))
    assert [shape.row()["node_hours"] for shape in sent.shapes] == [3.0]


def test_points_of_one_site_count_together(fake, tmp_path):
    """Two shapes of three and four hours are seven."""
    bound = {"cluster__max_node_hours": 5.0, "cluster__time_min": 60, "cluster__gpus_per_node": 2}
    points = [*seeds(3, **bound), *[point(seed=s, shards=2, **bound) for s in range(4)]]
    with pytest.raises(RefusedError, match="7 node-hours"):
        send.submit(plan(tmp_path, *points))
