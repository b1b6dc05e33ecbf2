"""Which software measured."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

import wattflow
from wattflow.run.provenance import commit, versions


def test_versions_are_those_of_the_installed_packages():
    """wattflow and Python always, packages where they are installed."""
    found = versions()
    assert found["wattflow"] == wattflow.__version__
    assert found["python"] == platform.python_version()
    assert found["pyarrow"] == metadata.version("pyarrow")


def test_the_commit_is_the_checkout_s():
    """As git says it, with -dirty where files were changed."""
    git = ["git", "-C", str(Path(wattflow.__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("no checkout")
    assert (commit() or "").removesuffix("-dirty") == done.stdout.strip()


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    """An installed package on a node without git is measured all the same."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
