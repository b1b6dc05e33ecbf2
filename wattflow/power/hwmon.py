"""ACPI's power meters of Grace CPUs, as the Linux kernel shows them.

    /sys/class/hwmon/hwmon3/device/power1_oem_info     Grace Power Socket 0
                                   power1_average      microwatts, a mean over power1_average_interval (50 to 1,000 ms)

    Module Power Socket 0    the whole superchip: its GPU, Grace and their memory
    Grace Power Socket 0       the CPU with its memory: what CPU Power and SysIO Power are parts of

Only Grace's sockets are added up: whatever holds another, or is held by it, would be counted twice. They have no time
stamp and no counter, so that a sample is of its poll and of up to a second before it.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wattflow.errors import PowerError, RefusedError
from wattflow.nullable import complete_sum
from wattflow.power.meter import Row, middle, moment, stamped
from wattflow.power.polled import PolledMeter
from wattflow.store.files import read_given

log = logging.getLogger(__name__)

GRACE, MODULE = "grace", "module"
_LABEL = re.compile(r"(module|grace|cpu|sysio) power socket (\d{1,4})", re.IGNORECASE | re.ASCII)
_LEAST_UW, _MOST_UW = 100_000, 5_000_000_000  # of a socket that is on, or of its module
_VALUES = ("average", "input")  # which of the two there is differs by kernel


@dataclass(frozen=True)
class Socket:
    """One power meter: what it is of (module, grace, cpu, sysio), which socket's, and its file."""

    kind: str
    number: int
    path: Path

    @property
    def name(self) -> str:
        """What it is of, such as `grace 0`."""
        return f"{self.kind} {self.number}"

    def read_w(self) -> float:
        """Return its watts; PowerError where it cannot be read, or shows what no socket draws."""
        text = _text(self.path)
        if not (text.isascii() and text.isdecimal() and _LEAST_UW <= int(text) <= _MOST_UW):
            raise PowerError(f"{self.path}: {text[:40]!r} are no microwatts of a socket.")
        return int(text) / 1e6


def _text(path: Path) -> str:
    try:
        return read_given(path).decode().strip()
    except (OSError, ValueError, RefusedError) as error:
        raise PowerError(f"{path}: {error}.") from error


def sockets(hwmon: Path) -> list[Socket]:
    """Return the power meters of sockets and modules under a hwmon folder, in order; [] where there are none.

    PowerError where two meters are of one thing, as then neither is known to be it.
    """
    found: dict[str, Socket] = {}
    for one in _labelled(hwmon):
        other = found.setdefault(one.name, one)
        if other.path.resolve() != one.path.resolve():
            raise PowerError(f"{other.path} and {one.path} are both of {one.name}.")
    return sorted(found.values(), key=lambda one: (one.kind, one.number))


def _labelled(hwmon: Path) -> Iterator[Socket]:
    for pattern in ("*/power*_oem_info", "*/device/power*_oem_info"):
        for path in sorted(hwmon.glob(pattern)):
            try:
                label = _LABEL.fullmatch(_text(path))
            except PowerError:  # of another device
                continue
            prefix = path.name.removesuffix("oem_info")
            values = [path.with_name(prefix + value) for value in _VALUES]
            there = [value for value in values if value.is_file()]
            if label and there:
                yield Socket(label[1].lower(), int(label[2]), there[0])


def grace_sockets(hwmon: Path) -> list[Socket]:
    """Return the Grace sockets, each of which answers; PowerError, saying why, where there is none or one does not."""
    found = [one for one in sockets(hwmon) if one.kind == GRACE]
    if not found:
        raise PowerError(f"{hwmon}: no power meter of a Grace socket there.")
    for one in found:
        one.read_w()
    return found


class HwmonMeter(PolledMeter):
    """The watts of all Grace sockets of this host together, at each poll."""

    name = "hwmon"
    source = "hwmon_grace"

    def __init__(self, hwmon: Path, node: str, period_ms: float) -> None:
        """PowerError where there is no Grace socket that this user can read."""
        self._sockets = grace_sockets(hwmon)
        super().__init__(node, ", ".join(one.name for one in self._sockets), period_ms)

    def _start(self) -> None:
        self._failed = False

    def _sample(self) -> Row:
        """Return the sum over the sockets; a row without watts, once marked as a gap, where one does not answer."""
        start = moment()
        try:
            power_w = complete_sum(one.read_w() for one in self._sockets)
        except PowerError as error:
            if not self._failed:
                log.warning("%s The host's power is unknown until it answers again.", error)
            self._failed = self._gaps.lost = True
            return {**stamped(middle(start, moment()), self.source, True), "power_w": None}
        self._failed = False
        at = middle(start, moment())
        return {**stamped(at, self.source, self._gaps.before(at.time_ns)), "power_w": power_w}
