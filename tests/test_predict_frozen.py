"""Frozen predictions: held to their hash and to their time, and to what was measured after."""

import json
import time
from types import SimpleNamespace

import polars as pl
import predictions
import pytest

from wattflow.config.choices import to_dict
from wattflow.errors import DamagedError, RefusedError
from wattflow.plan.grid import plan
from wattflow.predict.fit import Estimate, Prediction
from wattflow.predict.frozen import check, freeze, hash_of, read_frozen
from wattflow.store.columns import choice_values

WORDS = ("cluster=local", "model=tiny", "engine=synthetic", "n_prompts=8", "max_gen_len=8")
WORDS += ("batch_size=2,4,8", "sweep.repeats=1", "sweep=s")


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A plan frozen 10 % too high, with intervals of 5 % for batch 2 and of 20 % else; then run."""
    folder = tmp_path_factory.mktemp("frozen")
    made = plan([*WORDS, f"sweeps_dir={folder}"])
    points = []
    for point in made.points:
        seconds, joules = (
            1.1 * predictions.SLOWER * one for one in predictions.truth(point.config)
        )
        near = 1.05 if point.config.batch_size == 2 else 1.2
        tokens = 8 * 8
        prediction = Prediction(
            Estimate(seconds, seconds / near, seconds * near),
            Estimate(joules, joules / near, joules * near),
            Estimate(joules / tokens, None, None),
        )
        chosen = choice_values(to_dict(point.config))
        points.append(
            (point.point_id, {"batch_size": chosen["batch_size"], "repeat": 0}, prediction)
        )
    path = folder / "next.json"
    digest = freeze(path, points, {"from": []})
    after_s = time.time() - predictions_start() + 60
    return path, digest, predictions.run_sweep(made, started_s=after_s)


def predictions_start():
    """The unix second at which attempts of made sweeps start."""
    from sweeps import START_NS

    return START_NS / 1e9


def test_a_check_prints_what_was_off(tested):
    """10 % on the mean in both, one of three outside its interval, the cheapest one first."""
    path, _, sweep = tested
    outcome = check(read_frozen(path), sweep)
    assert len(outcome.points) == 3
    assert outcome.energy_mape == pytest.approx(0.10, abs=0.01)
    assert outcome.time_mape == pytest.approx(0.10, abs=0.001)
    assert outcome.inside == pytest.approx(2 / 3)
    assert outcome.best_first is True
    assert (outcome.earlier, outcome.missing) == (0, 0)


def test_runs_that_are_older_than_the_predictions_test_nothing(tested):
    """A prediction of what is known is none."""
    path, _, sweep = tested
    late = {**read_frozen(path), "frozen_ns": time.time_ns() + 10**18}
    outcome = check(late, sweep)
    assert outcome.points == []
    assert outcome.earlier == 3
    assert outcome.energy_mape is None


def test_points_that_did_not_run_are_counted(tested):
    """They neither help nor hurt."""
    path, _, sweep = tested
    document = read_frozen(path)
    point = {**document["points"][0], "point_id": "0" * 12}
    assert check({**document, "points": [*document["points"], point]}, sweep).missing == 1


def test_a_run_whose_joules_are_unknown_is_missing(tested):
    """It counts in other figures."""
    path, _, sweep = tested
    lacking = pl.when(pl.col("batch_size") == 2).then(None).otherwise(pl.col("energy_j"))
    points = sweep.points.with_columns(lacking.alias("energy_j"))
    outcome = check(read_frozen(path), SimpleNamespace(points=points))
    assert (len(outcome.points), outcome.missing) == (2, 1)


def test_what_was_changed_since_is_refused(tested, tmp_path):
    """A number, the time, or the hash itself."""
    path, digest, _ = tested
    text = path.read_text()
    assert digest in text
    for before, after in (
        ("frozen_ns", "frozen_nS"),
        (digest, "0" * 64),
        ('"batch_size": 4', '"batch_size": 5'),
    ):
        assert before in text
        changed = tmp_path / "changed.json"
        changed.write_text(text.replace(before, after, 1))
        with pytest.raises(DamagedError, match=r"changed\.json"):
            read_frozen(changed)


_NAN = json.dumps({"kind": "wattflow prediction 1", "sha256": "y", "frozen_ns": float("nan")})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps({"kind": "x", "sha256": "y"}), "nan", _NAN]
)
def test_what_is_no_file_of_predictions_is_refused(text, tmp_path):
    """In one line."""
    path = tmp_path / "no.json"
    path.write_text(text)
    with pytest.raises(DamagedError, match="no file of predictions"):
        read_frozen(path)


def test_what_is_frozen_is_not_written_again(tested):
    """Another name is asked for."""
    with pytest.raises(RefusedError, match="what is frozen stays"):
        freeze(tested[0], [], {})


def test_the_hash_of_a_file_is_its_sha256(tmp_path):
    """Of its bytes."""
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert hash_of(path).startswith("ba7816bf")
