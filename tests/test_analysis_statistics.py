"""Means and ratios against numbers worked out by hand, and their intervals against simulated boards."""

import math
from dataclasses import replace

import numpy as np
import pytest

from wattflow.analysis import statistics
from wattflow.analysis.intervals import Doubt, student_t
from wattflow.analysis.statistics import Value, break_even, family, mean, ratio
from wattflow.energy.boards import METERED


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
    assert [student_t(n, 0.99) for n in (1, 3, 4)] == pytest.approx(
        [63.657, 5.841, 4.604], abs=5e-4
    )
    assert student_t(60) == pytest.approx(2.000, abs=0.002)
    assert student_t(10_000) == pytest.approx(1.960, abs=0.003)
    assert student_t(2.9) == student_t(2)


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
    assert (told.low, told.established) == (None, False)
    assert told.why_not == "one run a side shows no difference"


@pytest.mark.parametrize(("cheaper", "established"), [(0.95, False), (0.80, True)])
def test_between_boards_nothing_small_is_claimed(cheaper, established):
    """On other boards 5 % less is no difference, whatever the scatter says, and 20 % less is one."""
    ours = values(a=[100 * cheaper] * 3, b=[100.1 * cheaper] * 3, c=[99.9 * cheaper] * 3)
    theirs = values(d=[100.0] * 3, e=[100.1] * 3, f=[99.9] * 3)
    told = ratio(ours, theirs)
    assert told.how == "between boards"
    assert told.established is established
    if not established:
        assert told.why_not == "under 10 %, and no board ran both"


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


def sensors_w(boards):
    """Half the interval of a break-even of 100 W by the sensors of so many boards: (1 + gain) 100 W - offset."""
    return 2.101 * METERED.u(100.0, -1.0, boards)


def test_break_even_of_boards_that_ran_both():
    """0.49, 0.50 and 0.51 J less in 5 ms more, on boards 20 % apart: 100 W, 4.303 x 0.01 / sqrt(3) / 5 ms off."""
    ours = [(1.01, 0.010, ("a",)), (1.20, 0.010, ("b",)), (0.89, 0.010, ("c",))]
    theirs = [(1.50, 0.005, ("a",)), (1.70, 0.005, ("b",)), (1.40, 0.005, ("c",))]
    told = break_even(ours, theirs)
    half = math.hypot(4.303 * 0.01 / math.sqrt(3) / 0.005, sensors_w(math.inf))
    assert told.host_w == pytest.approx(100.0)
    half = max(half, sensors_w(3))  # three boards may be off by no less
    assert (told.low_w, told.high_w) == pytest.approx((100 - half, 100 + half), rel=1e-4)
    back = break_even(theirs, ours)
    assert (back.host_w, back.low_w) == pytest.approx((told.host_w, told.low_w))


def test_break_even_of_repeats_on_one_board():
    """1.00 +- 0.01 J against 1.50 +- 0.01 J, two repeats each, 5 ms apart: 12.706 x sqrt(2e-4) / 5 ms = 35.9 W off."""
    ours = [(0.99, 0.010, ("a",)), (1.01, 0.010, ("a",))]
    theirs = [(1.49, 0.005, ("a",)), (1.51, 0.005, ("a",))]
    told = break_even(ours, theirs)
    assert told.host_w == pytest.approx(100.0)
    half = math.hypot(12.706 * math.sqrt(2e-4) / 0.005, sensors_w(1))
    assert told.high_w - told.host_w == pytest.approx(half, rel=1e-5)


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
    """Of 1,000 simulated comparisons on four boards (as metered, 0.5 % scatter) 95 % or more hold the true 100 W."""
    random = np.random.default_rng(5)
    inside = 0
    for _ in range(1000):
        gains, offsets = random.normal(1.0, 0.037, 4), random.normal(0, 5.8, 4)
        arms = [
            [
                (
                    (e * gains[k] + offsets[k] * t) * random.normal(1, 0.005),
                    t * random.normal(1, 0.005),
                    (f"b{k}",),
                )
                for k in range(4)
            ]
            for e, t in ((1.0, 0.010), (1.5, 0.005))
        ]
        told = break_even(*arms)
        inside += told.low_w <= 100.0 <= told.high_w
    assert inside / 1000 >= 0.95


# --- simulated sweeps: boards as metered, nothing else assumed --------------------------------------


def drawn_boards(random, count):
    """Gains and offsets (W) of boards, drawn with the mean and covariance of the metered ones, t with 18 degrees."""
    shared = METERED.correlation * METERED.gain_sd * METERED.offset_sd_w
    covariance = [[METERED.gain_sd**2, shared], [shared, METERED.offset_sd_w**2]]
    draws = random.multivariate_normal([0.0, 0.0], covariance, count)
    draws /= np.sqrt(random.chisquare(18, count) / 18)[:, None]
    return draws + np.array([METERED.gain_mean, METERED.offset_mean_w])


def energies(random, board, watts, names, scatter):
    """1 J of work at so many true watts, a repeat for each of the names of one board, as its sensor reads it."""
    gain, offset_w = board
    read_w = (1 + gain) * watts + offset_w
    factors = random.normal(1, scatter, len(names))
    return [
        Value(read_w / watts * factor, 0.0, (name,), read_w)
        for name, factor in zip(names, factors, strict=True)
    ]


def false_share(low_w, high_w, size, seed=7):
    """The share of sweeps on one board, three repeats each, in which equal joules are an established difference."""
    random = np.random.default_rng([seed, low_w])
    false = 0
    for board in drawn_boards(random, size):
        arms = [energies(random, board, watts, "aaa", 0.003) for watts in (low_w, high_w)]
        false += ratio(*arms).established
    return false / size


PAIRS_W = [(60, 120), (150, 300), (300, 450), (500, 700)]


@pytest.mark.parametrize("watts", PAIRS_W)
@pytest.mark.parametrize("size", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_boards_sensors_establish_nothing(watts, size):
    """Of simulated sweeps on one board at most 5 % + 2 deviations show a difference of equal joules."""
    found = false_share(*watts, size)
    print(f"{watts[0]} against {watts[1]} W: {100 * found:.2f} % of {size} sweeps are false")
    assert found <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / size)


def halved(monkeypatch):
    """Let METERED and repeats know half of what they do not know."""
    half = Doubt.half
    monkeypatch.setattr(Doubt, "half", lambda self, level=0.95: half(self, level) / 2)


@pytest.mark.parametrize("watts", PAIRS_W)
def test_half_the_uncertainty_establishes_what_is_not(watts, monkeypatch):
    """A negative control: with half of each interval more than 8 % are false."""
    halved(monkeypatch)
    assert false_share(*watts, 500) > 0.08


def between_coverage(boards, n, scatter, size=800):
    """How often intervals between boards hold the truth: n repeats a side, dealt to so many boards of its own."""
    random = np.random.default_rng([boards, n, int(scatter * 100)])
    inside = established = 0
    for _ in range(size):
        arms = []
        for side, watts in enumerate((150.0, 300.0)):
            sensors = drawn_boards(random, boards)
            counts = [len(part) for part in np.array_split(range(n), boards)]
            arms.append(
                [
                    value
                    for k, count in enumerate(counts)
                    for value in energies(
                        random, sensors[k], watts, [f"{side}{k}"] * count, scatter
                    )
                ]
            )
        found = ratio(*arms)
        inside += found.low is None or found.low <= 1 <= found.high
        established += found.established
    return inside / size, established / size


@pytest.mark.parametrize("scatter", [0.01, 0.05, 0.10])
@pytest.mark.parametrize(
    ("boards", "n"), [(1, 1), (1, 2), (1, 3), (1, 5), (2, 3), (2, 6), (3, 3), (3, 9)]
)
def test_intervals_between_boards_hold_scatter_and_sensors(boards, n, scatter):
    """94 % or more hold the truth with 1 to 3 boards a side; one run a side establishes nothing."""
    found, established = between_coverage(boards, n, scatter)
    print(f"{boards} boards, {n} runs a side, {100 * scatter:.0f} % scatter: {100 * found:.1f} %")
    assert found >= 0.94 - 0.008
    assert n > 1 or established == 0


def test_half_of_an_interval_between_boards_holds_too_little(monkeypatch):
    """A negative control: half of it holds the truth in less than 90 %."""
    halved(monkeypatch)
    assert between_coverage(1, 3, 0.05)[0] < 0.9


@pytest.mark.parametrize("k", [10, 20])
def test_a_family_has_at_most_5_percent_with_a_false_one(k):
    """k settings against a reference, all equal: 5 % of families have a false difference; 20 % or more uncorrected."""
    random = np.random.default_rng(k)
    size, corrected, uncorrected = 300, 0, 0
    for _ in range(size):
        of = [
            [Value(value, 0.0, ("a",)) for value in random.normal(100, 1, 5)] for _ in range(k + 1)
        ]
        found = [ratio(arm, of[0]) for arm in of[1:]]
        uncorrected += any(one.established for one in found)
        corrected += any(one.established for one in family(found))
    print(
        f"{k} settings: {100 * corrected / size:.1f} % false, {100 * uncorrected / size:.1f} % uncorrected"
    )
    assert corrected / size <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / size)
    assert uncorrected / size > 0.15


def test_a_family_says_what_it_took_away():
    """Of ten alike but one that is just established alone the reason says so, with how many were compared."""
    arm = values(a=[99.0, 99.3, 99.6])
    found = family([ratio(arm, values(a=[100.0, 100.3, 100.6]))] * 10)
    assert {one.family for one in found} == {10}
    assert not any(one.established for one in found)
    assert found[0].why_not == "one of 10 comparisons may come this far by chance (Holm)"
    sure = ratio(values(a=[50.0, 50.1, 50.2]), values(a=[100.0, 100.3, 100.6]))
    assert family([sure])[0].established


def test_a_verdict_names_what_it_rests_on():
    """Runs one after the other, in jobs of their own: neither drift nor job is excluded, and both are named."""
    ours = [Value(90.0 + k / 10, 0.0, ("a",), 300.0, k, "job 1") for k in range(3)]
    theirs = [Value(100.0 + k / 10, 0.0, ("a",), 300.0, 10 + k, "job 2") for k in range(3)]
    assert ratio(ours, theirs).rests_on == (
        "3 and 3 runs on the same boards; sensors as of 19 metered boards; a drift of 1 % at most, "
        "1 % between the settings, as all runs of one setting came first; jobs that differ by 1 % (sd)"
    )
    mixed = [replace(one, started=one.started - 9.5, session="job 1") for one in theirs]
    assert ratio(ours, mixed).rests_on == (
        "3 and 3 runs on the same boards; sensors as of 19 metered boards; a drift of 1 % at most, 0.4 % between the "
        "settings"
    )


def test_sampling_that_repeats_share_is_in_the_interval():
    """0.5 J of 100 J on each side, the same in each repeat, are 2.1 % however many repeats: ln by 1.96 x 0.71 %."""
    ours = [Value(98.9, 0.5, ("a",), 300.0)] * 50
    theirs = [Value(100.0, 0.5, ("a",), 300.0)] * 50
    found = ratio(ours, theirs)
    assert math.log(found.high / found.ratio) == pytest.approx(
        1.962 * math.hypot(0.5 / 98.9, 0.005), rel=1e-3
    )
    assert not found.established


@pytest.mark.parametrize("size", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_break_evens_on_one_board_hold_its_gain_and_offset(size):
    """On one drawn board, three repeats with 0.3 % scatter: 95 % of intervals hold the true 100 W."""
    random = np.random.default_rng(11)
    inside = 0
    for gain, offset_w in drawn_boards(random, size):
        arms = [
            [
                (((1 + gain) * e + offset_w * t) * random.normal(1, 0.003), t, ("a",))
                for _ in range(3)
            ]
            for e, t in ((1.0, 0.010), (1.5, 0.005))
        ]
        told = break_even(*arms)
        inside += told.low_w <= 100.0 <= told.high_w
    print(f"break-even: {100 * inside / size:.1f} % of {size}")
    assert inside / size >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / size)


def test_watts_that_may_be_all_offset_have_no_interval():
    """8 W may be nothing but a sensor's offset: no interval, and nothing established."""
    found = ratio(
        [Value(9.0, 0.0, ("a",), 8.0)] * 3,
        [Value(1.0, 0.0, ("a",), 300.0)] * 3,
    )
    assert (found.low, found.high, found.floor, found.established) == (None, None, None, False)
    assert found.why_not == "within what the sensors of such boards may be off"


@pytest.mark.parametrize("boards", [2, 3, 8])
def test_pairs_on_few_boards_establish_no_offsets(boards):
    """Equal joules at 60 against 120 W on the same boards: at most 5 % + 2 deviations of pairs are false."""
    random = np.random.default_rng(boards)
    false, size = 0, 500
    for _ in range(size):
        sensors = list(enumerate(drawn_boards(random, boards)))
        arms = [
            [v for k, b in sensors for v in energies(random, b, watts, [f"b{k}"], 0.003)]
            for watts in (60.0, 120.0)
        ]
        false += ratio(*arms).established
    print(f"{boards} boards: {100 * false / size:.1f} % false")
    assert false / size <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / size)


# --- what repeats need not show: drift and jobs ---------------------------------------------------


def false_by(random, size, *, drift=0.0, sessions=0.0, order="in turn", jobs="one each"):
    """The share of comparisons of equal joules on one board that are established, 0.3 % scatter, three runs a side.

    `drift` is that from the first three runs to the others; `sessions` the deviation between jobs.
    """
    false = 0
    for _ in range(size):
        places = np.arange(6) if order == "one first" else random.permutation(6)
        of_job = {name: random.normal(0, sessions) for name in range(6)}
        arms = []
        for side in (0, 1):
            arm = []
            for k, place in enumerate(places[3 * side : 3 * side + 3]):
                job = {"one": 0, "one each": side, "one a run": 3 * side + k}[jobs]
                level = (1 + drift * (place > 2)) * (1 + of_job[job]) * random.normal(1, 0.003)
                arm.append(Value(level, 0.0, ("a",), 300.0, float(place), str(job)))
            arms.append(arm)
        false += ratio(*arms).established
    return false / size


CASES = [
    ({"drift": 0.01, "order": "one first", "jobs": "one"}, 0.2),
    ({"drift": 0.01, "order": "in turn", "jobs": "one"}, 0.0),
    ({"sessions": 0.01, "jobs": "one each"}, 0.5),
    ({"sessions": 0.01, "jobs": "one a run"}, 0.0),
    ({"drift": 0.01, "sessions": 0.01, "order": "one first", "jobs": "one each"}, 0.5),
]


@pytest.mark.parametrize("size", [400, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("case", "before"), CASES)
def test_drift_and_jobs_establish_nothing(case, before, size, monkeypatch):
    """At most 5 % + 2 deviations are false; with neither in the interval, as before, more than a fifth or a half."""
    found = false_by(np.random.default_rng(3), size, **case)
    monkeypatch.setattr(statistics, "DRIFT", 0.0)
    monkeypatch.setattr(statistics, "SESSION_SD", 0.0)
    without = false_by(np.random.default_rng(3), size, **case)
    print(f"{case}: {100 * found:.1f} % of {size} are false, {100 * without:.1f} % without")
    assert found <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / size)
    assert without >= before


def test_half_of_what_drift_and_jobs_add_establishes_what_is_not(monkeypatch):
    """A negative control: half of each interval is false in more than 10 %."""
    halved(monkeypatch)
    assert false_by(np.random.default_rng(3), 400, sessions=0.01) > 0.1


def test_drift_by_hand():
    """All of one setting came first: 1 % beside the repeats' own half."""
    ours = [Value(v, 0.0, ("a",), 300.0, float(k)) for k, v in enumerate((99.0, 100.0, 101.0))]
    theirs = [replace(one, started=one.started + 3) for one in ours]
    plain = [replace(one, started=None) for one in theirs]
    wider, own = ratio(ours, theirs), ratio(ours, plain)
    assert math.log(wider.high / own.high) == pytest.approx(0.01, rel=1e-6)
    assert "1 % between the settings, as all runs of one setting came first" in wider.rests_on
