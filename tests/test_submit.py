"""What sbatch is asked for, in which order, and what a kill or a refusal leaves behind."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm
from submitit.core.utils import DelayedSubmission
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow import process
from wattflow.collect import collect
from wattflow.config import identity
from wattflow.errors import RefusedError, SlurmError
from wattflow.plan import feasible, grid
from wattflow.plan.points import Plan, Point
from wattflow.slurm import client, sbatch, shapes
from wattflow.slurm import shapes as slurm_shapes
from wattflow.store.layout import SweepDir
from wattflow.submit import journal, resume, send

RECORDED = Path(__file__).parent / "recorded_batch_script.sh"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def point(**over: Any) -> Point:
    made = choices(**{"cluster__launcher": "slurm", "cluster__name": "site", **over})
    return Point(identity.point_id(made), made, None)


def plan(folder: Path, *points: Point) -> Plan:
    return Plan("demo", SweepDir(folder / "demo"), ["seed=1,2"], list(points), 0)


def seeds(count: int, **over: Any) -> list[Point]:
    return [point(seed=seed, **over) for seed in range(count)]


def intents(sweep: SweepDir) -> list[journal.Submission]:
    return [sent for sent in journal.read(sweep) if sent.kind == "points"]


# --- shapes ---------------------------------------------------------------------------------------


def shapes_of(*points: Point) -> list[slurm_shapes.Shape]:
    return slurm_shapes.shapes([(p.point_id, p.choices) for p in points])


CAPS = {"cluster__power_caps": {"300": "wf_cap300", "400": "partition=cap400"}}


def test_a_cap_is_asked_for_by_the_sites_feature():
    """300 W is a node feature beside the profile's own, 400 W a partition; each is a shape of its own."""
    asked = {**CAPS, "cluster__constraint": "h100", "cluster__partition": "gpu"}
    points = [
        point(control__power_limit_w=300, **asked),
        point(control__power_limit_w=400, **asked),
        point(**asked),
    ]
    found = [shape.control for shape in shapes_of(*points)]
    assert found == [{"constraint": "h100&wf_cap300"}, {"partition": "cap400"}, {}]
    text = "".join(send.batch_scripts(plan(Path("/s"), *points)))
    lines = [line.split(" ", 1)[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert [line for line in lines if "--constraint" in line] == [
        "--constraint='h100&wf_cap300'",
        "--constraint=h100",
        "--constraint=h100",
    ]
    assert [line for line in lines if "--partition" in line] == [
        "--partition=gpu",
        "--partition=cap400",
        "--partition=gpu",
    ]


def test_a_clock_is_asked_for_by_gpu_freq():
    """Slurm's own option sets clocks without rights of the user."""
    (text,) = send.batch_scripts(plan(Path("/s"), point(control__sm_clock_mhz=1200)))
    assert "#SBATCH --gpu-freq=1200" in text


def test_the_collect_job_asks_for_no_cap(fake, tmp_path):
    """The job that collects has no GPU to cap."""
    capped = point(control__power_limit_w=300, **CAPS)
    send.submit(plan(tmp_path, capped))
    points, collector = fake.scripts().values()
    assert "wf_cap300" in points
    assert "wf_cap300" not in collector


def test_a_job_that_sets_limits_itself_asks_slurm_for_none():
    """control.by=nvml is for nodes of one's own: sbatch hears nothing of it."""
    asked = {"control__power_limit_w": 300, "control__by": "nvml"}
    (shape,) = shapes_of(point(**asked))
    assert shape.control == {}


def test_a_cap_that_the_site_does_not_offer_is_no_point_to_send():
    """350 W is infeasible where the site offers 300 and 400, and the reason names them."""
    made = choices(**{"cluster__launcher": "slurm", "control__power_limit_w": 350, **CAPS})
    assert "offers 300, 400" in feasible.why_not(made)
    local = choices(control__power_limit_w=350, cluster__launcher="local")
    assert feasible.why_not(local) is None


def test_points_that_ask_for_the_same_share_a_shape():
    """Seeds share a shape; another number of shards or another time limit makes another."""
    points = [
        point(seed=1),
        point(seed=2),
        point(shards=2, cluster__gpus_per_node=2),
        point(seed=3, cluster__time_min=5),
    ]
    assert [len(shape.point_ids) for shape in shapes_of(*points)] == [2, 1, 1]


def test_shards_are_spread_over_the_gpus_of_as_few_nodes_as_hold_them():
    """Eight shards on nodes of four GPUs are two nodes with four ranks each; two shards are one node with two."""
    eight, two = (point(shards=n, cluster__gpus_per_node=4) for n in (8, 2))
    assert [(s.nodes, s.ranks_per_node) for s in shapes_of(eight, two)] == [(2, 4), (1, 2)]


@pytest.mark.parametrize(("shards", "nodes"), [(3, 2), (8, 1), (1, 2)])
def test_shards_that_do_not_spread_evenly_are_refused(shards, nodes):
    """Ranks a node times nodes must be shards, and no more than a node's GPUs."""
    with pytest.raises(RefusedError, match=f"shards={shards}.*nodes={nodes}"):
        shapes_of(point(shards=shards, nodes=nodes, cluster__gpus_per_node=4))


def test_tasks_pack_points_and_arrays_hold_no_more_tasks_than_the_site_allows():
    """Nine points, two a task, three tasks an array: 2+2+2 | 2+1."""
    (shape,) = shapes_of(*seeds(9, cluster__points_per_task=2, cluster__max_array_size=3))
    assert [[len(task) for task in array] for array in shape.arrays] == [[2, 2, 2], [2, 1]]


def test_a_block_runs_all_arms_of_a_repeat_in_one_task():
    """Three batch sizes x two repeats are two tasks of three points in the plan's order, with the time of three."""
    chosen = [
        choices(batch_size=size, repeat=repeat, sweep__block="board", cluster__time_min=10)
        for size, repeat in ((8, 0), (2, 1), (4, 0), (8, 1), (2, 0), (4, 1))
    ]
    points = [(f"{c['batch_size']}-{c['repeat']}", c) for c in chosen]
    (shape,) = slurm_shapes.shapes(points)
    assert shape.tasks == [["8-0", "4-0", "2-0"], ["2-1", "8-1", "4-1"]]
    assert shape.cluster.time_min == 30


def test_gpu_hours_are_gpus_times_the_limit_of_every_task():
    """Three tasks of 2 nodes x 2 GPUs and 30 minutes are 6 GPU-hours on 3 node-hours."""
    (shape,) = shapes_of(*seeds(3, shards=4, cluster__gpus_per_node=2, cluster__time_min=30))
    assert (shape.row()["gpu_hours"], shape.row()["node_hours"]) == (6.0, 3.0)


# --- the batch script -----------------------------------------------------------------------------


def full_profile() -> dict[str, Any]:
    """A profile that uses every key which reaches sbatch."""
    return {
        "cluster__gpus_per_node": 4,
        "cluster__gpu_request": "gres",
        "cluster__gpu_type": "v100",
        "cluster__account": "abc@v100",
        "cluster__partition": "gpu",
        "cluster__qos": "long",
        "cluster__constraint": "v100-32g&ib",
        "cluster__reservation": "friday",
        "cluster__wckey": "energy",
        "cluster__cpus_per_rank": 10,
        "cluster__mem_gb_per_node": 180.5,
        "cluster__time_min": 90,
        "cluster__array_throttle": 2,
        "cluster__setup": ["module load cuda/12.4", "source $HOME/venv/bin/activate"],
        "cluster__sbatch_options": {"hint": "nomultithread", "exclusive": ""},
        "cluster__srun_options": ["--cpu-bind=cores"],
        "cluster__python": "singularity exec --nv 'my image.sif' python",
    }


def test_the_whole_batch_script_is_the_recorded_one():
    """Every key of a profile shows where it belongs, and nothing else is there."""
    points = seeds(3, shards=8, **full_profile())
    made = plan(Path("/shared/o'brien sweeps"), *points)
    assert send.batch_scripts(made) == [RECORDED.read_text()]


def test_the_previewed_script_is_the_one_that_is_sent(fake, tmp_path):
    """`plan --script` and the file that sbatch gets differ in the submission's name alone."""
    made = plan(tmp_path / "a folder", *seeds(3, **full_profile()))
    (preview,) = send.batch_scripts(made)
    send.submit(made)
    name = intents(made.sweep)[0].name
    assert fake.scripts()["101"] == preview.replace("demo-00000000", name)


def test_a_preview_leaves_nothing_behind_and_needs_no_slurm(tmp_path, monkeypatch):
    """The sweep's folder does not appear, and no sbatch is needed."""
    monkeypatch.setenv("PATH", "/nonexistent")
    made = plan(tmp_path, *seeds(2))
    assert send.batch_scripts(made)
    assert list(tmp_path.iterdir()) == []
    assert os.environ["PATH"] == "/nonexistent"


@pytest.mark.parametrize(
    ("request_", "kind", "line"),
    [
        ("gpus-per-node", None, "#SBATCH --gpus-per-node=2"),
        ("gpus-per-node", "a100", "#SBATCH --gpus-per-node=a100:2"),
        ("gres", None, "#SBATCH --gres=gpu:2"),
        ("gres", "a100", "#SBATCH --gres=gpu:a100:2"),
        ("none", "a100", None),
    ],
)
def test_gpus_are_asked_for_as_the_site_wants(request_, kind, line):
    """Two ranks a node ask for two GPUs, typed where the site has types, and never per task."""
    asked = {
        "cluster__gpu_request": request_,
        "cluster__gpu_type": kind,
        "cluster__gpus_per_node": 4,
    }
    (text,) = send.batch_scripts(plan(Path("/s"), point(shards=2, **asked)))
    assert [found for found in text.splitlines() if "gpu" in found] == ([line] if line else [])


def test_a_site_without_comments_or_wckeys_gets_none():
    """submitit's default wckey and our comment stay away where a profile says so."""
    (text,) = send.batch_scripts(plan(Path("/s"), point(cluster__comment=False)))
    assert "wckey" not in text
    assert "comment" not in text


def test_a_short_limit_is_told_within_its_last_quarter():
    """With a limit of 2 minutes the signal comes 30 s before the end, not 90."""
    (text,) = send.batch_scripts(plan(Path("/s"), point(cluster__time_min=2)))
    assert "#SBATCH --signal=USR2@30\n" in text


def test_names_never_reach_a_shell_unquoted(fake, tmp_path):
    """A folder, an account and an interpreter with shell characters run nothing: bash takes them for words."""
    sentinel = tmp_path / "sentinel"
    evil = f"$(touch {sentinel})"
    made = plan(
        tmp_path / f"x {evil.replace('/', '_')} `id`",
        point(cluster__account=evil, cluster__python=f"echo {evil}"),
    )
    send.submit(made)
    script = fake.folder / "job-101.sh"
    subprocess.run(
        ["bash", str(script)], check=True, env={**os.environ, "PATH": os.environ["PATH"]}
    )
    assert not sentinel.exists()
    assert evil in fake.calls("srun")[0]


@pytest.mark.parametrize("name", ["new\nline", "%j", 'quo"te', "back\\slash"])
def test_paths_that_slurm_would_misread_are_refused_before_anything_is_written(
    name, fake, tmp_path
):
    """Slurm expands % and \\ in the names of logs, and reads #SBATCH by lines and quotes."""
    made = plan(tmp_path / name, *seeds(1))
    with pytest.raises(RefusedError, match="sweeps_dir"):
        send.submit(made)
    assert fake.calls("sbatch") == []
    assert not (tmp_path / name).exists()


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


def test_a_plan_tells_what_collected_points_of_other_sweeps_took(tmp_path):
    """An attempt of 60 s in another sweep of the folder: two seeds are 2 GPU-minutes, two a task are 2 minutes."""
    done = choices(seed=9, cluster__launcher="slurm", cluster__name="site")
    other = make_sweep(tmp_path / "other", [done])
    make_attempt(other, done, Made([Gpu("GPU-1")]))
    collect.collect(other)
    made = plan(tmp_path, *seeds(2, cluster__points_per_task=2), point(model__name="unseen"))
    known, unknown = (row["expected"] for row in send.shape_rows(made))
    assert known["gpu_hours"] == pytest.approx(120.0 / 3600.0)
    assert known["longest_task_min"] == pytest.approx(2.0)
    assert (known["same"], known["shape"], known["unknown"], known["attempts"]) == (2, 0, 0, 1)
    assert (unknown["unknown"], unknown["longest_task_min"]) == (1, None)


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


def test_each_task_of_an_array_makes_its_own_call(monkeypatch):
    """Slurm numbers the tasks from 0: number 1 makes the second call."""
    one = sbatch.OneOf((sbatch.Call("builtins:abs", (-1,)), sbatch.Call("builtins:abs", (-2,))))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert one() == 2


def test_a_submit_writes_a_handful_of_files_however_many_tasks_it_sends(fake, tmp_path):
    """Five of the sweep and its turn; of each of two jobs its script under two names, and its pickle."""
    counts = []
    for tasks in (2, 200):
        made = plan(tmp_path / str(tasks), *seeds(tasks))
        send.submit(made)
        counts.append(sum(path.is_file() for path in made.sweep.path.rglob("*")))
    assert counts == [11, 11]


def test_a_task_of_an_array_finds_the_pickle_of_all_under_its_own_name(fake, tmp_path):
    """The batch script, run as task 1 of job 101, links the name for which submitit looks to the one pickle."""
    made = plan(tmp_path / "it's {here}", *seeds(2))
    send.submit(made)
    (sent,) = intents(made.sweep)
    task = {"SLURM_ARRAY_JOB_ID": "101", "SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(
        ["bash", str(fake.folder / "job-101.sh")], check=True, env={**os.environ, **task}
    )
    link = sent.folder / "101_1_submitted.pkl"
    assert DelayedSubmission.load(link).function.calls[1].arguments[1] == [made.points[1].point_id]


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
    made = plan(tmp_path, good, Point(bad.point_id, bad.choices, "needs 99 GiB of 80"))
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


def test_sbatch_is_kept_from_the_variables_of_a_surrounding_job(fake, tmp_path, monkeypatch):
    """Inside a job SLURM_* would be options of sbatch; SLURM_CONF names the cluster and stays."""
    told = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "64", "SLURMD_NODENAME": "n1"}
    for name, value in {**told, "SLURM_CONF": "/etc/x.conf"}.items():
        monkeypatch.setenv(name, value)
    send.submit(plan(tmp_path, *seeds(1)))
    seen = (fake.folder / "job-101.env").read_text()
    assert re.findall(r"^(SLURM\w+)=", seen, re.MULTILINE) == ["SLURM_CONF"]
    assert os.environ["SLURM_NTASKS"] == "64"


def test_an_sbatch_that_timed_out_after_accepting_is_found_by_name_and_not_repeated(fake, tmp_path):
    """'Socket timed out' with the job in the queue: one sbatch, and its id is journalled."""
    fake.refuse(
        "sbatch: error: Batch job submission failed: Socket timed out", though_accepted=True
    )
    sent = send.submit(plan(tmp_path, *seeds(2)))
    assert sent.job_ids == ["101"]
    assert len(fake.calls("sbatch")) == 2  # the points, then the collector


def test_an_sbatch_that_timed_out_without_a_job_is_tried_again(fake, tmp_path):
    """'Socket timed out' with nothing in the queue: the second try sends the one job."""
    fake.refuse(
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    )
    sent = send.submit(plan(tmp_path, *seeds(2)))
    assert sent.job_ids == ["101"]
    assert len(fake.calls("sbatch")) == 3


def replace_sbatch(fake: FakeSlurm, text: str) -> None:
    """Another sbatch, which calls the fake one as `real`."""
    path = fake.folder / "bin" / "sbatch"
    path.rename(path.with_name("real"))
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_an_sbatch_that_hangs_after_accepting_is_found_by_name(fake, tmp_path):
    """timeout(1) ends it with 124 and no word: the job is in the queue, and is not sent again."""
    replace_sbatch(fake, '"$(dirname "$0")/real" "$@" > /dev/null; exit 124')
    sent = send.submit(plan(tmp_path, *seeds(2)))
    assert (sent.job_ids, sent.collect_job) == (["101"], "102")
    assert sorted(fake.scripts()) == ["101", "102"]


def test_an_sbatch_that_names_no_job_is_told_and_not_repeated(fake, tmp_path):
    """Whatever stands in for sbatch at this site prints no id: the message quotes it."""
    replace_sbatch(fake, "echo queued; echo warning >&2")
    with pytest.raises(SlurmError, match="answered 'warning queued', which names no job"):
        send.submit(plan(tmp_path, *seeds(2)))


# --- resume and cancel ----------------------------------------------------------------------------


def queued(fake: FakeSlurm, sweep: SweepDir, state: str = "PENDING") -> None:
    """Let squeue tell of all tasks that were sent."""
    fake.queue(
        *(
            f"{sent.key(task)}|{state}|None|{sent.name}"
            for sent in journal.read(sweep)
            if sent.job_id
            for task in range(len(sent.tasks))
        )
    )


def finish(sweep: SweepDir, one: Point, status: str = "finished") -> None:
    attempt = sweep.claim_attempt(one.point_id)
    attempt.write_record(
        {
            "schema_version": 1,
            "point_id": one.point_id,
            "attempt": attempt.number,
            "status": status,  # type: ignore[typeddict-item]
            "started_ns": time.time_ns(),
            "job": {"job_id": "101_0", "array_task": "0", "restart": 0, "cluster": "site"},
        }
    )


def test_resume_sends_exactly_the_unfinished_points_that_neither_wait_nor_run(fake, tmp_path):
    """Of four points one is finished, one runs, one failed and one was lost: two are sent."""
    made = plan(tmp_path, *seeds(4))
    send.submit(made)
    done, _runs, failed, lost = made.points
    finish(made.sweep, done)
    finish(made.sweep, failed, "failed")
    name = intents(made.sweep)[0].name
    fake.queue(f"101_1|RUNNING|None|{name}", f"101_2|FAILED|NonZeroExitCode|{name}")
    sent = resume.resume(made.sweep)
    assert intents(made.sweep)[-1].tasks == [[failed.point_id], [lost.point_id]]
    assert (sent.points, sent.tried) == (2, 2)


def test_resume_sends_exactly_what_six_faults_left_in_an_sbatch_an_array_and_one(fake, tmp_path):
    """Two shapes of four points, one of each finished: six ids, two arrays and a collect job, whatever ended them."""
    wide = seeds(4, shards=2, cluster__gpus_per_node=2)
    made = plan(tmp_path, *seeds(4, cluster__gpus_per_node=2), *wide)
    send.submit(made)
    for one in (made.points[0], made.points[4]):
        finish(made.sweep, one)
    fake.accounting(
        "101_0|COMPLETED|None",
        "101_1|TIMEOUT|None",
        "101_2|PREEMPTED|None",
        "101_3|NODE_FAIL|None",
        "102_0|COMPLETED|None",
        "102_1|OUT_OF_MEMORY|None",
        "102_2|FAILED|None",
        "102_3|CANCELLED by 0|None",
    )
    before = len(fake.calls("sbatch"))
    assert resume.resume(made.sweep).points == 6
    assert len(fake.calls("sbatch")) - before == 3
    again = [sent.tasks for sent in intents(made.sweep)[2:]]
    left = [one.point_id for one in made.points]
    assert again == [[[i] for i in left[1:4]], [[i] for i in left[5:]]]


def test_resume_sends_nothing_when_slurm_does_not_answer(fake, tmp_path):
    """What waits or runs is not known then, so every point could be doubled."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    fake.silent()
    with pytest.raises(SlurmError, match="Unable to contact"):
        resume.resume(made.sweep)
    assert len(fake.calls("sbatch")) == 2


def test_resume_leaves_points_never_tried_to_submit(fake, tmp_path):
    """Neither verb does the other's work."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made, only={made.points[0].point_id})
    assert resume.resume(made.sweep).points == 1


def test_resume_of_a_point_that_is_not_there_is_refused(fake, tmp_path):
    """The message names it."""
    made = plan(tmp_path, *seeds(1))
    send.submit(made)
    with pytest.raises(RefusedError, match="0123456789ab: no such point"):
        resume.resume(made.sweep, only={"0123456789ab"})


def cut_journal(sweep: SweepDir, *keep: str) -> None:
    """Leave only these events: what a kill at that moment leaves."""
    lines = sweep.journal_path.read_text().splitlines(keepends=True)
    sweep.journal_path.write_text(
        "".join(line for line in lines if any(f'"event": "{event}"' in line for event in keep))
    )


def test_a_kill_between_sbatch_and_the_journal_is_mended_by_taking_the_job_back(fake, tmp_path):
    """The held job of that name may lack its pickles: it is cancelled, and its points are sent anew."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    queued(fake, made.sweep)
    cut_journal(made.sweep, "intent")
    assert resume.resume(made.sweep).points == 2
    assert fake.calls("scancel") == ["101", "102"]
    assert [sent.job_id for sent in intents(made.sweep)] == [None, "103"]


def test_a_kill_before_the_release_is_mended_by_the_release(fake, tmp_path):
    """A complete submission that is still held starts; nothing is sent twice."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    queued(fake, made.sweep)
    cut_journal(made.sweep, "intent", "submitted")
    assert resume.resume(made.sweep).points == 0
    assert fake.calls("scontrol") == ["release 101,102", "release 101", "release 102"]


def test_cancel_ends_the_tasks_of_the_chosen_points_in_one_call(fake, tmp_path):
    """Tasks 0 and 2 of the array: one scancel with a list of ranges."""
    made = plan(tmp_path, *seeds(4))
    send.submit(made)
    queued(fake, made.sweep)
    chosen = {made.points[i].point_id for i in (0, 1, 3)}
    assert resume.cancel(made.sweep, only=chosen) == ["101_0", "101_1", "101_3"]
    assert fake.calls("scancel") == ["101_[0-1,3]"]


def test_cancel_by_state_ends_what_waits_and_leaves_what_runs_and_the_collect_job(fake, tmp_path):
    """Task 0 runs, 1 and 2 wait, and so does the collect job, which a filter never means."""
    made = plan(tmp_path, *seeds(3))
    send.submit(made)
    name, collector = (sent.name for sent in journal.read(made.sweep))
    fake.queue(
        f"101_0|RUNNING|None|{name}",
        f"101_1|PENDING|None|{name}",
        f"101_2|PENDING|None|{name}",
        f"102|PENDING|Dependency|{collector}",
    )
    assert resume.cancel(made.sweep, states={"waiting"}, dry_run=True) == ["101_1", "101_2"]
    assert resume.cancel(made.sweep, states={"running"}) == ["101_0"]
    assert fake.calls("scancel") == ["101_[0]"]


def test_cancel_refuses_a_state_in_which_nothing_can_be_ended(fake, tmp_path):
    """A point that is done or failed has no task; the states that have one are named."""
    made = plan(tmp_path, *seeds(1))
    send.submit(made)
    with pytest.raises(RefusedError, match=r"failed.*running, waiting"):
        resume.cancel(made.sweep, states={"failed"})


def test_cancel_leaves_a_job_of_the_same_number_that_is_not_the_sweeps(fake, tmp_path):
    """After a new start of Slurm its numbers begin again: the job's name tells whose it is."""
    made = plan(tmp_path, *seeds(1))
    send.submit(made)
    fake.queue("101|RUNNING|None|somebody-elses-job", "999|RUNNING|None|other")
    assert resume.cancel(made.sweep) == []
    assert fake.calls("scancel") == []


def test_a_forced_point_runs_again_though_it_finished(fake, tmp_path):
    """The task is told up to which attempt nothing counts; without --only every point would run, so that is refused."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    for one in made.points:
        finish(made.sweep, one)
    assert resume.resume(made.sweep).points == 0
    with pytest.raises(RefusedError, match="--only"):
        resume.resume(made.sweep, force=True)
    chosen = made.points[1].point_id
    assert resume.resume(made.sweep, only={chosen}, force=True).points == 1
    sent = intents(made.sweep)[-1]
    loaded = DelayedSubmission.load(sent.folder / f"{sent.job_id}_submitted.pkl")
    assert loaded.function.arguments == (str(made.sweep.path), [chosen], {chosen: 1})


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


def test_several_shapes_share_what_a_profile_allows():
    """Three shapes of five points, at most four tasks: no shape is rounded up past it."""
    points = [
        point(seed=seed, shards=shards, cluster__gpus_per_node=4, cluster__max_tasks=4)
        for seed in range(5)
        for shards in (1, 2, 4)
    ]
    asked = shapes.fitting(shapes_of(*points))
    assert [len(shape.tasks) for shape in asked] == [1, 1, 1]


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


def test_a_pid_used_again_is_not_taken_for_the_job():
    """The start time differs, so the job counts as gone."""
    mine = process.job_id(os.getpid())
    assert process.lives(mine)
    assert process.lives(mine.rpartition(":")[0] + ":1") is False


def test_a_process_of_another_machine_is_neither_alive_nor_gone():
    """Its machine alone could tell."""
    assert process.lives("local:elsewhere:1:1") is None


# --- words of Slurm's -----------------------------------------------------------------------------


def test_ranges_of_tasks_are_read_and_written():
    """What sacct writes for tasks that never started, and what scancel is given."""
    assert client.expand("7_[0-2,5%4]") == ["7_0", "7_1", "7_2", "7_5"]
    assert client.expand("7_3") == ["7_3"]
    assert client.pack(["7_3", "8", "7_1", "7_2"]) == ["7_[1-3]", "8"]


def test_submitting_loads_neither_torch_nor_pynvml_nor_altair(tmp_path):
    """A login node has no GPU, and a person waits for the prompt."""
    code = (
        "import sys, wattflow.submit.send, wattflow.submit.status;"
        "print([m for m in ('torch', 'pynvml', 'altair', 'polars', 'hydra', 'submitit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["example-v100", "example-a100", "testcluster", "local"])
def test_the_shipped_profiles_are_whole_and_named_after_their_files(name):
    """Hydra composes each against the typed keys; GPU profiles say how much memory a GPU has."""
    words = [f"cluster={name}", "model=tiny", "n_prompts=2", "sweep.repeats=1"]
    cluster = grid.plan(words).points[0].choices["cluster"]
    assert cluster["name"] == name
    assert cluster["gpu_memory_gib"] or not name.startswith("example")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on the PATH")
def test_the_test_clusters_scripts_pass_shellcheck():
    """No warning, settings.sh followed."""
    root = Path(__file__).parents[1]
    scripts = sorted(str(p.relative_to(root)) for p in (root / "slurm").rglob("*.sh"))
    done = subprocess.run(
        ["shellcheck", "-x", *scripts], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_a_daemon_of_the_test_cluster_keeps_no_lock_of_its_caller(tmp_path):
    """Brought up under `flock FILE`, it would hold FILE for as long as it lives."""
    settings = Path(__file__).parents[1] / "slurm" / "testcluster" / "settings.sh"
    script = (
        'set -e; . "$0"; mkdir -p "$RUN" "$LOG"; exec 9>"$CLUSTER_DIR/lock"; flock 9\n'
        "start sleeper sleep sleep 60; exec 9>&-\n"
        'wait_until 5 flock -n "$CLUSTER_DIR/lock" true && echo free; pid_of sleeper sleep\n'
        "stop sleeper sleep\n"
    )
    done = subprocess.run(
        ["bash", "-c", script, str(settings)],
        env={**os.environ, "CLUSTER_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    free, pid = done.stdout.split()
    assert free == "free"
    assert pid.isdecimal()


def test_the_recorded_script_is_valid_bash():
    """bash parses it, and the words of its last command are those that were meant."""
    text = RECORDED.read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    words = shlex.split(text)
    assert words[-1].startswith("/shared/o'brien sweeps/demo/submitit/")
