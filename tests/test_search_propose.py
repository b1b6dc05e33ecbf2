"""Which settings run next."""

import numpy as np
import pytest

from wattflow.search.propose import Observation, believe, design, design_size, propose
from wattflow.search.space import Space

ROWS = [(batch, precision) for batch in (1, 2, 4, 8, 16, 32) for precision in ("bf16", "fp8")]
SPACE = Space.of(["batch_size", "precision"], ROWS)


def goal(setting):
    """Least at batch 16 in fp8."""
    batch, precision = ROWS[setting]
    return (1.0 + (np.log2(batch) - 4) ** 2) * (1.0 if precision == "fp8" else 1.7)


def test_a_design_spreads_over_the_ends_of_all_axes():
    """Four of twelve settings have both precisions and both ends of the batches."""
    for seed in range(5):
        chosen = [ROWS[k] for k in design(SPACE, 4, seed)]
        assert {precision for _, precision in chosen} == {"bf16", "fp8"}
        assert {batch for batch, _ in chosen} >= {1, 32}


def test_a_design_takes_none_twice_and_no_more_than_there_are():
    """What was taken before is left out."""
    chosen = design(SPACE, 40, 0, taken=[0, 1, 2])
    assert sorted(chosen) == list(range(3, 12))


def test_a_search_goes_to_the_optimum():
    """After the design, four more runs have found the least of twelve."""
    seen = []
    while len(seen) < design_size(SPACE) + 4:
        seen += [Observation(k, goal(k)) for k in propose(SPACE, seen, [], 1, seed=3)]
    assert ROWS[believe(SPACE, seen, 3).best] == (16, "fp8")
    assert len({one.setting for one in seen}) == len(seen)


def test_several_at_once_differ_and_leave_out_what_waits():
    """Nobody runs a setting that is under way."""
    seen = [Observation(k, goal(k)) for k in (0, 3, 6, 11)]
    chosen = propose(SPACE, seen, [9, 10], 4, seed=0)
    assert len(set(chosen)) == 4
    assert not {*chosen} & {0, 3, 6, 11, 9, 10}


def test_all_settings_asked_leave_nothing_to_propose():
    """A grid may be smaller than what was asked for."""
    seen = [Observation(k, goal(k)) for k in range(11)]
    assert propose(SPACE, seen, [], 5, seed=0) == [11]
    assert propose(SPACE, seen, [11], 5, seed=0) == []


def test_settings_that_fail_are_no_best_and_keep_the_search_away():
    """Batches of 16 and more do not fit: the best is at 8, and their neighbours are held for unlikely to run."""
    fits = {k: ROWS[k][0] < 16 for k in range(12)}
    seen = [Observation(k, goal(k) if fits[k] else None) for k in (0, 1, 5, 7, 8, 9, 10)]
    belief = believe(SPACE, seen, 0)
    assert ROWS[belief.best][0] == 8
    assert belief.allowed[11] < 0.5 < belief.allowed[6]


def test_a_setting_that_breaks_a_condition_is_no_best_though_it_is_the_cheapest():
    """The latency of a batch has to stay below its limit, by its own runs and not only by the fit's."""
    seen = [Observation(k, goal(k), (ROWS[k][0] / 10,)) for k in range(12)]
    assert ROWS[believe(SPACE, seen, 0).best] == (8, "fp8")
    close = [Observation(k, goal(k), (0.5 if k != 9 else 1.001,)) for k in range(12)]
    assert believe(SPACE, close, 0).best != 9


def test_where_all_failed_the_search_goes_on_elsewhere():
    """Nothing is known but that those do not run."""
    seen = [Observation(k, None) for k in (0, 3, 6, 11)]
    assert believe(SPACE, seen, 0).best is None
    assert len(propose(SPACE, seen, [], 3, seed=0)) == 3


@pytest.mark.parametrize("settings", [1, 2, 3])
def test_tiny_grids_are_run_whole(settings):
    """A design is never larger than the grid."""
    space = Space.of(["n"], [(k,) for k in range(settings)])
    assert sorted(propose(space, [], [], 9, seed=0)) == list(range(settings))
