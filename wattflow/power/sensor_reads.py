"""Readings of every power sensor of one GPU, each with the times before and after the call, for calibration."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattflow.errors import PowerError
from wattflow.power.calibration_steps import SILENT_S
from wattflow.power.gpm import Gpm
from wattflow.power.gpus import Gpu
from wattflow.power.nvml_calls import call, pynvml
from wattflow.power.nvml_sensors import (
    FIELD_AVERAGE,
    FIELD_COUNTER,
    FIELD_INSTANT,
    buffer,
    conditions,
    fields,
    number,
    polled_power_w,
    watts,
)

Read = tuple[int, str, int, int, int | None, float]  # a row of schema.READS


@dataclass
class GpuReads:
    """One GPU with the readings of its sensors, and how often each failed."""

    gpu: Gpu
    gpm: Gpm | None
    sources: list[str]
    rows: list[Read] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    last_us: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, step: int, source: str, sensor: Callable[[Any], Sequence[Any]]) -> None:
        """Read a sensor once; `sensor` gives (source, stamp or null, value) for each value that it has."""
        start_ns = time.time_ns()
        try:
            values = sensor(self.gpu.handle)
        except PowerError:
            self.failed[source] += 1
            return
        end_ns = time.time_ns()
        self.rows.extend(
            (step, name, start_ns, end_ns, stamp_ns, float(value))
            for name, stamp_ns, value in values
            if value is not None
        )

    def drain(self, step: int) -> None:
        """Read the samples of the buffer that are new."""
        if "nvml_buffer" in self.sources:
            self.read(step, "nvml_buffer", self._new_samples)

    def _new_samples(self, handle: Any) -> list[tuple[str, int, float]]:
        with self.lock:
            samples = buffer(handle, self.last_us)
            self.last_us = samples[-1][0] if samples else self.last_us
        return [("nvml_buffer", stamp_us * 1000, power_w) for stamp_us, power_w in samples]

    def count(self, step: int) -> None:
        """Read the energy counter."""
        self.read(step, "nvml_counter", _counter)

    def power_now(self, step: int) -> None:
        """Read all polled sensors of power."""
        for source in self.sources:
            if source.startswith("nvml_usage"):
                self.read(step, source, _polled(source))
        if {"nvml_instant", "nvml_average"} & set(self.sources):
            self.read(step, "nvml_instant", _both_fields)

    def activity(self, step: int) -> None:
        """Read from GPM how busy the memory was since the reading before."""
        gpm = self.gpm
        if gpm is not None:
            self.read(step, "nvml_gpm", lambda _: _memory_activity(gpm))

    def each_alone(self, step: int, times: int = 30) -> None:
        """Read each sensor by itself, in turn, so that the call's cost is its own."""
        for _ in range(times):
            if "nvml_buffer" in self.sources:
                self.read(step, "nvml_buffer", _whole_buffer)
            for source in self.sources:
                if source != "nvml_buffer":
                    self.read(step, source, _polled(source))
            self.count(step)
            self.read(step, "nvml_counter_field", _counter_field)
            self.read(step, "nvml_conditions", _all_conditions)
            self.activity(step)

    def silently(self, step: int, end_ns: int, stop: threading.Event) -> None:
        """Read nothing but the counter at both ends, and the buffer as seldom as it allows."""
        self.count(step)
        self.drain(step)
        while (left_ns := end_ns - time.time_ns()) > 0 and not stop.is_set():
            stop.wait(min(SILENT_S, left_ns / 1e9))
            self.drain(step)
        self.count(step)


def _counter(handle: Any) -> list[tuple[str, None, float]]:
    return [("nvml_counter", None, call("nvmlDeviceGetTotalEnergyConsumption", handle))]


def _counter_field(handle: Any) -> list[tuple[str, None, float | None]]:
    return [("nvml_counter_field", None, fields(handle, [FIELD_COUNTER])[0])]


def _all_conditions(handle: Any) -> list[tuple[str, None, float]]:
    conditions(handle)
    return [("nvml_conditions", None, 1.0)]  # the call has its cost


def _whole_buffer(handle: Any) -> list[tuple[str, int, float]]:
    return [("nvml_buffer", us * 1000, power_w) for us, power_w in buffer(handle, 0)]


def _polled(source: str) -> Callable[[Any], list[tuple[str, None, float]]]:
    return lambda handle: [(source, None, polled_power_w(handle, source))]


def _both_fields(handle: Any) -> list[tuple[str, int, float | None]]:
    names = ("nvml_instant", "nvml_average")
    found = call("nvmlDeviceGetFieldValues", handle, [FIELD_INSTANT, FIELD_AVERAGE])
    return [
        (name, answer.timestamp * 1000, power_w)
        for name, answer in zip(names, found, strict=True)
        if answer.nvmlReturn == pynvml.NVML_SUCCESS
        and (power_w := watts(number(answer.valueType, answer.value))) is not None
    ]


def _memory_activity(gpm: Gpm) -> list[tuple[str, None, float]]:
    activity = gpm.read()["dram_activity_pct"]
    return [("nvml_gpm", None, math.nan if activity is None else activity)]  # the call has its cost
