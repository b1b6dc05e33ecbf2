"""`wattflow compare`: values of a choice over one or more sweeps, and two sweeps as a step of CI."""

import json

import pytest
from local_runs import call
from sweeps import Gpu, Made, choices, collected, constant


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sweeps `old` and, a day later, `new`: batch 2 takes 20 % more in the new one, batch 1 as much."""
    folder = tmp_path_factory.mktemp("compare")
    for day, (name, second_w) in enumerate((("old", 500.0), ("new", 600.0))):
        watts, at_s = {1: 400.0, 2: second_w}, 86_400.0 * day
        points = [choices(batch_size=b, repeat=r) for b in watts for r in range(3)]
        attempts = [
            Made([Gpu("GPU-1", constant(watts[b] + r))], started_s=at_s)
            for b in watts
            for r in range(3)
        ]
        collected(folder / "sweeps" / name, attempts, points)
    return folder


def test_a_regression_ends_with_1_and_is_named(folder):
    """As a step of CI: the table, then how many settings got worse."""
    done = call("compare", "new", "--against", "old", "--fail-above", "3%", cwd=folder, code=1)
    heading, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert heading[:4] == ["batch_size", "n", "old", "new"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[1][-1] == "one board: established"
    assert (
        "1 of 2 settings are established to be worse in energy_per_token_j by more than 3 %"
        in done.stderr
    )


def test_no_regression_ends_with_0(folder):
    """Above another share, in the other direction, or of another figure."""
    for words in (
        ("new", "--against", "old", "--fail-above", "25"),
        ("old", "--against", "new", "--fail-above", "3"),
    ):
        assert "no setting is established to be worse" in call("compare", *words, cwd=folder).stderr


def test_two_sweeps_by_their_names_are_the_earlier_and_the_later(folder):
    """As JSON: the ratio of each setting."""
    found = json.loads(call("compare", "old", "new", "--json", cwd=folder).stdout)
    assert found["changes"][1]["ratio"]["ratio"] == pytest.approx(601 / 501, rel=1e-3)


def test_several_sweeps_are_compared_as_one(folder):
    """By a choice: six runs of each batch size, by a pattern."""
    found = json.loads(
        call("compare", "sweeps/*", "--by", "batch_size", "--json", cwd=folder).stdout
    )
    assert [one["n"] for one in found] == [6, 6]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("old",), "two sweeps"),
        (("old", "--by", "batch_size", "--fail-above", "3"), "leave --by out"),
        (("new", "--against", "old", "--fail-above", "x"), "--fail-above x"),
        (("old", "old"), "named twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(words, said, folder):
    """Exit code 2."""
    assert said in call("compare", *words, cwd=folder, code=2).stderr
