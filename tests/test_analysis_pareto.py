"""The front of energy against throughput, on settings whose figures are known."""

import pytest
from sweeps import Gpu, Made, choices, collected, constant

from wattflow.analysis.pareto import pareto
from wattflow.errors import RefusedError

J, RATE = "energy_per_token_j", "tokens_per_s"
# batch size: watts, tokens a batch. 2 beats 1 in both; 3 is faster than 2 and dearer; 4 is 0.15 % dearer than 2
SETTINGS = {1: (600.0, 100), 2: (650.0, 200), 3: (900.0, 220), 4: (651.0, 200)}


def made(path, settings, repeats=3, **over):
    """A collected sweep of batch sizes on one board, each at its watts and tokens in each repeat."""
    points, attempts = [], []
    for size, (watts, tokens) in settings.items():
        for repeat in range(repeats):
            points.append(choices(batch_size=size, repeat=repeat, **over))
            attempts.append(Made([Gpu("GPU-1", constant(watts + repeat))], tokens=tokens))
    return collected(path, attempts, points)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """All four settings, three repeats each."""
    return made(tmp_path_factory.mktemp("pareto") / "s", SETTINGS)


def states(found):
    """Return the state of each batch size."""
    return {one.chosen["batch_size"]: one.state for one in found}


def test_the_front_and_what_is_off_it(sweep):
    """2 and 3 are on it, 1 is established to be beaten in both, of 4 it is not known; the cheapest comes first."""
    found = pareto(sweep.points, J, RATE)
    assert states(found) == {2: "front", 3: "front", 1: "dominated", 4: "not established"}
    assert [one.chosen["batch_size"] for one in found] == [2, 4, 3, 1]
    assert next(one for one in found if one.chosen["batch_size"] == 1).by == {"batch_size": 2}


def test_a_latency_is_better_low(sweep):
    """Against the window's seconds, which are alike but for nothing, the cheapest a second alone is on the front."""
    found = states(pareto(sweep.points, "energy_j", "power_w"))
    assert found[1] == "front"
    assert found[3] == "dominated"


def test_one_run_a_side_dominates_nothing(tmp_path):
    """Without repeats nothing is established to be off the front."""
    found = pareto(made(tmp_path / "s", SETTINGS, repeats=1).points, J, RATE)
    assert states(found) == {
        2: "front",
        3: "front",
        1: "not established",
        4: "not established",
    }


def test_another_length_is_other_work(tmp_path):
    """A setting that makes shorter answers does not compete with one that makes long ones."""
    points, attempts = [], []
    for length, tokens in ((32, 400), (64, 100)):
        for repeat in range(3):
            points.append(choices(max_gen_len=length, repeat=repeat))
            attempts.append(Made([Gpu("GPU-1", constant(600.0 + repeat))], tokens=tokens))
    found = pareto(collected(tmp_path / "s", attempts, points).points, J, RATE)
    assert {one.state for one in found} == {"front"}


@pytest.mark.parametrize(
    ("metric", "against", "said"),
    [(J, "model", "not a number"), ("joules", RATE, "not a number"), (J, "nonsense", "nonsense")],
)
def test_columns_that_are_no_figures_are_refused(metric, against, said, sweep):
    """The refusal names the column."""
    with pytest.raises(RefusedError, match=said):
        pareto(sweep.points, metric, against)


def test_one_setting_has_no_front(tmp_path):
    """There is nothing to compare."""
    with pytest.raises(RefusedError, match="one setting"):
        pareto(made(tmp_path / "s", {1: SETTINGS[1]}).points, J, RATE)
