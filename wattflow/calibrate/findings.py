"""What follows from the reads of one GPU: each sensor's period and answer, aliasing, idle power, the cost of a call."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from wattflow.calibrate.documents import (
    Aliasing,
    Answer,
    Figures,
    Fit,
    Histogram,
    History,
    IdlePower,
    Levels,
    Sensor,
    Series,
    Spread,
    TraceFigure,
)
from wattflow.calibrate.reads import Reads
from wattflow.calibrate.sources import BUFFER, COUNTER, GPM, NAMES, POWER
from wattflow.energy import response
from wattflow.energy.counter import Counter
from wattflow.energy.curve import Curve, Floats, Ints
from wattflow.energy.response import MS

FAST_ENOUGH_MS = 200.0  # a sensor whose whole answer takes longer is read from the slow load
BEFORE_NS = 1_300_000_000  # of an aliasing step: sensors still show what was before it
AFTER_NS = 700_000_000  # and those that average 1 s are so far behind
IDLE_STATES = ("bare", "sidecar", "context", "watched")
MOST_POINTS = 400  # of a figure


def _rounded(value: response.Spread | response.Fit) -> Any:
    """Return a value as JSON has it, with the digits that mean something."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(value).items()}


def _spread(values: npt.ArrayLike) -> Spread | None:
    found = response.spread(values)
    return None if found is None else cast(Spread, _rounded(found))


# --- sensors --------------------------------------------------------------------------------------


def sensor(reads: Reads, source: str) -> Sensor:
    """Return how often a sensor is renewed, how it answers a step, and for the buffer how far back it goes."""
    busy = [
        number
        for number, step in enumerate(reads.steps)
        if step["edges_ns"] and step["name"] != "costs-on"
    ]
    spacings = np.concatenate(
        [np.zeros(0), *(np.diff(_stamps(reads, source, number)) / MS for number in busy)]
    )
    answer = _answer(reads, source)
    found: Sensor = {
        "unit": "%" if source == GPM else "W",
        "stamped_by": "driver" if source == BUFFER else "first read that shows it",
        "period_ms": _spread(spacings),
        "beat_ms": _beat_ms(reads, source, busy),
        "spacings_ms": _histogram(spacings),
        "answer": None if isinstance(answer, str) else answer,
        "answer_reason": answer if isinstance(answer, str) else None,
    }
    if source == BUFFER:
        found |= {"history": _history(reads), "shown_after_ms": _spread(_shown_after_ms(reads))}
    return found


def _beat_ms(reads: Reads, source: str, steps: Sequence[int]) -> float | None:
    """Return the steady period of a polled sensor, far sharper than its polls; null for one that keeps none."""
    if source in (BUFFER, GPM):
        return None
    beats = []
    for number in steps:
        if source == COUNTER:
            times: Counter | response.Renewals = reads.ticks([number])
        else:
            start, end, _, value = reads.calls(source, [number])
            times = response.renewals(start, end, value)
        found = response.beat(times.time_ns, times.half_ns)
        if found is not None:
            beats.append(found.period_ns / MS)
    return round(float(np.median(beats)), 3) if beats else None


def _stamps(reads: Reads, source: str, number: int) -> Ints:
    if source == COUNTER:
        return reads.ticks([number]).time_ns
    return reads.series(source, [number])[0]


def _histogram(values: Floats) -> Histogram | None:
    """Return how many values lie in each of some equal bins up to their 99.5th percentile; null for none."""
    if not len(values):
        return None
    most = float(np.percentile(values, 99.5)) * 1.05
    counts, bounds = np.histogram(values, bins=60, range=(0.0, most))
    return {"width": round(float(bounds[1]), 4), "counts": counts.tolist()}


def _folded(reads: Reads, source: str, load: str) -> response.StepSamples | None:
    """Return a source's samples around the edges of a load; null where its step was not taken."""
    numbers = reads.numbers(load)
    if not numbers:
        return None
    (number,) = numbers
    stamps, values = reads.series(source, [number])
    return response.folded(stamps, values, reads.edges(number), settle_ns=reads.settle_ns(number))


def _answer(reads: Reads, source: str) -> Answer | str:
    """Return the answer to a step, or why there is none.

    It is taken from the slow load, and where that shows a quick sensor from the many edges of the fast one.
    """
    load = "slow"
    steps = _folded(reads, source, load)
    first = None if steps is None else response.fitted(steps)
    if first is not None and first.lag_ms + first.window_ms < FAST_ENOUGH_MS:
        quick = "ticks" if source == COUNTER else "fast"
        fast = _folded(reads, source, quick)
        if fast is not None and response.fitted(fast) is not None:
            load, steps = quick, fast
    if steps is None or steps.edges == 0:
        return "no step of the load could be seen"
    best = response.fitted(steps)
    if best is None:
        return f"only {len(steps.since_ns)} samples beside edges"
    answer: Answer = {
        **cast(Fit, _rounded(best)),
        "load": load,
        "edges": steps.edges,
        "on": _fit(steps, on=True, shape=best.shape),
        "off": _fit(steps, on=False, shape=best.shape),
        "box": _fit(steps, shape="box"),
        "exponential": _fit(steps, shape="exponential"),
    }
    return answer


def _fit(
    steps: response.StepSamples, *, on: bool | None = None, shape: response.Shape
) -> Fit | None:
    found = response.fitted(steps, on=on, shape=shape)
    return None if found is None else cast(Fit, _rounded(found))


def _history(reads: Reads) -> History | None:
    """Return how much the buffer remembers, from whole reads of it one after another."""
    start, _, stamp, _ = reads.calls(BUFFER, reads.numbers("costs"))
    if not len(start):
        return None
    each = [stamp[start == one] for one in np.unique(start)]
    seconds = max(float(stamps.max() - stamps.min()) / 1e9 for stamps in each)
    return {"samples": max(len(stamps) for stamps in each), "seconds": round(seconds, 3)}


def _shown_after_ms(reads: Reads) -> Floats:
    """Return how long after its stamp each sample could first be read; the first read, of older ones, is left out."""
    start, end, stamp, _ = reads.calls(BUFFER, reads.numbers("watched"))
    later = start > start.min(initial=np.iinfo(np.int64).max)
    after: Floats = (end[later] - stamp[later]) / MS
    return after


# --- one GPU --------------------------------------------------------------------------------------


def call_costs(reads: Reads) -> dict[str, dict[str, Spread]]:
    """Return what a call takes by source, ms: alone on an idle GPU, and alone on a busy one."""
    found: dict[str, dict[str, Spread]] = {}
    for source in NAMES:
        for name, step in (("idle", "costs"), ("busy", "costs-on")):
            start, end, _, _ = reads.calls(source, reads.numbers(step))
            calls = np.unique(np.stack([start, end]), axis=1) if len(start) else np.zeros((2, 0))
            cost = _spread((calls[1] - calls[0]) / MS)
            if cost is not None:
                found.setdefault(source, {})[name] = cost
    return found


def idle_power(reads: Reads, state: str) -> IdlePower | None:
    """Return the mean power of an idle GPU in each step of a state; null without any."""
    by_buffer, by_counter = [], []
    for number in reads.numbers(state):
        step = reads.steps[number]
        _, _, stamp, value = reads.calls(BUFFER, [number])
        inside = value[(stamp >= step["start_ns"]) & (stamp < step["end_ns"])]
        if len(inside):
            by_buffer.append(round(float(inside.mean()), 2))
        start, end, _, energy_mj = reads.calls(COUNTER, [number])
        if len(start) > 1:
            seconds = float(start[-1] + end[-1] - start[0] - end[0]) / 2e9
            by_counter.append(round(float(energy_mj[-1] - energy_mj[0]) / 1e3 / seconds, 2))
    best = by_buffer or by_counter
    if not best:
        return None
    return {"power_w": round(float(np.mean(best)), 2), "buffer": by_buffer, "counter": by_counter}


def levels(reads: Reads) -> Levels | None:
    """Return the plateaus of the slow load by the best source; null where that has none."""
    for number in reads.numbers("slow"):
        edges = reads.edges(number)
        for source in reads.sources[:1]:
            stamps, values = reads.series(source, [number])
            settled = [
                values[(stamps > start + reads.settle_ns(number)) & (stamps < end)]
                for start, end in itertools.pairwise(edges)
            ]
            off, on = np.concatenate(settled[0::2]), np.concatenate([np.zeros(0), *settled[1::2]])
            if len(off) and len(on):
                return {
                    "off_w": round(float(np.median(off)), 2),
                    "on_w": round(float(np.median(on)), 2),
                }
    return None


# --- aliasing -------------------------------------------------------------------------------------


def aliasing(reads: Reads, sensors: dict[str, Sensor], number: int) -> Aliasing:
    """Return the joules of each source in one step: over a window between two ticks of the counter, and over 1 s."""
    step = reads.steps[number]
    assert step["period_ms"] is not None
    ticks = reads.ticks([number])
    exact = response.at_ticks(ticks, step["start_ns"] + BEFORE_NS, step["end_ns"] - AFTER_NS)
    found: Aliasing = {
        "period_ms": step["period_ms"],
        "seconds": None,
        "energy_j": {},
        "ratio": {},
        "windows_1s": {},
        "on_share": None,
        "levels_j": None,
    }
    if exact is None:
        return found
    start, end, counted_j = exact
    # a tick is of the time up to its lag before it: by its own answer, whose window is one tick long
    answer = sensors[COUNTER]["answer"]
    late_ns = round(answer["lag_ms"] * MS if answer else 0.0)
    energy_j, ratio = {COUNTER: round(counted_j, 3)}, {}
    curves: dict[str, Curve | Counter] = {COUNTER: ticks}
    for source in (source for source in reads.sources if source in POWER):
        power = curves[source] = reads.curve(source, [number])
        behind_ns = _behind_ns(sensors[source], held=source != BUFFER)
        joules = response.joules(power, start - late_ns, end - late_ns, behind_ns)
        if joules is not None:
            energy_j[source] = round(joules, 3)
            ratio[source] = round(joules / counted_j, 5) if counted_j else None
    share = response.on_share(reads.edges(number), start - late_ns, end - late_ns)
    ranges = {
        source: response.range_of_windows(curve, start, end, step["period_ms"] * MS)
        for source, curve in curves.items()
    }
    return {
        "period_ms": step["period_ms"],
        "seconds": round((end - start) / 1e9, 4),
        "energy_j": energy_j,
        "ratio": ratio,
        "windows_1s": {
            source: None if reach is None else [round(v, 5) for v in reach]
            for source, reach in ranges.items()
        },
        "on_share": round(share, 5),
        "levels_j": _levels_j(levels(reads), share, end - start),
    }


def _behind_ns(of: Sensor, *, held: bool) -> float:
    """Return how far the middle of the time that a value stands for lies before its stamp, ns; 0 where unknown.

    A `held` value, a polled one, is read again until the next one comes: half a period more.
    """
    answer, period = of["answer"], of["period_ms"]
    behind_ns = 0.0
    if answer is not None:
        share = 0.5 if answer["shape"] == "box" else 1.0
        behind_ns = float(answer["lag_ms"] + share * answer["window_ms"]) * MS
    return behind_ns + (period["median"] / 2 * MS if held and period else 0.0)


def _levels_j(plateaus: Levels | None, on_share: float, window_ns: int) -> float | None:
    """Return the joules of a window by the slow load's plateaus, the load being on for a share of it."""
    if plateaus is None:
        return None
    power_w = plateaus["off_w"] + (plateaus["on_w"] - plateaus["off_w"]) * on_share
    return round(power_w * window_ns / 1e9, 3)


# --- figures --------------------------------------------------------------------------------------


def figures(reads: Reads, sensors: dict[str, Sensor]) -> Figures:
    """Return what the page draws beside its tables."""
    return {
        "traces": {
            load: _trace(reads, number, seconds)
            for load, seconds in (("slow", 10.0), ("fast", 3.0))
            for number in reads.numbers(load)
        },
        "answers": _answers(reads, sensors),
    }


def _trace(reads: Reads, number: int, seconds: float) -> TraceFigure:
    """Return the first seconds of a step by each source of power."""
    start_ns = reads.steps[number]["start_ns"]
    lines: dict[str, Series] = {}
    for source in reads.sources:
        if source == GPM:
            continue
        stamps, values = reads.series(source, [number])
        since = (stamps - start_ns) / 1e9
        shown = (since >= 0) & (since <= seconds)
        if shown.any():
            lines[source] = [
                [round(float(s), 4), round(float(v), 1)]
                for s, v in zip(since[shown], values[shown], strict=True)
            ]
    edges = [round((edge - start_ns) / 1e9, 4) for edge in reads.edges(number)[1:-1]]
    return {"lines": lines, "edges_s": [edge for edge in edges if edge <= seconds]}


def _answers(reads: Reads, sensors: dict[str, Sensor]) -> dict[str, Series]:
    """Return the folded samples that each answer was fitted to, thinned."""
    found = {}
    for source in reads.sources:
        answer = sensors[source]["answer"]
        steps = None if answer is None else _folded(reads, source, answer["load"])
        if steps is None or answer is None:
            continue
        reach_ms = max(60.0, 2.0 * (answer["lag_ms"] + answer["window_ms"]))
        near = np.flatnonzero(
            (steps.since_ns > -reach_ms / 3 * MS) & (steps.since_ns < reach_ms * MS)
        )
        near = near[:: max(1, len(near) // MOST_POINTS)]
        found[source] = [
            [round(float(steps.since_ns[k]) / MS, 2), round(float(steps.share[k]), 4)] for k in near
        ]
    return found
