"""What was found, in words and as JSON."""

import json
import shutil

import pytest
from forgery import edit, make_original, said, set_cell

from wattflow.publish import archive
from wattflow.publish.verdict import AttemptCheck, Difference, Verdict, as_json, lines, same, table
from wattflow.publish.verify import verify
from wattflow.store.layout import SweepDir


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The sweep, its bundle, and that unpacked; nobody writes there."""
    return make_original(tmp_path_factory.mktemp("original"))


@pytest.fixture
def sweep(original, tmp_path):
    """A copy of the sweep, to be changed."""
    shutil.copytree(original / "s", tmp_path / "s")
    return SweepDir(tmp_path / "s")


@pytest.fixture
def packed(original, tmp_path):
    """A copy of the bundle, unpacked into a folder."""
    shutil.copytree(original / "b", tmp_path / "b")
    return tmp_path / "b"


@pytest.mark.parametrize(
    ("published", "recomputed", "equal", "relative"),
    [
        (1.0, 1.0, True, 0.0),
        (2.0, 1.0, False, 0.5),
        (1.0, 1.0 + 1e-10, True, pytest.approx(1e-10, rel=1e-3)),
        (float("nan"), float("nan"), True, 0.0),
        (1.0, float("inf"), False, float("inf")),
        (1.0, None, False, None),
        (1, 1.0, False, None),  # a whole number is no float
        ("a", "a", True, None),
        (None, None, True, None),
    ],
)
def test_two_values(published, recomputed, equal, relative):
    """Floats are equal within 1e-9 of the larger, all else exactly."""
    assert same(published, recomputed) == (equal, relative)


def test_what_is_counted(tmp_path):
    """Of three pairs, one of them null twice, two count; the one that differs is kept with how far it is off."""
    one = AttemptCheck("a" * 12, 1, "finished", counts=True, simulated=False)
    one.compare(Difference("points", "energy_j", 4.0, 5.0))
    one.compare(Difference("points", "power_w", None, None))
    one.compare(Difference("points", "reasons", ["b", "a"], ["a", "b"]))  # a set
    assert (one.figures, one.largest, one.ok) == (2, 0.2, False)
    assert [(d.what, d.relative) for d in one.differences] == [("energy_j", 0.2)]
    verdict = Verdict(tmp_path, "sweep", None, "0.1.0", attempts=[one])
    assert not verdict.verified
    assert f"point {'a' * 12}, attempt 1: energy_j 4, recomputed 5, 0.2 of it" in lines(verdict)
    assert lines(verdict)[-1] == "NOT VERIFIED: not as published: 1 of 1 attempts; see above."
    assert table(verdict)[0][-1] == "DIFFERS: energy_j 4, recomputed 5, 0.2 of it"


def test_many_differences_are_not_all_listed(tmp_path):
    """Of ten differences of an attempt eight are listed, and where the others are."""
    one = AttemptCheck("a" * 12, 1, "finished", counts=True, simulated=False)
    for i in range(10):
        one.compare(Difference("points", f"c{i}", 1.0, 2.0))
    text = lines(Verdict(tmp_path, "sweep", None, "0.1.0", attempts=[one]))
    assert sum("recomputed 2" in line for line in text) == 8
    assert any("and 2 more, which --json has" in line for line in text)


def test_nothing_of_a_stranger_reaches_the_terminal_raw(packed):
    """Escape sequences in a bundle are shown as question marks."""
    edit(packed / "sweep/results/points.parquet", set_cell("gpu_name", "\x1b[2J\x1b]0;x\x07H100"))
    archive.write_sums(packed)
    text = said(verify(packed))
    assert "?[2J" in text
    assert "\x1b" not in text


def test_json_is_json_where_a_number_is_none(sweep):
    """NaN, which no JSON has, is told as text where a table holds it."""
    edit(sweep.points_path, set_cell("energy_j", float("nan")))
    text = json.dumps(as_json(verify(sweep.path)), allow_nan=False)
    (bad,) = [one for one in json.loads(text)["attempts"] if not one["ok"]]
    assert [d["published"] for d in bad["differences"]] == ["nan"]
