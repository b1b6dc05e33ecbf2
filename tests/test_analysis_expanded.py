"""The expanded uncertainty of any energy of a row, against the budget of its window."""

import math

import pytest
from collection import one
from sweeps import Gpu, Made, constant

from wattflow.analysis.expanded import (
    expanded,
    has_stated_gain,
    metered_relative_u,
    relative_board_u,
    sensors_expanded,
)
from wattflow.energy.boards import METERED


@pytest.fixture
def row(tmp_path):
    """One board at 150 W."""
    return one(tmp_path, Made([Gpu("GPU-a", constant(150.0))]))[2]


def test_of_the_window_it_is_the_rows_own(row):
    """What the row has for its window comes out again."""
    own = expanded(row, row["energy_j"], row["duration_s"], row["energy_u_j"])
    assert own == pytest.approx(row["energy_expanded_u_j"])


def test_another_energy_has_the_same_gain_and_offset(row):
    """Half the watts for twice the time: the same J by gain, and twice the offset's share."""
    watts = row["power_w"] / 2
    assert relative_board_u(row, watts) == pytest.approx(METERED.relative_u(watts))
    assert relative_board_u(row, math.inf) == pytest.approx(METERED.u(1.0, 0.0))  # above idle


def test_all_that_an_attempt_took_has_one(row):
    """150 W over the attempt's time, by hand; and each phase of the device has its own."""
    watts = row["job_energy_j"] / row["attempt_s"]
    by_hand = 2 * math.hypot(METERED.relative_u(watts) * row["job_energy_j"], row["job_energy_u_j"])
    assert row["job_energy_expanded_u_j"] == pytest.approx(by_hand)


@pytest.mark.parametrize("source", ["rapl", "simulated", "nvml_buffer + rapl", "a later sensor"])
def test_a_sensor_whose_gain_nobody_states_has_none(source):
    """The 19 boards are GPUs: what they show holds for no other sensor."""
    assert not has_stated_gain(source)
    assert metered_relative_u(source, 100.0, 1) is None
    assert sensors_expanded(source, 100.0, 1.0, 1) is None


def test_several_boards_are_independent_of_each_other():
    """Of two boards the own parts are less, the mean of all boards stays."""
    one_board, two = (metered_relative_u("nvml_buffer", 300.0 * n, n) for n in (1, 2))
    assert one_board == pytest.approx(METERED.relative_u(300.0))
    assert two == pytest.approx(METERED.relative_u(300.0, 2))


@pytest.mark.parametrize("part", [(None, 1.0, 1), (5.0, None, 1), (5.0, 1.0, 0), (0.0, 1.0, 1)])
def test_an_unknown_part_makes_it_unknown(row, part):
    """No energy, no time, no boards."""
    energy_j, seconds, boards = part
    assert sensors_expanded("nvml_buffer", energy_j, seconds, boards) is None
    if boards:
        assert expanded(row, energy_j, seconds, 0.0) is None
