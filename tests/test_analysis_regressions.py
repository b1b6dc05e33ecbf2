"""Two sweeps of the same settings: what got worse, and how sure that is."""

import pytest
from sweeps import Gpu, Made, choices, collected, constant

from wattflow.analysis.regressions import changes
from wattflow.errors import RefusedError

J, RATE = "energy_per_token_j", "tokens_per_s"


def made(path, watts, repeats=3, uuid="GPU-1", **over):
    """A collected sweep of batch sizes at their watts, on one board."""
    points, attempts = [], []
    for size, base in watts.items():
        for repeat in range(repeats):
            points.append(choices(batch_size=size, repeat=repeat, **over.get("choices", {})))
            attempts.append(Made([Gpu(uuid, constant(base + repeat))], **over.get("made", {})))
    return collected(path, attempts, points)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return made(tmp_path_factory.mktemp("before") / "before", {1: 400.0, 2: 500.0, 4: 600.0})


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """Batch 1 as before, 2 takes 20 % more, 4 was left out, 8 is new."""
    return made(tmp_path_factory.mktemp("after") / "after", {1: 400.0, 2: 600.0, 8: 600.0})


def test_settings_that_both_ran_are_held_against_each_other(before, after):
    """20 % more is established, none is not; what one sweep ran alone is counted."""
    found = changes(before, after, J)
    same, dearer = found.changes
    assert (same.chosen, dearer.chosen) == ({"batch_size": 1}, {"batch_size": 2})
    assert same.ratio.ratio == pytest.approx(1.0, abs=1e-3)
    assert not same.ratio.established
    assert dearer.ratio.ratio == pytest.approx(601 / 501, rel=1e-3)
    assert dearer.ratio.established
    assert (found.only_before, found.only_after) == (1, 1)


def test_worse_is_more_energy_or_a_lower_rate_by_more_than_the_share(before, after):
    """The other way round the same change is for the better."""
    dearer = changes(before, after, J).changes[1]
    assert dearer.is_worse(0.03, more_is_better=False)
    assert not dearer.is_worse(0.25, more_is_better=False)
    assert not dearer.is_worse(0.03, more_is_better=True)
    cheaper = changes(after, before, J).changes[1]
    assert cheaper.is_worse(0.03, more_is_better=True)


def test_one_run_a_side_fails_nothing(before, tmp_path):
    """20 % more in one run is no established change."""
    found = changes(made(tmp_path / "a", {2: 500.0}, 1), made(tmp_path / "b", {2: 600.0}, 1), J)
    assert not found.changes[0].is_worse(0.0, more_is_better=False)


def test_simulated_joules_establish_no_change(tmp_path):
    """They are arithmetic."""
    over = {"made": {"source": "simulated"}}
    pair = [made(tmp_path / n, {2: watts}, **over) for n, watts in (("a", 500.0), ("b", 600.0))]
    found = changes(*pair, J)
    assert found.simulated
    assert found.changes[0].ratio.why_not == "simulated"


def test_sweeps_without_a_common_setting_or_with_other_joules_are_refused(before, tmp_path):
    """So is a figure that is none."""
    other = made(tmp_path / "other", {16: 500.0})
    with pytest.raises(RefusedError, match="no setting counts in both"):
        changes(before, other, J)
    with pytest.raises(RefusedError, match="--metric model"):
        changes(before, other, "model")
    simulated = made(tmp_path / "simulated", {1: 400.0}, made={"source": "simulated"})
    with pytest.raises(RefusedError, match="2 kinds"):
        changes(before, simulated, J)
    assert changes(before, simulated, RATE).changes
