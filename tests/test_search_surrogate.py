"""The fit of runs: it comes back to what made them, and knows how sure it is."""

import numpy as np
import pytest

from wattflow.search.surrogate import fit

GRID = np.array([[a, b] for a in np.linspace(0, 1, 8) for b in (0.0, 1.0, 2.0)])
NUMERIC = (True, False)


def curve(x):
    return 0.8 * (x[:, 0] - 0.4) ** 2 + 0.1 * (x[:, 1] == 1.0)


def test_a_smooth_curve_is_found_from_a_third_of_its_points():
    """The largest error is a few percent of the curve's spread, and the deviations say so."""
    rng = np.random.default_rng(1)
    some = rng.permutation(len(GRID))[:10]
    noisy = curve(GRID[some]) + 0.003 * rng.standard_normal(10)
    mean, sd = fit(GRID[some], noisy, NUMERIC, seed=0).predict(GRID)
    off = np.abs(mean - curve(GRID))
    assert off.max() < 0.05
    assert np.mean(off < 2 * sd + 0.003) > 0.8


def test_repeats_show_the_noise():
    """Ten runs of two settings each: the deviation of one run comes back within a factor of 1.6."""
    rng = np.random.default_rng(2)
    x = np.repeat(GRID[[0, -1]], 10, axis=0)
    found = fit(x, np.repeat([0.0, 1.0], 10) + 0.02 * rng.standard_normal(20), NUMERIC, seed=0)
    assert 0.02 / 1.6 < found.noise < 0.02 * 1.6


def test_a_run_that_comes_out_as_expected_moves_no_mean_and_leaves_less_doubt():
    """The setting itself becomes surer, and none less sure."""
    some = [0, 4, 9, 13, 18, 23]
    found = fit(GRID[some], curve(GRID[some]), NUMERIC, seed=0)
    mean, sd = found.predict(GRID)
    more, surer = found.with_expected(GRID[11]).predict(GRID)
    assert more == pytest.approx(mean, abs=1e-6)
    assert surer[11] < sd[11]
    assert np.all(surer <= sd + 1e-9)


def test_equal_figures_and_one_run_are_no_trouble():
    """A flat goal stays flat."""
    mean, _ = fit(GRID[:5], np.full(5, 3.0), NUMERIC, seed=0).predict(GRID)
    assert mean == pytest.approx(np.full(len(GRID), 3.0))
    mean, sd = fit(GRID[:1], np.array([2.0]), NUMERIC, seed=0).predict(GRID)
    assert np.isfinite([mean, sd]).all()


def test_a_fit_is_the_same_for_the_same_seed():
    """A search that was killed decides as it did before."""
    some = GRID[::3]
    first, second = (fit(some, curve(some), NUMERIC, seed=7).predict(GRID)[0] for _ in range(2))
    assert np.array_equal(first, second)
