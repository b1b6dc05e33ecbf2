"""What the rest of a node does while a point is measured there: its other GPUs, its processors, the other points.

    window of a point      |=================|
    looks               .  |  .     .     .  |  .     each half second, and at both edges

Between two looks watts and the number of points are taken as lines and steps. This is context beside a point's joules,
which come from its own boards' traces; no result is built on it.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from wattflow.errors import PowerError
from wattflow.power.gpus import Gpu
from wattflow.power.nvml_calls import call_or_none, pynvml
from wattflow.power.nvml_sensors import polled_power_w, sources
from wattflow.power.simulated import cpu_ticks
from wattflow.store.schema import Beside

LOOK_S = 0.5


@dataclass(frozen=True)
class Look:
    """What was seen at one moment."""

    time_s: float  # monotonic
    power_w: Mapping[str, float | None]  # by UUID
    temperature_c: Mapping[str, float | None]
    busy: int  # ticks of all CPUs
    ticks: int  # busy or not
    points: int  # that are measured


@dataclass
class _Sums:
    """What looks add up to since the first edge of a window."""

    seconds: float = 0.0
    point_seconds: float = 0.0
    energy_j: dict[str, float] = field(default_factory=dict)  # by UUID
    unknown: set[str] = field(default_factory=set)  # GPUs whose watts were not known at some look
    hottest_c: dict[str, float] = field(default_factory=dict)

    def add(self, before: Look, now: Look) -> None:
        """Add the time between two looks."""
        seconds = now.time_s - before.time_s
        self.seconds += seconds
        self.point_seconds += before.points * seconds
        for uuid, power_w in now.power_w.items():
            past_w = before.power_w.get(uuid)
            if power_w is None or past_w is None:
                self.unknown.add(uuid)
            else:
                joules = (past_w + power_w) / 2 * seconds
                self.energy_j[uuid] = self.energy_j.get(uuid, 0.0) + joules
        self.heat(now)

    def heat(self, look: Look) -> None:
        """Keep the highest temperature of each GPU."""
        for uuid, temperature_c in look.temperature_c.items():
            if temperature_c is not None:
                self.hottest_c[uuid] = max(temperature_c, self.hottest_c.get(uuid, temperature_c))

    def power_w(self, uuids: Collection[str]) -> float | None:
        """Return the mean watts of a GPU among some; null where those of one are not known."""
        if not uuids or self.seconds <= 0 or self.unknown.intersection(uuids):
            return None
        return fmean(self.energy_j.get(uuid, 0.0) for uuid in uuids) / self.seconds


class Window:
    """The measured window of one point: from its first mark to its last one."""

    def __init__(self, watch: "NodeWatch", own: Collection[str]) -> None:
        self._watch, self._own = watch, set(own)
        self._first: Look | None = None
        self._last: Look | None = None
        self._sums = _Sums()
        self._found: Beside | None = None

    def mark(self) -> None:
        """An edge of the window is now."""
        look = self._watch.look()
        if self._first is None:
            self._first = self._last = look
            self._sums.heat(look)
        else:
            self._found = self._summary(look)

    def add(self, look: Look) -> None:
        """Take one look, if the window has begun."""
        if self._last is not None:
            self._sums.add(self._last, look)
            self._last = look

    def close(self) -> Beside:
        """Watch no more; return what the rest of the node did, without figures where only one edge was seen."""
        self._watch.leave(self)
        others = self._watch.uuids - self._own
        return self._found or {
            "slots": self._watch.slots,
            "neighbours": None,
            "neighbour_gpus": len(others),
            "neighbour_power_w": None,
            "neighbour_temperature_c": None,
            "host_load_pct": None,
        }

    def _summary(self, end: Look) -> Beside:
        assert self._first is not None
        sums, others = self._sums, self._watch.uuids - self._own
        ticks = end.ticks - self._first.ticks
        return {
            "slots": self._watch.slots,
            "neighbours": sums.point_seconds / sums.seconds - 1.0 if sums.seconds > 0 else None,
            "neighbour_gpus": len(others),
            "neighbour_power_w": sums.power_w(others),
            "neighbour_temperature_c": max(
                (sums.hottest_c[uuid] for uuid in others if uuid in sums.hottest_c), default=None
            ),
            "host_load_pct": 100.0 * (end.busy - self._first.busy) / ticks if ticks > 0 else None,
        }


class NodeWatch(threading.Thread):
    """Looks at all GPUs of a task each half second, for the windows that are open."""

    def __init__(self, gpus: Sequence[Gpu], slots: int) -> None:
        """`gpus` are all of the task's, NVML being open as long as this lives."""
        super().__init__(name="neighbours", daemon=True)
        self.slots = slots
        self.uuids = {gpu.device["uuid"] for gpu in gpus}
        self._gpus = [(gpu, _polled(gpu)) for gpu in gpus]
        self._lock = threading.Lock()
        self._windows: list[Window] = []
        self._ended = threading.Event()

    def run(self) -> None:
        """Look until `stop`."""
        while not self._ended.wait(LOOK_S):
            self.look()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join()

    def window(self, own: Collection[str]) -> Window:
        """Return the window of a point on its `own` GPUs, which counts among the points from now on."""
        window = Window(self, own)
        self.look()  # what came before is the others' time without it
        with self._lock:
            self._windows.append(window)
        return window

    def leave(self, window: Window) -> None:
        """Count a point no more."""
        self.look()
        with self._lock:
            if window in self._windows:
                self._windows.remove(window)

    def look(self) -> Look:
        """Look now, for all open windows."""
        with self._lock:
            busy, ticks = cpu_ticks()
            look = Look(
                time.monotonic(),
                {gpu.device["uuid"]: _power_w(gpu, source) for gpu, source in self._gpus},
                {gpu.device["uuid"]: _temperature_c(gpu) for gpu, _ in self._gpus},
                busy,
                ticks,
                len(self._windows),
            )
            for window in self._windows:
                window.add(look)
            return look


def _polled(gpu: Gpu) -> str | None:
    """Return the sensor that is asked for watts now; null where none of a GPU answers."""
    return next((one for one in sources(gpu.handle) if one != "nvml_buffer"), None)


def _power_w(gpu: Gpu, source: str | None) -> float | None:
    try:
        return None if source is None else polled_power_w(gpu.handle, source)
    except PowerError:
        return None


def _temperature_c(gpu: Gpu) -> float | None:
    found: Any = call_or_none("nvmlDeviceGetTemperature", gpu.handle, pynvml.NVML_TEMPERATURE_GPU)
    return None if found is None else float(found)
