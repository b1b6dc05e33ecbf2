"""Requests, jobs and processes that get no power cap, and what a user can write that must not matter."""

import os
import subprocess
from pathlib import Path

import pytest
from cap_nodes import Node, assert_clean, declare, install, leave_cap, run

pytest_plugins = ("fake_nvml.fixtures",)
pytestmark = [
    pytest.mark.fake_nvml,
    pytest.mark.skipif(
        os.getuid() != 0, reason="a prolog runs as root, and checks for root's files"
    ),
]


@pytest.fixture
def node(tmp_path: Path, nvml_folder: Path) -> Node:
    """Four GPUs at the baseline of 500 W; 150, 300 and 400 W are allowed, of which the boards take the last two."""
    return install(tmp_path / "node", nvml_folder)


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "not on the list": ("wf_cap350", "the admin does not allow 350 W"),
    "command": ("wf_cap300;$(touch HERE)", "the constraint holds more than features joined by &"),
    "backticks": ("wf_cap300`touch HERE`", "the constraint holds more than features joined by &"),
    "arithmetic": ("wf_cap300[$(touch HERE)]", "the constraint holds more than features"),
    "unicode digits": ("wf_cap\u0969\u0966\u0966", "the constraint holds more than features"),
    "fullwidth digits": ("wf_cap\uff13\uff10\uff10", "the constraint holds more than features"),
    "a billion": ("wf_cap1000000000", "the cap is no number of watts from 10 to 9999"),
    "two": ("wf_cap300&wf_cap400", "the constraint names more than one cap"),
    "twice the same": ("wf_cap300,wf_cap300", "the constraint names more than one cap"),
    "either": ("wf_cap300|wf_cap400", "the constraint holds more than features joined by &"),
    "counted": ("wf_cap300*2", "the constraint holds more than features joined by &"),
    "grouped": ("[wf_cap300]", "the constraint holds more than features joined by &"),
    "two lines": ("wf_cap300\nwf_cap400", "the constraint holds more than features joined by &"),
    "octal": ("wf_cap0300", "the cap is no number of watts from 10 to 9999"),
    "hexadecimal": ("wf_cap0x12c", "the cap is no number of watts from 10 to 9999"),
    "negative": ("wf_cap-300", "the cap is no number of watts from 10 to 9999"),
    "nothing": ("wf_cap", "the cap is no number of watts from 10 to 9999"),
    "pattern": ("wf_cap*", "the constraint holds more than features joined by &"),
    "40 kB": ("wf_cap300&" + "a" * 40_000, "the constraint is longer than 1024 characters"),
    "below the board's bounds": ("wf_cap150", "takes no limit of 150 W"),
}


@pytest.mark.parametrize("request_", REFUSED)
def test_a_request_that_is_not_allowed_sets_nothing_and_says_why(request_, node, monkeypatch):
    """The job starts all the same, at the baseline; no part of the text is run, and none of it reaches the note."""
    constraint, why = REFUSED[request_]
    monkeypatch.chdir(node.path)
    done = run(node, "prolog", constraint=constraint.replace("HERE", str(node.path / "ran")))
    assert done.returncode == 0
    assert_clean(node)
    note = str(node.note(1))
    assert note.startswith("not_applied ")
    assert why in note
    assert not (node.path / "ran").exists()


@pytest.mark.parametrize("constraint", ["", "a100", "xwf_cap300", "WF_CAP300&rack1"])
def test_what_names_no_cap_is_no_request(constraint, node):
    """The note says that none was asked for."""
    assert run(node, "prolog", constraint=constraint).returncode == 0
    assert_clean(node)
    assert str(node.note(1)).endswith("no cap was asked for")


@pytest.mark.parametrize(
    "gpus",
    [
        "",
        "0;id",
        "0 1",
        "0-1",
        "00",
        "-1",
        "0,",
        "0,,1",
        "all",
        "\u0660",
        "GPU-0",
        "../0",
        "$(id)",
        "99",
        "0," * 20_000 + "1",
    ],
)
def test_gpus_that_slurm_would_not_write_are_nobodys(gpus, node):
    """Nothing is touched, not even another job's GPU that differs from the baseline; the note says not_applied."""
    node.set_limits(300, 300, 300, 300)
    assert run(node, "prolog", 1, gpus, "wf_cap400").returncode == 0
    assert run(node, "epilog", 2, gpus).returncode == 0
    assert node.limits_w() == [300] * 4
    assert str(node.note(1)).startswith("not_applied 400 - ")


def test_an_epilog_that_slurm_tells_no_gpus_restores_its_own_jobs_by_the_journal(node):
    """Those of another job keep their cap."""
    leave_cap(node)
    run(node, "prolog", 2, "2", "wf_cap400")
    assert run(node, "epilog", 1, "").returncode == 0
    assert node.limits_w() == [500, 500, 400, 500]


@pytest.mark.parametrize("job", ["0", "1;id", "../1", "", "99999999999"])
def test_a_job_without_a_number_gets_nothing(job, node):
    """No cap, no note, no harm: the job starts."""
    done = run(node, "prolog", constraint="wf_cap300", SLURM_JOB_ID=job)
    assert done.returncode == 0
    assert_clean(node)
    assert not (node.path / "notes").exists()


def test_words_of_the_user_beside_the_constraint_are_no_request(node):
    """Neither the comment nor the job's name; a shell's variables and functions of the environment are not taken."""
    evil = node.path / "evil"
    evil.write_text(f"touch {node.path}/ran\n")
    words = {"SLURM_JOB_COMMENT": "wf_cap300", "SLURM_JOB_NAME": "wf_cap300"}
    tricks = {
        "BASH_ENV": str(evil),
        "ENV": str(evil),
        "BASH_FUNC_read_config%%": f"() {{ touch {node.path}/ran; }}",
        "PATH": str(node.path),
        "ASKED_W": "300",
        "CONF": str(evil),
        "SHELLOPTS": "xtrace",
    }
    assert run(node, "prolog", **words, **tricks).returncode == 0
    assert_clean(node)
    assert not (node.path / "ran").exists()


def test_mig_is_refused(node):
    """A slice's power is its board's."""
    node.driver(FAKE_NVML_MIG="1")
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert_clean(node)
    assert "MIG is on" in str(node.note(1))


def test_a_part_of_a_gpu_by_mps_is_refused(node):
    """Slurm tells the prolog of such a job its share."""
    run(node, "prolog", constraint="wf_cap300", CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="50")
    assert_clean(node)
    assert "MPS" in str(node.note(1))


def test_an_mps_that_root_runs_refuses_caps_and_not_the_baseline(node):
    """It shares GPUs out, and sets no limit of theirs."""
    node.process(77, "nvidia-cuda-mps", uid=0)
    node.set_limits(350, 350)
    run(node, "prolog", constraint="wf_cap300")
    assert_clean(node)
    assert str(node.note(1)).endswith("nvidia-cuda-mps runs here")


def test_a_gpu_that_another_job_has_too_is_refused(node):
    """As gres/shard lets it, of which a prolog sees nothing; the other job may have no cap itself."""
    run(node, "prolog", 1, "0,1")
    run(node, "prolog", 2, "1,2", "wf_cap300")
    assert_clean(node)
    assert str(node.note(2)).endswith(f"job 1 has {node.uuid(1)} too")


def test_a_job_that_comes_to_a_capped_gpu_frees_it(node):
    """A part of a GPU again: the second job is not throttled by the first one's cap."""
    leave_cap(node)
    assert run(node, "prolog", 2, "0,1").returncode == 0
    assert_clean(node)


@pytest.mark.parametrize("name", ["eard", "geopmd"])
def test_another_controllers_daemon_keeps_all_hands_off(name, node):
    """No cap, and no baseline either: the limits are that daemon's."""
    node.process(77, name, uid=0)
    node.set_limits(350, 350)
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert f"{name} runs here" in str(node.note(1))
    assert run(node, "epilog").returncode == 0
    assert run(node, "boot").returncode == 0
    assert node.limits_w() == [350, 350, 500, 500]


def set_uid_program(node: Node) -> None:
    """A program like sudo while it asks for a password: it took root's uid, and a user's link named it eard."""
    node.process(77, "eard", uid=0)
    program = node.path / "bin" / "sudo"
    program.touch()
    program.chmod(0o4755)
    (node.path / "proc" / "77" / "exe").symlink_to(program)


USERS = {
    "a user's": lambda node: node.process(77, "eard", uid=1000),
    "a user's, as root by a set-uid bit": lambda node: node.process(77, "eard", uid=1000, euid=0),
    "a set-uid program's that took root's uid": set_uid_program,
    "a user's that hides its files": lambda node: hide(node, 77),
}


def hide(node: Node, pid: int) -> None:
    """A process that may not be dumped: the files below its folder are root's, and its folder is not."""
    node.process(pid, "eard", uid=1000)
    for file in (node.path / "proc" / str(pid)).iterdir():
        os.chown(file, 0, 0)


@pytest.mark.parametrize("whose", USERS)
def test_a_users_process_of_that_name_does_not_count(whose, node):
    """Only root's own processes control GPUs, so no user can keep caps from the others by a name."""
    USERS[whose](node)
    leave_cap(node)


@pytest.mark.parametrize(("uid", "limit_w"), [(0, 500), (1000, 300)])
def test_real_processes_count_by_their_user(uid, limit_w, node):
    """One named eard runs for real, seen through the kernel's own /proc: root's forbids the cap, a user's does not."""
    words = ["bash", "-c", "printf eard >/proc/$$/comm; echo named; read"]
    with subprocess.Popen(words, user=uid, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout.readline() == b"named\n"
        (node.path / "proc" / str(daemon.pid)).symlink_to(f"/proc/{daemon.pid}")
        assert run(node, "prolog", 1, "0", "wf_cap300").returncode == 0
        daemon.communicate()
    assert node.limits_w() == [limit_w, 500, 500, 500]


def processes_started(node: Node) -> int:
    """How many processes a prolog with a cap starts, counted by a PID namespace in which nothing else runs."""
    count = '"$@" || exit; : & echo $!'
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "bash", "-c", count, "bash", *node.script("prolog")],
        env={"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0", "SLURM_JOB_CONSTRAINTS": "wf_cap300"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert node.limits_w() == [300, 500, 500, 500]
    return int(done.stdout)


@pytest.mark.parametrize("many", [300, pytest.param(13_000, marks=pytest.mark.slow)])
def test_a_prolog_starts_no_process_for_a_users_process(many, node):
    """As many beside users' processes named eard, a third of them as root by a set-uid bit, as with none."""
    for action in ("prolog", "epilog"):  # the first makes the folders
        assert run(node, action, 1, "0").returncode == 0
    alone = processes_started(node)
    assert run(node, "epilog", 1, "0").returncode == 0
    for pid in range(1000, 1000 + many):
        node.process(pid, "eard", uid=1000, euid=1000 if pid % 3 else 0)
    assert processes_started(node) == alone


def test_a_controller_that_the_admin_declares_keeps_hands_off(node):
    """As for those that work from outside the node, of which nothing is seen in it."""
    declare(node, "other_controller = none", "other_controller = dps")
    node.set_limits(350, 350)
    run(node, "prolog", constraint="wf_cap300")
    assert node.limits_w() == [350, 350, 500, 500]
    assert "dps controls the power here" in str(node.note(1))


@pytest.mark.parametrize("action", ["epilog", "prolog", "boot"])
def test_a_cap_of_ours_is_put_back_under_another_controller_too(action, node):
    """What the journal has is ours to put back; the rest is not."""
    leave_cap(node)
    node.process(77, "eard", uid=0)
    node.set_limits(300, 300, 350)
    assert run(node, action).returncode == 0
    assert node.limits_w() == [500, 500, 350, 500]
    assert node.journal() == []
