"""Sweeps as a person names them: a path, a name below ./sweeps, a pattern."""

import pytest
from sweeps import demo

from wattflow.analysis.sweep import Sweep, Sweeps
from wattflow.cli.opened import opened
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """./sweeps with the collected sweeps a and b, and a folder that is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps" / "none").mkdir(parents=True)
    for name in ("a", "b"):
        collect(demo(tmp_path / "sweeps" / name))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["sweeps/a"], ["a"]),
        (["b"], ["b"]),
        (["sweeps/*"], ["a", "b"]),
        (["sweeps/b", "a"], ["b", "a"]),
        (["sweeps/[b]"], ["b"]),
    ],
)
def test_words_name_sweeps(words, names, folder):
    """In the order in which they were named; one alone is that sweep itself."""
    found = opened(words)
    assert isinstance(found, Sweep if len(names) == 1 else Sweeps)
    of = [found] if isinstance(found, Sweep) else found.sweeps
    assert [one.name for one in of] == names


@pytest.mark.parametrize("words", [["c*"], ["sweeps/none"], ["sweeps/a", "a"]])
def test_words_that_name_no_sweep_or_one_twice_are_refused(words, folder):
    """RefusedError, whatever else was named."""
    with pytest.raises(RefusedError):
        opened(words)
