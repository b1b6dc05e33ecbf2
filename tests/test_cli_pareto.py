"""`wattflow pareto`: the table, JSON and the figure."""

import json

import pytest
from commands import call
from sweeps import Gpu, Made, choices, collected, constant


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Batch size 1 at 600 W makes 100 tokens a batch, 2 at 650 W makes 200: better in both."""
    points, attempts = [], []
    for size, watts in ((1, 600.0), (2, 650.0)):
        for repeat in range(3):
            points.append(choices(batch_size=size, repeat=repeat))
            attempts.append(Made([Gpu("GPU-1", constant(watts + repeat))], tokens=100 * size))
    return collected(tmp_path_factory.mktemp("pareto") / "s", attempts, points).directory.path


def test_the_table_says_what_is_better(sweep, tmp_path):
    """The cheapest first; what is off the front names the setting that beats it."""
    done = call("pareto", str(sweep), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    assert (first[0], first[-1]) == ("2", "on it")
    assert (second[0], second[-1]) == ("1", "off: batch_size 2 is better in both")


def test_json_has_both_figures(sweep, tmp_path):
    """650 W and two more for 8.5 s a window over 400 tokens."""
    found = json.loads(call("pareto", str(sweep), "--json", cwd=tmp_path).stdout)
    assert [one["state"] for one in found] == ["front", "dominated"]
    ratio = found[1]["energy_per_token_j"]["mean"] / found[0]["energy_per_token_j"]["mean"]
    assert ratio == pytest.approx(2 * 601 / 651, rel=1e-3)


def test_the_figure_is_drawn(sweep, tmp_path):
    """An SVG with both axes' names and the states."""
    done = call("pareto", str(sweep), "--svg", "front.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = (tmp_path / "front.svg").read_text()
    assert all(word in drawn for word in ("energy per token j", "tokens per s", "dominated"))


def test_another_name_of_a_figure_is_refused(sweep, tmp_path):
    """Exit code 2, before anything is drawn."""
    done = call("pareto", str(sweep), "--svg", "front.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "ends in .svg" in done.stderr
