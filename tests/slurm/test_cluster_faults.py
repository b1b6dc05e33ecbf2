"""What a cluster does to jobs, done to wattflow's: each point ends finished once, and a person is told why."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from slurm_sweeps import QUICK, fresh, jobs_of, plan, states, until, with_cluster

from wattflow.errors import DamagedError
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import Record
from wattflow.store.tables import read_stream
from wattflow.submit import journal, resume, send, status
from wattflow.submit import logs as submit_logs

pytestmark = pytest.mark.slurm

SLOW = "engine.synthetic_ms_per_token=400"  # some 5 s a point


def sh(*words: str) -> str:
    """What a command of Slurm's prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    return done.stdout.strip()


def records(sweep: SweepDir, point_id: str) -> list[Record | None]:
    return [attempt.read_record() for attempt in sweep.attempts(point_id)]


def statuses(sweep: SweepDir, point_id: str) -> list[str | None]:
    return [record and record["status"] for record in records(sweep, point_id)]


def running_attempt(sweep: SweepDir, point_id: str) -> AttemptDir:
    """The attempt of a point whose ranks are at work."""
    sent, task = journal.newest_task(journal.read(sweep))[point_id]
    log = sent.log_path(task, 0, "out")
    until(lambda: log.is_file() and "warmup" in log.read_text())
    return sweep.attempts(point_id)[-1]


def task_of(sweep: SweepDir, point_id: str) -> str:
    """Slurm's name of the task that was sent last for a point."""
    sent, task = journal.newest_task(journal.read(sweep))[point_id]
    return str(sent.key(task))


@contextlib.contextmanager
def standing_still(task: str) -> Iterator[None]:
    """Within, the ranks of a task do not move, so that it cannot end before the test has done something to it."""
    ranks = [pid for pid in processes(raw_id(task)) if not is_sidecar(pid)]
    assert ranks
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def preempt(sweep: SweepDir, point_id: str) -> None:
    """Have a job of the higher partition take the nodes on which a point runs; Slurm looks every few seconds."""
    task = task_of(sweep, point_id)
    nodes = sh("squeue", "-h", "-j", task, "-o", "%N")
    higher = ("-p", "gpu", "-w", nodes, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    with standing_still(task):
        sh("sbatch", *higher)
        until(lambda: "PreemptTime=None" not in sh("scontrol", "show", "job", task))


def finished_batches(spool: Path) -> int:
    """How many batches of the point that runs now are finished on rank 0, as its spans in the spool say."""
    for path in spool.glob("*/*/spans-rank0.arrow"):
        with contextlib.suppress(DamagedError):  # begun, and nothing written yet
            return read_stream(path)["phase"].to_pylist().count("decode")
    return 0


def processes(job: str, **variables: str) -> list[int]:
    """The pids of a job's Python processes whose environment has these values.

    Every cluster numbers its jobs from 1: by the path of its slurm.conf this one's are known from another test run's.
    """
    found = []
    variables |= {"SLURM_JOB_ID": job, "SLURM_CONF": os.environ["SLURM_CONF"]}
    wanted = {f"{key}={value}" for key, value in variables.items()}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environment = set((folder / "environ").read_text(errors="replace").split("\0"))
                name = (folder / "comm").read_text()
            except OSError:
                continue
            if wanted <= environment and name.startswith("python"):
                found.append(int(folder.name))
    return sorted(found)


def is_sidecar(pid: int) -> bool:
    """Whether a process records power."""
    return b"wattflow.power" in Path(f"/proc/{pid}/cmdline").read_bytes()


def raw_id(key: str) -> str:
    """The job id that the processes of a task see."""
    return sh("squeue", "-h", "-j", key, "-o", "%A")


def sbatches(sweep: SweepDir) -> int:
    return sum(sent.kind == "points" for sent in journal.read(sweep))


def test_a_preempted_task_closes_its_attempt_and_runs_again_by_itself(cluster, tmp_path):
    """The attempt says interrupted and why; the same job, not a second one, finishes the point as attempt 2.

    The limit of 10 minutes is one at which submitit alone takes the signal for the time limit's.
    """
    words = ("n_prompts=16", "cluster.partition=preempt")  # some 15 s
    made = plan(tmp_path, *QUICK, SLOW, "sweep=preempted", *words)
    send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    running_attempt(made.sweep, point_id)
    preempt(made.sweep, point_id)
    until(lambda: states(made.sweep) == {"done"})
    first, second = records(made.sweep, point_id)
    assert first is not None
    assert second is not None
    assert (first["status"], second["status"]) == ("interrupted", "finished")
    assert "preempted" in str(first["error"])
    assert first["job"]["job_id"] == second["job"]["job_id"]
    assert second["job"]["restart"] == 1
    assert sbatches(made.sweep) == 1


@pytest.mark.parametrize("shards", [1, pytest.param(2, marks=pytest.mark.chaos)])
def test_a_preempted_point_goes_on_from_its_last_finished_batch(shards, cluster, tmp_path):
    """Of twelve batches those after the preemption are run by attempt 2: each prompt is answered once, by one sbatch.

    The limit is below 10 minutes, where submitit would take the preemption for a time-out and lose the task.
    """
    words = ("sweep.on_interrupt=continue", "n_prompts=24", f"shards={shards}")
    spool = tmp_path / "spool"
    spool.mkdir()
    where = ("cluster.partition=preempt", "cluster.time_min=5", f"cluster.spool_dir={spool}")
    made = plan(tmp_path, *QUICK, SLOW, f"sweep=pieces{shards}", *words, *where)
    send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    attempt = running_attempt(made.sweep, point_id)
    until(lambda: finished_batches(spool) > 0)
    preempt(made.sweep, point_id)
    until(lambda: states(made.sweep) == {"done"})
    first, second = records(made.sweep, point_id)
    assert first is not None
    assert second is not None
    assert [first["status"], second["status"]] == ["interrupted", "finished"]
    assert [piece["attempt"] for piece in second["pieces"]] == [1, 2]
    assert 0 < second["pieces"][0]["batches"] < 12
    prompts = [
        prompt
        for one in (attempt, made.sweep.attempts(point_id)[1])
        for prompt in pq.read_table(one.requests_path)["prompt"].to_pylist()
    ]
    assert prompts == list(range(24))
    assert sbatches(made.sweep) == 1
    until(made.sweep.points_path.is_file)
    until(lambda: counted(made.sweep)[-1]["status"] == "finished")
    cut, whole = counted(made.sweep)
    assert (cut["energy_j"], whole["pieces"], whole["responses"]) == (None, 2, 24)
    assert whole["energy_j"] == pytest.approx(whole["power_w"] * whole["duration_s"], rel=1e-6)
    assert (whole["counts"], "in_pieces" in whole["reasons"]) == (False, True)


def test_a_task_that_is_requeued_by_hand_runs_again_as_a_new_attempt(cluster, tmp_path):
    """`scontrol requeue` asks no task: the attempt under way is interrupted, the next one finishes."""
    made = plan(tmp_path, *QUICK, SLOW, "sweep=requeued")
    sent = send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    running_attempt(made.sweep, point_id)
    with standing_still(task_of(made.sweep, point_id)):
        sh("scontrol", "requeue", sent.job_ids[0])
    until(lambda: states(made.sweep) == {"done"})
    assert statuses(made.sweep, point_id) == ["interrupted", "finished"]


def test_resume_after_a_scancel_of_part_of_an_array_sends_that_part(cluster, tmp_path):
    """Of three tasks one is cancelled by hand; the others finish, and resume sends exactly the one in one sbatch."""
    made = plan(tmp_path, *QUICK, SLOW, "sweep=part", "seed=1,2,3")
    sent = send.submit(made)
    chosen = made.points[1].point_id
    running_attempt(made.sweep, chosen)
    with standing_still(task_of(made.sweep, chosen)):
        sh("scancel", f"{sent.job_ids[0]}_1")
    until(lambda: states(made.sweep) == {"done", "interrupted"})
    assert [row.point_id for row in fresh(made.sweep) if row.state == "interrupted"] == [chosen]
    assert resume.resume(made.sweep).points == 1
    (sent_again,) = [s.tasks for s in journal.read(made.sweep) if s.kind == "points"][1:]
    assert sent_again == [[chosen]]
    until(lambda: states(made.sweep) == {"done"})


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.chaos), 1])
def test_a_rank_that_is_killed_costs_its_attempt_and_resume_finishes_the_point(
    rank, cluster, tmp_path
):
    """kill -9 of one of two ranks: the job does not hang, the point is failed with a reason, and is run once more."""
    made = plan(tmp_path, *QUICK, SLOW, f"sweep=rank{rank}", "shards=2")
    sent = send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    running_attempt(made.sweep, point_id)
    (pid, *_) = processes(raw_id(sent.job_ids[0]), SLURM_PROCID=str(rank))
    os.kill(pid, signal.SIGKILL)
    until(lambda: states(made.sweep) == {"failed"})
    (row,) = fresh(made.sweep)
    assert row.reason
    assert row.rerun == f"wattflow resume {made.sweep.path} --only {point_id}"
    assert resume.resume(made.sweep).points == 1
    until(lambda: states(made.sweep) == {"done"})
    assert len(made.sweep.attempts(point_id)) == 2


def test_a_killed_sidecar_is_started_again_and_the_row_says_so(cluster, tmp_path):
    """The point finishes; its record counts one restart, and the collected row tells it by a reason."""
    made = plan(tmp_path, *QUICK, SLOW, "sweep=sidecar")
    sent = send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    running_attempt(made.sweep, point_id)
    sidecars = [pid for pid in processes(raw_id(sent.job_ids[0])) if is_sidecar(pid)]
    os.kill(sidecars[0], signal.SIGKILL)
    until(lambda: states(made.sweep) == {"done"})
    (record,) = records(made.sweep, point_id)
    assert record is not None
    assert [node["sidecar_restarts"] for node in record["nodes"]] == [1]
    until(made.sweep.points_path.is_file)
    until(lambda: counted(made.sweep)[0]["status"] == "finished")
    assert "sidecar_restarted" in counted(made.sweep)[0]["reasons"]


@pytest.mark.parametrize("how", ["scancel", "kill", "step"])
def test_no_sidecar_outlives_its_rank(how, cluster, tmp_path):
    """Its job cancelled, its rank killed, its step ended by SIGKILL: soon after the rank the sidecar is gone, too."""
    made = plan(tmp_path, *QUICK, SLOW, f"sweep={how}", "max_gen_len=64")
    sent = send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    running_attempt(made.sweep, point_id)
    job = raw_id(sent.job_ids[0])
    sidecars = [pid for pid in processes(job) if is_sidecar(pid)]
    ranks = set(processes(job, SLURM_PROCID="0")) - set(sidecars)
    assert len(sidecars) == 1
    if how == "kill":
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
    else:
        sh(*(["scancel", job] if how == "scancel" else ["scancel", "--signal=KILL", f"{job}.0"]))
    until(lambda: not ranks & set(processes(job)))
    until(lambda: not set(sidecars) & set(processes(job)))


def counted(sweep: SweepDir) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(sweep.points_path).to_pylist()
    return rows


def test_a_controller_that_dies_while_points_are_sent_costs_no_point(
    cluster, tmp_path, monkeypatch
):
    """slurmctld is killed before sbatch and back once it failed: the same submit sends every point, none twice."""
    made = plan(tmp_path, *QUICK, "sweep=ctld", "seed=1,2,3")
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "sbatch"
    failed = tmp_path / "failed"
    shim.write_text(
        f'#!/bin/sh\n{shutil.which("sbatch")} "$@" || {{ touch "{failed}"; exit 1; }}\n'
    )
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    # a controller that forgets that it started a job starts it again, and drains the node that has it already
    until(lambda: sh("squeue", "-h") == "")
    cluster.kill("slurmctld")
    with ThreadPoolExecutor() as beside:
        back = beside.submit(lambda: (until(failed.exists), cluster.up()))
        send.submit(made)
        back.result()
    until(lambda: states(made.sweep) == {"done"})
    assert [len(made.sweep.attempts(point.point_id)) for point in made.points] == [1, 1, 1]
    queued = sh("squeue", "-h", "-t", "all", "-o", "%F %j").splitlines()
    names = {sent.name for sent in journal.read(made.sweep)}
    assert len({line for line in queued if line.split()[1] in names}) == 2  # points and collector


def test_points_run_and_are_told_without_accounting(cluster, tmp_path):
    """Where a profile says that sacct does not answer, points done on disk are done, and others are not guessed at."""
    made = plan(tmp_path, *QUICK, "sweep=unaccounted")
    send.submit(with_cluster(made, accounting=False))
    until(lambda: states(made.sweep) == {"done"})
    assert status.exit_code(fresh(made.sweep)) == 0


def test_arrays_follow_the_clusters_own_limit_on_jobs(cluster, tmp_path):
    """A profile that allows three tasks has ten points finish in three, each with the time of its points."""
    seeds = ",".join(map(str, range(10)))
    made = plan(tmp_path, *QUICK, "sweep=few", f"seed={seeds}", "cluster.max_tasks=3")
    sent = send.submit(made)
    assert [len(task) for task in sent.shapes[0].tasks] == [4, 4, 2]
    assert sh("squeue", "-h", "-j", sent.job_ids[0], "-o", "%l").splitlines()[0] == "40:00"
    until(lambda: states(made.sweep) == {"done"})


# --- faults that take minutes ---------------------------------------------------------------------


@pytest.mark.chaos
def test_a_task_that_slurm_starts_beside_its_living_old_process_steps_aside(cluster, tmp_path):
    """A node loses its slurmd alone and its task goes on: the requeued one elsewhere leaves the point to it."""
    made = plan(tmp_path, *QUICK, "engine.synthetic_ms_per_token=7000", "sweep=daemon")
    made = with_cluster(made, sbatch_options={"exclude": "node1,node2"})
    sent = send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    running_attempt(made.sweep, point_id)
    node = sh("squeue", "-h", "-j", sent.job_ids[0], "-o", "%N")
    cluster.node("stop", node)
    try:
        until(lambda: states(made.sweep) == {"done"})
        assert statuses(made.sweep, point_id) == ["finished"]
        logs = [path.read_text() for path in made.sweep.submitit.glob("*/*_log.out")]
        assert any("this one steps aside" in text for text in logs)
    finally:
        cluster.node("start", node)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
        until(lambda: sh("sinfo", "-h", "-p", "gpu", "-n", node, "-o", "%T") == "idle")


@pytest.mark.chaos
def test_a_lost_node_has_its_task_run_elsewhere_as_a_new_attempt(cluster, tmp_path):
    """With requeue allowed nobody has to do anything: the old attempt is left behind, the next one finishes."""
    made = plan(tmp_path, *QUICK, SLOW, "sweep=node-loss")
    made = with_cluster(made, sbatch_options={"exclude": "node1,node2"})
    sent = send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    running_attempt(made.sweep, point_id)
    node = sh("squeue", "-h", "-j", sent.job_ids[0], "-o", "%N")
    cluster.node("kill", node)
    try:
        until(lambda: states(made.sweep) == {"done"})
        assert statuses(made.sweep, point_id) == ["running", "finished"]
    finally:
        cluster.node("start", node)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
        until(lambda: sh("sinfo", "-h", "-p", "gpu", "-n", node, "-o", "%T") == "idle")


@pytest.mark.chaos
def test_a_packed_task_goes_on_after_its_time_limit(cluster, tmp_path):
    """One minute holds two of three points: the third is run after a requeue, by the same job."""
    packed = plan(
        tmp_path,
        *QUICK,
        "engine.synthetic_ms_per_token=1200",
        "sweep=limit",
        "seed=1,2,3",
        "cluster.points_per_task=3",
        "cluster.time_min=1",
    )
    send.submit(packed)
    until(lambda: states(packed.sweep) == {"done"})
    assert sbatches(packed.sweep) == 1


@pytest.mark.chaos
def test_a_point_that_outlasts_its_time_limit_is_interrupted_and_told_so(cluster, tmp_path):
    """It would not fit the next time either, so its task is not queued again."""
    slow = "engine.synthetic_ms_per_token=20000"
    long = plan(tmp_path, *QUICK, slow, "sweep=long", "cluster.time_min=1")
    send.submit(long)
    until(lambda: states(long.sweep) == {"interrupted"})
    (row,) = fresh(long.sweep)
    assert "near its time limit" in str(row.reason)
    logs = [path.read_text() for path in long.sweep.submitit.glob("*/*_log.out")]
    assert any("a point outlasts cluster.time_min=1" in text for text in logs)


@pytest.mark.chaos
def test_a_point_longer_than_its_time_limit_is_finished_in_pieces(cluster, tmp_path):
    """A point of some two minutes in tasks of one minute: the same job, several attempts, each prompt answered once."""
    slow = ("engine.synthetic_ms_per_token=2000", "n_prompts=30", "sweep.on_interrupt=continue")
    made = plan(tmp_path, *QUICK, *slow, "sweep=overlong", "cluster.time_min=1")
    send.submit(made)
    until(lambda: states(made.sweep) == {"done"}, 480)
    (point_id,) = [point.point_id for point in made.points]
    told = [record for record in records(made.sweep, point_id) if record is not None]
    assert [record["status"] for record in told] == [
        *["interrupted"] * (len(told) - 1),
        "finished",
    ]
    assert len(told) > 1
    prompts = [
        prompt
        for one in made.sweep.attempts(point_id)
        for prompt in pq.read_table(one.requests_path)["prompt"].to_pylist()
    ]
    assert prompts == list(range(30))
    assert sbatches(made.sweep) == 1


def test_a_collective_that_never_comes_ends_the_task_with_its_reason(cluster, tmp_path):
    """One of four ranks on two nodes is frozen, the others wait for it: hung, their stacks told, no task is left."""
    words = ("shards=4", "engine.synthetic_ms_per_token=150", "n_prompts=60", "sweep.hang_s=20")
    made = plan(tmp_path, *QUICK, "sweep=stuck", *words)
    sent = send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    running_attempt(made.sweep, point_id)
    log = journal.newest_task(journal.read(made.sweep))[point_id][0].log_path(0, 0, "out")
    until(lambda: "batches: 0" in log.read_text())
    (pid, *_) = processes(raw_id(sent.job_ids[0]), SLURM_PROCID="3")
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: states(made.sweep) == {"failed"})
        # read before the frozen rank goes on: then it writes its own stack too
        logs = [
            log for log in submit_logs.logs(made.sweep, point_id) if "in all_reduce" in log.text
        ]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    (row,) = fresh(made.sweep)
    assert "hung: nothing moved for 20.1 s in batches" in str(row.reason)
    (record,) = records(made.sweep, point_id)
    assert record is not None
    assert record["reason"] == "hung"
    assert len(logs) == 3, [log.path.name for log in logs]
    until(lambda: sh("squeue", "-h", "-j", sent.job_ids[0], "-t", "R") == "")


def test_a_database_that_dies_costs_nothing_but_slurms_word(cluster, tmp_path):
    """slurmdbd is killed before the submit: the point runs and is collected, and status needs no sacct for it."""
    cluster.kill("slurmdbd")
    try:
        made = plan(tmp_path, *QUICK, "sweep=dbd", "seed=1,2")
        send.submit(made)
        until(lambda: states(made.sweep) == {"done"})
        assert status.exit_code(fresh(made.sweep)) == 0
        until(made.sweep.points_path.is_file)
    finally:
        cluster.up()


@pytest.mark.chaos
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_shared_disk_that_fails_under_a_point_costs_its_attempt(fault, small_disk, disk_cluster):
    """While it lasts the point cannot end as done; afterwards resume finishes it, and no attempt is counted twice."""
    disk = str(small_disk)
    filler = small_disk / "filler"
    made = plan(small_disk, *QUICK, SLOW, f"sweep={fault}")
    sent = send.submit(made)
    (point_id,) = [point.point_id for point in made.points]
    running_attempt(made.sweep, point_id)
    if fault == "full":
        free = os.statvfs(small_disk)
        filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize))
    else:
        disk_cluster.inside("mount", "--bind", disk, disk)  # a disk with open files cannot change
        disk_cluster.inside("mount", "-o", "remount,bind,ro", disk)
    until(lambda: sh("squeue", "-h", "-j", sent.job_ids[0], "-t", "R,CG") == "")
    assert states(made.sweep) == {"failed"}, fresh(made.sweep)
    if fault == "full":
        filler.unlink()
    else:
        disk_cluster.inside("umount", "-l", disk)
    resume.cancel(made.sweep)  # the collector of the first submit, which may still wait
    assert resume.resume(made.sweep).points == 1
    until(lambda: states(made.sweep) == {"done"})
    assert statuses(made.sweep, point_id)[-1] == "finished"
    assert statuses(made.sweep, point_id).count("finished") == 1
    until(lambda: sh("squeue", "-h", "-n", journal.read(made.sweep)[-1].name) == "")


# everything is loaded before it becomes the other user, who may not be able to read this Python
AS_NOBODY = """
import os, sys
from pathlib import Path
from wattflow.plan import grid
from wattflow.slurm import client
from wattflow.submit import resume, status
from wattflow.errors import WattflowError
from wattflow.store.layout import SweepDir
sweep = SweepDir(Path(sys.argv[1]))
status.states(sweep)
os.setgroups([]), os.setgid(65534), os.setuid(65534)
os.environ["XDG_CACHE_HOME"] = sys.argv[2]
print(*{row.state for row in status.states(sweep)})
for verb in (resume.resume, resume.cancel):
    try:
        verb(sweep)
    except WattflowError as error:
        print(error)
"""


def test_an_ordinary_user_sees_anothers_sweep_and_can_neither_resume_nor_cancel_it(cluster):
    """Slurm itself would answer him; the journal and the jobs stay as they are, and the point finishes."""
    home = Path(tempfile.mkdtemp(prefix="wattflow-nobody-"))
    home.chmod(0o755)
    try:
        (home / "cache").mkdir(mode=0o777)
        (home / "cache").chmod(0o777)
        made = plan(home / "roots", *QUICK, SLOW, "sweep=roots")
        send.submit(made)
        running_attempt(made.sweep, made.points[0].point_id)  # whose files are all there
        for path in [home / "roots", *(home / "roots").rglob("*")]:
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        before = made.sweep.journal_path.read_bytes()
        command = [sys.executable, "-c", AS_NOBODY, str(made.sweep.path), str(home / "cache")]
        with standing_still(task_of(made.sweep, made.points[0].point_id)):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        first, *refused = done.stdout.splitlines()
        assert first == "running"
        assert len(refused) == 2
        assert all("Only its owner may" in line for line in refused)
        assert made.sweep.journal_path.read_bytes() == before
        until(lambda: states(made.sweep) == {"done"})
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_a_node_whose_clock_is_off_by_an_hour_changes_no_joule(cluster, tmp_path):
    """Two nodes, the second's wall clock ahead (libfaketime): spans and traces of each lie on its own clock.

    The joules of both are 70 W each for their windows, and all checks hold.
    """
    library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
    if not Path(library).exists():
        pytest.skip("libfaketime is not installed (slurm/testcluster/install.sh adds it)")
    clock = Path(cluster.settings["CLUSTER_DIR"]) / "etc" / "clock-node2"
    # it breaks clock_nanosleep of the monotonic clock, by which Python sleeps
    (tmp_path / "sitecustomize.py").write_text(
        "import select, time\ntime.sleep = lambda s: select.select([], [], [], s)\n"
    )
    settings = {
        "LD_PRELOAD": library,
        "FAKETIME": "+3600s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(tmp_path),
    }
    clock.write_text("".join(f"export {key}={value}\n" for key, value in settings.items()))
    try:
        watts = ("power.simulated_idle_w=70", "power.simulated_full_w=70")
        slow = "engine.synthetic_ms_per_token=100"  # windows that some ms at their edges do not matter to
        made = plan(tmp_path, *QUICK, *watts, slow, "sweep=clock", "shards=4", "n_prompts=12")
        made = with_cluster(made, sbatch_options={"exclude": "node3,node4"})
        send.submit(made)
        until(lambda: states(made.sweep) == {"done"})
        until(made.sweep.points_path.is_file)
    finally:
        clock.unlink()
    (row,) = counted(made.sweep)
    assert (row["valid"], row["nodes_seen"]) == (True, 2), row["reasons"]
    (attempt,) = made.sweep.attempts(row["point_id"])
    first = {
        node: min(pq.read_table(attempt.spans_path(node))["start_ns"].to_pylist())
        for node in ("node1", "node2")
    }
    assert first["node2"] - first["node1"] == pytest.approx(3600e9, abs=10e9)
    assert row["energy_j"] == pytest.approx(row["gpus"] * 70.0 * row["duration_s"], rel=0.01)


def test_an_sbatch_that_times_out_after_accepting_is_not_repeated(cluster, tmp_path, monkeypatch):
    """Slurm has the job and sbatch says that it has not: it is found by its name, and each point runs once."""
    folder = tmp_path / "bin"
    folder.mkdir()
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout
    calls = tmp_path / "calls"
    shim = folder / "sbatch"
    shim.write_text(
        f'#!/bin/sh\necho called >> {calls}\n{real.strip()} "$@" > /dev/null || exit $?\n'
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2\nexit 1\n"
    )
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    made = plan(tmp_path, *QUICK, "sweep=timed-out", "seed=1,2,3")
    send.submit(made)
    assert calls.read_text().count("called") == 2  # the array's and the collector's
    assert len(jobs_of(made)) == 2
    until(lambda: states(made.sweep) == {"done"})
    assert [row.attempts for row in fresh(made.sweep)] == [1, 1, 1]
