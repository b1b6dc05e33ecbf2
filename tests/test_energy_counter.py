"""Joules between readings of an energy counter, against those worked out by hand."""

import numpy as np
import pytest

from wattflow.energy import counter
from wattflow.energy import curve as energy_curve

START_NS = 1_760_000_000_000_000_000
MS, S = 1_000_000, 1_000_000_000


def curve(seconds, watts, gap=None, **kwargs):
    stamps = START_NS + np.rint(np.asarray(seconds) * 1e9).astype(np.int64)
    return energy_curve.curve(stamps, watts, gap, **kwargs)


def ticking(read_ms, end_ms=2000, watts=500):
    """A counter of a constant load that ticks each 100 ms, as readings at some ms."""
    at_ms = np.asarray(read_ms if np.iterable(read_ms) else np.arange(0, end_ms + 1, read_ms))
    return counter.counter(START_NS + at_ms * MS, 126_000_000_000 + (at_ms // 100) * watts * 100)


def test_counter_between_ticks():
    """Read each 10 ms, 500 W for 0.33 s are 165 J, not whole ticks, within u of both edges."""
    found = counter.counter_between(ticking(10), [START_NS + 450 * MS], [START_NS + 780 * MS])
    assert found.energy_j[0] == pytest.approx(165.0, rel=1e-9)
    # a tick came up to 5 ms beside its place at 395, 495, 695 and 795 ms; an edge is 45 or 15 ms from the nearest
    u_ms = [np.hypot(np.hypot(0.45 * 5, 0.55 * 5), 45), np.hypot(np.hypot(0.15 * 5, 0.85 * 5), 15)]
    assert found.u_j[0] == pytest.approx(0.5 * np.hypot(*u_ms) / np.sqrt(3), rel=1e-6)


def test_an_aged_reading_makes_its_tick_uncertain():
    """Read each second from a cache of a second, a tick came in the 1.1 s before: in its middle, 0.55 s to each side.

    The window starts and ends at such places, so that at a constant 500 W both edges are off by 0.55 s at most.
    """
    stamps, readings_mj = START_NS + np.arange(20) * S, np.arange(20) * 500_000
    readings = counter.counter(stamps, readings_mj, age_ns=S)
    assert readings.half_ns.tolist() == [550 * MS] * 20
    assert readings.time_ns.tolist() == (stamps - 550 * MS).tolist()
    edges = [START_NS + 2_450 * MS], [START_NS + 12_450 * MS]
    found = counter.counter_between(readings, *edges)
    assert found.energy_j[0] == pytest.approx(5000.0, rel=1e-9)
    assert found.u_j[0] == pytest.approx(500 * 0.55 * np.sqrt(2) / np.sqrt(3), rel=1e-6)


def test_a_few_reads_at_an_edge_make_the_counter_sharp():
    """Two lone readings and a burst at each edge show 5 s at 500 W within 0.5 %; lone ones alone do not."""
    edges = [START_NS + 2_030 * MS], [START_NS + 7_050 * MS]
    bursts = [*range(2_030, 2_130, 15), *range(7_050, 7_150, 15)]
    power = curve(np.arange(0, 12, 0.02), np.full(600, 480.0))  # only its course counts
    sharp = counter.counter_between(ticking([0, 5_000, *bursts, 9_999]), *edges, power)
    lone = counter.counter_between(ticking([0, 1_999, 5_000, 7_300, 9_999]), *edges, power)
    assert sharp.energy_j[0] == pytest.approx(2510.0, rel=0.004)
    assert 2 * sharp.u_j[0] < 0.005 * 2510 < 2 * lone.u_j[0]


def test_between_two_ticks_the_counter_follows_power():
    """50 W until 3 s, 500 W from then on: at 3 s, in the middle of a step of 1100 J, the counter stands at 100 J."""
    power = curve([0, 3, 3.0001, 8], [50.0, 50.0, 500.0, 500.0], longest_ns=10 * S)
    readings = counter.counter([START_NS + S, START_NS + 5 * S], [0, 1_100_000])
    found = counter.counter_between(readings, [START_NS + S], [START_NS + 3 * S], power)
    assert found.energy_j[0] == pytest.approx(100.0, abs=4)
    evenly = counter.counter_between(readings, [START_NS + S], [START_NS + 3 * S])
    assert evenly.energy_j[0] == pytest.approx(550.0, abs=20)


def test_counter_keeps_its_digits():
    """At 1.26e11 mJ, where a float32 steps by 8 J, a step of 1 mJ is still 1 mJ."""
    readings = counter.counter([START_NS, START_NS + S], [126_000_000_001, 126_000_000_002])
    assert readings.energy_mj.tolist() == [0, 1]


def test_counter_beyond_int64():
    """Readings of unsigned 64 bits above 2^63 are subtracted exactly."""
    readings = counter.counter(
        [START_NS, START_NS + S], np.array([2**63 + 5, 2**63 + 12], np.uint64)
    )
    assert readings.energy_mj.tolist() == [0, 7]


def reset_counter():
    """100 W for 10 s by a counter read each second that was reset between 4 and 5 s."""
    stamps = START_NS + np.arange(11) * S
    return counter.counter(
        stamps,
        [9_000_000 + 100_000 * i for i in range(5)] + [50_000 + 100_000 * i for i in range(6)],
    )


def test_a_decrease_is_a_reset_bridged_by_power():
    """The step that the reset ate is taken from power: 1000 J in all, finite, and flagged."""
    power = curve(np.arange(0, 10.01, 0.05), np.full(201, 100.0))
    found = counter.counter_between(reset_counter(), [START_NS], [START_NS + 9 * S], power)
    assert found.energy_j[0] == pytest.approx(900.0)
    assert counter.resets_between(reset_counter(), START_NS, START_NS + 10 * S) == 1
    assert counter.resets_between(reset_counter(), START_NS + 5 * S, START_NS + 10 * S) == 0


def test_a_reset_without_power_is_withheld():
    """Where nothing bridges the reset, its window has no joules, and a window beside it has."""
    starts, ends = [START_NS, START_NS + 5 * S], [START_NS + 9 * S, START_NS + 9 * S]
    found = counter.counter_between(reset_counter(), starts, ends)
    assert np.isnan(found.energy_j[0])
    assert found.energy_j[1] == pytest.approx(400.0)


def test_counter_is_not_extrapolated():
    """A window that ends after the last reading has no joules."""
    found = counter.counter_between(reset_counter(), [START_NS + 6 * S], [START_NS + 11 * S])
    assert np.isnan(found.energy_j[0])


def of_100_w(faults=(), step_s=5, base_mj=5_000_000_000, count=121):
    """Readings of a board that draws 100 W, some of them replaced: stamps and mJ."""
    readings = [base_mj + 100_000 * step_s * i for i in range(count)]
    for at, value in dict(faults).items():
        readings[at] = value
    return START_NS + np.arange(count) * step_s * S, np.array(readings, np.uint64)


STRAYS = {
    "one 0": {30: 0},
    "three of 0": {30: 0, 31: 0, 32: 0},
    "one 0 first": {0: 0},
    "DCGM's blank": {30: 9223372036854775794},
    "-1": {30: 2**64 - 1},
    "blank first": {0: 9223372036854775794},
    "20 s behind": {30: 5_000_000_000 + 100_000 * 130},
    "60 s ahead": {30: 5_000_000_000 + 100_000 * 210},
    "a leap that no board makes": {30: 5_100_000_000},
    "strays of several kinds": {10: 0, 30: 2**64 - 1, 31: 7, 80: 5_900_000_000},
}


@pytest.mark.parametrize("faults", STRAYS.values(), ids=STRAYS)
def test_a_reading_that_no_board_can_give_is_left_out(faults):
    """100 W for 500 s are 50,000 J whatever a lone reading says, and the counter was never reset."""
    readings = counter.counter(*of_100_w(faults))
    found = counter.counter_between(readings, [START_NS + 50 * S], [START_NS + 550 * S])
    assert found.energy_j[0] == pytest.approx(50_000.0, rel=1e-3)
    assert counter.resets_between(readings, START_NS, START_NS + 600 * S) == 0


def test_a_fall_that_may_be_a_reset_or_a_stray_reading_is_unknown():
    """From 3000 J to 0 and then 3500 J in 5 s: a reset would have meant 700 W. Neither step has joules but by power."""
    stamps, readings_mj = of_100_w({6: 0}, base_mj=0, count=13)
    readings = counter.counter(stamps, readings_mj)
    window = [START_NS + 12 * S], [START_NS + 58 * S]
    assert np.isnan(counter.counter_between(readings, *window).energy_j[0])
    power = curve(np.arange(0, 61, 0.05), np.full(1220, 100.0))
    assert counter.counter_between(readings, *window, power).energy_j[0] == pytest.approx(4600.0)
    assert counter.resets_between(readings, START_NS, START_NS + 60 * S) == 2


def test_a_counter_that_leaps_all_the_time_counts_nothing():
    """Of noise no reading is better than another, and it takes no time to say so."""
    noise = np.random.default_rng(1).integers(0, 2**63, 200_000, dtype=np.uint64)
    readings = counter.counter(START_NS + np.arange(200_000) * S, noise)
    assert len(readings.time_ns) == 0
    assert np.isnan(counter.counter_between(readings, [START_NS], [START_NS + S]).energy_j[0])
