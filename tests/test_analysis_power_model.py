"""The linear model of power: blocks, a sensor's delays, and a hidden law found again within its intervals."""

import numpy as np
import pytest
from hidden_power import LAW, Simulated

from wattflow.analysis.power_model import TERMS, cut, delays_s, fit, overlaps
from wattflow.store.sources import Response

RC = Response(20.0, 13.7, 3.9, "exponential")


def test_delays_are_those_of_the_sensors_answer():
    """Mean lag + time constant, or lag + half a window."""
    assert delays_s(RC).mean() == pytest.approx((3.9 + 13.7) / 1e3, rel=0.05)
    assert delays_s(Response(100.0, 25.0, 1.0)).mean() == pytest.approx(0.0135)


def test_shares_of_an_iteration_add_up_where_blocks_hold_it():
    """An iteration of 1 s from 0.5 s lies in two blocks by halves; one beyond the last edge is in none."""
    found = overlaps(
        np.array([0.5, 3.0]), np.array([1.5, 4.0]), np.array([0.0, 1.0, 2.0]), np.zeros(1)
    )
    assert found.of_blocks(np.ones((2, 1)))[:, 0] == pytest.approx([0.5, 0.5])
    assert found.of_steps(np.array([10.0, 20.0])) == pytest.approx([15.0, 0.0])


def test_blocks_end_with_iterations_and_last_a_second():
    """Iterations of 0.4 s: edges at 1.2 s, 2.4 s ...; a short rest joins the last block."""
    ends = np.arange(1, 11) * 0.4
    assert cut(ends, 0.0, 1.0) == pytest.approx([0.0, 1.2, 2.4, 4.0])


@pytest.mark.parametrize(
    ("runs", "least"), [(30, 0.9), pytest.param(200, 0.95, marks=pytest.mark.slow)]
)
def test_a_hidden_law_is_found_within_its_intervals(runs, least):
    """Through the sensor's answer and its noise: each coefficient in its interval in 95 % of 200 simulated runs."""
    inside = np.zeros(len(TERMS))
    for seed in range(runs):
        run = Simulated(seed, seconds=40, response=RC)
        found = run.fitted()
        assert found.dropped == ("cached",)
        inside += np.abs(found.joules - LAW) <= np.where(
            np.isnan(found.half_width), np.inf, found.half_width
        )
    # of 200 runs at 95 %, 1 in 40 counts below 92 % by chance
    assert np.all(inside / runs >= least - 0.03), dict(zip(TERMS, inside, strict=True))
    assert inside.sum() / runs / len(TERMS) >= least


def test_the_sensors_delay_matters():
    """Negative control: blocks cut without the sensor's delay of a second miss the law of a prompt's tokens."""
    slow = Response(100.0, 1000.0)
    hits, errors = {}, {}
    for filtered in (True, False):
        runs = [
            Simulated(seed, seconds=40, response=slow).fitted(filtered=filtered)
            for seed in range(8)
        ]
        hits[filtered] = np.mean([abs(run.joules[2] - LAW[2]) <= run.half_width[2] for run in runs])
        errors[filtered] = np.mean([run.held_out for run in runs])
    assert hits[True] >= 0.75
    assert hits[False] <= 0.5
    assert errors[False] > 10 * errors[True]


def test_terms_that_go_together_are_not_both_claimed():
    """Busy all the time is idle all the time: the later of both is left out and named."""
    rng = np.random.default_rng(0)
    tokens = rng.uniform(0, 100, 40)
    terms = np.zeros((40, 6))
    terms[:, 0] = terms[:, 1] = 1.0
    terms[:, 4] = tokens
    found = fit(terms, 100.0 + tokens * 2.0)
    assert "busy" in found.dropped
    assert found.joules[[0, 4]] == pytest.approx([100.0, 2.0])
    assert found.held_out < 1e-9


def test_no_term_gives_energy_back():
    """A coefficient that comes out below 0 is left out."""
    terms = np.zeros((30, 6))
    terms[:, 0] = 1.0
    terms[:, 4] = np.linspace(0, 10, 30)
    found = fit(terms, 100.0 - terms[:, 4])
    assert "decode" in found.dropped
    assert found.joules[4] == 0.0


def test_too_few_blocks_have_no_model():
    """Null, not a guess."""
    assert fit(np.ones((2, 6)), np.ones(2)) is None
