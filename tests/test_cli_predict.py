"""`wattflow predict`: the table, the frozen file, and its check."""

import json

import predictions
import pytest
from local_runs import call

from wattflow.plan.grid import plan

WORDS = ("cluster=local", "model=tiny", "engine=synthetic", "n_prompts=16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished sweep of eight configurations."""
    folder = tmp_path_factory.mktemp("predict")
    words = (*WORDS, "batch_size=1,2,4,8", "max_gen_len=8,32", "sweep.repeats=1", "sweep=seen")
    predictions.run_sweep(plan([*words, f"sweeps_dir={folder / 'sweeps'}"]))
    return folder


def test_points_never_run_are_predicted_and_marked(folder):
    """Of a batch between those measured; the held-out errors stand beside it."""
    words = (*WORDS, "batch_size=4,16", "max_gen_len=16", "sweep=next")
    done = call("predict", *words, "--from", "seen", cwd=folder)
    heading, first, second = [line.split("\t") for line in done.stdout.splitlines()]
    assert heading == ["batch_size", "s", "J", "J/token", "is"]
    assert {first[-1], second[-1]} == {"predicted"}
    assert " to " in first[1]
    assert "held out by configuration: energy" in done.stderr
    assert "6 of 6 points" in done.stderr
    assert not (folder / "sweeps" / "next").exists()


def test_a_prediction_is_near_what_the_board_does(folder):
    """Within 5 % of the law by which it runs."""
    words = (*WORDS, "batch_size=4", "max_gen_len=16", "sweep=next")
    found = json.loads(call("predict", *words, "--from", "seen", "--json", cwd=folder).stdout)
    point = plan([*words, f"sweeps_dir={folder / 'sweeps'}"]).points[0]
    joules = predictions.truth(point.config)[1] * predictions.SLOWER
    assert found["is"] == "predicted"
    assert found["points"][0]["joules"]["value"] == pytest.approx(joules, rel=0.05)


def test_frozen_predictions_are_checked_after_their_runs(folder, tmp_path):
    """The file's hash is printed when it is frozen, and again when it is checked."""
    words = (*WORDS, "batch_size=2,4", "max_gen_len=16", "sweep.repeats=1", "sweep=later")
    frozen = tmp_path / "later.json"
    digest = call(
        "predict", *words, "--from", "seen", "--freeze", str(frozen), cwd=folder
    ).stdout.strip()
    assert len(digest) == 64
    predictions.run_sweep(plan([*words, f"sweeps_dir={folder / 'sweeps'}"]), started_s=1e9)
    done = call("predict", "--check", str(frozen), "later", cwd=folder)
    assert len(done.stdout.splitlines()) == 3
    assert digest in done.stderr
    assert "energy off on the mean" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--from"),
        (("--from", "nowhere"), "nowhere"),
        (("--from", "seen", "--fabric", "x"), "--fabric x"),
        (("--check", "nothing.json"), "one sweep"),
        (("--check", "nothing.json", "seen", "--from", "seen"), "leave --from"),
    ],
)
def test_what_cannot_be_predicted_is_refused(words, said, folder):
    """Exit code 2."""
    assert said in call("predict", *words, cwd=folder, code=2).stderr
