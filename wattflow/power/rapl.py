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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from wattflow.errors import PowerError
from wattflow.power.meter import Beat, Reading, Row, middle, moment
from wattflow.store.schema import Device
from wattflow.store.sources import longest_spacing_ns

log = logging.getLogger(__name__)

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_COUNTED = re.compile(r"package-\d+(-die-\d+)?|dram")
MOST_W = 2000.0  # of one zone: a counter that could have wrapped twice at it tells nothing


@dataclass(frozen=True)
class Zone:
    """One counter: its name with its package's, its file, and the microjoules after which it starts again from 0."""

    name: str
    path: Path
    range_uj: int

    def read_uj(self) -> int:
        """The counter; PowerError where it cannot be read."""
        try:
            return int(self.path.read_text())
        except (OSError, ValueError) as error:
            raise PowerError(f"{self.path}: {error}.") from error


def zones(powercap: Path) -> list[Zone]:
    """The packages and their DRAM under a powercap folder, each counted once; [] where there are none."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if not _ZONE.fullmatch(folder.name):
            continue
        try:
            name = (folder / "name").read_text().strip()
            range_uj = int((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        if _COUNTED.fullmatch(name):
            package = powercap / folder.name.rpartition(":")[0] / "name"
            whose = f"{package.read_text().strip()} " if name == "dram" else ""
            found.append(Zone(whose + name, folder / "energy_uj", range_uj))
    return found


def readable_zones(powercap: Path) -> list[Zone]:
    """The same; PowerError, saying why, where there are none or this user may not read one."""
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
    """The microjoules between two readings at most one wrap apart."""
    return after - before if after >= before else after - before + range_uj


class RaplMeter:
    """The mean watts of all packages and DRAM of this host between two polls, stamped half-way."""

    name = "rapl"
    source = "rapl"
    boundary = "host"
    driver = None
    about: Mapping[str, str] = MappingProxyType({})

    def __init__(self, powercap: Path, node: str, period_ms: float) -> None:
        """PowerError where this user cannot read RAPL's counters."""
        self._zones = readable_zones(powercap)
        self.period_ms = period_ms
        self._gap_ns = longest_spacing_ns(self.source, period_ms)
        self._uuid = f"host-{node}"
        names = ", ".join(zone.name for zone in self._zones)
        self.devices: list[Device] = [
            {"ordinal": 0, "uuid": self._uuid, "bus_id": None, "name": f"host ({names})"}
        ]
        self.begin({})

    @property
    def late_polls(self) -> int:
        """How many polls came late since `begin`."""
        return self._poll.late

    def begin(self, last_ns: Mapping[str, int]) -> None:
        """Take the first readings; what was used since `last_ns` is a gap, as its course is not known."""
        period_ns = round(self.period_ms * 1e6)
        self._poll = Beat(period_ns, moment().monotonic_ns + period_ns)
        self._last_ns = last_ns.get(self._uuid)
        self._seen = self._now()

    def due_ns(self) -> int:
        """The monotonic time of the next poll."""
        return self._poll.next_ns

    def read(self) -> list[Reading]:
        """One sample if it is due."""
        return self._sample() if self._poll.take(moment().monotonic_ns) else []

    def mark(self) -> None:
        """The counters are always current."""

    def finish(self) -> list[Reading]:
        """One more sample."""
        return self._sample()

    def close(self) -> None:
        """Nothing is held."""

    def _now(self) -> tuple[int, int, list[int]]:
        """Unix ns, monotonic ns and each zone's counter."""
        start = moment()
        readings_uj = [zone.read_uj() for zone in self._zones]
        at = middle(start, moment())
        return at.time_ns, at.monotonic_ns, readings_uj

    def _sample(self) -> list[Reading]:
        before_ns, before_mono_ns, before_uj = self._seen
        try:
            now_ns, now_mono_ns, now_uj = self._seen = self._now()
        except PowerError as error:
            log.warning("%s No power of the host is known until it answers again.", error)
            at = moment()
            row: Row = {
                "time_ns": at.time_ns,
                "monotonic_ns": at.monotonic_ns,
                "source": self.source,
                "gap": True,
            }
            return [(self._uuid, row)]
        seconds = (now_mono_ns - before_mono_ns) / 1e9
        if seconds <= 0:
            return []
        told = all(seconds * MOST_W * 1e6 < zone.range_uj for zone in self._zones)
        used_uj = sum(
            rise_uj(before, now, zone.range_uj)
            for zone, before, now in zip(self._zones, before_uj, now_uj, strict=True)
        )
        time_ns = (before_ns + now_ns) // 2
        row = {
            "time_ns": time_ns,
            "monotonic_ns": (before_mono_ns + now_mono_ns) // 2,
            "source": self.source,
            "power_w": used_uj / 1e6 / seconds if told else None,
            "gap": not told
            or (self._last_ns is not None and time_ns - self._last_ns > self._gap_ns),
        }
        self._last_ns = time_ns
        return [(self._uuid, row)]
