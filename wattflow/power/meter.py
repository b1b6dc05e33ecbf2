"""What the sidecar needs of a meter, and what all meters share: deadlines, gaps, instants by both clocks.

A meter has its devices, and gives rows of schema.TRACE whenever they are due. It is read by one thread: `begin`
before the first row of a trace, `read` whenever `due_ns` has come, `mark` at the edges of the measured window,
`finish` once at the trace's end.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from wattflow.store.schema import Device

LATE_NS = 5_000_000  # a poll that comes this much after its deadline is counted as late

Row = dict[str, Any]  # columns of schema.TRACE by name
Reading = tuple[str, Row]  # a device's uuid, and one row of its trace


class Meter(Protocol):
    """Reads the power of this node's devices."""

    @property
    def name(self) -> str:
        """The meter: nvml, dcgm, rapl, hwmon, cray or simulated."""

    @property
    def source(self) -> str:
        """The sensor that the watts come from, a name from store/sources.py."""

    @property
    def boundary(self) -> str:
        """What the watts include, a name from store/sources.py."""

    @property
    def driver(self) -> str | None:
        """The driver's version."""

    @property
    def period_ms(self) -> float:
        """The expected time between two samples."""

    @property
    def devices(self) -> list[Device]:
        """The devices that are measured, by CUDA ordinal."""

    @property
    def about(self) -> Mapping[str, str]:
        """What else a trace's metadata says of the sensor, such as the time that a sample averages."""

    @property
    def late_polls(self) -> int:
        """How many polls came late since `begin`."""

    def begin(self, last_ns: Mapping[str, int]) -> None:
        """Start a trace; `last_ns` has the last sample's unix time by uuid where an earlier sidecar left one."""

    def due_ns(self) -> int:
        """Return the monotonic time at which `read` next has something to do."""

    def read(self) -> list[Reading]:
        """Return all rows that are due; a sensor that fails gives a row without a value, marked as a gap."""

    def mark(self) -> None:
        """An edge of the measured window is now: read energy counters densely until each has ticked."""

    def finish(self) -> list[Reading]:
        """Return the last rows of a trace, from all sensors, due or not."""

    def close(self) -> None:
        """Let go of the devices."""


class Beat:
    """Deadlines at whole periods on the monotonic clock, so that lateness never adds up."""

    def __init__(self, period_ns: int, first_ns: int) -> None:
        self.period_ns = period_ns
        self.next_ns = first_ns
        self.late = 0

    def take(self, now_ns: int) -> bool:
        """Return whether the deadline has come; if so, the next one is set and those missed are passed over."""
        behind_ns = now_ns - self.next_ns
        if behind_ns < 0:
            return False
        self.late += behind_ns > LATE_NS
        self.next_ns += (behind_ns // self.period_ns + 1) * self.period_ns
        return True


class Gaps:
    """Finds the gaps in the samples that one sensor has of one device."""

    def __init__(self, longest_ns: int, last_ns: int | None = None) -> None:
        """Two samples up to `longest_ns` apart have no gap; `last_ns` is the last sample's unix time, if any."""
        self.last_ns = last_ns
        self.lost = False  # samples were lost since the last one
        self._longest_ns = longest_ns

    def before(self, time_ns: int) -> bool:
        """Return whether there is a gap before a sample at this unix time, which then is the last one."""
        gap = self.lost or (self.last_ns is not None and time_ns - self.last_ns > self._longest_ns)
        self.last_ns, self.lost = time_ns, False
        return gap


@dataclass(frozen=True)
class Moment:
    """One instant by the node's clocks."""

    time_ns: int
    monotonic_ns: int
    raw_ns: int | None = (
        None  # by the oscillator alone: what disciplines the others slews them together
    )


def moment() -> Moment:
    """Return the present instant by all clocks."""
    before_ns, raw_ns = time.monotonic_ns(), _raw_ns()
    time_ns = time.time_ns()
    after_ns = (raw_ns + _raw_ns()) // 2
    return Moment(time_ns, (before_ns + time.monotonic_ns()) // 2, after_ns)


def _raw_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def middle(start: Moment, end: Moment) -> Moment:
    """Return the instant half-way: where a value that took a while to read is placed."""
    known = start.raw_ns is not None and end.raw_ns is not None
    return Moment(
        (start.time_ns + end.time_ns) // 2,
        (start.monotonic_ns + end.monotonic_ns) // 2,
        ((start.raw_ns or 0) + (end.raw_ns or 0)) // 2 if known else None,
    )


def stamped(at: Moment, source: str, gap: bool) -> Row:
    """Return a row of a sensor at an instant, to which its values are added."""
    return {
        "time_ns": at.time_ns,
        "monotonic_ns": at.monotonic_ns,
        "raw_ns": at.raw_ns,
        "source": source,
        "gap": gap,
    }
