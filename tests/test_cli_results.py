"""The verbs of results: what they refuse, and the tables they print."""

import json
import re

import pytest
from commands import call
from sent_sweeps import make_plan, name_of, sent
from sweeps import Gpu, Made, choices, make_attempt, make_sweep
from typer.testing import CliRunner

from wattflow.cli.app import app
from wattflow.collect.collect import collect
from wattflow.submit import send


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


def test_the_report_says_what_became_of_points_that_never_started(fake, tmp_path):
    """One cancelled in the queue, one out of time before its attempt, one that waits, one that was never sent."""
    made = sent(tmp_path, 3)
    send.keep(make_plan(tmp_path, 4))
    fake.queue(f"101_2|PENDING|Priority|{name_of(made)}")
    fake.accounting("101_0|CANCELLED by 1000|None", "101_1|TIMEOUT|None")
    collect(made.sweep)
    done = CliRunner().invoke(app, ["report", str(made.sweep.path)])
    assert done.exit_code == 0, done.output
    page = (made.sweep.results / "report.html").read_text()
    said = [re.sub(r"<[^>]*>", " ", line) for line in page.splitlines() if "<tr><td><code>" in line]
    words = {line.split()[0]: " ".join(line.split()[1:]) for line in said}
    ids = [point.point_id for point in made.sweep.points()]
    assert words[ids[0]] == "interrupted waiting Never started: task 101_0 ended as CANCELLED"
    assert words[ids[1]] == "failed waiting Never started: task 101_1 ended as TIMEOUT"
    assert words[ids[2]] == "waiting waiting Waits in the queue: Priority"
    assert words[ids[3]] == "untried waiting Never sent."
    assert "<code>wattflow resume</code> runs again" in page
