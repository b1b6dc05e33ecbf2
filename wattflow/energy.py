r"""Joules from arrays: power samples or counter readings of one GPU in, the energy between any two instants out.

Power is taken as piecewise linear between samples at their true stamps, and cut exactly at both edges of a window:

    W       o-------o           o  a sample
           /|///////|\          |  an edge of the window
          o |///////| o         /  its joules: trapezoids cut at both edges
    ---------------------- time

Nothing is extrapolated (a window needs a sample on both sides of both edges), and a gap is never bridged: its time
counts as not covered. Stamps are integers of nanoseconds and are subtracted before they become floats, since a
float64 of today's unix time only tells 200 ns apart, and a float32 of a counter is wrong by joules.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SECOND_NS = 1_000_000_000
LEAST_COVERAGE = 0.99  # a window with less of its time measured has no joules

BUFFER_GAP_NS = 100_000_000  # the driver's buffer has a sample each 20 ms, at most 45 ms apart
POLL_SLACK_NS = 100_000_000  # a poll may come this late on a busy node
COUNTER_TICK_NS = 100_000_000  # the energy counter is renewed this often (seen on H100)
_BRIDGE_DOUBT = 0.05  # how far power's course may be off the counter's over part of a second
# polled fields are renewed this often (seen on H100): two polls within it are one sample
RENEWAL_NS = dict.fromkeys(
    ("nvml_instant", "nvml_average", "nvml_usage", "nvml_usage_mean", "dcgm", "dcgm_mean"),
    100_000_000,
)
# means over 1 s
AVERAGING_NS = dict.fromkeys(("nvml_average", "nvml_usage_mean", "dcgm_mean"), SECOND_NS)
CACHED = ("dcgm", "dcgm_mean")  # a value was read up to a period before it came and was stamped
DCGM_COUNTER_AGE_NS = SECOND_NS  # the same for DCGM's counter, which is read this often


@dataclass(frozen=True)
class Curve:
    """The power of one GPU over time, and its running integral. Arrays of n samples, n - 1 segments between them."""

    time_ns: Ints  # strictly rising
    power_w: Floats
    covered: Bools  # per segment: false for a gap
    energy_j: Floats  # from the first sample to each; gaps add nothing
    covered_ns: Ints  # measured time from the first sample to each
    steps_j2: (
        Floats  # running sum of (dP dt)^2 from each sample to the next that is independent of it
    )
    bends_j2: Floats  # running sum of the same for half the second difference of three such samples
    lag_ns: int  # how far a sample's stamp may lie from the time it averages


@dataclass(frozen=True)
class Counter:
    """An energy counter's ticks, resets taken out. Arrays of n ticks, n - 1 steps between them."""

    time_ns: Ints  # strictly rising; the middle of the time in which the tick came
    half_ns: Floats  # per tick: half of that time
    step_mj: Ints  # per step; 0 where the counter was reset
    reset: Bools  # per step
    energy_mj: Ints  # from the first tick to each


@dataclass(frozen=True)
class Windows:
    """What was measured in each of w windows; arrays of w. `energy_j` is NaN where an edge is not bracketed."""

    energy_j: Floats
    u_j: Floats  # standard uncertainty by sampling
    lag_u_j: Floats  # the part of it by which stamps may lie off: alike in windows of one load
    window_ns: Ints
    covered_ns: Ints
    longest_gap_ns: Ints

    def part(self, first: int, last: int) -> "Windows":
        """The windows from the first up to, not with, the last."""
        return Windows(
            energy_j=self.energy_j[first:last],
            u_j=self.u_j[first:last],
            lag_u_j=self.lag_u_j[first:last],
            window_ns=self.window_ns[first:last],
            covered_ns=self.covered_ns[first:last],
            longest_gap_ns=self.longest_gap_ns[first:last],
        )


@dataclass(frozen=True)
class Joules:
    """The sum of some windows. `energy_j` and `u_j` are null where `reason` says why: not_bracketed or gap."""

    energy_j: float | None
    u_j: float | None
    seconds: float
    coverage: float
    longest_gap_s: float
    reason: str | None


def longest_spacing_ns(source: str, period_ms: float) -> int:
    """The longest time between two samples of a source that is no gap yet, ns."""
    three_periods = int(3 * period_ms * 1e6)
    if source == "nvml_buffer":
        return max(BUFFER_GAP_NS, three_periods)
    return three_periods + POLL_SLACK_NS


def lag_ns(source: str, period_ms: float) -> int:
    """How far the time that a sample stands for may lie from its stamp, ns."""
    period_ns = int(period_ms * 1e6)
    least_ns = max(AVERAGING_NS.get(source, 0), RENEWAL_NS.get(source, 0))
    return period_ns + least_ns if source in CACHED else max(period_ns, least_ns)


def curve(
    time_ns: npt.ArrayLike,
    power_w: npt.ArrayLike,
    gap: npt.ArrayLike | None = None,
    *,
    longest_ns: int = BUFFER_GAP_NS,
    lag_ns: int = 20_000_000,
    renewal_ns: int = 0,
) -> Curve:
    """The curve through samples in any order; a gap is a row flagged `gap`, or a spacing above `longest_ns`.

    Samples that are no numbers or below 0 W are no readings and are left out (which may open a gap). Of samples with
    one stamp the last counts. Values above the board's limit are kept: a 700 W board was seen at 971 W. Samples
    closer than `renewal_ns` may repeat one value of the sensor, so scatter is judged over that time at least.
    """
    stamps = np.asarray(time_ns, dtype=np.int64)
    watts = np.asarray(power_w, dtype=np.float64)
    flags = np.zeros(len(stamps), bool) if gap is None else np.asarray(gap, dtype=np.bool_)
    order = np.argsort(stamps, kind="stable")
    stamps, watts, lost = stamps[order], watts[order], np.cumsum(flags[order])
    kept = np.isfinite(watts) & (watts >= 0)
    stamps, watts, lost = stamps[kept], watts[kept], lost[kept]
    last = np.append(stamps[1:] != stamps[:-1], np.ones(min(1, len(stamps)), bool))
    stamps, watts, lost = stamps[last], watts[last], lost[last]
    spacing_ns = np.diff(stamps)
    covered = (spacing_ns <= longest_ns) & (np.diff(lost) == 0)
    seconds = spacing_ns / SECOND_NS
    energy_j = np.where(covered, (watts[:-1] + watts[1:]) / 2 * seconds, 0.0)
    steps_j2, bends_j2 = _scatter(stamps, watts, covered, renewal_ns)
    return Curve(
        time_ns=stamps,
        power_w=watts,
        covered=covered,
        energy_j=_running(energy_j),
        covered_ns=_running(np.where(covered, spacing_ns, 0)),
        steps_j2=_running(steps_j2),
        bends_j2=_running(bends_j2),
        lag_ns=lag_ns,
    )


def curve_of(
    source: str,
    period_ms: float,
    time_ns: npt.ArrayLike,
    power_w: npt.ArrayLike,
    gap: npt.ArrayLike | None = None,
) -> Curve:
    """The same through samples of one source, by what is known of its spacing, lag and renewal."""
    return curve(
        time_ns,
        power_w,
        gap,
        longest_ns=longest_spacing_ns(source, period_ms),
        lag_ns=lag_ns(source, period_ms),
        renewal_ns=RENEWAL_NS.get(source, 0),
    )


def _scatter(stamps: Ints, watts: Floats, covered: Bools, renewal_ns: int) -> tuple[Floats, Floats]:
    """Per segment, the squares of (dP dt) and of half the second difference times dt, over independent samples.

    With k samples to a renewal of the sensor each difference reaches over k segments and counts for 1 / k.
    """
    n = len(stamps)
    if n < 2:
        return np.zeros(0), np.zeros(0)
    k = max(1, round(renewal_ns / max(float(np.median(np.diff(stamps))), 1.0)))
    after = np.minimum(np.arange(n - 1) + k, n - 1)
    before = np.maximum(np.arange(n - 1) - k, 0)
    here = np.arange(n - 1)
    seconds = np.minimum(np.diff(stamps) * float(k), 2e9) / SECOND_NS
    step_w = watts[after] - watts[here]
    bend_w = (watts[before] - 2 * watts[here] + watts[after]) / 2
    scale = np.where(covered, seconds**2 / k, 0.0)
    return step_w**2 * scale, bend_w**2 * scale


def counter(time_ns: npt.ArrayLike, reading_mj: npt.ArrayLike, *, age_ns: int = 0) -> Counter:
    """The counter's ticks, from readings in any order (unsigned mJ), each up to `age_ns` older than its stamp.

    A reading tells a tick that came since the reading before it, and within the last 100 ms: a tick is placed in the
    middle of that time, which its age makes longer. Readings that repeat the one before them tell none. A decrease is
    a reset by a driver reload, never a wrap: 64 bits of mJ last for ages.
    """
    stamps = np.asarray(time_ns, dtype=np.int64)
    readings = np.asarray(reading_mj, dtype=np.uint64)
    order = np.argsort(stamps, kind="stable")
    stamps, readings = stamps[order], readings[order]
    lone = np.full(min(1, len(stamps)), COUNTER_TICK_NS)
    half_ns = (np.minimum(np.append(lone, np.diff(stamps)), COUNTER_TICK_NS) + age_ns) / 2
    new = np.append(np.ones(min(1, len(stamps)), bool), readings[1:] != readings[:-1])
    new &= np.append(np.ones(min(1, len(stamps)), bool), stamps[1:] != stamps[:-1])
    stamps, readings, half_ns = stamps[new], readings[new], half_ns[new]
    reset = readings[1:] < readings[:-1]
    # unsigned subtraction is exact where the counter rose; int64 holds any step of a real board
    step_mj = np.where(reset, np.uint64(0), readings[1:] - readings[:-1]).astype(np.int64)
    return Counter(
        time_ns=stamps - half_ns.astype(np.int64),
        half_ns=half_ns,
        step_mj=step_mj,
        reset=reset,
        energy_mj=_running(step_mj),
    )


def between(power: Curve, start_ns: npt.ArrayLike, end_ns: npt.ArrayLike) -> Windows:
    """The joules of windows [start, end], whose sums are additive: E(a, b) + E(b, c) = E(a, c).

    The standard uncertainty adds in quadrature (each a rectangular distribution, JCGM 100:2008, 4.3.7):

    - the samples between the edges. Power that steps seldom stepped at any instant between two samples,
      (dP dt)^2 / 12 each. Power that changes faster than it is sampled makes samples that are independent draws:
      their mean scatters by (dP dt)^2 / 2 each. Which of both it is shows in half the second differences, whose
      squares are 1 / 2 of the first ones' for seldom steps, and 3 / 4 for independent draws.
    - the edges. Stamps may lie off by up to one lag: |P(end) - P(start)| lag / sqrt(3) for both edges together, and
      the spread of power within a lag of each edge, times lag / sqrt(12).
    - the time not covered, which may have held anything up to the highest power seen: P_max t / sqrt(3).
    """
    start, end = _edges(start_ns, end_ns)
    window_ns = end - start
    if len(power.time_ns) < 2:
        nothing = np.zeros(len(start))
        none = np.zeros(len(start), np.int64)
        return Windows(nothing + np.nan, nothing + np.nan, nothing, window_ns, none, window_ns)
    inside = _bracketed(power.time_ns, start, end)
    first, last = _segment(power.time_ns, start), _segment(power.time_ns, end)
    energy_start, covered_start, power_start = _at(power, start, first)
    energy_end, covered_end, power_end = _at(power, end, last)
    covered_ns = np.where(inside, covered_end - covered_start, 0)
    lag_s = power.lag_ns / SECOND_NS
    step_w2 = (power_end - power_start) ** 2
    spread_w2 = _spread_w(power, start) ** 2 + _spread_w(power, end) ** 2
    lag_u_j = lag_s * np.sqrt(step_w2 / 3 + spread_w2 / 12)
    lost_j = power.power_w.max() * ((window_ns - covered_ns) / SECOND_NS)
    u_j = np.sqrt(_sampled_j2(power, first, last + 1) + lag_u_j**2 + lost_j**2 / 3)
    # rounding may leave -1e-12 J for a window inside one segment
    energy_j = np.maximum(energy_end - energy_start, 0.0)
    return Windows(
        energy_j=np.where(inside, energy_j, np.nan),
        u_j=np.where(inside, u_j, np.nan),
        lag_u_j=lag_u_j,
        window_ns=window_ns,
        covered_ns=covered_ns,
        longest_gap_ns=_longest_gaps(power, start, end),
    )


def counter_between(
    readings: Counter, start_ns: npt.ArrayLike, end_ns: npt.ArrayLike, power: Curve | None = None
) -> Windows:
    """The joules of windows by the counter, which is exact at its ticks.

    From the sharpest tick near an edge, `power` leads to the edge, scaled so that over all ticks it makes the
    counter's joules: only its course counts, not its gain. Without power, or in a gap of it, the step around the edge
    is shared out evenly. A reset inside a window is bridged with `power`; NaN where power does not cover it.

    The standard uncertainty is that of the edges: P t / sqrt(3) for a tick that came within a time of half-width t,
    and where a step was shared out evenly, also for the distance t to its nearer tick (JCGM 100:2008, 4.3.7).
    """
    start, end = _edges(start_ns, end_ns)
    window_ns = end - start
    if len(readings.time_ns) < 2:
        nothing = np.full(len(start), np.nan)
        return Windows(nothing, nothing, nothing, window_ns, window_ns * 0, window_ns)
    inside = _bracketed(readings.time_ns, start, end)
    first, last = _at_edge(readings, start, power), _at_edge(readings, end, power)
    energy_j = last.energy_j - first.energy_j
    for step in np.flatnonzero(readings.reset):
        energy_j = energy_j + _bridge(readings, int(step), first.from_ns, last.from_ns, power)
    known = inside & np.isfinite(energy_j)
    covered_ns = np.where(known, window_ns, 0)
    return Windows(
        energy_j=np.where(known, np.maximum(energy_j, 0.0), np.nan),
        u_j=np.where(known, np.hypot(first.u_j, last.u_j), np.nan),
        lag_u_j=np.zeros(len(start)),
        window_ns=window_ns,
        covered_ns=covered_ns,
        longest_gap_ns=window_ns - covered_ns,
    )


def resets_between(readings: Counter, start_ns: int, end_ns: int) -> int:
    """How many resets of the counter touch the window."""
    touched = (readings.time_ns[:-1] < end_ns) & (readings.time_ns[1:] > start_ns)
    return int(np.count_nonzero(readings.reset & touched))


def summed(windows: Windows) -> Joules:
    """The sum over windows, or null and why: not_bracketed, or gap where too little of the time was measured.

    What the windows do not share adds in quadrature. The lag of a sensor's stamps is one number: where each prefill
    starts with a rise it takes the same joules from each of them, so its part adds up as it is.
    """
    window_ns, covered_ns = int(windows.window_ns.sum()), int(windows.covered_ns.sum())
    coverage = covered_ns / window_ns if window_ns else float(np.all(np.isfinite(windows.energy_j)))
    longest_gap_s = float(windows.longest_gap_ns.max(initial=0)) / SECOND_NS
    reason = None
    if not np.all(np.isfinite(windows.energy_j)):
        reason = "not_bracketed"
    elif coverage < LEAST_COVERAGE:
        reason = "gap"
    known = reason is None
    own_j2 = np.maximum(windows.u_j**2 - windows.lag_u_j**2, 0.0).sum()
    return Joules(
        energy_j=float(windows.energy_j.sum()) if known else None,
        u_j=float(np.sqrt(own_j2 + windows.lag_u_j.sum() ** 2)) if known else None,
        seconds=window_ns / SECOND_NS,
        coverage=coverage,
        longest_gap_s=longest_gap_s,
        reason=reason,
    )


def clock_stepped(
    time_ns: npt.ArrayLike, monotonic_ns: npt.ArrayLike, start_ns: int, end_ns: int
) -> bool:
    """Whether the wall clock jumped inside the window, seen from pairs of both clocks.

    A slewed clock drifts by at most 500 ppm; more than that and 20 ms between two pairs is a step.
    """
    wall = np.asarray(time_ns, dtype=np.int64)
    steady = np.asarray(monotonic_ns, dtype=np.int64)
    order = np.argsort(steady, kind="stable")
    wall, steady = wall[order], steady[order]
    passed = np.diff(steady)
    jump = np.abs(np.diff(wall) - passed) > 20_000_000 + passed // 2000
    touched = (np.minimum(wall[:-1], wall[1:]) < end_ns) & (
        np.maximum(wall[:-1], wall[1:]) > start_ns
    )
    return bool(np.any(jump & touched))


def _running(values: npt.NDArray[Any]) -> Any:
    """The running sum with a leading 0, in the values' own type."""
    return np.append(np.zeros(1, values.dtype), np.cumsum(values))


def _edges(start_ns: npt.ArrayLike, end_ns: npt.ArrayLike) -> tuple[Ints, Ints]:
    start = np.atleast_1d(np.asarray(start_ns, dtype=np.int64))
    end = np.atleast_1d(np.asarray(end_ns, dtype=np.int64))
    if np.any(end < start):
        raise ValueError("a window ends before it starts")
    return start, end


def _bracketed(time_ns: Ints, start: Ints, end: Ints) -> Bools:
    inside: Bools = (start >= time_ns[0]) & (end <= time_ns[-1])
    return inside


def _segment(time_ns: Ints, at_ns: Ints) -> npt.NDArray[np.intp]:
    """The index of the segment that holds each instant."""
    return np.clip(np.searchsorted(time_ns, at_ns, side="right") - 1, 0, len(time_ns) - 2)


def _at(power: Curve, at_ns: Ints, segment: npt.NDArray[np.intp]) -> tuple[Floats, Ints, Floats]:
    """Joules and measured ns from the first sample to each instant, and the watts there."""
    into_ns = np.clip(at_ns - power.time_ns[segment], 0, None)
    length_ns = power.time_ns[segment + 1] - power.time_ns[segment]
    before, after = power.power_w[segment], power.power_w[segment + 1]
    here = before + (after - before) * np.minimum(into_ns / length_ns, 1.0)
    covered = power.covered[segment]
    part_j = np.where(covered, (before + here) / 2 * (into_ns / SECOND_NS), 0.0)
    # never past the segment's own joules, so that the running integral never falls
    energy_j = np.minimum(power.energy_j[segment] + part_j, power.energy_j[segment + 1])
    return energy_j, power.covered_ns[segment] + np.where(covered, into_ns, 0), here


def _sampled_j2(power: Curve, first: npt.NDArray[np.intp], last: npt.NDArray[np.intp]) -> Floats:
    """The variance by sampling of the segments from `first` up to, not with, `last`."""
    steps_j2 = np.maximum(power.steps_j2[last] - power.steps_j2[first], 0.0)
    bends_j2 = np.maximum(power.bends_j2[last] - power.bends_j2[first], 0.0)
    bent = bends_j2 / np.where(steps_j2 > 0, steps_j2, 1.0)
    draws = np.clip((bent - 1 / 2) / (3 / 4 - 1 / 2), 0.0, 1.0)
    variance: Floats = steps_j2 * (1 / 12 + (1 / 2 - 1 / 12) * draws)
    return variance


def _spread_w(power: Curve, at_ns: Ints) -> Floats:
    """How far power ranges within a lag of each instant, seen at its ends and its middle."""
    around = [
        np.interp(at_ns + shift - power.time_ns[0], power.time_ns - power.time_ns[0], power.power_w)
        for shift in (-power.lag_ns, 0, power.lag_ns)
    ]
    spread: Floats = np.max(around, axis=0) - np.min(around, axis=0)
    return spread


def _longest_gaps(power: Curve, start: Ints, end: Ints) -> Ints:
    """The longest stretch without power inside each window, ns; time outside the samples counts too."""
    first_ns, last_ns = power.time_ns[0], power.time_ns[-1]
    before = np.clip(np.minimum(end, first_ns) - start, 0, None)
    after = np.clip(end - np.maximum(start, last_ns), 0, None)
    longest: Ints = np.maximum(before, after)
    for gap in np.flatnonzero(~power.covered):
        inside = np.minimum(end, power.time_ns[gap + 1]) - np.maximum(start, power.time_ns[gap])
        longest = np.maximum(longest, inside)
    return longest


@dataclass(frozen=True)
class _AtEdge:
    """The counter at some instants: joules since its first tick, resets left out, and how it was found."""

    energy_j: Floats
    u_j: Floats
    from_ns: Ints  # from where power or an even share leads on


def _at_edge(readings: Counter, at_ns: Ints, power: Curve | None) -> _AtEdge:
    evenly = _evenly(readings, at_ns)
    if power is None or len(power.time_ns) < 2:
        return evenly
    away_ns = np.abs(at_ns[:, None] - readings.time_ns[None, :])
    tick = np.argmin(readings.half_ns[None, :] + _BRIDGE_DOUBT * away_ns, axis=1)
    tick_ns = readings.time_ns[tick]
    bridge = between(power, np.minimum(at_ns, tick_ns), np.maximum(at_ns, tick_ns))
    bridged = np.isfinite(bridge.energy_j) & (bridge.covered_ns == bridge.window_ns)
    bridge_j = _gain(readings, power) * bridge.energy_j
    segment = _segment(power.time_ns, tick_ns)
    tick_j = _at(power, tick_ns, segment)[2] * readings.half_ns[tick] / SECOND_NS
    u_j = np.hypot(tick_j, _BRIDGE_DOUBT * bridge_j) / np.sqrt(3)
    energy_j = readings.energy_mj[tick] / 1e3 + np.where(at_ns >= tick_ns, bridge_j, -bridge_j)
    return _AtEdge(
        energy_j=np.where(bridged, energy_j, evenly.energy_j),
        u_j=np.where(bridged, u_j, evenly.u_j),
        from_ns=np.where(bridged, tick_ns, evenly.from_ns),
    )


def _evenly(readings: Counter, at_ns: Ints) -> _AtEdge:
    """The counter at some instants, each step between two ticks shared out evenly."""
    step = _segment(readings.time_ns, at_ns)
    from_ns, to_ns = readings.time_ns[step], readings.time_ns[step + 1]
    share = np.clip((at_ns - from_ns) / (to_ns - from_ns), 0.0, 1.0)
    nearest_ns = np.maximum(np.minimum(at_ns - from_ns, to_ns - at_ns), 0)
    ticks_ns = np.hypot((1 - share) * readings.half_ns[step], share * readings.half_ns[step + 1])
    step_j = readings.step_mj[step] / 1e3
    return _AtEdge(
        energy_j=readings.energy_mj[step] / 1e3 + share * step_j,
        u_j=step_j / (to_ns - from_ns) * np.hypot(ticks_ns, nearest_ns) / np.sqrt(3),
        from_ns=at_ns,
    )


def _gain(readings: Counter, power: Curve) -> float:
    """The counter's joules over power's, on all steps that power covers; 1 where there is none."""
    by_power = between(power, readings.time_ns[:-1], readings.time_ns[1:])
    told = (by_power.covered_ns == by_power.window_ns) & ~readings.reset & (by_power.energy_j > 0)
    if not told.any():
        return 1.0
    return float(readings.step_mj[told].sum() / 1e3 / by_power.energy_j[told].sum())


def _bridge(readings: Counter, step: int, start: Ints, end: Ints, power: Curve | None) -> Floats:
    """The joules by power of the part of each window that lies in a reset step; NaN where power does not cover it."""
    from_ns = np.clip(readings.time_ns[step], start, end)
    to_ns = np.clip(readings.time_ns[step + 1], start, end)
    touched = to_ns > from_ns
    if power is None:
        return np.where(touched, np.nan, 0.0)
    by_power = between(power, from_ns, to_ns)
    whole = by_power.covered_ns == by_power.window_ns
    return np.where(touched, np.where(whole, by_power.energy_j, np.nan), 0.0)
