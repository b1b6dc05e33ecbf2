"""Cray's pm_counters: watts and joules of a node and of each of its accelerators, by the blade's node controller.

    /sys/cray/pm_counters/power           742 W 1716912345678901 us      the node, accelerators included
                          energy          98213345 J 1716912345678901 us
                          accel0_power    187 W 1716912345678901 us      accel1_power ...
                          freshness       8812341     rises at each renewal, 10 Hz where seen
                          startup         ...         another one after the controller was started anew
                          generation      3           rises where a power cap is changed
                          raw_scan_hz     10

One scan is read between two readings of `freshness` that are alike, and is one row a device at the scan's own stamp. A
stamp that is not of the last second is no reading: the controller stands still, or its clock is another. Where a number
falls that only rises, or `startup` is another, the counters were started anew: a gap, as nobody knows what came there.

Whoever uses the node is in its watts. Which GPU an accelerator is nobody says, nor whether it is a GPU or its module:
they are recorded under their own names.
"""

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from wattflow.errors import PowerError, RefusedError
from wattflow.power.meter import Beat, Gaps, Moment, Reading, moment, stamped
from wattflow.store.files import read_given
from wattflow.store.schema import Device
from wattflow.store.sources import SECOND_NS, longest_spacing_ns, source_of

log = logging.getLogger(__name__)

NODE = "cray_node"
ACCELERATORS = "cray_accelerator"
_COUNTERS = {NODE: "cray_counter", ACCELERATORS: "cray_accelerator_counter"}  # joules beside watts
_LINE = re.compile(r"(\d{1,18})(?: ([A-Z]))?(?: (\d{1,16}) us)?", re.ASCII)
_ACCELERATOR = re.compile(r"(accel\d{1,3}_)power", re.ASCII)
_OLDEST_NS = SECOND_NS  # a value is renewed each 100 ms
_AHEAD_NS = 100_000_000  # how far a stamp may lie in the future: clocks that are kept by one server
_USUAL_HZ, _MOST_HZ = 10, 1000
_TRIES = 3  # a scan takes place within one of so many readings


class Number(NamedTuple):
    """What one of the files shows."""

    value: int
    unit: str | None
    stamp_us: int | None  # unix


class Values(NamedTuple):
    """What the node or one accelerator takes, W, and has taken, J; null where it has no counter."""

    power: Number
    energy: Number | None


@dataclass(frozen=True)
class Scan:
    """One renewal of the counters."""

    freshness: int
    startup: int | None
    generation: int | None
    values: Mapping[str, Values]  # by the beginning of their files' names

    def follows(self, before: "Scan") -> bool:
        """Return whether the counters went on from an earlier scan, and were not started anew."""
        rising = [(before.freshness, self.freshness), (before.generation, self.generation)]
        for name, (_, energy) in self.values.items():
            earlier = before.values[name].energy
            rising += [(earlier.value, energy.value)] if earlier and energy else []
        return self.startup == before.startup and all(
            old is None or new is None or new >= old for old, new in rising
        )


def read(path: Path, unit: str | None = None) -> Number:
    """Return what a file shows; PowerError where it is torn, or has not the unit that is asked for with a stamp."""
    try:
        text = read_given(path).decode().strip()
    except (OSError, ValueError, RefusedError) as error:
        raise PowerError(f"{path}: {error}.") from error
    found = _LINE.fullmatch(text)
    if found is None:
        raise PowerError(f"{path}: {text[:60]!r} is no value of pm_counters.")
    number = Number(int(found[1]), found[2], None if found[3] is None else int(found[3]))
    if unit is not None and (number.unit != unit or not number.stamp_us):
        raise PowerError(f"{path}: {text[:60]!r} has no {unit} with a time stamp.")
    return number


def _optional(path: Path) -> int | None:
    return read(path).value if path.is_file() else None


def scanned(folder: Path, names: tuple[str, ...]) -> Scan:
    """Return one renewal of the counters of some devices; PowerError where none holds still or a file is torn."""
    for _ in range(_TRIES):
        found = Scan(
            freshness=read(folder / "freshness").value,
            startup=_optional(folder / "startup"),
            generation=_optional(folder / "generation"),
            values={name: _values(folder, name) for name in names},
        )
        if read(folder / "freshness").value == found.freshness:
            return found
    raise PowerError(f"{folder}: renewed during each of {_TRIES} readings.")


def _values(folder: Path, name: str) -> Values:
    energy = folder / f"{name}energy"
    return Values(
        read(folder / f"{name}power", "W"), read(energy, "J") if energy.is_file() else None
    )


def names_of(folder: Path, source: str) -> tuple[str, ...]:
    """Return how the names of the files begin, of the node or of each accelerator; PowerError where there are none."""
    try:
        files = [one.name for one in folder.iterdir()]
    except OSError as error:  # none, or closed to this user
        raise PowerError(f"{folder}: no pm_counters there ({error.strerror}).") from error
    if "power" not in files:
        raise PowerError(f"{folder}: no pm_counters there.")
    if source == NODE:
        return ("",)
    found = [match[1] for name in files if (match := _ACCELERATOR.fullmatch(name))]
    if not found:
        raise PowerError(f"{folder}: no accelerators there.")
    return tuple(sorted(found, key=lambda name: (len(name), name)))


class CrayMeter:
    """The watts of a node, or of each of its accelerators, at the stamps of its node controller."""

    name = "cray"
    driver = None
    about: Mapping[str, str] = MappingProxyType({"stamped": "by the node controller"})

    def __init__(self, folder: Path, node: str, poll_ms: float, source: str = NODE) -> None:
        """PowerError where this user cannot read the counters, or their stamps are not of now."""
        self.source = source
        self.boundary = source_of(source).boundary
        self._folder = folder
        self._names = names_of(folder, source)
        self._last = scanned(folder, self._names)
        hz = _optional(folder / "raw_scan_hz") or _USUAL_HZ
        self.period_ms = 1000.0 / min(hz, _MOST_HZ)
        self._poll_ms = min(float(poll_ms), self.period_ms / 2)
        self._uuids = {name: f"{name.replace('_', '-') or 'node-'}{node}" for name in self._names}
        self.devices: list[Device] = [
            {"ordinal": ordinal, "uuid": uuid, "bus_id": None, "name": _in_words(name)}
            for ordinal, (name, uuid) in enumerate(self._uuids.items())
        ]
        for name, one in self._last.values.items():
            if not _is_of_now(one.power, time.time_ns()):
                raise PowerError(
                    f"{folder}/{name}power: its stamp is not of the last second by this node's clock: the counters "
                    "stand still, or are stamped by another clock."
                )
        self.begin({})

    @property
    def late_polls(self) -> int:
        """How many polls came late since `begin`."""
        return self._poll.late

    def begin(self, last_ns: Mapping[str, int]) -> None:
        """Start a trace; there is no history, so that what came since `last_ns` is a gap."""
        now_ns = time.monotonic_ns()
        self._poll = Beat(round(self._poll_ms * 1e6), now_ns)
        longest_ns = longest_spacing_ns(self.source, self.period_ms)
        self._gaps = {name: Gaps(longest_ns, last_ns.get(u)) for name, u in self._uuids.items()}
        self._renewed_ns = now_ns

    def due_ns(self) -> int:
        """Return the monotonic time of the next poll."""
        return self._poll.next_ns

    def read(self) -> list[Reading]:
        """Return the rows of a new scan, if there is one."""
        return self.finish() if self._poll.take(time.monotonic_ns()) else []

    def mark(self) -> None:
        """There is no counter to be read densely."""

    def finish(self) -> list[Reading]:
        """Return the rows of the newest scan, if it was not returned yet."""
        try:
            scan = self._scan()
        except PowerError as error:
            return [row for name in self._names for row in self._lost(name, str(error))]
        if scan is None:
            return []
        at = moment()
        if not scan.follows(self._last):
            for gaps in self._gaps.values():
                gaps.lost = True
        self._last, self._renewed_ns = scan, at.monotonic_ns
        return [row for name in self._names for row in self._rows(name, scan.values[name], at)]

    def close(self) -> None:
        """Nothing is held."""

    def _scan(self) -> Scan | None:
        """Return the newest scan, null where it is the last one; PowerError where that has stood for too long."""
        if read(self._folder / "freshness").value != self._last.freshness:
            return scanned(self._folder, self._names)
        if time.monotonic_ns() - self._renewed_ns > _OLDEST_NS:
            raise PowerError(f"{self._folder}/freshness: not renewed for a second.")
        return None

    def _rows(self, name: str, values: Values, at: Moment) -> list[Reading]:
        """Return the rows of one device, of watts and of joules, at their own stamps."""
        gaps, uuid = self._gaps[name], self._uuids[name]
        if not _is_of_now(values.power, at.time_ns):
            return self._lost(name, f"{self._folder}/{name}power: its stamp is not of now.")
        placed = _placed(values.power, at)
        rows: list[Reading] = []
        if gaps.last_ns is None or placed.time_ns > gaps.last_ns:
            row = stamped(placed, self.source, gaps.before(placed.time_ns))
            rows.append((uuid, {**row, "power_w": float(values.power.value)}))
        if values.energy is not None and _is_of_now(values.energy, at.time_ns):
            row = stamped(_placed(values.energy, at), _COUNTERS[self.source], False)
            rows.append((uuid, {**row, "counter_mj": 1000 * values.energy.value}))
        return rows

    def _lost(self, name: str, why: str) -> list[Reading]:
        """Return a row without watts, once until the device answers again."""
        gaps = self._gaps[name]
        if gaps.lost:
            return []
        gaps.lost = True
        log.warning("%s The power of %s is unknown until then.", why, self._uuids[name])
        return [(self._uuids[name], {**stamped(moment(), self.source, True), "power_w": None})]


def _in_words(name: str) -> str:
    return f"accelerator {name.removeprefix('accel').rstrip('_')}" if name else "node"


def _is_of_now(number: Number, now_ns: int) -> bool:
    return -_AHEAD_NS <= now_ns - 1000 * (number.stamp_us or 0) <= _OLDEST_NS


def _placed(number: Number, at: Moment) -> Moment:
    """Return the instant of a value's stamp by all clocks."""
    before_ns = at.time_ns - 1000 * (number.stamp_us or 0)
    raw_ns = None if at.raw_ns is None else at.raw_ns - before_ns
    return Moment(at.time_ns - before_ns, at.monotonic_ns - before_ns, raw_ns)
