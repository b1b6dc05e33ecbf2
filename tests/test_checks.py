"""What a run leaves in the checkout changes nothing that the checks see."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SLOPPY = "import os\nx=1\n"  # no check would let this pass


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A copy of what is checked, outside of git, in which sweeps have run."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name in ("wattflow", "slurm", "tests"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "build")
        )
    # what runs make by default, and with a `sweeps_dir` of the name of a module that tests share
    for folder in ("sweeps/demo", "sweeps/numpy", "outputs", "multirun", "fake_slurm/demo"):
        (copy / folder).mkdir(parents=True)
    for folder in ("sweeps", "sweeps/demo", "outputs", "multirun"):
        (copy / folder / "left.py").write_text(SLOPPY)
    return copy


def ruff(*words, cwd):
    command = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [("check",), ("format", "--check")], ids=" ".join)
def test_folders_of_sweeps_are_neither_checked_nor_taken_for_packages(words, used):
    """With sweeps, outputs and a folder named like a shared test module beside it, the code is as clean as without."""
    done = ruff(*words, cwd=used)
    assert done.returncode == 0, done.stdout


def test_the_code_itself_is_checked(used):
    """The same lines in a folder of the package's, whatever its name, are refused."""
    folder = used / "wattflow" / "sweeps"
    folder.mkdir()
    (folder / "left.py").write_text(SLOPPY)
    try:
        assert "F401" in ruff("check", cwd=used).stdout
        assert ruff("format", "--check", cwd=used).returncode == 1
    finally:
        shutil.rmtree(folder)
