"""`wattflow optimize`: what it says before, while and after it searches."""

import json

import pytest
from local_runs import call
from sweeps import Gpu, Made, constant, make_attempt, make_sweep

from wattflow.config.choices import to_dict
from wattflow.plan.grid import plan

WORDS = ("cluster=local", "model=tiny", "engine=synthetic", "batch_size=2,4,8", "sweep=s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a sweep whose every point has run: batch 4 takes 100 W, the others twice that and more."""
    folder = tmp_path_factory.mktemp("optimize")
    made = plan([*WORDS, f"sweeps_dir={folder / 'sweeps'}"])
    points = [to_dict(point.config) for point in made.points]
    sweep = make_sweep(made.sweep.path, points)
    for k, point in enumerate(points):
        watts = {2: 200.0, 4: 100.0, 8: 260.0}[point["batch_size"]] + point["repeat"] / 10
        make_attempt(sweep, point, Made([Gpu("GPU-1", constant(watts))], started_s=20.0 * k))
    return folder


def test_a_dry_run_names_the_settings_and_sends_nothing(tmp_path):
    """The first settings as data, the axes in words."""
    words = ("--dry-run", "--points", "3", "--subject-to", "duration_s<9")
    done = call("optimize", *WORDS, *words, cwd=tmp_path)
    assert done.stdout.splitlines()[0] == "batch_size"
    assert "3 settings that can run, up to 3 runs each" in done.stderr
    assert "duration_s<9" in done.stderr
    assert "at most 3 points" in done.stderr
    assert not (tmp_path / "sweeps").exists()


def test_a_search_ends_with_a_table_and_what_it_rests_on(folder):
    """All is known, so that nothing is sent: the best, what is dearer by its runs, what was spent."""
    done = call("optimize", *WORDS, cwd=folder)
    heading, best, second, _ = [line.split("\t") for line in done.stdout.splitlines()]
    assert heading[-1] == "verdict"
    assert (best[0], best[1], best[-1]) == ("4", "3", "best")
    assert (second[0], second[-1]) == ("2", "dearer")
    assert float(second[-2]) == pytest.approx(2.0, rel=0.01)
    assert "9 points of 3 of 3 settings" in done.stderr
    assert not list(folder.glob("sweeps/s/submitit/*"))


def test_json_has_the_verdict(folder):
    """Also of a rate, of which the most is best."""
    found = json.loads(call("optimize", *WORDS, "--json", cwd=folder).stdout)
    assert found["best"] == {"batch_size": 4}
    assert found["dearer"][0]["established"]
    assert found["spent"]["points"] == 9
    assert found["stopped_by"] == "no further run is worth it"


def test_where_no_setting_keeps_the_conditions_the_exit_code_is_1(folder):
    """And what to look at stands there."""
    done = call("optimize", *WORDS, "--subject-to", "tokens_per_s>1000000", cwd=folder, code=1)
    assert "no setting ran and kept the conditions" in done.stderr
    assert "3 settings failed or broke a condition" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--goal", "joy"), "joy"),
        (("--subject-to", "joy<1"), "joy"),
        (("model=tiny,llama-7b",), "differ in the work"),
        (("--points", "0"), "--points 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(words, said, tmp_path):
    """Exit code 2 and nothing is sent."""
    done = call("optimize", *WORDS, *words, cwd=tmp_path, code=2)
    assert said in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "sweeps").exists()
