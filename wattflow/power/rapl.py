"""RAPL: joules of a host's CPU packages and its DRAM, by the counters that the Linux kernel shows.

    /sys/class/powercap/intel-rapl:0/     name: package-0   energy_uj   max_energy_range_uj     (AMD too, by this name)
                        intel-rapl:0:1/   name: dram        ...
                        intel-rapl:1/     name: psys        the whole platform: it holds the packages

A counter goes back to 0 past max_energy_range_uj, within about a minute on a busy host. `psys`, `core` and `uncore`
are part of others or hold them, and are never added; nor is a package's second face, `intel-rapl-mmio`. Only root may
read the counters (CVE-2020-8694) unless a site says otherwise, and most virtual machines have none. They are of the
whole host: other jobs on a shared node are in them.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from wattflow.errors import PowerError
from wattflow.power.meter import Moment, Row, middle, moment, stamped
from wattflow.power.polled import PolledMeter
from wattflow.store.files import read_given

log = logging.getLogger(__name__)

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_COUNTED = re.compile(r"package-\d+(-die-\d+)?|dram")
MOST_W = 2000.0  # of one zone: what a counter rose by is unknown if it could wrap twice at that


@dataclass(frozen=True)
class Zone:
    """One counter: its name with its package's, its file, and the microjoules after which it starts again from 0."""

    name: str
    path: Path
    range_uj: int

    def read_uj(self) -> int:
        """Return the counter; PowerError where it cannot be read."""
        try:
            return int(read_given(self.path))
        except (OSError, ValueError) as error:
            raise PowerError(f"{self.path}: {error}.") from error


def zones(powercap: Path) -> list[Zone]:
    """Return the packages and their DRAM under a powercap folder, each counted once; [] where there are none."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if not _ZONE.fullmatch(folder.name):
            continue
        try:
            name = read_given(folder / "name").decode().strip()
            range_uj = int(read_given(folder / "max_energy_range_uj"))
        except (OSError, ValueError):
            continue
        if _COUNTED.fullmatch(name):
            package = powercap / folder.name.rpartition(":")[0] / "name"
            prefix = f"{read_given(package).decode().strip()} " if name == "dram" else ""
            found.append(Zone(prefix + name, folder / "energy_uj", range_uj))
    return found


def readable_zones(powercap: Path) -> list[Zone]:
    """Return the same zones; PowerError, saying why, where there are none or this user may not read one."""
    found = zones(powercap)
    if not found:
        raise PowerError(
            f"{powercap}: no RAPL package there (most virtual machines have none, or the module is not loaded)."
        )
    for zone in found:
        if not os.access(zone.path, os.R_OK):
            raise PowerError(
                f"{zone.path}: not readable by this user (CVE-2020-8694). An admin may open it to a group."
            )
    return found


def rise_uj(before: int, after: int, range_uj: int) -> int:
    """Return the microjoules between two readings at most one wrap apart."""
    return after - before if after >= before else after - before + range_uj


class RaplMeter(PolledMeter):
    """The mean watts of all packages and DRAM of this host between two polls, stamped half-way."""

    name = "rapl"
    source = "rapl"

    def __init__(self, powercap: Path, node: str, period_ms: float) -> None:
        """PowerError where this user cannot read RAPL's counters."""
        self._zones = readable_zones(powercap)
        super().__init__(node, ", ".join(zone.name for zone in self._zones), period_ms)

    def _start(self) -> None:
        self._last = self._read_zones()

    def _read_zones(self) -> tuple[Moment, list[int]]:
        """Return now, and each zone's counter in microjoules."""
        start = moment()
        readings_uj = [zone.read_uj() for zone in self._zones]
        return middle(start, moment()), readings_uj

    def _sample(self) -> Row | None:
        before, before_uj = self._last
        try:
            now, now_uj = self._last = self._read_zones()
        except PowerError as error:
            log.warning("%s The host's power is unknown until it answers again.", error)
            return stamped(moment(), self.source, True)
        seconds = (now.monotonic_ns - before.monotonic_ns) / 1e9
        if seconds <= 0:
            return None
        known = all(seconds * MOST_W * 1e6 < zone.range_uj for zone in self._zones)
        used_uj = sum(
            rise_uj(first, second, zone.range_uj)
            for zone, first, second in zip(self._zones, before_uj, now_uj, strict=True)
        )
        at = middle(before, now)
        gap = self._gaps.before(at.time_ns) or not known
        power_w = used_uj / 1e6 / seconds if known else None
        return {**stamped(at, self.source, gap), "power_w": power_w}
