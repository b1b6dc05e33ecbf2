"""The power-cap prolog and epilog, run as root as slurmd runs them, over a fake nvidia-smi whose limits outlive it."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cap_nodes import (
    BASELINE,
    SLURM,
    Node,
    assert_clean,
    declare,
    install,
    leave_cap,
    run,
    unset_empty_arrays,
)

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


# --- older bashes ---------------------------------------------------------------------------------

BASHES = sorted(
    {
        str(path.resolve())
        for folder in (*os.environ["PATH"].split(":"), SLURM.parent / ".bashes")
        for path in (*Path(folder).glob("bash"), *Path(folder).glob("bash-[0-9]*"))
    }
)


@pytest.mark.parametrize("bash", [*BASHES, "4.2 and 4.3, acted"])
def test_each_bash_runs_every_action_with_and_without_gpus(bash, node):
    """Those on the PATH or in .bashes as bash, bash-5.1 and so on; what 4.2 and 4.3 do with empty arrays is acted.

    A job without GPUs starts and ends with a cap in its request or none; nobody's GPUs, a controller's node and a node
    whose numbers cannot be matched all leave lists empty.
    """
    if bash in BASHES:
        node.edit("#!/bin/bash -p", f"#!{bash} -p")
    else:
        unset_empty_arrays(node)

    def done(action: str, gpus: str, constraint: str = "") -> int:
        ended = run(node, action, 1, gpus, constraint)
        assert "unbound" not in ended.stderr
        return ended.returncode

    for constraint in ("wf_cap300", "wf_cap9", ""):
        for gpus in ("", "7", "0,1"):
            assert [done("prolog", gpus, constraint), done("epilog", gpus)] == [0, 0]
    assert done("prolog", "0,1", "wf_cap300&a100") == 0
    assert node.limits_w() == [300, 300, 500, 500]
    assert [done("epilog", ""), done("check", ""), done("boot", "")] == [0, 0, 0]
    node.minors(0, 1, 3, 4)
    assert [done("prolog", "0", "wf_cap300"), done("epilog", "0"), done("check", "")] == [0, 0, 0]
    node.process(77, "eard", uid=0)
    assert [done("prolog", "0"), done("epilog", "0"), done("boot", "")] == [0, 0, 0]
    node.config.unlink()
    assert [done("prolog", "0", "wf_cap300"), done("epilog", "0")] == [0, 0]
    assert_clean(node)


def test_no_array_that_may_be_empty_is_expanded_whole():
    """bash 4.2 and 4.3 take one for an unset variable and end the script: what may be empty is a string of words."""
    for script in (SLURM / "wattflow-cap.sh", *SLURM.glob("*.d/*")):
        text = script.read_text()
        empty = set(re.findall(r"\b(\w+)=\(\)", text)) | set(re.findall(r"mapfile -t (\w+)", text))
        whole = set(re.findall(r"\$\{(\w+)\[[@*]\]", text))
        assert not empty & whole


# What came after bash 4.2, by the version that brought it (bash's own NEWS).
LATER = {
    "4.3 a reference by name": r"\b(declare|local|typeset)\s+-[a-zA-Z]*n\b",
    "4.3 wait for any": r"\bwait\s+-n\b",
    "4.3 a test of an element": r"\[\[?\s+(!\s+)?-v\s+[\"']?\w+\[",
    "4.3 assigning from the end": r"\b\w+\[-\d+\]=",
    "4.4 a parameter transformed": r"\$\{!?\w+(\[[^\]]*\])?@[A-Za-z]\}",
    "4.4 another delimiter": r"\b(mapfile|readarray)\s+(-\w+\s+)*-d",
    "4.4 local options": r"\blocal\s+-(\s|;|$)",
    "4.4 an option of shopt": r"\bshopt\s+-s\s+.*\binherit_errexit\b",
    "5.0 the clock": r"\bEPOCH(SECONDS|REALTIME)\b",
    "5.0 the program's name": r"\bBASH_ARGV0\b",
    "5.0 another option of shopt": r"\bshopt\s+-s\s+.*\b(localvar_inherit|assoc_expand_once)\b",
    "5.1 a random number": r"\bSRANDOM\b",
    "5.1 which one ended": r"\bwait\s+(-\w+\s+)*-p\b",
    "5.2 a pattern's match": r"\bpatsub_replacement\b",
    "5.3 a command in this shell": r"\$\{[ |]",
}
SAMPLES = [
    *(
        "declare -n x=y",
        "local -rn x=y",
        "wait -n",
        "[[ -v a[1] ]]",
        "[ -v 'a[x]' ]",
        "a[-1]=b",
        "${x@Q}",
        "${a[@]@A}",
    ),
    *(
        "mapfile -t -d '' a",
        "readarray -d : a",
        "local -",
        "shopt -s nullglob inherit_errexit",
        "$EPOCHSECONDS",
    ),
    *(
        "BASH_ARGV0=x",
        "shopt -s localvar_inherit",
        "$SRANDOM",
        "wait -n -p pid",
        "shopt -s patsub_replacement",
    ),
    *("${ echo x; }", "${| REPLY=x; }"),
]


def later(text):
    """Return what of a script's code came after bash 4.2."""
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return {
        name for name, found in LATER.items() if re.search(found, "\n".join(code), re.MULTILINE)
    }


def test_nothing_that_came_after_bash_4_2_is_used():
    """By the prolog, the epilog and what they run; each construct is known when it is met."""
    assert {name for sample in SAMPLES for name in later(sample)} == {*LATER}
    assert all(map(later, SAMPLES))
    for script in (SLURM / "wattflow-cap.sh", *SLURM.glob("*.d/*")):
        assert later(script.read_text()) == set()


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
