"""Windows over what `measure` did not start: a process, or a Slurm job's part on this node."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_nvml import curves
from measurements import MEASURE, SEVENTY_W, row, spans
from processes import until

from wattflow import process
from wattflow.errors import RefusedError
from wattflow.measure import watch
from wattflow.measure.request import FORWARDED, Watched
from wattflow.measure.watch import Found, find
from wattflow.power.in_use import Board
from wattflow.slurm import client

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.fixture
def server():
    """A process of the caller's that goes on, with a child."""
    code = "import subprocess, sys; subprocess.run(['sleep', '600'])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as one:
        yield one
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)


def watched(*options, out="out"):
    """A `measure` of what runs, started."""
    return subprocess.Popen(
        [*MEASURE, "--out", out, *options], stderr=subprocess.PIPE, text=True, process_group=0
    )


def test_a_process_is_measured_for_a_time_and_goes_on(where, server):
    """70 W for a second; the record says which process it was, and a second window is a second attempt."""
    for _ in range(2):
        done = watched("--pid", str(server.pid), "--for", "1s", *SEVENTY_W)
        said = done.communicate(timeout=600)[1]
        assert done.returncode == 0, said
        assert "the window was closed: after 1 s" in said
    assert server.poll() is None
    found = row()
    assert found["attempt"] == 2
    assert found["duration_s"] == pytest.approx(1.0, abs=0.5)
    assert found["energy_j"] == pytest.approx(70.0 * found["duration_s"], rel=1e-6)
    assert json.loads(found["command"])[:3] == ["--pid", str(server.pid), sys.executable]
    assert [phase for phase, _, _ in spans()] == ["command"]


@pytest.mark.fake_nvml
def test_its_gpu_alone_is_measured_until_it_ends(gpus_of_server, server, where):
    """Its child is on GPU 2 of four: that board's joules, no stranger; the window ends with the process."""
    done = watched("--pid", str(server.pid), "--set", "power.meter=nvml")
    until(lambda: list(Path("out").glob("points/*/attempt-1/traces/*")))
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    said = done.communicate(timeout=600)[1]
    assert done.returncode == 0, said
    assert "the window was closed: it ended" in said
    found = row()
    assert found["boards"] == [curves.uuid("n1", 2)]
    assert "other_process" not in found["reasons"]


@pytest.fixture
def gpus_of_server(where, nvml_path, server, monkeypatch):
    """Four fake GPUs; the server's child has a context on the third."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    until(lambda: children.read_text().split())
    (where / "pids").write_text(f"{children.read_text().split()[0]}@2\n")
    monkeypatch.setenv("FAKE_NVML_GPUS", "4")
    monkeypatch.setenv("FAKE_NVML_PIDS", str(where / "pids"))


@pytest.mark.parametrize(
    ("signum", "ends", "cause"),
    [
        pytest.param(signal.SIGINT, False, "by SIGINT", id="it goes on"),
        pytest.param(signal.SIGUSR1, False, "by SIGUSR1", id="Slurm's warning of a time limit"),
        pytest.param(
            signal.SIGINT, True, "it ended", id="a job's end, which brings its other steps a signal"
        ),
    ],
)
def test_a_signal_closes_the_window_and_is_no_error(signum, ends, cause):
    """Ctrl-C as SIGINT, and its like: the run is whole, with exit code 0 and both marks."""
    marks = []
    answers = iter([True])
    before = {number: signal.getsignal(number) for number in FORWARDED}

    def mark():
        marks.append(len(marks))
        if len(marks) == 1:
            os.kill(os.getpid(), signum)

    try:
        found = Found(["--pid", "1"], None, lambda: next(answers, not ends))
        run, why = found.watch(600.0, mark)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (run.exit_code, why) == (0, f"the window was closed: {cause}")
    assert marks == [0, 1]
    assert 0 < run.end_ns - run.start_ns < 60e9


def test_a_process_that_is_gone_another_s_or_none_is_refused(server, monkeypatch):
    """Each in one line that says so."""
    server.kill()
    server.wait()
    with pytest.raises(RefusedError, match="no such process on"):
        find(Watched("pid", str(server.pid)), "auto")
    with pytest.raises(RefusedError, match="the number of a process"):
        find(Watched("pid", "vllm"), "auto")
    monkeypatch.setattr(process, "owner", lambda _: 54321)
    with pytest.raises(RefusedError, match="belongs to 54321"):
        find(Watched("pid", str(os.getpid())), "auto")


def test_a_process_on_no_gpu_is_refused_where_there_are_some(monkeypatch):
    """All boards would be billed to it; the host's meters are as good as ever, and without NVML there is no other."""
    monkeypatch.setattr(watch, "boards", lambda: [Board("GPU-a", [1])])
    with pytest.raises(RefusedError, match="neither it nor a process that it started uses a GPU"):
        find(Watched("pid", str(os.getpid())), "auto")
    assert find(Watched("pid", str(os.getpid())), "rapl").gpus is None
    monkeypatch.setattr(watch, "boards", lambda: None)
    assert find(Watched("pid", str(os.getpid())), "auto").gpus is None


# --- jobs -----------------------------------------------------------------------------------------

SHOWN = (
    "JobId=77 JobName=serve UserId={user}({uid}) GroupId=g(1) JobState={state} Reason=None "
    "StartTime=2026-11-30T10:00:00 Partition=gpu NodeList={nodes} NumNodes=2 {detail} Command=/x/serve.sh\n"
)
DETAIL = (
    "JOB_GRES=gpu:3 Nodes=n1 CPU_IDs=0-7 Mem=0 GRES=gpu:a100:2(IDX:1,3) "
    "Nodes=n2 CPU_IDs=0-3 Mem=16000 GRES=gpu:1(IDX:0)"
)


@pytest.fixture
def shown(monkeypatch):
    """What scontrol says of a job; returns the function that changes it."""
    fields = {"user": "me", "uid": os.getuid(), "state": "RUNNING", "nodes": "n[1-2]"}
    fields["detail"] = DETAIL

    def ask(command):
        if "hostnames" in command:
            return "n1\nn2\n"
        return SHOWN.format(**fields)

    monkeypatch.setattr(client, "ask", ask)
    monkeypatch.setattr(process, "node_name", lambda: "n1")
    monkeypatch.setattr(watch, "boards", lambda: [Board(f"GPU-{i}", []) for i in range(4)])
    return fields.update


def test_a_jobs_gpus_are_slurms_numbers_of_them_on_this_node(shown, monkeypatch):
    """1 and 3 of four; where the job's cgroup shows its own two alone, these."""
    found = find(Watched("job", "77"), "auto")
    assert (found.words, found.gpus) == (["--job", "77", "serve"], ["GPU-1", "GPU-3"])
    monkeypatch.setattr(watch, "boards", lambda: [Board("GPU-1", []), Board("GPU-3", [])])
    assert find(Watched("job", "77"), "auto").gpus == ["GPU-1", "GPU-3"]
    assert list(watch._indices("gpu:3(IDX:0-1,5)")) == [0, 1, 5]
    assert list(watch._indices("gpu:0")) == []


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ({"uid": 54321, "user": "ann"}, "belongs to ann"),
        ({"state": "PENDING"}, "it is PENDING, not running"),
        (
            {"detail": "Nodes=n3 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:0)"},
            r"runs on n3.*--overlap --jobid=77",
        ),
        ({"detail": "Nodes=n1 CPU_IDs=0 Mem=0 GRES="}, "Slurm gave it no GPU"),
        ({"detail": "Nodes=n1 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:7)"}, "the job's are not known"),
    ],
)
def test_a_job_that_cannot_be_measured_here_is_refused(field, why, shown):
    """Another's, one that waits, one of other nodes with the srun that steps into it, one without GPUs."""
    shown(field)
    with pytest.raises(RefusedError, match=why):
        find(Watched("job", "77"), "auto")


def test_slurms_numbers_that_its_own_processes_contradict_are_not_believed(shown, monkeypatch):
    """A process of the job's on GPU 0, which Slurm did not list."""
    monkeypatch.setattr(watch, "boards", lambda: [Board(f"GPU-{i}", [4 * i]) for i in range(4)])
    monkeypatch.setattr(process, "is_in_job", lambda pid, job, step=None: pid == 0)
    with pytest.raises(RefusedError, match="the job's are not known"):
        find(Watched("job", "77"), "auto")


def test_what_is_no_job_is_refused(shown, monkeypatch):
    """A word, and an array whose tasks are several."""
    with pytest.raises(RefusedError, match="the number of a job"):
        find(Watched("job", "serve"), "auto")
    monkeypatch.setattr(client, "ask", lambda _: "JobId=5 A=1\nJobId=6 A=1\n")
    with pytest.raises(RefusedError, match="2 tasks of an array"):
        find(Watched("job", "5"), "auto")


def test_a_job_lives_as_long_as_a_process_of_it(shown):
    """By the environment that it began with; this process, though it may be in the job, is none of its own."""
    environment = {**os.environ, "SLURM_JOB_ID": "77"}
    found = find(Watched("job", "77"), "auto")
    assert not found.lives()
    with subprocess.Popen(["sleep", "600"], env=environment) as one:
        until(found.lives)
        one.kill()
        one.wait()
        assert not found.lives()
