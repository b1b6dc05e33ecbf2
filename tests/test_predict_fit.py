"""Non-negative least squares, held-out errors, and intervals that hold as often as they say."""

import numpy as np
import predictions
import pytest
from predictions import PROMPT, config, grid, relative, truth

from wattflow.errors import RefusedError
from wattflow.predict.fit import non_negative
from wattflow.predict.form import Fabric, terms
from wattflow.predict.runs import model_of

UNIT = Fabric(10e-6, 100e9)


def fitted(points, seed, repeats=3, noise=predictions.NOISE):
    rng = np.random.default_rng(seed)
    runs = [predictions.run(point, rng, noise=noise) for point in points for _ in range(repeats)]
    (board,) = model_of(runs).boards.values()
    return board


def predicted(board, point):
    return board.fit.predict(terms(point, PROMPT, board.ceilings, UNIT))


def test_coefficients_are_found_and_are_never_negative():
    """Against the known solution, and against all subsets of columns by brute force."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, truth_x = rng.random((12, 4)), np.maximum(rng.standard_normal(4), 0)
        b = a @ truth_x + 0.3 * rng.standard_normal(12)
        found = non_negative(a, b)
        assert (found >= 0).all()
        least = np.inf
        for subset in range(16):
            columns = [k for k in range(4) if subset >> k & 1]
            x = np.linalg.lstsq(a[:, columns], b, rcond=None)[0] if columns else np.zeros(0)
            if (x >= 0).all():
                least = min(least, float(np.linalg.norm(a[:, columns] @ x - b)))
        assert np.linalg.norm(a @ found - b) == pytest.approx(least, rel=1e-9)


def test_columns_of_very_different_size_are_fitted_alike():
    """Bytes and seconds stand side by side; a column of zeros counts for nothing."""
    a = np.array([[1e12, 1e-3, 0], [3e12, 5e-3, 0], [2e12, 9e-3, 0]])
    assert non_negative(a, a @ np.array([2e-12, 300.0, 0])) == pytest.approx([2e-12, 300.0, 0])


def test_held_out_configurations_of_a_board_and_model_seen_are_within_5_percent():
    """The made-up board is not of the form: the errors are those of a law that is near it."""
    board = fitted(grid(), seed=1)
    assert board.by_setting.settings == 24
    assert 0.001 < board.by_setting.energy_mape < 0.05


def test_an_unseen_model_is_within_10_percent_and_the_cheapest_configuration_first():
    """A model with grouped heads, which no fitted one has; 9 of 10 seeds and more have the best one first."""
    points = [config("gqa", b, 128, prompts=2 * b) for b in (1, 2, 8, 32, 128)]
    true = [truth(point)[1] / (point.n_prompts * 128) for point in points]
    first = []
    for seed in range(10):
        board = fitted(grid(), seed)
        made = [predicted(board, point) for point in points]
        off = [relative(m.energy_per_token_j.value, t) for m, t in zip(made, true, strict=True)]
        assert np.mean(off) < 0.10
        first.append(
            int(np.argmin([m.energy_per_token_j.value for m in made])) == int(np.argmin(true))
        )
    assert sum(first) >= 9
    assert board.by_model.energy_mape < 0.10


def coverage(cap_w=None, seeds=30, repeats=1, noise=predictions.NOISE):
    """Return the share of runs of unseen configurations that lie in their interval."""
    points = [
        config(m, b, n, prompts=2 * b)
        for m in ("small", "13b")
        for b in (2, 8, 32)
        for n in (96, 160)
    ]
    inside = []
    for seed in range(seeds):
        board = fitted(grid(), seed, repeats, noise)
        rng = np.random.default_rng(1000 + seed)
        for point in points:
            made = predicted(board, point).joules
            joules = predictions.run(point, rng, cap_w, noise).joules
            inside.append(made.low <= joules <= made.high)
    return float(np.mean(inside))


def test_intervals_hold_as_often_as_they_say():
    """360 runs of configurations that were not fitted: 95 % or more, and the widths are no blank cheque."""
    assert coverage() >= 0.95
    made = predicted(fitted(grid(), 0), config("7b", 8, 96)).joules
    assert made.high / made.low < 1.6


def test_repeats_make_no_interval_of_one_further_run_narrower():
    """Noise that is larger than what the form misses: the mean of five repeats scatters less than the next run."""
    assert coverage(repeats=5, noise=0.06, seeds=10) >= 0.93


def test_a_power_cap_that_no_fitted_run_had_breaks_them():
    """The negative control: what the form knows nothing of is not covered by its intervals."""
    assert coverage(cap_w=250.0, seeds=10) < 0.7


def test_a_prediction_far_from_what_was_fitted_is_less_sure():
    """Batches of 1 alone say little of batches of 64."""
    near = fitted(grid(batch_sizes=(1, 2)), 0)
    inside, outside = (predicted(near, config("7b", b, 64)).joules for b in (1, 128))
    assert outside.high / outside.low > inside.high / inside.low


def test_few_configurations_make_no_fit():
    """Repeats of three are three."""
    with pytest.raises(RefusedError, match="3 configurations"):
        fitted(grid(("7b",), (1, 4, 16), (64,)), 0)
