"""The simulated meter: watts by arithmetic from the CPU load, for machines without a GPU.

It has one device a node, the host, and its source is always `simulated`: such joules are shown with `~`, and they
show that the whole line works, not what anything costs.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.power.meter import Beat, Reading, Row, moment
from wattflow.store.schema import Device
from wattflow.store.sources import longest_spacing_ns

_STAT = Path("/proc/stat")


def busy_and_total(stat: str) -> tuple[int, int]:
    """Clock ticks of all CPUs together that were busy, and all of them, from the text of /proc/stat."""
    ticks = [int(word) for word in stat.split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
    return sum(ticks) - idle, sum(ticks)


class SimulatedMeter:
    """Watts between power.simulated_idle_w and power.simulated_full_w by the busy share of this machine's CPUs."""

    name = "simulated"
    source = "simulated"
    boundary = "host"
    driver = None
    about: Mapping[str, str] = MappingProxyType({})

    def __init__(self, power: Power, node: str) -> None:
        self._idle_w = power.simulated_idle_w
        self._span_w = power.simulated_full_w - power.simulated_idle_w
        self.period_ms = float(power.poll_ms)
        self._gap_ns = longest_spacing_ns(self.source, self.period_ms)
        self._uuid = f"host-{node}"
        self.devices: list[Device] = [
            {"ordinal": 0, "uuid": self._uuid, "bus_id": None, "name": "host (simulated)"}
        ]
        self.begin({})

    @property
    def late_polls(self) -> int:
        """How many polls came late since `begin`."""
        return self._poll.late

    def begin(self, last_ns: Mapping[str, int]) -> None:
        """Start counting the load."""
        period_ns = round(self.period_ms * 1e6)
        self._poll = Beat(period_ns, moment().monotonic_ns + period_ns)
        self._seen = self._ticks()
        self._last_ns = last_ns.get(self._uuid)

    def due_ns(self) -> int:
        """The monotonic time of the next sample."""
        return self._poll.next_ns

    def read(self) -> list[Reading]:
        """One sample if it is due and if a clock tick (10 ms) went by since the one before."""
        return self._sample() if self._poll.take(moment().monotonic_ns) else []

    def mark(self) -> None:
        """There is no counter."""

    def finish(self) -> list[Reading]:
        """One more sample."""
        return self._sample()

    def close(self) -> None:
        """Nothing is held."""

    def _sample(self) -> list[Reading]:
        busy, total = self._ticks()
        past_busy, past_total = self._seen
        if total <= past_total:
            return []
        self._seen = busy, total
        share = min(max((busy - past_busy) / (total - past_total), 0.0), 1.0)
        now = moment()
        row: Row = {
            "time_ns": now.time_ns,
            "monotonic_ns": now.monotonic_ns,
            "source": self.source,
            "power_w": self._idle_w + self._span_w * share,
            "gap": self._last_ns is not None and now.time_ns - self._last_ns > self._gap_ns,
        }
        self._last_ns = now.time_ns
        return [(self._uuid, row)]

    def _ticks(self) -> tuple[int, int]:
        try:
            return busy_and_total(_STAT.read_text())
        except (OSError, ValueError, IndexError) as error:
            raise PowerError(
                f"{_STAT}: the simulated meter cannot read the CPU load from it ({error}). It needs Linux."
            ) from error
