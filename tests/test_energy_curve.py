"""Joules from arrays, against integrals worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattflow.energy import curve as energy_curve
from wattflow.store import sources

START_NS = 1_760_000_000_000_000_000
MS, S = 1_000_000, 1_000_000_000


def curve(seconds, watts, gap=None, **kwargs):
    stamps = START_NS + np.rint(np.asarray(seconds) * 1e9).astype(np.int64)
    return energy_curve.curve(stamps, watts, gap, **kwargs)


def joules(power, start_s, end_s):
    start, end = (START_NS + round(s * 1e9) for s in (start_s, end_s))
    return energy_curve.summed(energy_curve.between(power, [start], [end]))


def ns(seconds):
    return START_NS + np.rint(np.asarray(seconds) * 1e9).astype(np.int64)


def sampled(power, end_s=12.0, period_s=0.02):
    seconds = np.arange(-1.0, end_s, period_s)
    return curve(seconds, power(seconds))


def test_constant_power():
    """70 W for 10 s are 700 J, with no sampling uncertainty and all of the time covered."""
    found = joules(sampled(lambda s: np.full(len(s), 70.0)), 0.0, 10.0)
    assert found.energy_j == pytest.approx(700.0, rel=1e-9)
    assert found.u_j == pytest.approx(0.0, abs=1e-9)
    assert found.coverage == 1.0
    assert found.reason is None


def test_two_samples_are_enough():
    """Constant power shown by two samples only, 10 s apart within an allowed spacing, is 100 W x 8 s = 800 J."""
    power = curve([0.0, 10.0], [100.0, 100.0], longest_ns=11 * S)
    assert joules(power, 1.0, 9.0).energy_j == pytest.approx(800.0, rel=1e-12)


def test_ramp_is_exact():
    """A ramp of 10 W/s from 100 W: from 2 s to 7 s that is 100 x 5 + 10 x (49 - 4) / 2 = 725 J."""
    power = sampled(lambda s: 100.0 + 10.0 * s, period_s=0.037)
    assert joules(power, 2.0, 7.0).energy_j == pytest.approx(725.0, rel=1e-9)


def test_edges_inside_a_segment():
    """Between samples of 0 W at 0 s and 100 W at 0.1 s, 0.02 to 0.06 s hold 100/0.1 x (0.0036 - 0.0004) / 2 = 1.6 J."""
    power = curve([0.0, 0.1], [0.0, 100.0])
    assert joules(power, 0.02, 0.06).energy_j == pytest.approx(1.6, rel=1e-9)


@pytest.mark.parametrize("half_s", [1.0, 0.25, 0.06])
def test_square_wave(half_s):
    """A wave of 100 and 900 W, half its time at each, is 500 W on average, within 2 % and 3 u."""
    # the driver's samples come 8 to 32 ms apart, so they don't keep step with the wave
    seconds = -1.0 + np.cumsum(np.random.default_rng(5).uniform(0.008, 0.032, 600))
    power = curve(seconds, np.where(np.floor(seconds / half_s) % 2 == 0, 900.0, 100.0))
    length_s = 80 * half_s if half_s < 0.1 else 8.0
    found = joules(power, 0.0, length_s)
    true_j = 500.0 * length_s
    assert found.energy_j == pytest.approx(true_j, rel=0.02)
    assert abs(found.energy_j - true_j) <= 3 * found.u_j


def test_irregular_stamps_are_used():
    """Joules follow the stamps, not the number of samples: 100 W for 1 s, shown by 5 and then 30 samples."""
    seconds = np.concatenate([np.linspace(0.0, 0.4, 5), np.linspace(0.41, 1.0, 30)])
    assert joules(curve(seconds, np.full(35, 100.0)), 0.0, 1.0).energy_j == pytest.approx(100.0)


def test_order_and_repeats_do_not_matter():
    """Samples in any order, some given twice, give the joules of the sorted ones."""
    seconds = np.linspace(0.0, 1.0, 51)
    watts = 50.0 + 30.0 * np.sin(seconds * 9)
    shuffled = np.random.default_rng(3).permutation(np.append(np.arange(51), [7, 7, 12]))
    ordered = joules(curve(seconds, watts), 0.1, 0.9)
    assert joules(curve(seconds[shuffled], watts[shuffled]), 0.1, 0.9) == ordered


def test_high_samples_are_kept():
    """A sample of 971 W on a 700 W board is a reading: nothing is clipped."""
    power = curve([0.0, 0.02, 0.04], [700.0, 971.0, 700.0])
    assert joules(power, 0.0, 0.04).energy_j == pytest.approx((700 + 971) / 2 * 0.04)


@pytest.mark.parametrize(("start_s", "end_s"), [(-0.5, 0.5), (0.5, 1.5), (2.0, 3.0), (-2.0, 2.0)])
def test_nothing_is_extrapolated(start_s, end_s):
    """A window that a sample does not bracket on both sides has no joules, and says not_bracketed."""
    found = joules(curve(np.linspace(0, 1, 51), np.full(51, 100.0)), start_s, end_s)
    assert found.energy_j is None
    assert found.u_j is None
    assert found.reason == "not_bracketed"


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples(count):
    """No sample, or a single one, gives no joules."""
    found = joules(curve(np.zeros(count), np.full(count, 100.0)), 0.0, 1.0)
    assert found.reason == "not_bracketed"


def test_a_gap_is_not_bridged():
    """Samples from 0 to 4 s and from 5 to 10 s: the second between is not covered, and the window is withheld."""
    seconds = np.concatenate([np.arange(0, 4.001, 0.02), np.arange(5, 10.001, 0.02)])
    power = curve(seconds, np.full(len(seconds), 100.0))
    found = joules(power, 1.0, 9.0)
    assert found.coverage == pytest.approx(7 / 8)
    assert found.longest_gap_s == pytest.approx(1.0)
    assert found.energy_j is None
    assert found.reason == "gap"
    assert joules(power, 1.0, 4.0).energy_j == pytest.approx(300.0)


def test_a_short_gap_costs_its_time():
    """Of 20 s at 100 W, 0.15 s are a gap: 1985 J measured, and U holds the 15 J that may be missing."""
    seconds = np.concatenate([np.arange(0, 9.001, 0.02), np.arange(9.15, 21, 0.02)])
    found = joules(curve(seconds, np.full(len(seconds), 100.0)), 0.0, 20.0)
    assert found.reason is None
    assert found.energy_j == pytest.approx(1985.0)
    assert 2 * found.u_j >= 15.0


def test_a_flagged_row_is_a_gap():
    """A row flagged as a gap loses the time before it even where the stamps lie close."""
    power = curve([0.0, 0.02, 0.04, 0.06], [100.0] * 4, [False, False, True, False])
    assert power.covered.tolist() == [True, False, True]


def test_a_failed_reading_is_a_gap_not_zero_watts():
    """A flagged row without a value covers nothing: the energy beside it is neither 0 W nor bridged."""
    power = curve([0.0, 0.02, 0.04], [100.0, np.nan, 100.0], [False, True, False])
    assert power.power_w.tolist() == [100.0, 100.0]
    assert power.covered.tolist() == [False]


jittered = st.lists(
    st.tuples(st.integers(1, 120 * MS), st.floats(0.0, 1000.0)), min_size=3, max_size=60
)


@given(jittered, st.lists(st.floats(0.0, 1.0), min_size=3, max_size=8))
@settings(max_examples=200, deadline=None)
def test_additive_and_never_negative(steps, cuts):
    """E(a, b) + E(b, c) = E(a, c) to 1e-9, and no window has negative joules, whatever jitter and gaps."""
    stamps = START_NS + np.cumsum([step for step, _ in steps])
    power = energy_curve.curve(stamps, [watts for _, watts in steps])
    length = int(stamps[-1] - stamps[0])
    edges = np.array(sorted(int(stamps[0]) + round(cut * length) for cut in cuts), dtype=np.int64)
    parts = energy_curve.between(power, edges[:-1], edges[1:])
    whole = energy_curve.between(power, edges[:1], edges[-1:])
    assert np.all(parts.energy_j >= 0)
    assert parts.energy_j.sum() == pytest.approx(whole.energy_j[0], rel=1e-9, abs=1e-9)
    assert parts.covered_ns.sum() == whole.covered_ns[0]


TRACE_S = 40.0


def seldom_steps(random):
    """Loads as edges in s and levels in W: steps at random times, up to three a second."""
    changes = np.sort(random.uniform(0, TRACE_S, int(TRACE_S * random.uniform(0.5, 3))))
    return changes, random.uniform(80, 900, len(changes) + 1)


def square_wave(random):
    """Two levels, with a period of 60 ms to 2 s: nearly as fast as the buffer's samples."""
    period_s, duty = np.exp(random.uniform(np.log(0.06), np.log(2))), random.uniform(0.2, 0.8)
    starts = random.uniform(0, period_s) + np.arange(int(TRACE_S / period_s) + 2) * period_s
    changes = np.sort(np.concatenate([starts, starts + duty * period_s]))
    low, high = random.uniform(80, 300), random.uniform(400, 950)
    return changes, np.where(np.arange(len(changes) + 1) % 2, high, low)


def decode(random):
    """Steps of 5 to 40 ms with 4 % of scatter: as fast as the samples, or faster."""
    changes = np.arange(0, TRACE_S, random.uniform(0.005, 0.04))
    levels = 1 + random.normal(0, 0.04, len(changes) + 1)
    return changes, random.uniform(250, 650) * levels


def batches(random):
    """Prefill, decode and a pause, again and again."""
    changes, levels, at_s = [], [100.0], 0.0
    while at_s < TRACE_S:
        for seconds, watts in (
            ((0.1, 0.5), (600, 800)),
            ((1, 5), (300, 500)),
            ((0.01, 0.1), (120, 200)),
        ):
            changes.append(at_s)
            levels.append(random.uniform(*watts))
            at_s += random.uniform(*seconds)
    return np.array(changes), np.array(levels)


def sampled_curve(random, source, changes, levels, running_j):
    """What a sensor shows of a load: the buffer each 20 ms or so, a field of 100 ms polled each 50 ms.

    DCGM's cache polls it, too, and what is stamped is up to 50 ms older.
    """

    def mean_w(at_s, over_s):
        return (running_j(at_s) - running_j(at_s - over_s)) / over_s

    if source == "nvml_buffer":
        at_s = np.arange(-1, TRACE_S + 1, 0.02)
        at_s = at_s + random.uniform(0, 0.006, len(at_s))
        watts = levels[np.searchsorted(changes, at_s, side="right")]
    elif source == "as measured":
        at_s = np.arange(-1, TRACE_S + 1, 0.02)
        at_s = at_s + random.uniform(0, 0.006, len(at_s))
        watts = as_measured(changes, levels, at_s)
    else:
        at_s = np.arange(-1, TRACE_S + 1, 0.05)
        at_s = at_s + random.uniform(0, 0.003, len(at_s))
        phase_s = random.uniform(0, 0.1)
        age_s = random.uniform(0, 0.05) if source.startswith("dcgm") else 0.0
        renewed_s = np.floor((at_s - age_s - phase_s) / 0.1) * 0.1 + phase_s
        watts = mean_w(renewed_s, 0.025 if source in ("nvml_instant", "dcgm") else 1.0)
    if source == "as measured":
        source = "nvml_buffer"
    period_ms = 20.0 if source == "nvml_buffer" else 50.0
    return curve(
        at_s,
        watts,
        longest_ns=sources.longest_spacing_ns(source, period_ms),
        lag_ns=sources.lag_ns(source, period_ms),
        renewal_ns=sources.source_of(source).renewal_ns,
    )


def as_measured(changes, levels, at_s):
    """What an H100's buffer shows of a load of steps, by its passport (docs/calibrate.md): smoothed, and late.

    A first-order response with 13.5 ms after a dead time of 4 ms, so that in the mean a sample is 17 ms late.
    """
    smoothing_s, dead_s = 0.0135, 0.004
    edges = np.concatenate([[-10.0], changes])
    reached = [float(levels[0])]
    for before, after, level in zip(edges[:-1], edges[1:], levels, strict=False):
        reached.append(level + (reached[-1] - level) * np.exp(-(after - before) / smoothing_s))
    then_s = at_s - dead_s
    k = np.searchsorted(edges, then_s, side="right") - 1
    level = np.asarray(levels, float)[k]
    return level + (np.array(reached)[k] - level) * np.exp(-(then_s - edges[k]) / smoothing_s)


def errors(load, source, curves, windows, *, least_s=1.0, most_s=30.0):
    """Length in s, error, u and truth in J of random windows on random loads."""
    random = np.random.default_rng(11)
    found = []
    for _ in range(curves):
        changes, levels = load(random)
        edges = np.concatenate([[-5.0], changes, [max(TRACE_S, changes[-1]) + 5.0]])
        sums = np.concatenate([[0.0], np.cumsum(levels * np.diff(edges))])

        def running_j(at_s, edges=edges, sums=sums):
            return np.interp(at_s, edges, sums)

        power = sampled_curve(random, source, changes, levels, running_j)
        length_s = np.exp(random.uniform(np.log(least_s), np.log(most_s), windows))
        start_s = random.uniform(0, TRACE_S - length_s)
        measured = energy_curve.between(power, ns(start_s), ns(start_s + length_s))
        truth = running_j(start_s + length_s) - running_j(start_s)
        found.append(np.stack([length_s, measured.energy_j - truth, measured.u_j, truth]))
    return np.concatenate(found, axis=1)


ROUNDING_J = 1e-4  # edges are whole nanoseconds, and a square wave may change right there


@pytest.mark.parametrize("load", [seldom_steps, square_wave, decode, batches])
def test_uncertainty_holds_the_truth(load):
    """Of 4 x 25,000 windows by the buffer the truth is inside U in 95 %, inside U / 2 in less, and U is small."""
    length_s, error_j, u_j, truth_j = errors(load, "nvml_buffer", curves=50, windows=500)
    assert np.mean(np.abs(error_j) <= 2 * u_j + ROUNDING_J) >= 0.95
    assert np.mean(np.abs(error_j) <= u_j + ROUNDING_J) < 0.95
    assert np.median(2 * u_j[length_s >= 10] / truth_j[length_s >= 10]) <= 0.01
    assert np.median(2 * u_j[length_s < 10] / truth_j[length_s < 10]) <= 0.03


@pytest.mark.parametrize("load", [seldom_steps, square_wave, decode, batches])
def test_uncertainty_holds_the_truth_of_the_sensor_that_was_measured(load):
    """With samples as late and as smooth as an H100's the truth is inside U in 95 % of windows, and U stays small."""
    length_s, error_j, u_j, truth_j = errors(load, "as measured", curves=30, windows=200)
    assert np.mean(np.abs(error_j) <= 2 * u_j + ROUNDING_J) >= 0.95
    assert np.median(2 * u_j[length_s >= 10] / truth_j[length_s >= 10]) <= 0.01
    assert abs(np.mean(error_j / truth_j)) < 1e-4


@pytest.mark.parametrize("load", [seldom_steps, square_wave, decode, batches])
def test_a_window_of_two_samples_has_joules_within_its_uncertainty(load):
    """Windows of 40 ms, where whole ticks of a counter are 0 J or 100 ms' worth: the truth is inside U in 95 %."""
    _, error_j, u_j, _ = errors(
        load, "nvml_buffer", curves=20, windows=500, least_s=0.04, most_s=0.04
    )
    assert np.mean(np.abs(error_j) <= 2 * u_j + ROUNDING_J) >= 0.95


@pytest.mark.parametrize(
    ("source", "load"),
    [
        *[("nvml_instant", load) for load in (seldom_steps, square_wave, decode, batches)],
        *[("nvml_average", load) for load in (seldom_steps, decode, batches)],
        *[("dcgm", load) for load in (seldom_steps, square_wave, decode, batches)],
    ],
)
def test_uncertainty_of_polled_fields_holds_the_truth(source, load):
    """Polled fields reach 95 % with a larger U. A mean over 1 s cannot see a faster wave: that load is left out."""
    least_s = 10.0 if source == "nvml_average" else 1.0
    _, error_j, u_j, _ = errors(load, source, curves=30, windows=100, least_s=least_s)
    assert np.mean(np.abs(error_j) <= 2 * u_j + ROUNDING_J) >= 0.95
    assert np.mean(np.abs(error_j) <= u_j + ROUNDING_J) < 0.95


def late_phases(random, sensor):
    """A curve whose samples are all late alike, the edges of its batches' prefills and decodes, and its integral."""
    lengths_s = random.uniform((0.05, 0.5, 0.01), (0.3, 2.0, 0.05))  # prefill, decode, pause
    watts = random.uniform((600, 300, 120), (800, 500, 200))
    count = random.integers(3, 20)
    changes = 1.0 + np.concatenate([[0.0], np.cumsum(np.tile(lengths_s, count))])
    levels = np.concatenate([[100.0], np.tile(watts, count), [100.0]])
    edges = np.concatenate([[-5.0], changes, [changes[-1] + 5.0]])
    sums = np.concatenate([[0.0], np.cumsum(levels * np.diff(edges))])
    at_s = np.arange(-1, changes[-1] + 2, 0.02)
    at_s = at_s + random.uniform(0, 0.006, len(at_s))
    lag_s = 0.0 if sensor == "as measured" else random.uniform(-0.02, 0.02)
    watts = levels[np.searchsorted(changes, at_s, side="right")]
    if sensor == "as measured":
        watts = as_measured(changes, levels, at_s)
    late = curve(at_s + lag_s, watts)
    return late, changes, lambda s: np.interp(s, edges, sums)


@pytest.mark.parametrize("sensor", ["any lag", "as measured"])
@pytest.mark.parametrize("phase", [0, 1])
def test_uncertainty_of_a_phase_of_many_batches_holds_the_truth(phase, sensor):
    """Stamps are off by one lag in every batch: a phase's joules hold the truth in 95 %, and inside u in less."""
    random = np.random.default_rng(11)
    found = []
    for _ in range(400):
        late, changes, running_j = late_phases(random, sensor)
        start_s, end_s = changes[phase:-1:3], changes[phase + 1 :: 3]
        summed = energy_curve.summed(energy_curve.between(late, ns(start_s), ns(end_s)))
        found.append((summed.energy_j - (running_j(end_s) - running_j(start_s)).sum(), summed.u_j))
    error_j, u_j = np.abs(np.transpose(found))
    assert np.mean(error_j <= 2 * u_j) >= 0.95
    assert np.mean(error_j <= u_j) < 0.95


# --- the counter


# --- clocks


def test_clock_step_is_seen():
    """A wall clock set back by 3 s inside the window is a step; 50 ppm of drift is none."""
    steady = np.arange(20) * S
    drifting = START_NS + steady + steady // 20_000
    stepped = np.where(steady < 10 * S, drifting, drifting - 3 * S)
    window = START_NS, START_NS + 15 * S
    assert not energy_curve.clock_stepped(drifting, steady, *window)
    assert energy_curve.clock_stepped(stepped, steady, *window)


def test_a_window_that_ends_before_it_starts_is_an_error():
    """Edges in the wrong order raise ValueError instead of giving 0 J."""
    power = curve([0.0, 0.1], [1.0, 1.0])
    with pytest.raises(ValueError, match="before it starts"):
        energy_curve.between(power, [START_NS + 5], [START_NS])


@pytest.mark.parametrize("stray_w", [np.nan, np.inf, -1.0, 4_294_967.295, 1e9, 5001.0])
def test_watts_that_no_board_can_draw_are_left_out(stray_w):
    """100 W for 8 s are 800 J beside a value that is no reading; ten of them in a row are a gap of 0.22 s."""
    seconds = np.arange(0, 10.01, 0.02)
    watts = np.full(len(seconds), 100.0)
    watts[250] = stray_w
    one = energy_curve.curve_of("nvml_buffer", 20.0, ns(seconds), watts)
    assert joules(one, 1.0, 9.0).energy_j == pytest.approx(800.0)
    watts[250:260] = stray_w
    many = joules(energy_curve.curve_of("nvml_buffer", 20.0, ns(seconds), watts), 1.0, 9.0)
    assert (many.energy_j, many.reason) == (None, "gap")
    assert many.longest_gap_s == pytest.approx(0.22)


def test_a_board_draws_no_more_than_twice_its_highest_limit():
    """971 W of a board of 700 W are kept, 1500 W of it are none; where its limit is not known they are a reading."""
    stamps = ns([0.0, 0.02, 0.04])
    of = lambda limit_w: energy_curve.curve_of(  # noqa: E731
        "nvml_buffer", 20.0, stamps, [700.0, 971.0, 1500.0], limit_w=limit_w
    )
    assert of(700.0).power_w.tolist() == [700.0, 971.0]
    for unknown in (None, 0.0, -1.0, np.nan, 4_294_967.295):
        assert of(unknown).power_w.tolist() == [700.0, 971.0, 1500.0]


@pytest.mark.parametrize(
    ("rate", "seconds", "slewed"),
    [
        (0.005, 10, True),
        (0.019, 10, True),
        (-0.005, 5, True),
        (0.005, 2, True),
        (1e-4, 60, False),
        (0.0, 10, False),
    ],
)
def test_a_slewed_clock_is_seen_by_the_bare_oscillator(rate, seconds, slewed):
    """A wall clock that chrony corrects by 0.5 to 1.9 % is found by pairs each second; 100 ppm are none."""
    random = np.random.default_rng(1)
    raw = np.arange(-1, seconds + 2) * 1_000_000_000
    wall = 10**18 + np.round(raw * (1 + rate) + random.normal(0, 2e5, len(raw))).astype(np.int64)
    window = 10**18, 10**18 + seconds * 1_000_000_000
    assert energy_curve.clock_slewed(wall, raw, *window) is slewed
    assert not energy_curve.clock_slewed([], [], *window)
