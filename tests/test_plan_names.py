"""Names of sweeps that nobody named: by the axes, never shared by others."""

import itertools

import pytest

from wattflow.plan import grid
from wattflow.plan.names import MOST, default_name
from wattflow.store.files import check_name


@pytest.mark.parametrize(
    ("file", "own", "varied", "name"),
    [
        ("shards", ["shards", "batch_size"], ["batch_size", "shards"], "shards"),
        ("shards", ["shards"], ["shards", "model"], "shards-with-model"),
        ("shards", ["shards", "batch_size"], ["shards"], "shards-by-shards"),
        ("shards", ["shards"], [], "shards-by-nothing"),
        (None, [], ["precision", "batch_size"], "by-batch_size-precision"),
        (None, [], [], "llama-7b"),
    ],
)
def test_a_name_says_the_axes(file, own, varied, name):
    """The grid alone where its axes are the sweep's; else what is more, or all that vary."""
    assert default_name(file, own, varied, "llama-7b") == name


def test_names_are_valid_bounded_and_apart():
    """All sets of up to three of many long keys, under one grid and none: as many names, each a folder's."""
    keys = ["a/../b", "..", "x" * 80, "x" * 79 + "y", "control.power_limit_w", "shards", "Übung"]
    sets = [s for n in range(4) for s in itertools.combinations(keys, n)]
    names = {default_name(file, ["shards"], s, "m") for file in (None, "g") for s in sets}
    assert len(names) == 2 * len(sets)
    assert all(len(check_name(name, "sweep")) <= MOST for name in names)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["grid=shards", "model=tiny"], "shards"),
        (["grid=shards", "model=tiny,llama-7b"], "shards-with-model"),
        (["grid=shards", "batch_size=8"], "shards-by-shards"),
        (["grid=power-caps", "control.power_limit_w=700,500", "shards=2"], "power-caps"),
        (["shards=1,2", "batch_size=4", "repeat=0,1"], "by-shards"),
        (["batch_size=4,8", "shards=1,2"], "by-batch_size-shards"),
        (["shards=1,2", "batch_size=4,8"], "by-batch_size-shards"),
        (["batch_size=4"], "tiny"),
        (["batch_size=4", "sweep=mine"], "mine"),
    ],
)
def test_a_plan_takes_its_name_from_grid_and_keys(words, name):
    """In whatever order they are; a list of repeats is no axis, and a given name stays."""
    assert grid.plan(words).name == name
