r"""What a power sensor does, from arrays: how often it is renewed, how late it is, over which time it averages.

A load that is switched at known instants makes steps of power. A sample stamped s that is the mean of the power over
[s - lag - window, s - lag] answers a step at e by a ramp:

    1                      o---o---o          lag      from the edge to where the samples begin to follow
                       o                      window   from there to where they have arrived
    0  o---o---o---o
               |   |         |
               e   e + lag   e + lag + window

Samples around many edges, each in its own phase, fold into one ramp that is drawn far denser than the sensor samples.
A sensor that smooths by a resistor and a capacitor answers by 1 - exp(-(s - e - lag) / window) instead; both are
fitted, and the one that leaves less is named.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from wattflow.energy.counter import Counter, counter_between
from wattflow.energy.curve import Bools, Curve, Floats, Ints, between

MS = 1_000_000  # ns
LEAST_SAMPLES = 12  # on the ramp and beside it, for a fit
LEAST_BEATS = 8
LEAST_ON_BEAT = 0.9  # of a counter's ticks, or it keeps none
LEAST_STEP = 4.0  # of a step over the scatter beside it, or it is not seen
_BEFORE_NS = 300 * MS  # samples this long before an edge are folded, too: a stamp may lead
_FINE_NS = 50_000  # the grid of a fit ends here: no stamp is sharper
_OUTLIER = 0.5  # of a step: what lies farther off pulls no harder

Shape = Literal["box", "exponential"]


@dataclass(frozen=True)
class Spread:
    """How some values are spread: their count, least, 5th, 50th and 95th percentile, most."""

    n: int
    least: float
    p5: float
    median: float
    p95: float
    most: float


@dataclass(frozen=True)
class Renewals:
    """When a polled sensor showed a new value, and what: arrays of n. Each came within `half_ns` of its stamp."""

    time_ns: Ints
    value: Floats
    half_ns: Floats


@dataclass(frozen=True)
class Beat:
    """Instants that keep to a steady period: where they lie by it, and how far off those were seen that fit it."""

    period_ns: float
    time_ns: Ints
    off_ns: Floats


@dataclass(frozen=True)
class StepSamples:
    """Samples around the edges of a load: ns since the edge, the share of the step that is done, whether it went on."""

    since_ns: Ints
    share: Floats
    on: Bools
    edges: int  # how many edges had a step that can be seen


@dataclass(frozen=True)
class Fit:
    """A sensor's answer to a step: when it begins, how long it takes, what the fit leaves (root mean square)."""

    shape: Shape
    lag_ms: float
    window_ms: float  # of an exponential answer: its time constant
    rms: float
    samples: int


def spread(values: npt.ArrayLike) -> Spread | None:
    """Return the spread of values in their own unit; null for none."""
    given = np.asarray(values, dtype=np.float64)
    if not len(given):
        return None
    least, p5, median, p95, most = (float(v) for v in np.percentile(given, [0, 5, 50, 95, 100]))
    return Spread(len(given), least, p5, median, p95, most)


def renewals(start_ns: npt.ArrayLike, end_ns: npt.ArrayLike, value: npt.ArrayLike) -> Renewals:
    """Return the reads of a polled sensor that differ from the read before, placed midway between both reads.

    A renewal that shows the old value again cannot be seen. Where the reads are farther apart than twice the usual,
    as polls are that came late, its time is not known well enough, and it is left out.
    """
    middle = (np.asarray(start_ns, np.int64) + np.asarray(end_ns, np.int64)) // 2
    given = np.asarray(value, dtype=np.float64)
    order = np.argsort(middle, kind="stable")
    middle, given = middle[order], given[order]
    apart = np.diff(middle)
    usual = 2 * np.median(apart) if len(apart) else 0
    new = np.flatnonzero((given[1:] != given[:-1]) & (apart <= usual))
    return Renewals(
        time_ns=middle[new] + apart[new] // 2, value=given[new + 1], half_ns=apart[new] / 2
    )


def regular(ticks: Counter) -> Counter:
    """Return the ticks at the times of a steady beat, if they keep to one; else as they are.

    A tick is only known to have come between two reads. Of many that keep to one beat the times are known far better.
    The first reading, which is no tick, is left out.
    """
    ticks = Counter(
        time_ns=ticks.time_ns[1:],
        half_ns=ticks.half_ns[1:],
        step_mj=ticks.step_mj[1:],
        reset=ticks.reset[1:],
        energy_mj=ticks.energy_mj[1:],
    )
    found = beat(ticks.time_ns, ticks.half_ns)
    if found is None:
        return ticks
    return replace(
        ticks,
        time_ns=found.time_ns,
        half_ns=np.full(
            len(found.time_ns), float(np.std(found.off_ns)) / np.sqrt(len(found.off_ns))
        ),
    )


def beat(time_ns: Ints, half_ns: Floats) -> Beat | None:
    """Return the steady beat of instants known to `half_ns` each, some of which may be missing; null without one."""
    if len(time_ns) < LEAST_BEATS:
        return None
    since = (time_ns - time_ns[0]).astype(np.float64)
    spacing = np.diff(since)
    number = np.append(0.0, np.cumsum(np.rint(spacing / np.median(spacing))))
    good = np.ones(len(number), bool)
    for _ in range(3):  # a read that came late on a busy node places its instant too early
        period, first = np.polyfit(number[good], since[good], 1)
        off = since - first - period * number
        good = np.abs(off) <= half_ns + 2 * MS
        if np.mean(good) < LEAST_ON_BEAT:
            return None
    fitted_ns = time_ns[0] + np.rint(first + period * number).astype(np.int64)
    return Beat(float(period), fitted_ns, off[good])


def ticks_as_power(ticks: Counter) -> tuple[Ints, Floats]:
    """Return a counter's mean watts since the tick before, stamped by each tick; steps with a reset are left out."""
    seconds = np.diff(ticks.time_ns) / 1e9
    whole = ~ticks.reset
    return ticks.time_ns[1:][whole], (ticks.step_mj[whole] / 1e3 / seconds[whole])


# --- steps ----------------------------------------------------------------------------------------


def folded(
    time_ns: npt.ArrayLike, value: npt.ArrayLike, bounds_ns: npt.ArrayLike, *, settle_ns: int
) -> StepSamples:
    """Return samples folded over the edges of a load that was off, on, off ... between `bounds_ns`, both included.

    Each step is scaled by its own plateaus: medians of what lies at least `settle_ns` after the edge before. Steps
    that do not stand out from their plateaus' scatter are left out.
    """
    stamps = np.asarray(time_ns, dtype=np.int64)
    values = np.asarray(value, dtype=np.float64)
    bounds = np.asarray(bounds_ns, dtype=np.int64)
    plateaus = [
        values[(stamps >= start + settle_ns) & (stamps < end)]
        for start, end in itertools.pairwise(bounds)
    ]
    levels = [float(np.median(of)) if len(of) else None for of in plateaus]
    scatter = _scatter(plateaus)
    since, share, on = [], [], []
    for k, (before, after) in enumerate(itertools.pairwise(levels), start=1):
        if before is None or after is None or abs(after - before) <= LEAST_STEP * scatter:
            continue
        start = max(bounds[k] - _BEFORE_NS, bounds[k - 1] + settle_ns)
        near = (stamps >= start) & (stamps < bounds[k + 1])
        since.append(stamps[near] - bounds[k])
        share.append((values[near] - before) / (after - before))
        on.append(np.full(len(since[-1]), k % 2 == 1))
    if not since:
        return StepSamples(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool), 0)
    return StepSamples(np.concatenate(since), np.concatenate(share), np.concatenate(on), len(since))


def _scatter(plateaus: list[Floats]) -> float:
    """Return the standard deviation of samples about their plateau's median, from the middle half of them."""
    about = [np.abs(of - np.median(of)) for of in plateaus if len(of) > 1]
    return 1.48 * float(np.median(np.concatenate(about))) if about else 0.0


def answer(since_ns: npt.ArrayLike, lag_ns: float, window_ns: float, shape: Shape) -> Floats:
    """Return the share of a step that a sensor shows so long after the edge: 0 before the lag, in the end 1."""
    into = np.asarray(since_ns, dtype=np.float64) - lag_ns
    if shape == "box":
        return np.clip(into / max(window_ns, 1.0), 0.0, 1.0)
    with np.errstate(over="ignore"):
        risen: Floats = np.where(into > 0, 1 - np.exp(-into / max(window_ns, 1.0)), 0.0)
    return risen


def fitted(steps: StepSamples, *, on: bool | None = None, shape: Shape | None = None) -> Fit | None:
    """Return the answer that leaves least of the folded samples, of one shape or the better of both; null with few.

    `on` takes the edges in one direction only. The search is a grid that shrinks around its best place.
    """
    picked = np.ones(len(steps.on), bool) if on is None else steps.on == on
    since, share = steps.since_ns[picked].astype(np.float64), steps.share[picked]
    if len(since) < LEAST_SAMPLES:
        return None
    if shape is None:
        fits = [_searched(since, share, "box"), _searched(since, share, "exponential")]
        return min(fits, key=lambda fit: fit.rms)
    return _searched(since, share, shape)


def _searched(since: Floats, share: Floats, shape: Shape) -> Fit:
    """Return the best of a grid over the middle of the rise and its length, which hardly depend on each other."""
    delay = (
        0.5 if shape == "box" else 1.0
    )  # of a window: how far the middle of the rise is behind its beginning
    middles = np.arange(-200.0, 1200.0, 20.0) * MS
    windows = np.concatenate([[0.0], np.geomspace(2.0, 2000.0, 16)]) * MS
    while True:
        left = np.array(
            [[_left(since, share, m - delay * w, w, shape) for w in windows] for m in middles]
        )
        i, j = (int(place) for place in np.unravel_index(int(np.argmin(left)), left.shape))
        middle, window, rms = middles[i], windows[j], float(np.sqrt(left[i, j]))
        step = middles[1] - middles[0]
        if step < _FINE_NS:
            break
        low, high = windows[max(j - 1, 0)], windows[min(j + 1, len(windows) - 1)]
        middles = np.linspace(middle - step, middle + step, 7)
        windows = np.linspace(low, high, 7)
    return Fit(shape, float((middle - delay * window) / MS), float(window / MS), rms, len(since))


def _left(since: Floats, share: Floats, lag: float, window: float, shape: Shape) -> float:
    off = np.clip(share - answer(since, lag, window, shape), -_OUTLIER, _OUTLIER)
    return float(np.mean(off * off))


# --- energy beside energy -------------------------------------------------------------------------


def at_ticks(ticks: Counter, start_ns: int, end_ns: int) -> tuple[int, int, float] | None:
    """Return the longest window between two ticks of a stretch, and its exact joules; null without, or with a reset."""
    inside = np.flatnonzero((ticks.time_ns >= start_ns) & (ticks.time_ns <= end_ns))
    if len(inside) < 2:
        return None
    first, last = int(inside[0]), int(inside[-1])
    if ticks.reset[first:last].any():
        return None
    joules = int(ticks.energy_mj[last] - ticks.energy_mj[first]) / 1e3
    return int(ticks.time_ns[first]), int(ticks.time_ns[last]), joules


def on_share(bounds_ns: npt.ArrayLike, start_ns: int, end_ns: int) -> float:
    """Return the share of a window in which a load was on that was off, on, off ... between its bounds."""
    bounds = np.clip(np.asarray(bounds_ns, dtype=np.int64), start_ns, end_ns)
    lengths = np.diff(bounds)
    return float(lengths[1::2].sum()) / (end_ns - start_ns)


def joules(power: Curve, start_ns: int, end_ns: int, behind_ns: float) -> float | None:
    """Return the joules of a window by a source whose samples stand for the time `behind_ns` before their stamps."""
    shift = round(behind_ns)
    found = between(power, [start_ns + shift], [end_ns + shift])
    whole = bool(found.covered_ns[0] == found.window_ns[0]) and bool(np.isfinite(found.energy_j[0]))
    return float(found.energy_j[0]) if whole else None


def range_of_windows(
    source: Curve | Counter, start_ns: int, end_ns: int, period_ns: float, about_ns: float = 1e9
) -> tuple[float, float] | None:
    """Return the least and the most joules of short windows in a stretch, over their mean; null with too few.

    Each is about 1 s and a whole number of the load's periods, so that all of them truly hold the same joules.
    """
    length = round(max(1, round(about_ns / period_ns)) * period_ns)
    if end_ns - start_ns < length + period_ns:
        return None
    starts = np.linspace(start_ns, end_ns - length, 101).astype(np.int64)
    if isinstance(source, Curve):
        energy_j = between(source, starts, starts + length).energy_j
    else:
        energy_j = counter_between(source, starts, starts + length).energy_j
    energy_j = energy_j[np.isfinite(energy_j)]
    if len(energy_j) < len(starts) // 2:
        return None
    middle = float(energy_j.mean())
    return float(energy_j.min()) / middle, float(energy_j.max()) / middle
