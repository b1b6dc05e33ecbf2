"""Periods, lags, windows and aliasing from arrays whose makers are known."""

import numpy as np
import pytest

from wattflow.energy import counter, curve, response

MS = 1_000_000
T0 = 1_760_000_000_000_000_000
LOW_W, STEP_W = 100.0, 300.0


def bounds(half_ms, count, seed=1):
    """When a load begins to be watched, goes on and off in turn, and is left; unix ns."""
    random = np.random.default_rng(seed)
    return T0 + np.cumsum(np.append(0, random.uniform(0.9, 1.1, count) * half_ms * MS)).astype(
        np.int64
    )


def loaded_ns(edges, at_ns):
    """For how long the load was on until each instant."""
    total = np.zeros(len(at_ns))
    for on, off in zip(edges[1:-1:2], edges[2::2], strict=False):
        total += np.clip(at_ns - on, 0, off - on)
    return total


def box(edges, stamps, lag_ms, window_ms, noise_w=3.0):
    """Watts by a sensor whose sample is the mean over `window_ms` that ended `lag_ms` before its stamp."""
    end = stamps - round(lag_ms * MS)
    on = (loaded_ns(edges, end) - loaded_ns(edges, end - round(window_ms * MS))) / (window_ms * MS)
    return LOW_W + STEP_W * on + np.random.default_rng(2).normal(0, noise_w, len(stamps))


def stamps_of(edges, period_ms, jitter_ms):
    """A sensor's stamps from the first bound to the last, each late by up to `jitter_ms`."""
    count = int((edges[-1] - edges[0]) / (period_ms * MS))
    late = np.random.default_rng(3).uniform(0, jitter_ms * MS, count)
    return edges[0] + (np.arange(count) * period_ms * MS + late).astype(np.int64)


@pytest.mark.parametrize(
    ("lag_ms", "window_ms", "period_ms", "half_ms", "settle_ms"),
    [
        (15, 25, 20, 500, 250),
        (30, 25, 100, 500, 250),
        (0, 100, 100, 500, 250),
        (5, 1000, 100, 2200, 1250),
    ],
)
def test_lag_and_window_of_an_averaging_sensor_are_found(
    lag_ms, window_ms, period_ms, half_ms, settle_ms
):
    """A true lag is found within 2 ms and a window within 5 ms, or half a per cent of 1 s, under 3 W of noise."""
    edges = bounds(half_ms, 41 if half_ms == 500 else 13)
    stamps = stamps_of(edges, period_ms, 6)
    steps = response.folded(
        stamps, box(edges, stamps, lag_ms, window_ms), edges, settle_ns=settle_ms * MS
    )
    found = response.fitted(steps)
    assert found.shape == "box"
    assert found.lag_ms == pytest.approx(lag_ms, abs=2 if window_ms < 1000 else 5)
    assert found.window_ms == pytest.approx(window_ms, abs=5 if window_ms < 1000 else 10)
    assert found.rms < 0.02


def test_edges_that_switch_on_and_off_may_be_fitted_apart():
    """A sensor that follows an edge up after 10 ms and one down after 40 ms shows both."""
    edges = bounds(500, 61)
    stamps = stamps_of(edges, 20, 6)
    up, down = box(edges, stamps, 10, 30, 1.0), box(edges, stamps, 40, 30, 1.0)
    steps = response.folded(stamps, np.maximum(up, down), edges, settle_ns=250 * MS)
    assert response.fitted(steps, on=True).lag_ms == pytest.approx(10, abs=1)
    assert response.fitted(steps, on=False).lag_ms == pytest.approx(40, abs=1)
    assert steps.edges == 60


def test_an_exponential_answer_is_no_box():
    """A sensor that smooths with a time constant of 80 ms after 12 ms is named exponential, with both to 2 ms."""
    edges = bounds(500, 61)
    stamps = stamps_of(edges, 20, 6)
    shown = np.zeros(len(stamps))
    for k in range(1, len(edges) - 1):
        into_ms = (stamps - edges[k]) / MS - 12
        risen = np.where(into_ms > 0, 1 - np.exp(-np.maximum(into_ms, 0) / 80), 0)
        shown = shown + risen * (1 if k % 2 else -1)
    steps = response.folded(stamps, LOW_W + STEP_W * shown, edges, settle_ns=350 * MS)
    found = response.fitted(steps)
    assert (found.shape, found.lag_ms, found.window_ms) == (
        "exponential",
        pytest.approx(12, abs=2),
        pytest.approx(80, abs=2),
    )


def test_a_sensor_that_does_not_follow_has_no_answer():
    """Noise without steps folds to nothing, and nothing is fitted: no lag is made up."""
    edges = bounds(500, 21)
    stamps = stamps_of(edges, 20, 6)
    noise = np.random.default_rng(4).normal(100, 5, len(stamps))
    steps = response.folded(stamps, noise, edges, settle_ns=250 * MS)
    assert steps.edges == 0
    assert response.fitted(steps) is None


def test_a_lag_may_be_negative():
    """A sensor that stamps the beginning of what it averages leads: 25 ms of window, -25 ms of lag."""
    edges = bounds(500, 41)
    stamps = stamps_of(edges, 20, 6)
    steps = response.folded(stamps, box(edges, stamps, -25, 25), edges, settle_ns=250 * MS)
    assert response.fitted(steps).lag_ms == pytest.approx(-25, abs=2)


def test_renewals_of_a_polled_sensor_give_its_period():
    """A value that is renewed each 20 ms and polled each 3 ms shows a median period of 20 ms to 1 ms."""
    start = T0 + np.arange(0, 20_000, 3) * MS
    value = np.random.default_rng(5).normal(100, 2, 1001)[((start - T0) // (20 * MS)).astype(int)]
    new = response.renewals(start, start + 20_000, value)
    spread = response.spread(np.diff(new.time_ns) / MS)
    assert spread.median == pytest.approx(20, abs=1)
    assert spread.n == 998
    assert np.all(new.half_ns == 1.5 * MS)


def test_a_poll_that_came_late_places_no_renewal():
    """A new value after a pause of 50 ms may have come at any time of it, and is left out; the next one is placed."""
    start = T0 + np.array([0, 3, 6, 9, 59, 62, 65, 68, 71]) * MS
    new = response.renewals(start, start, [1, 1, 1, 1, 2, 2, 3, 3, 3])
    assert ((new.time_ns - T0) / MS).tolist() == [63.5]
    assert new.value.tolist() == [3]


def test_a_value_that_never_changes_has_no_renewals():
    """A stuck sensor is not taken for one that is renewed at each poll, and the spread of nothing is null."""
    start = T0 + np.arange(100) * MS
    new = response.renewals(start, start, np.full(100, 70.0))
    assert len(new.time_ns) == 0
    assert response.spread(np.diff(new.time_ns)) is None


def counted(period_ms, poll_ms, seconds, power_w=400.0, jitter_ms=0.0):
    """A counter that is renewed at a beat, by the reads of somebody who polls it."""
    late = np.random.default_rng(6).uniform(
        -jitter_ms, jitter_ms, int(seconds * 1e3 / period_ms) + 2
    )
    beats = T0 + ((np.arange(len(late)) * period_ms + late) * MS).astype(np.int64)
    read = T0 + np.arange(period_ms, seconds * 1e3, poll_ms) * MS
    last = np.searchsorted(beats, read, side="right") - 1
    return counter.counter(read, (power_w * last * period_ms).astype(np.uint64))


def test_ticks_that_keep_a_beat_are_placed_on_it():
    """Ticks polled each 16 ms are known to 8 ms; on the beat of 100 ms that they keep they lie right to 0.5 ms."""
    ticks = counted(100, 16, 10)
    sharp = response.regular(ticks)
    phase_ms = (sharp.time_ns - T0) / MS % 100
    assert np.ptp(ticks.time_ns / MS % 100) > 8
    assert np.all(np.abs((phase_ms + 50) % 100 - 50) < 8)  # the poll's own grid biases all alike
    assert np.diff(sharp.time_ns) / MS == pytest.approx(
        np.full(len(sharp.time_ns) - 1, 100), abs=0.5
    )
    stamps, watts = response.ticks_as_power(sharp)
    assert watts == pytest.approx(np.full(len(stamps), 400), rel=0.005)


def test_a_beat_is_found_through_coarse_polls_and_missing_instants():
    """A renewal each 100 ms polled each 7 ms, a fifth of them unseen: the beat is 100 ms to 0.1 ms."""
    random = np.random.default_rng(7)
    true_ms = np.arange(100)[random.uniform(size=100) > 0.2] * 100.0
    seen = T0 + (np.ceil(true_ms / 7) * 7 * MS).astype(np.int64) - round(3.5 * MS)
    found = response.beat(seen, np.full(len(seen), 3.5 * MS))
    assert found.period_ns / MS == pytest.approx(100, abs=0.1)
    assert response.beat(seen[:5], np.full(5, 3.5 * MS)) is None


def test_ticks_that_keep_no_beat_are_left_where_they_were_seen():
    """A counter renewed at 100 ms give or take 40 is not forced onto a beat; only the first reading, no tick, goes."""
    ticks = counted(100, 3, 10, jitter_ms=40)
    assert response.regular(ticks).time_ns.tolist() == ticks.time_ns[1:].tolist()


def test_joules_between_two_ticks_are_exact():
    """400 W between the first and the last tick of 1 to 4 s are the steps between them, whatever the polls missed."""
    ticks = counted(100, 16, 5)
    start, end, joules = response.at_ticks(ticks, T0 + 1000 * MS, T0 + 4000 * MS)
    assert joules == pytest.approx(400 * round((end - start) / 1e8) / 10)
    assert T0 + 1000 * MS <= start < end <= T0 + 4000 * MS
    assert response.at_ticks(ticks, T0, T0 + 50 * MS) is None


def test_joules_of_a_late_source_are_taken_late():
    """A source 40 ms behind gives the joules of a window that ends with the load, if its lag is reckoned with."""
    edges = np.array([T0, T0 + 1000 * MS, T0 + 2000 * MS, T0 + 3000 * MS])
    stamps = T0 + np.arange(0, 3000, 20) * MS
    power = curve.curve(stamps, box(edges, stamps, 30, 20, 1e-9))
    window = T0 + 500 * MS, T0 + 1500 * MS  # half a second off, half a second on: 50 J and 200 J
    assert response.joules(power, *window, behind_ns=40 * MS) == pytest.approx(250, rel=1e-3)
    assert response.joules(power, *window, behind_ns=0) == pytest.approx(250 - 300 * 0.04, rel=1e-2)
    assert response.joules(power, T0, T0 + 3000 * MS, behind_ns=40 * MS) is None


def test_the_share_of_a_window_in_which_a_load_was_on():
    """On from 1 to 2 s and from 3 to 4 s: all of 1.5 to 2 s, half of 0 to 4 s, a quarter of 1.75 to 2.75 s, by hand."""
    bounds = T0 + np.arange(6) * 1000 * MS
    for start_ms, end_ms, share in (
        (1500, 2000, 1.0),
        (0, 4000, 0.5),
        (1750, 2750, 0.25),
        (0, 900, 0.0),
    ):
        assert response.on_share(bounds, T0 + start_ms * MS, T0 + end_ms * MS) == share


def test_short_windows_show_aliasing():
    """Samples of 20 ms of a 20.2 ms load drift through it: windows of 1 s that hold the same joules range widely."""
    edges = T0 + np.arange(0, 12_000, 10.1) * MS
    edges = edges.astype(np.int64)
    stamps = T0 + np.arange(1000, 11_000, 20) * MS
    instant = curve.curve(stamps, box(edges, stamps, 0, 0.01, 1e-9))
    averaging = curve.curve(stamps, box(edges, stamps, 0, 20, 1e-9))
    inside = T0 + 1500 * MS, T0 + 10_500 * MS
    low, high = response.range_of_windows(instant, *inside, 20.2 * MS)
    assert high - low > 0.3
    low, high = response.range_of_windows(averaging, *inside, 20.2 * MS)
    assert high - low < 0.02
    assert response.range_of_windows(instant, inside[0], inside[0] + 900 * MS, 20.2 * MS) is None
