"""What can be established at best, against the comparison itself."""

import math
import re

import pytest

from wattflow.analysis.resolve import PUBLISHED, SHARES, drawn, published, resolvable
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


def test_the_figure_is_of_the_same_code():
    """Each point is what `resolvable` says; one run a side has no line, more boards and repeats resolve more."""
    points = drawn()
    for point in points[::37]:
        boards, repeats = (int(part) for part in re.findall(r"\d+", point["line"]))
        watts = (point["watts"], point["share"] * point["watts"])
        assert point["least"] == pytest.approx(100 * resolvable(watts, boards, repeats))
    assert {point["line"] for point in points} == {
        *("1 board x 3", "1 board x 10", "3 boards x 3", "8 boards x 3")
    }
    assert {point["share"] for point in points} == set(SHARES)


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: one.name)
def test_published_savings_have_a_source_and_a_place(one):
    """Each has an arXiv number, and watts of both settings by which it stands in a panel."""
    assert re.search(r"arXiv \d{4}\.\d{5}", one.source)
    assert 0 < one.saving < 1
    assert one.watts[0] > one.watts[1] > 0
    assert one.share in SHARES


def test_published_savings_of_more_than_a_board_may_be_off_are_named():
    """On one board with three repeats all five would be established: the least, 11 % at 100 W, by a little."""
    for one, dot in zip(PUBLISHED, published(), strict=True):
        least = 100 * resolvable(one.watts, 1, 3)
        print(f"{one.name}: {dot['saving']:.1f} % published, {least:.1f} % can be established")
        assert dot["saving"] > least
