"""Joules between readings of an energy counter, resets and ticks included."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattflow.energy.curve import (
    Bools,
    Curve,
    Floats,
    Ints,
    Windows,
    between,
    bracketed,
    running_joules,
    segment_at,
    value_at,
    window_edges,
)
from wattflow.store.sources import MOST_GPU_W, SECOND_NS

COUNTER_TICK_NS = 100_000_000  # the energy counter is renewed this often (seen on H100)
_MOST_RUNS = 2000  # a counter that leaps more often than this counts nothing
_FEW_BELOW = 3  # so many new readings below the one before a fall may be stray ones
_BRIDGE_DOUBT = 0.05  # how far power's course may be off the counter's over part of a second


@dataclass(frozen=True)
class Counter:
    """An energy counter's ticks, resets taken out. Arrays of n ticks, n - 1 steps between them."""

    time_ns: Ints  # strictly rising; the middle of the time in which the tick came
    half_ns: Floats  # per tick: half of that time
    step_mj: Ints  # per step; 0 where the counter was reset
    reset: Bools  # per step
    energy_mj: Ints  # from the first tick to each


def counter(
    time_ns: npt.ArrayLike,
    reading_mj: npt.ArrayLike,
    *,
    age_ns: int = 0,
    highest_w: float = MOST_GPU_W,
) -> Counter:
    """Return the counter's ticks, from readings in any order (unsigned mJ), each up to `age_ns` older than its stamp.

    A new reading shows that a tick came since the one before it, and within the last 100 ms: the tick is placed in the
    middle of that time, which its age makes longer. A reading that repeats the one before it shows none.

    What leaps by more than `highest_w` can have made, or falls and comes back, is no reading and is left out. A fall
    that lasts is a reset by a driver reload, never a wrap: 64 bits of mJ last for ages. Where it soon rises past the
    reading before the fall, the step that does so may also be the return of a counter that was never reset, and is as
    unknown as the fall.
    """
    stamps = np.asarray(time_ns, dtype=np.int64)
    readings = np.asarray(reading_mj, dtype=np.uint64)
    order = np.argsort(stamps, kind="stable")
    stamps, readings = stamps[order], readings[order]
    kept = _credible(stamps, readings, age_ns, highest_w)
    stamps, readings = stamps[kept], readings[kept]
    lone = np.full(min(1, len(stamps)), COUNTER_TICK_NS)
    half_ns = (np.minimum(np.append(lone, np.diff(stamps)), COUNTER_TICK_NS) + age_ns) / 2
    new = np.append(np.ones(min(1, len(stamps)), bool), readings[1:] != readings[:-1])
    new &= np.append(np.ones(min(1, len(stamps)), bool), stamps[1:] != stamps[:-1])
    stamps, readings, half_ns = stamps[new], readings[new], half_ns[new]
    reset = readings[1:] < readings[:-1]
    for fall in np.flatnonzero(reset):
        passed = np.flatnonzero(readings[fall + 1 :] >= readings[fall])
        if len(passed) and passed[0] <= _FEW_BELOW:
            reset[fall + passed[0]] = True
    # unsigned subtraction is exact where the counter rose; int64 holds any step of a real board
    step_mj = np.where(reset, np.uint64(0), readings[1:] - readings[:-1]).astype(np.int64)
    return Counter(
        time_ns=stamps - half_ns.astype(np.int64),
        half_ns=half_ns,
        step_mj=step_mj,
        reset=reset,
        energy_mj=running_joules(step_mj),
    )


def _credible(
    stamps: Ints, readings: npt.NDArray[np.uint64], age_ns: int, highest_w: float
) -> npt.NDArray[np.intp]:
    """Return the indices of the most readings that one counter can have shown, by the watts between them.

    The readings are split where they leap or fall. A run of them may follow an earlier one where the counter can have
    risen from its end to the run's start, or was reset; of all such chains that of the most readings is taken. One that
    started anew at 0 is a reset sooner than one reading less is, one that started elsewhere is not.
    """
    if len(stamps) < 2:
        return np.arange(len(stamps))

    def most_mj(passed_ns: Ints) -> Floats:
        return highest_w * 1e3 * ((passed_ns + COUNTER_TICK_NS + age_ns) / SECOND_NS)

    # floats are exact enough for a bound, not for what is counted
    leaps = np.diff(readings.astype(np.float64))
    broken = np.flatnonzero((leaps < 0) | (leaps > most_mj(np.diff(stamps))))
    if not len(broken):
        return np.arange(len(stamps))
    if len(broken) >= _MOST_RUNS:
        return np.zeros(0, np.intp)
    # of the two readings beside a break either may be the stray one
    broken = np.unique(np.concatenate([broken - 1, broken, broken + 1]))
    broken = broken[(broken >= 0) & (broken < len(leaps))]
    first, last = np.append(0, broken + 1), np.append(broken, len(stamps) - 1)
    starts_mj, ends_mj = (readings[at].astype(np.float64) for at in (first, last))
    score = (last - first + 1).astype(np.float64)
    before = np.full(len(first), -1)
    for run in range(1, len(first)):
        limit_mj = most_mj(stamps[first[run]] - stamps[last[:run]])
        risen_mj = starts_mj[run] - ends_mj[:run]
        follows = (risen_mj >= 0) & (risen_mj <= limit_mj)
        restarts = np.where(starts_mj[run] <= limit_mj, 0.5, 1.5) * (risen_mj < 0)
        scores = np.where(follows | (restarts > 0), score[:run] - restarts, -np.inf)
        best = int(np.argmax(scores))
        if scores[best] > 0:
            score[run] += scores[best]
            before[run] = best
    at, chain = int(np.argmax(score)), []
    while at >= 0:
        chain.append(np.arange(first[at], last[at] + 1))
        at = int(before[at])
    return np.concatenate(chain[::-1])


def counter_between(
    readings: Counter, start_ns: npt.ArrayLike, end_ns: npt.ArrayLike, power: Curve | None = None
) -> Windows:
    """Return the joules of windows by the counter, which is exact at its ticks.

    From the sharpest tick near an edge, `power` leads to the edge, scaled so that over all ticks it makes the
    counter's joules: only its course counts, not its gain. Without power, or in a gap of it, the step around the edge
    is shared out evenly. A reset inside a window is bridged with `power`; NaN where power does not cover it.

    The standard uncertainty is that of the edges: P t / sqrt(3) for a tick that came within a time of half-width t,
    and where a step was shared out evenly, also for the distance t to its nearer tick (JCGM 100:2008, 4.3.7).
    """
    start, end = window_edges(start_ns, end_ns)
    window_ns = end - start
    if len(readings.time_ns) < 2:
        nothing = np.full(len(start), np.nan)
        parts = nothing, nothing, nothing, nothing, nothing
        return Windows(*parts, window_ns, window_ns * 0, window_ns)
    inside = bracketed(readings.time_ns, start, end)
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
        late_u_j=np.zeros(len(start)),
        missing_u_j=np.zeros(len(start)),
        window_ns=window_ns,
        covered_ns=covered_ns,
        longest_gap_ns=window_ns - covered_ns,
    )


def resets_between(readings: Counter, start_ns: int, end_ns: int) -> int:
    """Return how many resets of the counter touch the window."""
    touched = (readings.time_ns[:-1] < end_ns) & (readings.time_ns[1:] > start_ns)
    return int(np.count_nonzero(readings.reset & touched))


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
    segment = segment_at(power.time_ns, tick_ns)
    tick_j = value_at(power, tick_ns, segment)[2] * readings.half_ns[tick] / SECOND_NS
    u_j = np.hypot(tick_j, _BRIDGE_DOUBT * bridge_j) / np.sqrt(3)
    energy_j = readings.energy_mj[tick] / 1e3 + np.where(at_ns >= tick_ns, bridge_j, -bridge_j)
    return _AtEdge(
        energy_j=np.where(bridged, energy_j, evenly.energy_j),
        u_j=np.where(bridged, u_j, evenly.u_j),
        from_ns=np.where(bridged, tick_ns, evenly.from_ns),
    )


def _evenly(readings: Counter, at_ns: Ints) -> _AtEdge:
    """Return the counter at some instants, each step between two ticks shared out evenly."""
    step = segment_at(readings.time_ns, at_ns)
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
    """Return the counter's joules over power's, on all steps that power covers; 1 where there is none."""
    by_power = between(power, readings.time_ns[:-1], readings.time_ns[1:])
    covered = (
        (by_power.covered_ns == by_power.window_ns) & ~readings.reset & (by_power.energy_j > 0)
    )
    if not covered.any():
        return 1.0
    return float(readings.step_mj[covered].sum() / 1e3 / by_power.energy_j[covered].sum())


def _bridge(readings: Counter, step: int, start: Ints, end: Ints, power: Curve | None) -> Floats:
    """Return the joules by power of the part of each window in a reset step; NaN where power does not cover it."""
    from_ns = np.clip(readings.time_ns[step], start, end)
    to_ns = np.clip(readings.time_ns[step + 1], start, end)
    touched = to_ns > from_ns
    if power is None:
        return np.where(touched, np.nan, 0.0)
    by_power = between(power, from_ns, to_ns)
    whole = by_power.covered_ns == by_power.window_ns
    return np.where(touched, np.where(whole, by_power.energy_j, np.nan), 0.0)
