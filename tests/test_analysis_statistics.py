"""Means and ratios against numbers worked out by hand, and their intervals against simulated boards."""

import math

import numpy as np
import pytest

from wattflow.analysis.statistics import Value, break_even, mean, ratio, student_t


def values(**by_board):
    """Values by board; a board's name joins its UUIDs with `_and_`."""
    return [
        Value(value, 0.0, tuple(board.split("_and_")))
        for board, of_board in by_board.items()
        for value in of_board
    ]


def test_students_t():
    """Printed tables: 12.706 for 1, 4.303 for 2, 2.042 for 30, 2.000 for 60, 1.960 for very many."""
    assert [student_t(n) for n in (1, 2, 30)] == [12.706, 4.303, 2.042]
    assert student_t(60) == pytest.approx(2.000, abs=0.002)
    assert student_t(10_000) == pytest.approx(1.960, abs=0.001)
    assert student_t(2.9) == 4.303


def test_repeats_on_one_board():
    """9, 10, 11 on one board: mean 10, sd 1, half the interval 4.303 / sqrt(3) = 2.484; nothing of other boards."""
    told = mean(values(a=[9.0, 10.0, 11.0]))
    assert (told.mean, told.sd_within, told.sd_between) == (10.0, 1.0, None)
    assert told.high - told.mean == pytest.approx(2.484, abs=1e-3)


def test_no_board_counts_for_more():
    """Two repeats at 10 and 12 on one board and one at 20 on another: (11 + 20) / 2 = 15.5, t of two boards."""
    told = mean(values(a=[10.0, 12.0], b=[20.0]))
    assert told.mean == 15.5
    assert told.boards == 2
    assert told.sd_within == pytest.approx(math.sqrt(2))
    assert told.high - told.mean == pytest.approx(12.706 * 9 / math.sqrt(2) / math.sqrt(2))


def test_between_and_within_are_kept_apart():
    """Boards at 9.9, 10.1 and 11.9, 12.1: within sqrt(0.02), between sqrt((4 - 0.02) / 2) = 1.4107."""
    told = mean(values(a=[9.9, 10.1], b=[11.9, 12.1]))
    assert told.sd_within == pytest.approx(math.sqrt(0.02))
    assert told.sd_between == pytest.approx(math.sqrt((4 - 0.02) / 2))


def test_one_repeat_has_no_interval():
    """A single value is a mean without a spread."""
    told = mean(values(a=[7.0]))
    assert (told.mean, told.sd_within, told.low, told.high) == (7.0, None, None, None)


def test_pairs_take_the_boards_gain_out():
    """Boards that differ by 20 % and a setting that saves 3 % on each: 0.97, established, however the boards differ."""
    told = ratio(values(a=[97.0], b=[116.5], c=[87.2]), values(a=[100.0], b=[120.0], c=[90.0]))
    assert told.how == "paired"
    assert told.pairs == 3
    assert told.ratio == pytest.approx(0.97, abs=0.001)
    assert told.established
    assert told.high < 1


def test_one_board_is_judged_by_its_repeats():
    """Welch by hand: 90, 91, 92 against 100, 101, 102: ln(91 / 101), each part 1 / 3 / mean^2, about 4 degrees."""
    told = ratio(values(a=[90.0, 91.0, 92.0]), values(a=[100.0, 101.0, 102.0]))
    half = student_t(3.9) * math.sqrt(1 / 3 / 91**2 + 1 / 3 / 101**2)
    assert told.how == "one board"
    assert math.log(told.high / told.ratio) == pytest.approx(half)
    assert told.established


def test_equal_values_are_no_difference():
    """2, 2 against 2, 2 on one board: a ratio of just 1, without any spread, is not established as a difference."""
    told = ratio(values(a=[2.0, 2.0]), values(a=[2.0, 2.0]))
    assert (told.ratio, told.low, told.high) == (1.0, 1.0, 1.0)
    assert not told.established


def test_one_repeat_each_establishes_nothing():
    """Two single runs on one board have a ratio and no interval."""
    told = ratio(values(a=[90.0]), values(a=[100.0]))
    assert told.ratio == pytest.approx(0.9)
    assert (told.low, told.established, told.why_not) == (None, False, "one repeat each")


@pytest.mark.parametrize(("cheaper", "established"), [(0.95, False), (0.80, True)])
def test_between_boards_nothing_small_is_claimed(cheaper, established):
    """On other boards 5 % less is no difference, whatever the scatter says, and 20 % less is one."""
    ours = values(a=[100 * cheaper] * 3, b=[100.1 * cheaper] * 3, c=[99.9 * cheaper] * 3)
    theirs = values(d=[100.0] * 3, e=[100.1] * 3, f=[99.9] * 3)
    told = ratio(ours, theirs)
    assert told.how == "between boards"
    assert told.established is established
    if not established:
        assert "boards differ by about 5 %" in told.why_not


def test_sharing_one_of_two_boards_is_no_pair():
    """A setting on boards a and b and one on a and c did not run on the same boards."""
    assert ratio(values(a_and_b=[90.0]), values(a_and_c=[100.0])).how == "between boards"


def test_a_ratio_reads_the_same_the_other_way_round():
    """a over b is one over b over a, and so are its bounds."""
    ours, theirs = values(a=[90.0], b=[95.0]), values(a=[100.0], b=[101.0])
    there, back = ratio(ours, theirs), ratio(theirs, ours)
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


@pytest.mark.parametrize(("same_boards", "boards"), [(True, 4), (False, 5)])
def test_intervals_hold_the_truth(same_boards, boards):
    """Of 2,000 simulated comparisons (gains of 5 % sd, 0.5 % scatter) 95 % of intervals hold the true ratio of 0.93."""
    random = np.random.default_rng(3)
    inside = 0
    for _ in range(2000):
        gains = random.normal(1.0, 0.05, 2 * boards)

        def arm(level, names, gains=gains):
            return values(
                **{f"b{k}": (level * gains[k] * random.normal(1, 0.005, 3)).tolist() for k in names}
            )

        other = range(boards) if same_boards else range(boards, 2 * boards)
        told = ratio(arm(93.0, range(boards)), arm(100.0, other))
        inside += told.low <= 0.93 <= told.high
    assert inside / 2000 == pytest.approx(0.95, abs=0.03)


def test_break_even_of_boards_that_ran_both():
    """0.49, 0.50 and 0.51 J less in 5 ms more, on boards 20 % apart: 100 W, 4.303 x 0.01 / sqrt(3) / 5 ms off."""
    ours = [(1.01, 0.010, ("a",)), (1.20, 0.010, ("b",)), (0.89, 0.010, ("c",))]
    theirs = [(1.50, 0.005, ("a",)), (1.70, 0.005, ("b",)), (1.40, 0.005, ("c",))]
    told = break_even(ours, theirs)
    half = 4.303 * 0.01 / math.sqrt(3) / 0.005
    assert told.host_w == pytest.approx(100.0)
    assert (told.low_w, told.high_w) == pytest.approx((100 - half, 100 + half))
    back = break_even(theirs, ours)
    assert (back.host_w, back.low_w) == pytest.approx((told.host_w, told.low_w))


def test_break_even_of_repeats_on_one_board():
    """1.00 +- 0.01 J against 1.50 +- 0.01 J, two repeats each, 5 ms apart: 12.706 x sqrt(2e-4) / 5 ms = 35.9 W off."""
    ours = [(0.99, 0.010, ("a",)), (1.01, 0.010, ("a",))]
    theirs = [(1.49, 0.005, ("a",)), (1.51, 0.005, ("a",))]
    told = break_even(ours, theirs)
    assert told.host_w == pytest.approx(100.0)
    assert told.high_w - told.host_w == pytest.approx(12.706 * math.sqrt(2e-4) / 0.005)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([(1.0, 0.010, ("a",))], [(1.5, 0.005, ("a",))]),  # one repeat each
        ([(1.0, 0.010, ("a",))] * 3, [(1.5, 0.005, ("b",))] * 3),  # no board ran both
        # which one is slower is not established: any host may be the one
        (
            [(1.0, 0.010, ("a",)), (1.0, 0.002, ("a",))],
            [(1.5, 0.005, ("a",)), (1.5, 0.006, ("a",))],
        ),
    ],
)
def test_break_even_without_an_interval(ours, theirs):
    """A single repeat, other boards, or times that do not differ give a number and no interval."""
    told = break_even(ours, theirs)
    assert told.host_w is not None
    assert (told.low_w, told.high_w) == (None, None)


def test_no_break_even_has_no_interval():
    """Cheaper and faster: null, with the reason."""
    told = break_even([(1.0, 0.004, ("a",))] * 2, [(1.5, 0.005, ("a",))] * 2)
    assert (told.host_w, told.low_w, told.why_not) == (
        None,
        None,
        "the cheaper one is also faster",
    )


def test_intervals_of_break_evens_hold_the_truth():
    """Of 2,000 simulated comparisons on four boards (gains of 3 % sd, 0.5 % scatter) 95 % hold the true 100 W."""
    random = np.random.default_rng(5)
    inside = 0
    for _ in range(2000):
        gains = random.normal(1.0, 0.03, 4)
        arms = [
            [
                (e * gains[k] * random.normal(1, 0.005), t * random.normal(1, 0.005), (f"b{k}",))
                for k in range(4)
            ]
            for e, t in ((1.0, 0.010), (1.5, 0.005))
        ]
        told = break_even(*arms)
        inside += told.low_w <= 100.0 <= told.high_w
    assert inside / 2000 == pytest.approx(0.95, abs=0.03)
