"""NVML: watts, the energy counter and conditions of each visible GPU.

Four things are read, each at its own pace (costs as seen on an H100, driver 580):

    power        the buffer, drained each second: 119 samples, one each 20 ms with the driver's stamp, 0.6 ms a call;
                 without it, a field polled each power.poll_ms: instant, else average, else usage, 7-28 us a call
    counter      each 5 s, and at a window's edges each 15 ms until it ticks: it does so each 100 ms, and a call takes
                 3 to 31 ms
    conditions   each second: clocks, temperature, activity, memory, limit in force, reasons for lower clocks; at both
                 ends also the processes on the GPU, a list that takes 4.5 ms
    GPM          each 5 s and at a window's edges, where it answers: activity of SMs, tensor cores, DRAM, links; 5.5 ms

NVML's milliwatts and microseconds become watts and nanoseconds here and nowhere else. A value that NVML does not
have is null; a sensor that fails leaves a gap, never 0 W.
"""

import ctypes
import itertools
import logging
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pynvml

from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.power.gpm import Gpm
from wattflow.power.meter import Beat, Reading, Row, middle, moment, stamped
from wattflow.power.nvml_calls import ask, ask_or_none
from wattflow.spans import ENVIRONMENT, reports_to
from wattflow.store.schema import Device, Fixed
from wattflow.store.sources import longest_spacing_ns

log = logging.getLogger(__name__)

FIELD_INSTANT = 186
FIELD_AVERAGE = 185
FIELD_LIMIT_IN_FORCE = 190
FIELD_UNDER_CAP_NS = 74

DRAIN_NS = 1_000_000_000
COUNTER_NS = 5_000_000_000
BURST_PERIOD_NS = 15_000_000
BURST_NS = 250_000_000  # a counter that did not tick for so long is not asked on
CONDITIONS_NS = 1_000_000_000
GPM_NS = 5_000_000_000
HISTORY_NS = 2_360_000_000  # 119 samples of 20 ms: what the buffer remembers


class AbsentError(PowerError):
    """There is no NVML, or it shows no GPU that this job may use."""


# ---- which GPUs ----


def visible(setting: str | None, uuids: Sequence[str]) -> list[int]:
    """NVML indices of the GPUs that CUDA shows for CUDA_VISIBLE_DEVICES, by CUDA ordinal.

    By CUDA's rules: unset shows all; entries are ordinals or (beginnings of) GPU- UUIDs, of one kind only; the list
    ends at the first entry that names no GPU; a GPU named twice leaves none. PowerError for MIG- entries.
    """
    if setting is None:
        return list(range(len(uuids)))
    entries = [entry.strip() for entry in setting.split(",")]
    if entries[0].startswith("MIG-"):
        raise PowerError(
            f"CUDA_VISIBLE_DEVICES={setting}: power and energy are the whole board's, never a MIG slice's, so "
            "their joules cannot be told apart. Ask for whole GPUs."
        )
    index_of = _index_of_uuid if entries[0].startswith("GPU-") else _index_of_ordinal
    found: list[int] = []
    for entry in entries:
        index = index_of(entry, uuids)
        if index is None:
            break
        if index in found:
            return []
        found.append(index)
    return found


def _index_of_uuid(entry: str, uuids: Sequence[str]) -> int | None:
    matches = [i for i, uuid in enumerate(uuids) if uuid.lower().startswith(entry.lower())]
    return matches[0] if entry.startswith("GPU-") and len(matches) == 1 else None


def _index_of_ordinal(entry: str, uuids: Sequence[str]) -> int | None:
    digits = re.match(
        r"\+?([0-9]+)", entry
    )  # as strtoul does: what follows the digits is passed over
    return int(digits[1]) if digits and int(digits[1]) < len(uuids) else None


# ---- asking ----


def number(kind: int, value: Any) -> float | int | None:
    """The number in NVML's union, by its kind; None for a kind that we do not know."""
    names = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
    name = names.get(kind)
    return None if name is None else getattr(value, name)


def fields(handle: Any, ids: Sequence[int]) -> list[float | int | None]:
    """Field values in the order of their ids; None for each that has an error of its own."""
    return [
        number(answer.valueType, answer.value) if answer.nvmlReturn == pynvml.NVML_SUCCESS else None
        for answer in ask("nvmlDeviceGetFieldValues", handle, list(ids))
    ]


def buffer(handle: Any, last_us: int) -> list[tuple[int, float]]:
    """Samples of the driver's buffer later than `last_us`, oldest first, as (unix us, watts); [] if none is new."""
    try:
        kind, samples = pynvml.nvmlDeviceGetSamples(
            handle, pynvml.NVML_TOTAL_POWER_SAMPLES, last_us
        )
    except pynvml.NVMLError_NotFound:
        return []
    except pynvml.NVMLError as error:
        raise PowerError(f"nvmlDeviceGetSamples: {error}.") from error
    new = []
    for sample in samples:
        value = number(kind, sample.sampleValue)
        # seen: stamps that were asked for already, and unused places with stamp 0
        if value is not None and sample.timeStamp > last_us:
            new.append((int(sample.timeStamp), value / 1e3))
            last_us = int(sample.timeStamp)
    return new


def polled_power_w(handle: Any, source: str) -> float:
    """Watts now, by a polled sensor; PowerError where it does not answer."""
    if source.startswith("nvml_usage"):
        return float(ask("nvmlDeviceGetPowerUsage", handle) / 1e3)
    wanted = FIELD_INSTANT if source == "nvml_instant" else FIELD_AVERAGE
    value = fields(handle, [wanted])[0]
    if value is None:
        raise PowerError(f"nvmlDeviceGetFieldValues: field {wanted} has no value.")
    return value / 1e3


def conditions(handle: Any) -> Row:
    """Clocks, temperature, activity, memory, limit and throttling of a GPU; null where NVML has no answer."""
    activity = ask_or_none("nvmlDeviceGetUtilizationRates", handle)
    memory = ask_or_none("nvmlDeviceGetMemoryInfo", handle)
    reasons = ask_or_none("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # its name before driver 535
        reasons = ask_or_none("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    try:
        limit_mw, under_cap_ns = fields(handle, [FIELD_LIMIT_IN_FORCE, FIELD_UNDER_CAP_NS])
    except PowerError:
        limit_mw, under_cap_ns = None, None
    if limit_mw is None:
        limit_mw = ask_or_none("nvmlDeviceGetEnforcedPowerLimit", handle)
    return {
        "sm_clock_mhz": ask_or_none("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": ask_or_none("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_MEM),
        "temperature_c": ask_or_none(
            "nvmlDeviceGetTemperature", handle, pynvml.NVML_TEMPERATURE_GPU
        ),
        "gpu_activity_pct": None if activity is None else activity.gpu,
        "memory_activity_pct": None if activity is None else activity.memory,
        "memory_used_bytes": None if memory is None else memory.used,
        "power_limit_w": None if limit_mw is None else limit_mw / 1e3,
        "throttle_reasons": reasons,
        "under_cap_ns": under_cap_ns,
    }


def power_profiles(handle: Any) -> str | None:
    """The ids of the workload power profiles in force, as 3,7; empty for none, null where NVML knows of none."""
    asked = pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
    call = "nvmlDeviceWorkloadPowerProfileGetCurrentProfiles"
    # pynvml hands on what it gets, and by value the driver would take the structure's bytes for an address
    if ask_or_none(call, handle, ctypes.byref(asked)) is None:
        return None
    words = asked.enforcedProfilesMask.mask
    return ",".join(str(bit) for bit in range(255) if words[bit // 32] >> bit % 32 & 1)


# ---- probing ----


def usage_source(handle: Any) -> str:
    """What PowerUsage is on this GPU: instantaneous on GA100 and before Ampere, else a mean over 1 s (NVML's manual).

    Where the architecture is not known it is taken for a mean, which withholds more.
    """
    architecture = ask_or_none("nvmlDeviceGetArchitecture", handle)
    name = _text(ask_or_none("nvmlDeviceGetName", handle) or "")
    ga100 = architecture == pynvml.NVML_DEVICE_ARCH_AMPERE and re.search(r"\bA(100|30|800)\b", name)
    older = architecture is not None and architecture < pynvml.NVML_DEVICE_ARCH_AMPERE
    return "nvml_usage" if ga100 or older else "nvml_usage_mean"


def sources(handle: Any) -> list[str]:
    """The power sensors that answer for a GPU, the best first."""
    found = []
    for source in ("nvml_buffer", "nvml_instant", "nvml_average", usage_source(handle)):
        try:
            answers = (
                buffer(handle, 0) if source == "nvml_buffer" else [polled_power_w(handle, source)]
            )
        except PowerError:
            continue
        if answers:
            found.append(source)
    return found


def open_gpm(handle: Any) -> Gpm | None:
    """A GPU's activity counters, or None where they do not answer this user."""
    try:
        return Gpm(handle)
    except PowerError:
        return None


@dataclass
class Gpu:
    """One visible GPU, and what was last seen of it."""

    handle: Any
    device: Device
    gpm: Gpm | None = None
    last_us: int = 0  # the newest sample's stamp
    asked_ns: int | None = None  # when the buffer was last drained, monotonic
    failing: set[str] = field(default_factory=set)  # sources whose last read failed
    counter: Beat = field(default_factory=lambda: Beat(COUNTER_NS, 0))
    counter_mj: int | None = None  # the last reading
    burst_until_ns: int = 0  # monotonic; the counter is read densely until then or until it ticks


def find_gpus(setting: str | None, order: str | None) -> list[Gpu]:
    """The GPUs that CUDA shows under CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER; NVML must be open.

    AbsentError where there is none; PowerError where their order is ambiguous, or a GPU is in MIG mode.
    """
    handles = [ask("nvmlDeviceGetHandleByIndex", i) for i in range(ask("nvmlDeviceGetCount"))]
    uuids = [ask("nvmlDeviceGetUUID", handle) for handle in handles]
    names = [ask("nvmlDeviceGetName", handle) for handle in handles]
    by_uuid = setting is not None and setting.strip().startswith("GPU-")
    if len(set(names)) > 1 and order != "PCI_BUS_ID" and not by_uuid:
        raise PowerError(
            f"GPUs of several kinds ({', '.join(sorted(set(names)))}): CUDA counts the fastest first and NVML by "
            "bus, so an ordinal may mean two GPUs. Set CUDA_DEVICE_ORDER=PCI_BUS_ID in the job (cluster.setup)."
        )
    shown = visible(setting, uuids)
    if not shown:
        raise AbsentError(
            f"no GPU is visible (CUDA_VISIBLE_DEVICES={setting}, {len(uuids)} by NVML)."
        )
    gpus = []
    for ordinal, index in enumerate(shown):
        handle = handles[index]
        mode = ask_or_none("nvmlDeviceGetMigMode", handle)
        if mode is not None and mode[0]:
            raise PowerError(
                f"{uuids[index]} is in MIG mode: its power is the whole board's, so a slice's joules cannot be told. "
                "Ask for GPUs without MIG."
            )
        pci = ask_or_none("nvmlDeviceGetPciInfo", handle)
        gpus.append(
            Gpu(
                handle,
                {
                    "ordinal": ordinal,
                    "uuid": uuids[index],
                    "bus_id": None if pci is None else _text(pci.busId),
                    "name": names[index],
                    **_fixed(handle),
                },
            )
        )
    return gpus


def _fixed(handle: Any) -> Fixed:
    """What an operator set on a GPU and what its maker allows; null where NVML has no answer."""
    ecc = ask_or_none("nvmlDeviceGetEccMode", handle)
    persistence = ask_or_none("nvmlDeviceGetPersistenceMode", handle)
    default_mw = ask_or_none("nvmlDeviceGetPowerManagementDefaultLimit", handle)
    bounds_mw = ask_or_none("nvmlDeviceGetPowerManagementLimitConstraints", handle)
    return {
        "ecc": None if ecc is None else bool(ecc[0]),
        "persistence": None if persistence is None else bool(persistence),
        "power_limit_default_w": None if default_mw is None else default_mw / 1e3,
        "power_limit_min_w": None if bounds_mw is None else bounds_mw[0] / 1e3,
        "power_limit_max_w": None if bounds_mw is None else bounds_mw[1] / 1e3,
    }


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


# ---- the meter ----


class NvmlMeter:
    """Reads all visible GPUs of this node."""

    name = "nvml"
    boundary = "gpu"
    about: Mapping[str, str] = MappingProxyType({})

    def __init__(self, power: Power) -> None:
        """Open NVML and probe it; AbsentError where it shows no GPU, PowerError where no power sensor answers."""
        self._gpus: list[Gpu] = []
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise AbsentError(f"nvmlInit: {error}.") from error
        try:
            self._gpus = find_gpus(
                os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER")
            )
            self.driver: str | None = ask_or_none("nvmlSystemGetDriverVersion")
            for gpu in self._gpus:
                gpu.gpm = open_gpm(gpu.handle)
            self.source = self._best_source()
            self.period_ms = self._measure_period_ms(power)
        except BaseException:
            self.close()
            raise
        self.devices = [gpu.device for gpu in self._gpus]
        self._gap_ns = longest_spacing_ns(self.source, self.period_ms)
        self.begin({})

    def _best_source(self) -> str:
        """The first sensor that every GPU has: a node's joules come from one kind of sensor."""
        answers = [sources(gpu.handle) for gpu in self._gpus]
        for source in answers[0]:
            if all(source in other for other in answers):
                return source
        told = "; ".join(
            f"{gpu.device['uuid']}: {', '.join(found) or 'none'}"
            for gpu, found in zip(self._gpus, answers, strict=True)
        )
        raise PowerError(
            f"no power sensor answers for all visible GPUs ({told}). Run `wattflow doctor` on this node."
        )

    def _measure_period_ms(self, power: Power) -> float:
        if self.source != "nvml_buffer":
            return float(power.poll_ms)
        spacings = [
            (after - before) / 1e3
            for gpu in self._gpus
            for (before, _), (after, _) in itertools.pairwise(buffer(gpu.handle, 0))
        ]
        return round(statistics.median(spacings), 3) if spacings else 20.0

    @property
    def late_polls(self) -> int:
        """How many polls came late since `begin`; draining the buffer late loses nothing."""
        return 0 if self.source == "nvml_buffer" else self._power.late

    def begin(self, last_ns: Mapping[str, int]) -> None:
        """Start a trace: samples later than `last_ns` are fetched, as far back as the buffer reaches."""
        now_ns = time.monotonic_ns()
        period_ns = DRAIN_NS if self.source == "nvml_buffer" else round(self.period_ms * 1e6)
        self._power = Beat(period_ns, now_ns)
        self._conditions = Beat(CONDITIONS_NS, now_ns)
        self._activity = Beat(GPM_NS, now_ns)
        for place, gpu in enumerate(self._gpus):
            gpu.last_us = last_ns.get(gpu.device["uuid"], 0) // 1000
            gpu.asked_ns = None
            gpu.failing.clear()
            # staggered, as the calls of many GPUs in a row would hold up the polls
            gpu.counter = Beat(COUNTER_NS, now_ns + COUNTER_NS * (place + 1) // len(self._gpus))
            gpu.burst_until_ns = 0
        self._burst = Beat(BURST_PERIOD_NS, now_ns)
        self._edge = False  # a window's edge was told since the last reading
        self._first = True
        self._before_all = not last_ns  # no sidecar of this attempt recorded before this one
        self._strangers: set[int] = set()  # pids seen on GPUs that are not of a measured command

    def due_ns(self) -> int:
        """The monotonic time of the next reading."""
        bursts = [self._burst.next_ns] if any(gpu.burst_until_ns for gpu in self._gpus) else []
        return min(
            self._power.next_ns,
            self._conditions.next_ns,
            self._activity.next_ns,
            *bursts,
            *(gpu.counter.next_ns for gpu in self._gpus),
        )

    def read(self) -> list[Reading]:
        """The rows that are due: power first, as the counter's slow calls would make it late."""
        now_ns = time.monotonic_ns()
        power = self._power.take(now_ns)
        weather = self._conditions.take(now_ns) or self._edge
        activity = self._activity.take(now_ns) or self._edge
        burst = self._burst.take(now_ns)
        counters = [
            gpu.counter.take(now_ns) or self._first or (burst and gpu.burst_until_ns > 0)
            for gpu in self._gpus
        ]
        every = [True] * len(self._gpus)
        wanted = [(self._activity_rows, every)] if activity else []
        wanted += [(self._power_rows, every)] if power else []
        wanted += [(self._condition_rows, every)] if weather else []
        wanted += [(self._process_rows, every)] if self._first else []
        self._first = self._edge = False
        rows = self._collect([*wanted, (self._counter_rows, counters)])
        self._before_all = False
        return rows

    def mark(self) -> None:
        """Read each counter densely until its next tick, which tells to some ms what it stood at; and GPM once."""
        now_ns = time.monotonic_ns()
        self._edge = True
        self._burst = Beat(BURST_PERIOD_NS, now_ns)
        for gpu in self._gpus:
            gpu.counter_mj = None
            gpu.burst_until_ns = now_ns + BURST_NS

    def finish(self) -> list[Reading]:
        """One reading of everything."""
        every = [True] * len(self._gpus)
        rows = (
            self._power_rows,
            self._activity_rows,
            self._condition_rows,
            self._process_rows,
            self._counter_rows,
        )
        return self._collect([(of_gpu, every) for of_gpu in rows])

    def close(self) -> None:
        """Close NVML."""
        for gpu in self._gpus:
            if gpu.gpm is not None:
                gpu.gpm.close()
        ask_or_none("nvmlShutdown")

    def _collect(
        self, wanted: Sequence[tuple[Callable[[Gpu], list[Row]], Sequence[bool]]]
    ) -> list[Reading]:
        """The rows of each kind, in the order given, of each GPU for which they are wanted."""
        return [
            (gpu.device["uuid"], row)
            for rows_of, of_gpus in wanted
            for gpu, due in zip(self._gpus, of_gpus, strict=True)
            if due
            for row in rows_of(gpu)
        ]

    def _power_rows(self, gpu: Gpu) -> list[Row]:
        try:
            samples = self._drain(gpu) if self.source == "nvml_buffer" else [self._poll(gpu)]
        except PowerError as error:
            return list(self._failed(gpu, self.source, error))
        rows = []
        for time_ns, power_w, monotonic_ns in samples:
            last_ns = gpu.last_us * 1000
            lost = gpu.last_us > 0 and time_ns - last_ns > self._gap_ns
            rows.append(
                {
                    "time_ns": time_ns,
                    "monotonic_ns": monotonic_ns,
                    "source": self.source,
                    "power_w": power_w,
                    "gap": lost or self.source in gpu.failing,
                }
            )
            gpu.failing.discard(self.source)
            gpu.last_us = time_ns // 1000
        return rows

    def _drain(self, gpu: Gpu) -> list[tuple[int, float, int | None]]:
        """New samples of the buffer; their stamps are the driver's, so the monotonic clock is not known for them."""
        now_ns = time.monotonic_ns()
        if gpu.asked_ns is not None and now_ns - gpu.asked_ns > HISTORY_NS:
            log.warning(
                "%s: the buffer was not read for %.1f s, so that samples are lost",
                gpu.device["uuid"],
                (now_ns - gpu.asked_ns) / 1e9,
            )
            gpu.failing.add(self.source)
        samples = buffer(gpu.handle, gpu.last_us)
        gpu.asked_ns = now_ns
        return [(stamp * 1000, power_w, None) for stamp, power_w in samples]

    def _poll(self, gpu: Gpu) -> tuple[int, float, int]:
        start = moment()
        power_w = polled_power_w(gpu.handle, self.source)
        at = middle(start, moment())
        return at.time_ns, power_w, at.monotonic_ns

    def _counter_rows(self, gpu: Gpu) -> list[Row]:
        start = moment()
        counter_mj = ask_or_none("nvmlDeviceGetTotalEnergyConsumption", gpu.handle)
        ticked = gpu.counter_mj is not None and counter_mj != gpu.counter_mj
        if counter_mj is None or ticked or start.monotonic_ns > gpu.burst_until_ns:
            gpu.burst_until_ns = 0
        gpu.counter_mj = counter_mj
        if counter_mj is None:
            return []
        row = stamped(middle(start, moment()), "nvml_counter", False)
        return [{**row, "counter_mj": counter_mj}]

    def _activity_rows(self, gpu: Gpu) -> list[Row]:
        """The activity since the row before; GPM that stops answering is left alone from then on."""
        if gpu.gpm is None:
            return []
        try:
            row = gpu.gpm.read()
        except PowerError as error:
            log.warning("%s: %s No activity is known from now on.", gpu.device["uuid"], error)
            gpu.gpm.close()
            gpu.gpm = None
            return []
        return [{**stamped(moment(), "nvml_gpm", False), **row}]

    def _process_rows(self, gpu: Gpu) -> list[Row]:
        running = ask_or_none("nvmlDeviceGetComputeRunningProcesses", gpu.handle)
        profiles = power_profiles(gpu.handle)
        if running is None and profiles is None:
            return []
        row = {
            "processes": None if running is None else self._counted(running),
            "power_profiles": profiles,
        }
        return [{**stamped(moment(), "nvml_conditions", False), **row}]

    def _counted(self, running: Sequence[Any]) -> int:
        """How many processes a GPU has; those of a measured command are expected and are left out."""
        spans = os.environ.get(ENVIRONMENT)
        if spans is None:
            return len(running)
        pids = {int(process.pid) for process in running}
        if self._before_all:
            self._strangers |= {pid for pid in pids if reports_to(pid, spans) is not True}
        else:
            self._strangers |= {pid for pid in pids if reports_to(pid, spans) is False}
        return len(pids & self._strangers)

    def _condition_rows(self, gpu: Gpu) -> list[Row]:
        row = conditions(gpu.handle)
        return [{**stamped(moment(), "nvml_conditions", False), **row}]

    def _failed(self, gpu: Gpu, source: str, error: PowerError) -> Iterator[Row]:
        """The mark of a sensor that stopped answering: once, without a value."""
        if source in gpu.failing:
            return
        log.warning("%s: %s No power is known until it answers again.", gpu.device["uuid"], error)
        gpu.failing.add(source)
        yield stamped(moment(), source, True)
