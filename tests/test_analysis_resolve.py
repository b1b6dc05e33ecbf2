"""What can be established at best, against the comparison itself."""

import math

import pytest

from wattflow.analysis.resolve import resolvable
from wattflow.energy.boards import METERED
from wattflow.errors import RefusedError


def test_one_repeat_establishes_nothing():
    """1 x 1 has no smallest difference."""
    assert resolvable((300, 150), 1, 1) is None


def test_one_board_by_hand():
    """3 repeats of 0.5 % at equal watts: 2.776 x 0.005 x sqrt(2 / 3) = 1.13 %; at others the offset beside it."""
    scatter = 2.776 * 0.005 * math.sqrt(2 / 3)
    assert resolvable((300, 300), 1, 3) == pytest.approx(1 - math.exp(-scatter), rel=1e-3)
    both = math.hypot(scatter, METERED.ratio_half(300, 150, 2.101))
    assert resolvable((300, 150), 1, 3) == pytest.approx(1 - math.exp(-both), rel=1e-3)


def test_repeats_alone_do_not_help_and_boards_do():
    """No number of repeats on one board goes below its offset; eight boards do."""
    floor = 1 - math.exp(-METERED.ratio_half(300, 150, 2.101))
    three, many = (resolvable((300, 150), 1, n) for n in (3, 1000))
    assert three > many > floor
    assert resolvable((300, 150), 8, 3) < floor
    assert resolvable((60, 120), 1, 3) > resolvable((500, 700), 1, 3)


@pytest.mark.parametrize("asked", [((0, 1), 1, 3), ((100, 200), 0, 3), ((100, 200), 1, 0)])
def test_what_no_comparison_is_is_refused(asked):
    """No watts, no boards, no repeats."""
    with pytest.raises(RefusedError):
        resolvable(*asked)
