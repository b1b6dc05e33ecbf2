r"""Joules from arrays: power samples or counter readings of one GPU in, the energy between any two instants out.

Power is taken as piecewise linear between samples at their true stamps, and cut exactly at both edges of a window:

    W       o-------o           o  a sample
           /|///////|\          |  an edge of the window
          o |///////| o         /  its joules: trapezoids cut at both edges
    ---------------------- time

Nothing is extrapolated (a window needs a sample on both sides of both edges), and a gap is never bridged: its time
counts as not covered. Stamps are integers of nanoseconds and are subtracted before they become floats, since a
float64 of today's unix time is only exact to 200 ns, and a float32 of a counter is wrong by joules.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wattflow.store.sources import (
    MS,
    SECOND_NS,
    lag_ns,
    least_w,
    longest_spacing_ns,
    most_w,
    source_of,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
LEAST_SLEW = 1e-3  # of a clock's rate; oscillators are off by 1e-4 at most
PAIR_S = 0.002  # how far apart the two readings of a pair of clocks may lie
LEAST_COVERAGE = 0.99  # a window with less of its time measured has no joules


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
class Windows:
    """What was measured in each of w windows; arrays of w. `energy_j` is NaN where an edge is not bracketed."""

    energy_j: Floats
    u_j: Floats  # standard uncertainty by sampling
    lag_u_j: Floats  # the part of it by which stamps may lie off: alike in windows of one load
    late_u_j: Floats  # the part of that which is the same at both edges: samples that are late
    missing_u_j: Floats  # the part of it of time that was not covered
    window_ns: Ints
    covered_ns: Ints
    longest_gap_ns: Ints

    def part(self, first: int, last: int) -> "Windows":
        """Return the windows from the first up to, not with, the last."""
        return Windows(
            energy_j=self.energy_j[first:last],
            u_j=self.u_j[first:last],
            lag_u_j=self.lag_u_j[first:last],
            late_u_j=self.late_u_j[first:last],
            missing_u_j=self.missing_u_j[first:last],
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
    edges_u_j: float = 0.0  # the part of u_j by which stamps may lie off differently at each edge
    response_u_j: float = 0.0  # the part by which a sensor answers late, the same at both edges
    aliasing_u_j: float = 0.0  # the part of lines of the load that its samples hide
    missing_u_j: float = 0.0  # the part of time that was not covered


def curve(
    time_ns: npt.ArrayLike,
    power_w: npt.ArrayLike,
    gap: npt.ArrayLike | None = None,
    *,
    longest_ns: int = 100 * MS,
    lag_ns: int = 20 * MS,
    renewal_ns: int = 0,
    lowest_w: float = 0.0,
    highest_w: float = np.inf,
) -> Curve:
    """Return the curve through samples in any order; a gap is a row flagged `gap`, or a spacing above `longest_ns`.

    Samples that are no numbers, below `lowest_w` or above `highest_w` are no readings and are left out (which may
    open a gap). Of samples with one stamp the last counts. Values above the board's limit are kept: a 700 W board was
    seen at 971 W. Samples closer than `renewal_ns` may repeat one value of the sensor, so scatter is judged over that
    time at least.
    """
    stamps = np.asarray(time_ns, dtype=np.int64)
    watts = np.asarray(power_w, dtype=np.float64)
    flags = np.zeros(len(stamps), bool) if gap is None else np.asarray(gap, dtype=np.bool_)
    order = np.argsort(stamps, kind="stable")
    stamps, watts, lost = stamps[order], watts[order], np.cumsum(flags[order])
    kept = np.isfinite(watts) & (watts >= lowest_w) & (watts <= highest_w)
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
        energy_j=running_joules(energy_j),
        covered_ns=running_joules(np.where(covered, spacing_ns, 0)),
        steps_j2=running_joules(steps_j2),
        bends_j2=running_joules(bends_j2),
        lag_ns=lag_ns,
    )


def curve_of(
    source: str,
    period_ms: float,
    time_ns: npt.ArrayLike,
    power_w: npt.ArrayLike,
    gap: npt.ArrayLike | None = None,
    *,
    limit_w: float | None = None,
) -> Curve:
    """Return the curve through samples of one source, by what is known of its spacing, lag and renewal.

    `limit_w` is the highest power limit that the device accepts, where that is known.
    """
    return curve(
        time_ns,
        power_w,
        gap,
        longest_ns=longest_spacing_ns(source, period_ms),
        lag_ns=lag_ns(source, period_ms),
        renewal_ns=source_of(source).renewal_ns,
        lowest_w=least_w(source),
        highest_w=most_w(source, limit_w),
    )


def _scatter(stamps: Ints, watts: Floats, covered: Bools, renewal_ns: int) -> tuple[Floats, Floats]:
    """Return, per segment, the squares of dP dt and of half the second difference times dt, of independent samples.

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


def between(power: Curve, start_ns: npt.ArrayLike, end_ns: npt.ArrayLike) -> Windows:
    """Return the joules of windows [start, end], whose sums are additive: E(a, b) + E(b, c) = E(a, c).

    The standard uncertainty adds in quadrature (each a rectangular distribution, JCGM 100:2008, 4.3.7):

    - the samples between the edges. Power that steps seldom stepped at any instant between two samples,
      (dP dt)^2 / 12 each. Power that changes faster than it is sampled makes samples that are independent draws:
      their mean scatters by (dP dt)^2 / 2 each. Which of both it is shows in half the second differences, whose
      squares are 1 / 2 of the first ones' for seldom steps, and 3 / 4 for independent draws.
    - the edges. Stamps may lie off by up to one lag: |P(end) - P(start)| lag / sqrt(3) for both edges together, and
      the spread of power within a lag of each edge, times lag / sqrt(12).
    - the time not covered, which may have held anything up to the highest power seen: P_max t / sqrt(3).
    """
    start, end = window_edges(start_ns, end_ns)
    window_ns = end - start
    if len(power.time_ns) < 2:
        nothing = np.zeros(len(start))
        none = np.zeros(len(start), np.int64)
        unknown = nothing + np.nan
        return Windows(unknown, unknown, nothing, nothing, nothing, window_ns, none, window_ns)
    inside = bracketed(power.time_ns, start, end)
    first, last = segment_at(power.time_ns, start), segment_at(power.time_ns, end)
    energy_start, covered_start, power_start = value_at(power, start, first)
    energy_end, covered_end, power_end = value_at(power, end, last)
    covered_ns = np.where(inside, covered_end - covered_start, 0)
    lag_s = power.lag_ns / SECOND_NS
    step_w2 = (power_end - power_start) ** 2
    spread_w2 = _spread_w(power, start) ** 2 + _spread_w(power, end) ** 2
    late_u_j = lag_s * np.sqrt(step_w2 / 3)
    lag_u_j = np.sqrt(late_u_j**2 + lag_s**2 * spread_w2 / 12)
    lost_j = power.power_w.max() * ((window_ns - covered_ns) / SECOND_NS)
    missing_u_j = lost_j / np.sqrt(3)
    u_j = np.sqrt(_sampled_j2(power, first, last + 1) + lag_u_j**2 + lost_j**2 / 3)
    # rounding may leave -1e-12 J for a window inside one segment
    energy_j = np.maximum(energy_end - energy_start, 0.0)
    return Windows(
        energy_j=np.where(inside, energy_j, np.nan),
        u_j=np.where(inside, u_j, np.nan),
        lag_u_j=lag_u_j,
        late_u_j=late_u_j,
        missing_u_j=missing_u_j,
        window_ns=window_ns,
        covered_ns=covered_ns,
        longest_gap_ns=_longest_gaps(power, start, end),
    )


def summed(windows: Windows) -> Joules:
    """Return the sum over windows, or null and why: not_bracketed, or gap where too little time was measured.

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
    lag_u_j, late_u_j = float(windows.lag_u_j.sum()), float(windows.late_u_j.sum())
    return Joules(
        energy_j=float(windows.energy_j.sum()) if known else None,
        u_j=float(np.sqrt(own_j2 + lag_u_j**2)) if known else None,
        seconds=window_ns / SECOND_NS,
        coverage=coverage,
        longest_gap_s=longest_gap_s,
        reason=reason,
        edges_u_j=float(np.sqrt(max(lag_u_j**2 - late_u_j**2, 0.0))),
        response_u_j=late_u_j,
        missing_u_j=float(np.sqrt((windows.missing_u_j**2).sum())),
    )


def clock_stepped(
    time_ns: npt.ArrayLike, monotonic_ns: npt.ArrayLike, start_ns: int, end_ns: int
) -> bool:
    """Return whether the wall clock jumped inside the window, seen from pairs of both clocks.

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


def clock_slewed(time_ns: npt.ArrayLike, raw_ns: npt.ArrayLike, start_ns: int, end_ns: int) -> bool:
    """Return whether the wall clock ran fast or slow over the window, by its rate against the bare oscillator.

    The rate is a line through all pairs from the last before the window to the first after it. More than 0.1 % is a
    slew, and no oscillator: beside 2 ms, by which a pair's two readings may lie apart. Below 1 s nothing is said.
    """
    wall, raw = np.asarray(time_ns, dtype=np.int64), np.asarray(raw_ns, dtype=np.int64)
    order = np.argsort(raw, kind="stable")
    wall, raw = wall[order], raw[order]
    first = max(0, int(np.searchsorted(wall, start_ns, side="right")) - 1)
    last = int(np.searchsorted(wall, end_ns, side="left")) + 1
    wall, raw = wall[first:last], raw[first:last]
    if len(raw) < 2 or raw[-1] - raw[0] < SECOND_NS:
        return False
    ahead_ns = ((wall - wall[0]) - (raw - raw[0])).astype(np.float64)
    since_s = (raw - raw[0]) / SECOND_NS
    since_s -= since_s.mean()
    rate = float(since_s @ (ahead_ns - ahead_ns.mean())) / float(since_s @ since_s) / SECOND_NS
    span_s = float(raw[-1] - raw[0]) / SECOND_NS
    return abs(rate) * span_s > LEAST_SLEW * span_s + PAIR_S


def running_joules(values: npt.NDArray[Any]) -> Any:
    """Return the running sum with a leading 0, in the values' own type."""
    return np.append(np.zeros(1, values.dtype), np.cumsum(values))


def window_edges(start_ns: npt.ArrayLike, end_ns: npt.ArrayLike) -> tuple[Ints, Ints]:
    """Return starts and ends of windows as integers; ValueError where one ends before it starts."""
    start = np.atleast_1d(np.asarray(start_ns, dtype=np.int64))
    end = np.atleast_1d(np.asarray(end_ns, dtype=np.int64))
    if np.any(end < start):
        raise ValueError("a window ends before it starts")
    return start, end


def bracketed(time_ns: Ints, start: Ints, end: Ints) -> Bools:
    """Return whether there are readings on both sides of each window."""
    inside: Bools = (start >= time_ns[0]) & (end <= time_ns[-1])
    return inside


def segment_at(time_ns: Ints, at_ns: Ints) -> npt.NDArray[np.intp]:
    """Return the index of the segment that holds each instant."""
    return np.clip(np.searchsorted(time_ns, at_ns, side="right") - 1, 0, len(time_ns) - 2)


def value_at(
    power: Curve, at_ns: Ints, segment: npt.NDArray[np.intp]
) -> tuple[Floats, Ints, Floats]:
    """Return joules and measured ns from the first sample to each instant, and the watts there."""
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
    """Return the variance by sampling of the segments from `first` up to, not with, `last`."""
    steps_j2 = np.maximum(power.steps_j2[last] - power.steps_j2[first], 0.0)
    bends_j2 = np.maximum(power.bends_j2[last] - power.bends_j2[first], 0.0)
    bent = bends_j2 / np.where(steps_j2 > 0, steps_j2, 1.0)
    draws = np.clip((bent - 1 / 2) / (3 / 4 - 1 / 2), 0.0, 1.0)
    variance: Floats = steps_j2 * (1 / 12 + (1 / 2 - 1 / 12) * draws)
    return variance


def _spread_w(power: Curve, at_ns: Ints) -> Floats:
    """Return how far power ranges within a lag of each instant, seen at its ends and its middle."""
    around = [
        np.interp(at_ns + shift - power.time_ns[0], power.time_ns - power.time_ns[0], power.power_w)
        for shift in (-power.lag_ns, 0, power.lag_ns)
    ]
    spread: Floats = np.max(around, axis=0) - np.min(around, axis=0)
    return spread


def _longest_gaps(power: Curve, start: Ints, end: Ints) -> Ints:
    """Return the longest stretch without power inside each window, ns; time outside the samples counts too."""
    first_ns, last_ns = power.time_ns[0], power.time_ns[-1]
    before = np.clip(np.minimum(end, first_ns) - start, 0, None)
    after = np.clip(end - np.maximum(start, last_ns), 0, None)
    longest: Ints = np.maximum(before, after)
    for gap in np.flatnonzero(~power.covered):
        inside = np.minimum(end, power.time_ns[gap + 1]) - np.maximum(start, power.time_ns[gap])
        longest = np.maximum(longest, inside)
    return longest
