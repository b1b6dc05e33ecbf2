"""The power-cap prolog and epilog, run as root as slurmd runs them, over a fake nvidia-smi whose limits outlive it."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cap_nodes import SLURM, Node, install, run
from processes import gone, until

pytest_plugins = ("fake_nvml.fixtures",)
pytestmark = [
    pytest.mark.fake_nvml,
    pytest.mark.skipif(
        os.getuid() != 0, reason="a prolog runs as root, and checks for root's files"
    ),
]

BASELINE = [500, 500, 500, 500]
DENIED = {"FAKE_NVML_DENY": "nvmlDeviceSetPowerManagementLimit"}


@pytest.fixture
def node(tmp_path: Path, nvml_folder: Path) -> Node:
    """Four GPUs at the baseline of 500 W; 150, 300 and 400 W are allowed, of which the boards take the last two."""
    return install(tmp_path / "node", nvml_folder)


def leave_cap(node: Node) -> None:
    """Job 1 has a cap of 300 W on GPUs 0 and 1."""
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert node.limits_w() == [300, 300, 500, 500]


def assert_clean(node: Node) -> None:
    assert node.limits_w() == BASELINE
    assert node.journal() == []


# --- what is allowed ------------------------------------------------------------------------------


def test_an_allowed_cap_is_on_the_jobs_gpus_alone(node):
    """The job's two GPUs get it, with a journal of each; the note names them; the others keep the baseline."""
    leave_cap(node)
    uuids = [node.uuid(0), node.uuid(1)]
    assert node.journal() == sorted(uuids)
    assert node.note(1) == f"applied 300 {','.join(uuids)} set and read back"


def test_the_first_jobs_of_a_node_may_start_at_once(tmp_path, nvml_folder):
    """Four prologs find no journal's folder: one makes it, and all have their caps. Tried twelve times."""
    for turn in range(12):
        node = install(tmp_path / str(turn), nvml_folder)
        with ThreadPoolExecutor(4) as jobs:
            begun = [
                jobs.submit(run, node, "prolog", job, str(job - 1), "wf_cap300")
                for job in range(1, 5)
            ]
        assert [one.result().returncode for one in begun] == [0] * 4
        assert node.limits_w() == [300] * 4, [node.note(job) for job in range(1, 5)]


def test_the_epilog_leaves_nothing(node):
    """Baseline, no journal, no note."""
    leave_cap(node)
    assert run(node, "epilog").returncode == 0
    assert_clean(node)
    assert node.note(1) is None


def test_the_journal_tells_whose_cap_and_is_roots_alone(node):
    """Its folder has mode 0700, and a file says the job, the cap and the baseline; the note may be read by all."""
    leave_cap(node)
    journal = node.path / "journal"
    assert journal.stat().st_mode & 0o777 == 0o700
    told = (journal / node.uuid(0)).read_text()
    assert told == "job 1\nrequested_w 300\nbaseline_w 500\n"
    assert (node.path / "notes" / "1").stat().st_mode & 0o777 == 0o644


def test_a_cap_among_other_features_is_taken(node):
    """Slurm joins features by &."""
    run(node, "prolog", constraint="a100&wf_cap400&rack-1")
    assert node.limits_w() == [400, 400, 500, 500]


def test_jobs_of_one_node_have_a_cap_each(node):
    """300 W on GPUs 0 and 1, 400 W on 2, none on 3; the end of one leaves the other's."""
    run(node, "prolog", 1, "0,1", "wf_cap300")
    run(node, "prolog", 2, "2", "wf_cap400")
    run(node, "prolog", 3, "3")
    assert node.limits_w() == [300, 300, 400, 500]
    run(node, "epilog", 3, "3")
    run(node, "epilog", 1, "0,1")
    assert node.limits_w() == [500, 500, 400, 500]
    run(node, "epilog", 2, "2")
    assert_clean(node)


def test_a_leaked_limit_is_gone_before_the_next_job_starts(node):
    """Nobody wrote a journal of it; a job without a request finds its GPUs at the baseline, and its note says so."""
    node.set_limits(300, 700)
    assert run(node, "prolog").returncode == 0
    assert node.limits_w() == BASELINE
    assert str(node.note(1)).startswith("baseline - GPU-")


def test_a_limit_that_another_tool_set_meanwhile_ends_with_the_job(node):
    """The baseline is what the admin declares, whatever was found."""
    leave_cap(node)
    node.set_limits(650, 300)
    assert run(node, "epilog").returncode == 0
    assert_clean(node)


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


def test_a_users_process_of_that_name_is_not_minded(node):
    """Only root's processes can control GPUs, so no user can keep caps from the others."""
    node.process(77, "eard", uid=1000)
    leave_cap(node)


def declare(node: Node, old: str, new: str) -> None:
    text = node.config.read_text()
    assert old in text
    node.config.write_text(text.replace(old, new))


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


# --- which GPU ------------------------------------------------------------------------------------


def test_slurms_number_is_the_device_files_not_the_drivers_index(node):
    """/dev/nvidia0 is the GPU that the driver lists last here."""
    node.minors(3, 2, 1, 0)
    run(node, "prolog", 1, "0", "wf_cap300")
    assert node.limits_w() == [500, 500, 500, 300]
    run(node, "epilog", 1, "0")
    assert_clean(node)


def test_a_gap_in_the_device_files_refuses_caps(node):
    """Slurm would count over the gap, so a number might be the neighbour's GPU."""
    node.minors(0, 1, 3, 4)
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert_clean(node)
    assert "Slurm's numbers cannot be matched" in str(node.note(1))


def test_check_tells_which_number_is_which_gpu(node):
    """For an admin's eyes, with the verdict on the config; nothing is changed."""
    leave_cap(node)
    done = run(node, "check")
    assert done.returncode == 0
    assert f"Slurm's GPU 0 is {node.uuid(0)}; its limit is 300 W, from 200 to 700 W" in done.stdout
    assert f"{node.uuid(1)} may have a cap, of job 1" in done.stdout
    assert node.limits_w() == [300, 300, 500, 500]


# --- what fails -----------------------------------------------------------------------------------


def test_a_set_without_permission_costs_the_job_nothing(node):
    """Exit 0, the baseline, and a note."""
    node.driver(**DENIED)
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert_clean(node)
    assert str(node.note(1)).endswith(f"nvidia-smi did not set {node.uuid(0)}")


def test_a_limit_that_the_driver_clips_in_silence_is_put_back(node):
    """nvidia-smi says done, the limit reads 350 W: not_applied, never taken for 300 W."""
    node.driver(FAKE_NVML_LEAST_W="350")
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert_clean(node)
    assert "does not have the limit that was set" in str(node.note(1))


def test_no_journal_no_cap(node):
    """What could not be put back after a crash is not set."""
    (node.path / "journal" / "new").mkdir(parents=True)
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert_clean(node)
    assert "could not be written" in str(node.note(1))


def test_a_journal_that_is_not_roots_is_refused(node):
    """No cap; the baseline is put back all the same, at boot too, which tells."""
    journal = node.path / "journal"
    journal.mkdir()
    os.chown(journal, 1000, 1000)
    node.set_limits(350, 350)
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert_clean(node)
    assert "is not root's alone" in str(node.note(1))
    node.set_limits(350, 350)
    assert run(node, "boot").returncode == 1
    assert_clean(node)


def test_a_failed_restore_drains_and_keeps_the_journal(node):
    """The epilog exits with 1 while the driver refuses; once it does not, any later one puts the baseline back."""
    leave_cap(node)
    node.driver(**DENIED)
    assert run(node, "epilog").returncode == 1
    assert len(node.journal()) == 2
    assert run(node, "boot").returncode == 1
    assert run(node, "prolog", 2).returncode == 1
    node.driver()
    assert run(node, "epilog").returncode == 0
    assert_clean(node)


def test_a_gpu_that_does_not_answer_drains(node):
    """Nobody can say what its limit is."""
    leave_cap(node)
    node.driver(FAKE_NVML_LOST="1@0")
    assert run(node, "epilog").returncode == 1
    assert len(node.journal()) == 2


def test_a_job_without_gpus_needs_no_driver(node):
    """It starts and ends whatever nvidia-smi does."""
    node.driver(FAKE_NVML_LOST="0@0")
    assert run(node, "prolog", gpus="").returncode == 0
    assert run(node, "epilog", gpus="").returncode == 0


# --- what is trusted ------------------------------------------------------------------------------

MISTRUSTED = {
    "another's config": lambda node: os.chown(node.config, 1000, 0),
    "config for the group": lambda node: node.config.chmod(0o664),
    "config for all": lambda node: node.config.chmod(0o646),
    "config's folder for all": lambda node: node.config.parent.chmod(0o777),
    "no config": lambda node: node.config.unlink(),
    "another's nvidia-smi": lambda node: os.chown(node.smi, 1000, 0),
    "nvidia-smi for the group": lambda node: node.smi.chmod(0o775),
    "nvidia-smi's folder for all": lambda node: node.smi.parent.chmod(0o777),
    "nvidia-smi's folder another's": lambda node: os.chown(node.smi.parent, 1000, 0),
    "no nvidia-smi": lambda node: node.smi.unlink(),
    "a command": lambda node: declare(node, "= 500", "= 500; touch ran"),
    "an expansion": lambda node: declare(node, "= 500", "= $(touch ran)"),
    "an unknown key": lambda node: declare(node, "baseline_w", "base_w"),
    "a key twice": lambda node: declare(node, "baseline_w = 500", "baseline_w = 500\n" * 2),
    "a key too few": lambda node: declare(node, "other_controller = none", ""),
    "a relative nvidia-smi": lambda node: declare(node, f"= {node.smi}", "= nvidia-smi"),
    "a cap above the baseline": lambda node: declare(node, "150 300", "300 501"),
}


@pytest.mark.parametrize("what", MISTRUSTED)
def test_nothing_is_set_by_what_is_not_roots_alone_or_not_understood(what, node, monkeypatch):
    """The config and nvidia-smi, with their folders. The job starts, and its note says what is refused."""
    monkeypatch.chdir(node.path)
    MISTRUSTED[what](node)
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert_clean(node)
    assert not (node.path / "ran").exists()
    assert str(node.note(1)).startswith("not_applied 300 - ")
    assert run(node, "boot").returncode == 1


@pytest.mark.parametrize("what", ["another's config", "no nvidia-smi"])
def test_a_cap_that_can_no_longer_be_put_back_drains(what, node):
    """The config was good when the cap was set."""
    leave_cap(node)
    MISTRUSTED[what](node)
    assert run(node, "epilog").returncode == 1
    assert len(node.journal()) == 2


def test_a_link_to_roots_nvidia_smi_is_followed_once(node):
    """As /usr/bin/nvidia-smi may be one."""
    link = node.path / "etc" / "smi"
    link.symlink_to(node.smi)
    declare(node, f"= {node.smi}", f"= {link}")
    leave_cap(node)


def test_the_shipped_config_is_taken_once_the_admin_has_filled_it_in(node):
    """As it comes it sets nothing, since no baseline fits all boards."""
    text = (SLURM / "cap.conf").read_text().replace("/usr/bin/nvidia-smi", str(node.smi))
    node.config.write_text(text)
    assert "cap.conf lacks " in run(node, "check").stdout
    node.config.write_text(
        text.replace("# baseline_w", "baseline_w").replace("# allow_w", "allow_w")
    )
    assert "baseline 700 W; allowed: 300 400 500 600" in run(node, "check").stdout


# --- what is killed -------------------------------------------------------------------------------

# Kills the script before its n-th command that leaves a trace or talks to the driver.
KILLER = r"""
n=0
set -T
trap 'case $BASH_SUBSHELL:$BASH_COMMAND in
  0:smi* | 0:table=* | 0:printf* | 0:mv* | 0:rm* | 0:sync* | 0:mkdir* | 0:chmod* | 0:flock*)
    n=$((n + 1)) && [ $n != "$KILL_AT" ] || kill -9 $$ ;;
esac' DEBUG
library=$1 action=$2
shift
. "$library"
"""


def killed(node: Node, action: str, at: int) -> bool:
    """Run an action of job 1, which asks for 300 W, and kill it before a step; whether it got that far."""
    done = subprocess.run(
        ["bash", "-c", KILLER, "bash", str(node.library), action],
        env={
            "KILL_AT": str(at),
            "SLURM_JOB_ID": "1",
            "SLURM_JOB_GPUS": "0,1",
            "SLURM_JOB_CONSTRAINTS": "wf_cap300",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def state(node: Node) -> dict[Path, str]:
    """All that outlives a process on a node."""
    files = (path for part in ("gpus", "journal", "notes") for path in (node.path / part).glob("*"))
    return {path: path.read_text() for path in files}


def put_state(node: Node, kept: dict[Path, str]) -> None:
    """Bring a node back to a state."""
    for path in set(state(node)) - set(kept):
        path.unlink()
    for path, text in kept.items():
        path.write_text(text)


@pytest.mark.parametrize(("action", "least"), [("prolog", 12), ("epilog", 5)])
def test_a_kill_between_any_two_steps_leaks_no_cap(action, least, node):
    """Killed before each step in turn: the next prolog, epilog and boot each put the baseline back, and none drains."""
    if action == "epilog":
        leave_cap(node)
    before, steps, capped = state(node), 0, 0
    while killed(node, action, steps + 1):
        steps += 1
        capped += node.limits_w() != BASELINE
        left = state(node)
        for after, job in (("prolog", 2), ("epilog", 1), ("boot", 1)):
            put_state(node, left)
            assert run(node, after, job).returncode == 0, (steps, after)
            assert_clean(node)
        put_state(node, before)
    assert steps >= least
    assert capped >= least / 3


def setters(node):
    """The pids of a node's nvidia-smi that sets a limit now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_text().split("\0")
            if words[0] == str(node.smi) and "-pl" in words:
                found.append(int(folder.name))
    return found


def test_an_nvidia_smi_that_outlives_its_prolog_leaks_no_cap(node):
    """It still sets the cap after the prolog was killed; the epilog waits for it, and then puts the baseline back."""
    node.driver(FAKE_NVML_LATENCY_US="nvmlDeviceSetPowerManagementLimit=5000000")
    prolog = subprocess.Popen(
        node.script("prolog"),
        env={
            "SLURM_JOB_ID": "1",
            "SLURM_JOB_GPUS": "0",
            "SLURM_JOB_CONSTRAINTS": "wf_cap300",
        },
    )
    (setting,) = until(lambda: setters(node))
    prolog.kill()
    prolog.wait()
    node.driver()
    assert node.limits_w() == BASELINE
    assert run(node, "epilog", 1, "0").returncode == 0
    until(lambda: gone(setting))
    assert_clean(node)


@pytest.mark.parametrize("action", ["prolog", "epilog", "boot"])
def test_one_that_hangs_for_ever_is_not_waited_for_for_ever(action, node):
    """Another's nvidia-smi holds the lock: the baseline cannot be put back safely, so the node drains."""
    leave_cap(node)
    text = node.library.read_text()
    node.library.write_text(text.replace("LOCK_TIMEOUT_S=90", "LOCK_TIMEOUT_S=0.2"))
    folder = os.open(node.path / "journal", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        assert run(node, action).returncode == 1
    finally:
        os.close(folder)
    assert len(node.journal()) == 2


@pytest.mark.parametrize("found", [(700, 700, 700, 700), (300, 400, 500, 650)])
def test_boot_brings_every_gpu_to_the_baseline(found, node):
    """A reboot gives the factory's limits where the driver was unloaded, else those that were left; notes are gone."""
    leave_cap(node)
    node.set_limits(*found)
    assert run(node, "boot").returncode == 0
    assert_clean(node)
    assert node.note(1) is None


def test_boot_forgets_a_gpu_that_was_taken_out(node):
    """Its limit went with it; the journal must not refuse the node for ever."""
    leave_cap(node)
    node.driver(FAKE_NVML_GPUS="1")
    assert run(node, "boot").returncode == 0
    assert node.journal() == []


def test_a_damaged_journal_still_names_its_gpu(node):
    """Its name is the UUID; the next job on the GPU, or the boot, puts it back whatever stands in it."""
    leave_cap(node)
    (node.path / "journal" / node.uuid(0)).write_text("")
    assert run(node, "prolog", 2, "0").returncode == 0
    assert node.limits_w() == [500, 300, 500, 500]
    assert node.journal() == [node.uuid(1)]


# --- as shell -------------------------------------------------------------------------------------

SCRIPTS = [
    *SLURM.glob("*.sh"),
    *SLURM.glob("*.d/*"),
    *(SLURM / "testcluster").glob("*.sh"),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(SLURM)))
def test_the_scripts_are_clean_for_shellcheck(script):
    """No warning, and bash takes them."""
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck (slurm/testcluster/install.sh adds it)")
    done = subprocess.run(
        ["shellcheck", "-x", script],
        cwd=SLURM.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("action", ["prolog", "epilog"])
def test_no_slurm_command_is_called(action):
    """Neither by name nor by path: a prolog that asks the controller can hang a cluster."""
    text = (SLURM / "wattflow-cap.sh").read_text() + (
        SLURM / f"{action}.d" / "wattflow-cap"
    ).read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for command in ("scontrol", "squeue", "sinfo", "sacct", "sbatch", "srun", "scancel"):
        assert command not in code
