"""Power caps where drivers, disks, locks and processes fail: nothing leaks, and only a cap that may remain drains."""

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from cap_nodes import (
    BASELINE,
    DENIED,
    Node,
    assert_clean,
    install,
    leave_cap,
    run,
)
from processes import gone, until

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


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder in which nothing can be made, changed or removed, as on a disk that was mounted anew to be read only."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("action", "job", "limits_w"),
    [
        ("epilog", 1, [500, 500, 300, 500]),
        ("prolog", 1, [500, 500, 300, 500]),
        ("boot", 1, BASELINE),
    ],
)
def test_a_journal_that_can_only_be_read_does_not_drain(action, job, limits_w, node):
    """The baseline was read back, so no cap remains; the journal's files do, until it can be written again."""
    leave_cap(node)
    run(node, "prolog", 2, "2", "wf_cap300")
    with read_only(node.path / "journal"):
        done = run(node, action, job, "0,1", "wf_cap300")
        assert done.returncode == 0, done.stderr
        assert node.limits_w() == limits_w
        assert len(node.journal()) == 3
        if action == "prolog":
            assert "could not be written" in str(node.note(1))
    assert run(node, "boot").returncode == 0
    assert_clean(node)


def test_a_journal_that_can_only_be_read_is_waited_for_all_the_same(node):
    """Its lock is taken: while another holds it, nothing is set."""
    leave_cap(node)
    node.edit("LOCK_TIMEOUT_S=90", "LOCK_TIMEOUT_S=0.2")
    with read_only(node.path / "journal"), locked(node):
        assert run(node, "epilog").returncode == 1
    assert node.limits_w() == [300, 300, 500, 500]


def test_a_note_that_cannot_be_removed_does_not_drain(node):
    """A note is news for the job, and no cap."""
    leave_cap(node)
    with read_only(node.path / "notes"):
        assert run(node, "epilog").returncode == 0
    assert_clean(node)


@pytest.mark.parametrize("constraint", ["wf_cap300", ""])
def test_an_nvidia_smi_without_an_answer_drains_only_what_may_have_a_cap(constraint, node):
    """The journal is empty: jobs start and end, and no note says that a cap or the baseline is there."""
    node.driver(FAKE_NVML_LOST="1@0")
    assert run(node, "prolog", constraint=constraint).returncode == 0
    note = node.note(1)
    assert run(node, "epilog").returncode == 0
    if constraint:
        assert note == "not_applied 300 - nvidia-smi does not report the limits"
    else:
        assert note is None
    node.driver()
    run(node, "prolog", 2, "2", "wf_cap300")
    node.driver(FAKE_NVML_LOST="1@0")
    assert run(node, "prolog", constraint=constraint).returncode == 1


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
        with suppress(OSError):
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


@contextmanager
def locked(node: Node) -> Iterator[None]:
    """Another prolog holds the lock."""
    folder = os.open(node.path / "journal", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(folder)


@pytest.mark.parametrize("action", ["prolog", "epilog", "boot"])
def test_one_that_hangs_for_ever_is_not_waited_for_for_ever(action, node):
    """Another's nvidia-smi holds the lock: the baseline cannot be put back safely, so the node drains."""
    leave_cap(node)
    node.edit("LOCK_TIMEOUT_S=90", "LOCK_TIMEOUT_S=0.2")
    with locked(node):
        assert run(node, action).returncode == 1
    assert len(node.journal()) == 2


def test_one_that_hangs_drains_only_what_may_have_a_cap(node):
    """The journal is empty: the job starts without its cap, and ends."""
    assert run(node, "prolog").returncode == 0
    node.edit("LOCK_TIMEOUT_S=90", "LOCK_TIMEOUT_S=0.2")
    with locked(node):
        assert run(node, "prolog", 2, "0,1", "wf_cap300").returncode == 0
        assert str(node.note(2)) == "not_applied 300 - another prolog or epilog hangs"
        assert run(node, "epilog", 2).returncode == 0
    assert_clean(node)


def waits(node: Node) -> list[int]:
    """The pids of the commands that wait for a node's lock."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "comm").read_text()
            if command == "flock\n" and (folder / "fd" / "9").readlink() == node.path / "journal":
                found.append(int(folder.name))
    return found


def test_one_that_goes_on_is_waited_for(node):
    """It takes a step in each of two waits, as long each as one may hang; then the epilog has its turn."""
    leave_cap(node)
    node.edit("LOCK_TIMEOUT_S=90", "LOCK_TIMEOUT_S=4")
    with ThreadPoolExecutor(1) as jobs:
        with locked(node):
            ending = jobs.submit(run, node, "epilog")
            for step in range(2):
                (waiting,) = until(lambda: waits(node))
                (node.path / "notes" / ".step").write_text(f"1 {step}\n")
                until(partial(gone, waiting))
            until(lambda: waits(node))
        assert ending.result().returncode == 0
    assert_clean(node)


@pytest.mark.parametrize(
    ("call", "seconds", "patience_s"),
    [
        ("nvmlDeviceSetPowerManagementLimit", 0.5, 3),
        pytest.param(
            "nvmlInitWithFlags", 5.0, 90, marks=pytest.mark.slow
        ),  # each call of nvidia-smi
    ],
)
def test_jobs_that_start_at_once_wait_for_each_other_however_slow_nvidia_smi_is(
    call, seconds, patience_s, tmp_path, nvml_folder
):
    """Eight jobs with a cap on a GPU each: the last waits longer than one may hang."""
    node = install(tmp_path / "eight", nvml_folder, gpus=8)
    node.driver(FAKE_NVML_LATENCY_US=f"{call}={seconds * 1e6:.0f}")
    node.edit("LOCK_TIMEOUT_S=90", f"LOCK_TIMEOUT_S={patience_s}")
    with ThreadPoolExecutor(8) as jobs:
        begun = [
            jobs.submit(run, node, "prolog", job, str(job - 1), "wf_cap300") for job in range(1, 9)
        ]
    assert [one.result().returncode for one in begun] == [0] * 8
    assert node.limits_w() == [300] * 8, [node.note(job) for job in range(1, 9)]


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
