"""The steps of a calibration: how the sensors are read and how the load goes, one after another on all GPUs at once.

costs      each call some times, alone: how long it takes
bare       nothing is read from the driver; then the buffer shows what it recorded meanwhile
sidecar    the same beside a sidecar, which reads as it does in a sweep
context    the same with the load's process on the GPU, idle
watched    all sensors read densely, nothing to do
slow       a load that is on for seconds and off for seconds
fast       one of half a second, which the buffer needs
ticks      the same for the counter, whose calls hold up all others and are left out of `fast`
alias-5    a load of 5 ms: half on, half off; and so on up to alias-200
costs-on   as costs, while the load is on
"""

import math
import random
from dataclasses import dataclass
from typing import Literal, TypedDict

from wattflow.errors import RefusedError

ALIAS_MS = (5.0, 10.0, 15.0, 20.0, 25.0, 40.0, 50.0, 80.0, 100.0, 104.8, 150.0, 200.0)
LEAST_MINUTES = 2.0
SLOW_HALF_S, FAST_HALF_S = 2.2, 0.5
SILENT_S = 2.2  # the buffer remembers 2.36 s
COUNTER_S, TICKS_S = 0.030, 0.010

Pace = Literal["alone", "silent", "dense", "counter"]


@dataclass(frozen=True)
class Step:
    """What happens for some seconds: how sensors are read, and how the load goes, if it does."""

    name: str
    seconds: float
    pace: Pace  # of reading sensors
    half_s: float | None = None  # the load is on for about so long, off for about so long
    period_ms: float | None = None  # the load is on for half of this, exactly
    load_on: bool = False  # all the time
    counter_s: float | None = COUNTER_S  # how often the counter is read at most, or never
    sidecar: bool = False
    context: bool = True  # the load's process is there, busy or not


class StepRecord(TypedDict):
    """A step that was taken: when it ran, and when the load of each GPU went on and off in turn."""

    name: str
    half_s: float | None
    period_ms: float | None
    start_ns: int
    end_ns: int
    edges_ns: dict[str, list[int]]  # by UUID


def plan(minutes: float) -> list[Step]:
    """Return the steps of a calibration of about so many minutes, starting loads aside; RefusedError below 2."""
    if not LEAST_MINUTES <= minutes < math.inf:
        raise RefusedError(
            f"--minutes {minutes:g}: {LEAST_MINUTES:g} at least, or sensors that average 1 s see too few edges."
        )
    scale = minutes / 5
    silent = max(SILENT_S, 7 * scale)
    idle = [
        Step("bare", silent, "silent", context=False),
        Step("sidecar", silent, "silent", sidecar=True, context=False),
    ]
    return [
        Step("costs", 0.0, "alone", context=False),
        *idle,
        *idle,
        Step("context", silent, "silent"),
        Step("watched", 8 * scale, "dense"),
        Step("slow", 48 * scale, "dense", half_s=SLOW_HALF_S),
        Step("fast", 28 * scale, "dense", half_s=FAST_HALF_S, counter_s=None),
        Step("ticks", 14 * scale, "counter", half_s=FAST_HALF_S, counter_s=TICKS_S),
        *(Step(f"alias-{ms:g}", 11 * scale, "dense", period_ms=ms) for ms in ALIAS_MS),
        Step("costs-on", 3.0, "alone", load_on=True),
    ]


def wave(step: Step, start_ns: int, seed: str) -> list[int]:
    """When a step's load goes on and off: an even number of unix times, none for a step without load."""
    end_ns = start_ns + round(step.seconds * 1e9)
    if step.load_on:
        return [start_ns, end_ns]
    if step.period_ms is not None:
        half_ns = step.period_ms * 5e5
        count = int((end_ns - start_ns) / half_ns / 2)
        return [start_ns + round(k * half_ns) for k in range(2 * count)]
    if step.half_s is None:
        return []
    # of another length each time, or samples that come as regularly would fall on the same places of each
    lengths = random.Random(f"{seed} {step.name}")  # noqa: S311 - no secret
    edges: list[int] = []
    at_ns = start_ns
    while True:
        at_ns += round(step.half_s * lengths.uniform(0.9, 1.1) * 1e9)
        if at_ns >= end_ns:
            return edges[: len(edges) // 2 * 2]
        edges.append(at_ns)
