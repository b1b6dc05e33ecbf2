"""Batch scripts and the calls of their tasks."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from submissions import intents, plan, point, seeds
from submitit.core.utils import DelayedSubmission

from wattflow.errors import RefusedError
from wattflow.slurm import sbatch
from wattflow.submit import send

RECORDED = Path(__file__).parent / "recorded_batch_script.sh"


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
    "values",
    [
        {"cluster__account": "a\ntouch planted"},
        {"cluster__setup": ["module load x\ntouch planted"]},
        {"cluster__srun_options": ["--x\rtouch planted"]},
        {"cluster__sbatch_options": {"x": "a\x1btouch"}},
        {"cluster__sbatch_options": {"x\ntouch planted": "a"}},
        {"cluster__power_caps": {"300": "cap\ntouch planted"}},
        {"cluster__python": "python\x85touch planted"},
    ],
)
def test_a_value_of_an_older_grid_begins_no_line(values, fake, tmp_path):
    """What a plan refuses today is refused once more where scripts are made, and nothing is sent."""
    made = plan(tmp_path, *seeds(2, **values))
    with pytest.raises(RefusedError, match="a line break or another control character"):
        send.batch_scripts(made)
    with pytest.raises(RefusedError, match="a line break or another control character"):
        send.submit(made)
    assert not made.sweep.path.exists()
    assert fake.calls("sbatch") == []


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


def test_each_task_of_an_array_makes_its_own_call(monkeypatch):
    """Slurm numbers the tasks from 0: number 1 makes the second call."""
    one = sbatch.OneOf((sbatch.Call("builtins:abs", (-1,)), sbatch.Call("builtins:abs", (-2,))))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert one() == 2


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


def test_the_recorded_script_is_valid_bash():
    """bash parses it, and the words of its last command are those that were meant."""
    text = RECORDED.read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    words = shlex.split(text)
    assert words[-1].startswith("/shared/o'brien sweeps/demo/submitit/")
