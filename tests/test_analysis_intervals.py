"""Intervals against printed tables, hand and simulated repeats."""

import math

import numpy as np
import pytest

from wattflow.analysis.intervals import Doubt, Part, holm, student_t, welch


def test_students_t_at_other_levels():
    """Printed tables: 99.9 % of 2 degrees is 31.599, of 10 4.587; 50 % of 1 is just 1."""
    assert student_t(2, 0.999) == pytest.approx(31.599, abs=1e-3)
    assert student_t(10, 0.999) == pytest.approx(4.587, abs=1e-3)
    assert student_t(1, 0.5) == pytest.approx(1.0)
    assert student_t(math.inf) == pytest.approx(1.960, abs=0.003)


def test_parts_add_in_quadrature_each_with_its_own_t():
    """4.303 x 3 and 2.042 x 4 make 15.29; a sensor's share is added alike, and no half is below the least."""
    doubt = Doubt((Part(9.0, 2), Part(16.0, 30)))
    assert doubt.half() == pytest.approx(math.hypot(4.303 * 3, 2.042 * 4), rel=1e-4)
    wide = Doubt(doubt.parts, lambda factor: factor * 5.0)
    assert wide.half() == pytest.approx(math.hypot(doubt.half(), 2.101 * 5), rel=1e-4)
    assert Doubt((), least=lambda factor: factor).half() == pytest.approx(2.101, rel=1e-5)


def test_p_is_where_the_interval_ends():
    """A difference of just 4.303 deviations with 2 degrees has p = 0.05, one of 31.6 0.001; rounded up."""
    doubt = Doubt((Part(1.0, 2),))
    assert 0.05 <= doubt.p(4.303) < 0.05 * 1.06
    assert 0.001 <= doubt.p(-31.599) < 0.001 * 1.06
    assert Doubt(()).p(0.1) < 1e-8


@pytest.mark.parametrize(
    ("p", "held"),
    [
        (
            [0.01, 0.04, 0.03, 0.005],
            [True, False, False, True],
        ),  # of Holm (1979): 0.03 is above 0.05 / 2
        ([0.04], [True]),
        ([0.04, None], [True, False]),
        ([0.03, 0.03], [False, False]),
        ([], []),
    ],
)
def test_holm_by_hand(p, held):
    """The least p against 0.05 / m, the next against 0.05 / (m - 1); the first that fails ends it."""
    assert holm(p) == held


def test_welch_by_hand():
    """Equal parts of 2 degrees each make 4; at 2 repeats, or deviations far apart, each keeps its own."""
    assert welch(Part(1.0, 2), Part(1.0, 2)) == (Part(2.0, 4.0),)
    assert welch(Part(1.0, 1), Part(1.0, 4)) == (Part(1.0, 1), Part(1.0, 4))
    assert len(welch(Part(1.0, 2), Part(25.0, 2))) == 2
    assert welch(Part(0.0, 2), Part(0.0, 2)) == ()


def coverage(n, m, spread, size=4000):
    """How often the interval holds the truth, of n repeats against m whose deviation is `spread` times theirs."""
    random = np.random.default_rng([n, m, int(spread * 10)])
    ours, theirs = random.normal(0, 1, (size, n)), random.normal(0, spread, (size, m))
    inside = 0
    for a, b in zip(ours, theirs, strict=True):
        parts = welch(Part(a.var(ddof=1) / n, n - 1), Part(b.var(ddof=1) / m, m - 1))
        inside += abs(a.mean() - b.mean()) <= Doubt(parts).half()
    return inside / size


@pytest.mark.parametrize(
    ("n", "m", "spread"),
    [
        (2, 2, 1),
        (2, 5, 0.2),
        (2, 5, 5),
        (3, 3, 1),
        (3, 3, 2),
        (3, 10, 0.5),
        (3, 5, 0.5),
        (3, 30, 0.5),
        (3, 30, 1),
        (3, 10, 2),
        (5, 5, 2),
        (10, 3, 5),
    ],
)
def test_intervals_of_repeats_hold_the_truth(n, m, spread):
    """At least 94 %, from 2 repeats on and whatever their deviations."""
    found = coverage(n, m, spread)
    print(f"{n} against {m} repeats, {spread} times the deviation: {100 * found:.1f} %")
    assert found >= 0.94 - 0.004


def test_half_the_interval_holds_too_little(monkeypatch):
    """A negative control: half of it holds the truth in less than 90 %."""
    half = Doubt.half
    monkeypatch.setattr(Doubt, "half", lambda self, level=0.95: half(self, level) / 2)
    assert coverage(3, 3, 1) < 0.9
