"""The simulated meter: watts by arithmetic from the CPU load, for machines without a GPU.

It has one device a node, the host, and its source is always `simulated`: such joules are shown with `~`, and they
show that the whole line works, not what anything costs.
"""

from pathlib import Path

from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.power.meter import Row, moment, stamped
from wattflow.power.polled import PolledMeter
from wattflow.store.files import read_given

_STAT = Path("/proc/stat")


def busy_and_total(stat: str) -> tuple[int, int]:
    """Clock ticks of all CPUs together that were busy, and all of them, from the text of /proc/stat."""
    ticks = [int(word) for word in stat.split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
    return sum(ticks) - idle, sum(ticks)


class SimulatedMeter(PolledMeter):
    """Watts between power.simulated_idle_w and power.simulated_full_w by the busy share of this machine's CPUs."""

    name = "simulated"
    source = "simulated"

    def __init__(self, power: Power, node: str) -> None:
        self._idle_w = power.simulated_idle_w
        self._span_w = power.simulated_full_w - power.simulated_idle_w
        super().__init__(node, "simulated", float(power.poll_ms))

    def _start(self) -> None:
        self._last = cpu_ticks()

    def _sample(self) -> Row | None:
        """Return the load since the sample before, if a clock tick (10 ms) went by."""
        busy, total = cpu_ticks()
        past_busy, past_total = self._last
        if total <= past_total:
            return None
        self._last = busy, total
        share = min(max((busy - past_busy) / (total - past_total), 0.0), 1.0)
        now = moment()
        row = stamped(now, self.source, self._gaps.before(now.time_ns))
        return {**row, "power_w": self._idle_w + self._span_w * share}


def cpu_ticks() -> tuple[int, int]:
    """Return clock ticks of all CPUs together since boot that were busy, and all of them; PowerError without Linux."""
    try:
        return busy_and_total(read_given(_STAT).decode())
    except (OSError, ValueError, IndexError) as error:
        raise PowerError(
            f"{_STAT}: the simulated meter cannot read the CPU load from it ({error}). It needs Linux."
        ) from error
