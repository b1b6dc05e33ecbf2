"""RAPL: joules of a host's CPU packages and its DRAM, by the counters that the Linux kernel shows.

    /sys/class/powercap/intel-rapl:0/     name: package-0   energy_uj   max_energy_range_uj     (AMD too, by this name)
                        intel-rapl:0:1/   name: dram        ...
                        intel-rapl:1/     name: psys        the whole platform: it holds the packages

A counter goes back to 0 past max_energy_range_uj, within about a minute on a busy host. `psys`, `core` and `uncore`
are part of others or hold them, and are never added; nor is a package's second face, `intel-rapl-mmio`. Only root may
read the counters (CVE-2020-8694) unless a site says otherwise, and most virtual machines have none. They are of the
whole host: other jobs on a shared node are in them.
"""

import contextlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from wattflow.errors import PowerError
from wattflow.nullable import complete_sum
from wattflow.power.meter import Moment, Row, middle, moment, stamped
from wattflow.power.polled import PolledMeter
from wattflow.store.files import read_given

log = logging.getLogger(__name__)

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_COUNTED = re.compile(r"package-\d+(-die-\d+)?|dram")
MOST_W = 2000.0  # of one zone: what a counter rose by is unknown if it could wrap twice at that
_OVER_LIMIT = 2.0  # so far above all of its limits a zone may go for a moment
_RENEWAL_S = 0.002  # a counter is renewed each ms, so that a rise may be of that much more time
_SETTLED_NS = 1_000_000_000  # a counter that goes on elsewhere for so long does not come back
_FROZEN_NS = (
    1_000_000_000  # a host that runs draws power: counters that rest for so long show nothing
)


@dataclass(frozen=True)
class Zone:
    """One counter: its name with its package's, its file, and the microjoules after which it starts again from 0."""

    name: str
    path: Path
    range_uj: int
    most_w: float = MOST_W

    def read_uj(self) -> int:
        """Return the counter; PowerError where it cannot be read, or is beyond its own range."""
        reading_uj = _whole(self.path)
        if reading_uj > self.range_uj:
            raise PowerError(f"{self.path}: {reading_uj} is beyond its range of {self.range_uj}.")
        return reading_uj

    def rise_uj(self, before_uj: int, after_uj: int, seconds: float) -> int | None:
        """Return the microjoules between two readings; null for what the zone cannot have used in that time."""
        if seconds * MOST_W * 1e6 >= self.range_uj:
            return None
        risen_uj = rise_uj(before_uj, after_uj, self.range_uj)
        return risen_uj if risen_uj <= self.most_w * 1e6 * (seconds + _RENEWAL_S) else None


def _whole(path: Path) -> int:
    """Return the whole number in a file of the kernel's; PowerError where there is none."""
    try:
        text = read_given(path).decode().strip()
    except (OSError, ValueError) as error:
        raise PowerError(f"{path}: {error}.") from error
    if not (text.isascii() and text.isdecimal()):
        raise PowerError(f"{path}: {text[:40]!r} is no whole number.")
    return int(text)


def _most_w(folder: Path) -> float:
    """Return the most watts that a zone can draw: beyond the highest limit that the kernel knows of, if it does."""
    limits_w = []
    for path in folder.glob("constraint_*_*_uw"):
        if path.name.endswith(("_max_power_uw", "_power_limit_uw")):
            with contextlib.suppress(PowerError):
                limits_w.append(_whole(path) / 1e6)
    most_w = _OVER_LIMIT * max(limits_w, default=0.0)
    return min(most_w, MOST_W) if most_w > 0 else MOST_W


def zones(powercap: Path) -> list[Zone]:
    """Return the packages and their DRAM under a powercap folder, each counted once; [] where there are none.

    PowerError for one whose range is not known: without it the host's joules would lack a part.
    """
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if not _ZONE.fullmatch(folder.name):
            continue
        try:
            name = read_given(folder / "name").decode().strip()
        except (OSError, ValueError):
            continue
        if _COUNTED.fullmatch(name):
            package = powercap / folder.name.rpartition(":")[0] / "name"
            prefix = f"{read_given(package).decode().strip()} " if name == "dram" else ""
            range_uj = _whole(folder / "max_energy_range_uj")
            found.append(Zone(prefix + name, folder / "energy_uj", range_uj, _most_w(folder)))
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


_Readings = tuple[Moment, list[int]]  # when, and each zone's counter in microjoules


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
        self._stray: _Readings | None = (
            None  # the newest of those that do not follow from the last good one
        )
        self._stray_since_ns = 0
        self._risen_ns = self._last[0].monotonic_ns

    def _read_zones(self) -> _Readings:
        """Return now, and each zone's counter in microjoules."""
        start = moment()
        readings_uj = [zone.read_uj() for zone in self._zones]
        return middle(start, moment()), readings_uj

    def _sample(self) -> Row | None:
        """Return the mean since the last reading that the counters can have come from.

        One that goes back or leaps is none; once they have gone on from there for a while, it is where they start anew.
        """
        try:
            now = self._read_zones()
        except PowerError as error:
            log.warning("%s The host's power is unknown until it answers again.", error)
            return stamped(moment(), self.source, True)
        if now[0].monotonic_ns <= self._last[0].monotonic_ns:
            return None
        start, power_w = self._last, self._power_w(self._last, now)
        if power_w is None and self._stray is not None:
            start, power_w = self._stray, self._power_w(self._stray, now)
            settled_ns = now[0].monotonic_ns - self._stray_since_ns
            if power_w is not None and settled_ns < _SETTLED_NS:
                self._stray = now
                return self._gap(now)
        if power_w is None:
            if self._stray is None:
                log.warning("RAPL: readings that no package can give; the host's power is unknown.")
            self._stray, self._stray_since_ns = now, now[0].monotonic_ns
            return self._gap(now)
        if power_w > 0:
            self._risen_ns = now[0].monotonic_ns
        elif now[0].monotonic_ns - self._risen_ns > _FROZEN_NS:
            return self._gap(now)
        self._last, self._stray = now, None
        at = middle(start[0], now[0])
        return {**stamped(at, self.source, self._gaps.before(at.time_ns)), "power_w": power_w}

    def _gap(self, at: _Readings) -> Row:
        return {**stamped(at[0], self.source, True), "power_w": None}

    def _power_w(self, before: _Readings, now: _Readings) -> float | None:
        """Return the mean watts between two readings; null where a zone cannot have made its rise."""
        seconds = (now[0].monotonic_ns - before[0].monotonic_ns) / 1e9
        used_uj = complete_sum(
            zone.rise_uj(before_uj, now_uj, seconds)
            for zone, before_uj, now_uj in zip(self._zones, before[1], now[1], strict=True)
        )
        return None if used_uj is None else used_uj / 1e6 / seconds
