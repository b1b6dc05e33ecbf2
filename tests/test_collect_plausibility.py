"""Samples that no board makes are named in a remark; the row counts."""

import numpy as np
import pytest
from collection import one, retraced
from sweeps import Gpu, Made


def wave(seconds):
    """A load as boards have it: between 290 and 310 W."""
    return 300 + 10 * np.sin(seconds * 31)


@pytest.mark.parametrize(
    ("curve", "named"),
    [
        (wave, False),
        (lambda s: np.where((s > 5) & (s < 5.01), 0.0, wave(s)), True),  # one sample of nothing
        (lambda s: np.where((s > 5) & (s < 5.1), 971.0, wave(s)), False),  # seen on a 700 W board
        (lambda s: np.where((s > 5) & (s < 5.01), 4e6, wave(s)), True),  # one sample of 4 MW
        (lambda s: 300 + 0 * s, True),  # frozen, and no counter to check it by
        (lambda s: np.where(s > 5, 300.0, wave(s)), True),  # frozen from some time on
        (lambda s: np.where((s > 5) & (s < 5.4), 300.0, wave(s)), False),  # 0.4 s of calm
    ],
)
def test_what_no_board_does_is_named(tmp_path, curve, named):
    """A sample of 0 W, one of 4 MW and a frozen sensor are remarks; a wave and a spike to 971 W are none."""
    row = one(tmp_path, Made([Gpu("GPU-a", curve)], counter=False))[2]
    assert ("implausible_power" in row["reasons"]) is named
    assert row["valid"]


def test_a_still_sensor_with_a_counter_that_agrees_is_believed(tmp_path):
    """A constant load whose counter makes the same joules carries no remark."""
    assert "implausible_power" not in one(tmp_path, Made([Gpu("GPU-a")]))[2]["reasons"]


def test_a_sensor_that_froze_beside_a_counter_is_named(tmp_path):
    """Still at 300 W from some time on, while the counter goes on with a load of 290 to 310 W and 12 % more."""

    def scaled(readings):
        zero = 126_000_000_000
        return [
            {**r, "counter_mj": zero + round((r["counter_mj"] - zero) * 1.12)}
            if r["counter_mj"] is not None
            else r
            for r in readings
        ]

    row = retraced(tmp_path, scaled)
    assert {"implausible_power", "counter_contradicts"} <= set(row["reasons"])
    assert not row["valid"]


@pytest.mark.parametrize("power_w", [0.0, 0.004])
def test_joules_of_a_board_that_draws_nothing_are_withheld(tmp_path, power_w):
    """0.4 s of 0 W or of 4 mW, without a counter, are a gap of 0.42 s and never joules; the row says so."""
    nothing = lambda s: np.where((s > 5) & (s < 5.4), power_w, wave(s))  # noqa: E731 (a curve)
    row = one(tmp_path, Made([Gpu("GPU-a", nothing)], counter=False))[2]
    assert {"gap", "implausible_power"} <= set(row["reasons"])
    assert (row["energy_j"], row["valid"]) == (None, False)
    assert row["longest_gap_s"] == pytest.approx(0.42, abs=0.021)
