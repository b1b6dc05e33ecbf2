"""A login node without torch: plan, submit and status work, and an engine that needs it is one line."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from local_runs import SMALL

ROOT = Path(__file__).parent.parent
LEFT_OUT = ("torch", "functorch", "fairscale", "transformers", "accelerate", "triton", "vllm")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python with all packages of this one but those of the engines."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--symlinks", folder / "venv"], check=True
    )
    packages = folder / "packages"
    packages.mkdir()
    for path in {sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("packages"))}:
        for entry in Path(path).iterdir():
            if entry.name.startswith(LEFT_OUT) or entry.suffix == ".pth":
                continue
            if not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    (own,) = (folder / "venv").glob("lib/python*/site-packages")
    (own / "packages.pth").write_text(f"{packages}\n")
    return folder / "venv" / "bin" / "python"


def call(python, *words, cwd, code=0):
    """The command line by that Python."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [str(python), "-m", "wattflow.cli", *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


WORDS = (*SMALL, "power.meter=simulated")


def test_that_python_has_no_torch(bare):
    """Else nothing here would mean anything."""
    done = subprocess.run(
        [str(bare), "-c", "import torch"], capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr


def test_plan_submit_and_status_need_no_torch(bare, tmp_path):
    """A sweep of the engine that computes nothing runs whole, on the CPU that `auto` comes to."""
    words = (*WORDS, "engine=synthetic", "sweep=s", "sweep.repeats=1")
    assert "point_id" in call(bare, "plan", *words, cwd=tmp_path).stdout
    call(bare, "submit", *words, "--wait", cwd=tmp_path)
    assert "done" in call(bare, "status", "sweeps/s", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("engine", "library", "extra"),
    [
        ("paper", "torch", "engine"),
        ("fast", "torch", "engine"),
        ("vllm", "vLLM", "vllm"),
        ("transformers", "transformers", "transformers"),
    ],
)
def test_an_engine_that_needs_it_is_one_line(bare, tmp_path, engine, library, extra):
    """`plan` takes the point, as ranks may have another Python; here it fails with the command that installs it."""
    words = (*WORDS, f"engine={engine}", "engine.device=cpu", "sweep=s")
    call(bare, "plan", *words, cwd=tmp_path)
    done = call(bare, "run", *words, cwd=tmp_path, code=1)
    assert f"engine={engine}: {library} is not installed" in done.stderr
    assert f"pip install 'wattflow[{extra}]'" in done.stderr


def test_two_ranks_are_one_line_too(bare, tmp_path):
    """They meet through torch, whatever the engine."""
    words = (*WORDS, "engine=synthetic", "shards=2", "cluster.gpus_per_node=2", "sweep=s")
    done = call(bare, "run", *words, cwd=tmp_path, code=1)
    assert "2 ranks: torch is not installed" in done.stderr
