"""The verbs of results: what they refuse, and the tables they print."""

import json

import pytest
from commands import call
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two batch sizes with two repeats each, collected: 100 W in every run."""
    points = [choices(batch_size=size, repeat=repeat) for size in (1, 2) for repeat in (0, 1)]
    made = make_sweep(tmp_path_factory.mktemp("results") / "s", points)
    for point in points:
        make_attempt(made, point, Made([Gpu("GPU-1")]))
    collect(made)
    return made


def test_compare_names_the_values_and_their_number(sweep, tmp_path):
    """A row a batch size, each with n = 2."""
    done = call("compare", str(sweep.path), "--by", "batch_size", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {(row["batch_size"], row["n"]) for row in json.loads(done.stdout)} == {(1, 2), (2, 2)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "--by", "batchsize"], "batchsize"),
        (["caps", "--reference", "250", "--objective", "speed"], "energy, edp, ed2p, time"),
        (["caps", "--reference", "most"], "a whole number, or none"),
        (["cost", "--set", "cluster.cost.pue=x"], "cluster.cost.pue"),
    ],
)
def test_bad_options_are_refused_in_one_line(words, said, sweep, tmp_path):
    """Exit code 2, and what would be right."""
    done = call(words[0], str(sweep.path), *words[1:], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
