"""What meters of a host share that are polled: one device, and a sample each power.poll_ms."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from wattflow.power.meter import Beat, Gaps, Reading, Row, moment
from wattflow.store.schema import Device
from wattflow.store.sources import longest_spacing_ns


class PolledMeter(ABC):
    """A meter of the host; a kind of it says what it reads at first and what a poll gives."""

    name: ClassVar[str]
    source: ClassVar[str]
    boundary = "host"
    driver = None
    about: Mapping[str, str] = MappingProxyType({})

    def __init__(self, node: str, what: str, period_ms: float) -> None:
        """`what` is measured is the device's name, in brackets."""
        self.period_ms = period_ms
        self._uuid = f"host-{node}"
        self.devices: list[Device] = [
            {"ordinal": 0, "uuid": self._uuid, "bus_id": None, "name": f"host ({what})"}
        ]
        self.begin({})

    @abstractmethod
    def _start(self) -> None:
        """Take the readings from which the first sample counts."""

    @abstractmethod
    def _sample(self) -> Row | None:
        """Return a row of power since the sample before, or None where no time went by."""

    @property
    def late_polls(self) -> int:
        """How many polls came late since `begin`."""
        return self._poll.late

    def begin(self, last_ns: Mapping[str, int]) -> None:
        """Start a trace; what was used since `last_ns` is a gap, as its course is not known."""
        period_ns = round(self.period_ms * 1e6)
        self._poll = Beat(period_ns, moment().monotonic_ns + period_ns)
        self._gaps = Gaps(longest_spacing_ns(self.source, self.period_ms), last_ns.get(self._uuid))
        self._start()

    def due_ns(self) -> int:
        """Return the monotonic time of the next poll."""
        return self._poll.next_ns

    def read(self) -> list[Reading]:
        """Return one sample if it is due."""
        return self.finish() if self._poll.take(moment().monotonic_ns) else []

    def mark(self) -> None:  # noqa: B027 - the same in every kind
        """There is no counter to be read densely."""

    def finish(self) -> list[Reading]:
        """Return one more sample."""
        row = self._sample()
        return [] if row is None else [(self._uuid, row)]

    def close(self) -> None:  # noqa: B027 - as above
        """Nothing is held."""
