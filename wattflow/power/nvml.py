"""NVML: watts, the energy counter and conditions of each visible GPU.

Four things are read, each at its own pace (costs as seen on an H100, driver 580):

    power        the buffer, drained each second: 119 samples, one each 20 ms with the driver's stamp, 0.6 ms a call;
                 without it, a field polled each power.poll_ms: instant, else average, else usage, 7-28 us a call
    counter      each 5 s, and at a window's edges each 15 ms until it ticks: it does so each 100 ms, and a call takes
                 3 to 31 ms
    conditions   each second: clocks, temperature, activity, memory, limit in force, reasons for lower clocks; at both
                 ends also the processes on the GPU, a list that takes 4.5 ms
    GPM          each 5 s and at a window's edges, where it answers: activity of SMs, tensor cores, DRAM, links; 5.5 ms

A sensor that fails leaves a gap, never 0 W.
"""

import itertools
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.power.gpm import Gpm
from wattflow.power.gpus import AbsentError, Gpu, find_gpus
from wattflow.power.meter import Beat, Gaps, Reading, Row, middle, moment, stamped
from wattflow.power.nvml_calls import call_or_none, pynvml
from wattflow.power.nvml_sensors import (
    EnergyCounter,
    buffer,
    conditions,
    energy_counter,
    is_superchip,
    open_gpm,
    polled_power_w,
    power_profiles,
    running_pids,
    sockets,
    sources,
)
from wattflow.process import WATCHED, is_of
from wattflow.spans import ENVIRONMENT, reports_to
from wattflow.store.sources import longest_spacing_ns

log = logging.getLogger(__name__)

DRAIN_NS = 1_000_000_000
COUNTER_NS = 5_000_000_000
BURST_PERIOD_NS = 15_000_000
BURST_NS = 250_000_000  # a counter that did not tick for so long is read seldom again
CONDITIONS_NS = 1_000_000_000
GPM_NS = 5_000_000_000
HISTORY_NS = 2_360_000_000  # 119 samples of 20 ms: what the buffer remembers


class GpuTrace:
    """Reads the rows of one GPU during one trace."""

    def __init__(
        self,
        gpu: Gpu,
        gpm: Gpm | None,
        source: str,
        gaps: Gaps,
        *,
        counter: Beat,
        counted: EnergyCounter,
        first: bool,
    ) -> None:
        """`counter` says when its energy counter is due, `counted` what that is.

        `first`: no sidecar recorded this attempt before.
        """
        self.uuid = gpu.device["uuid"]
        self.counter = counter
        self._counted = counted
        self.burst_until_ns = (
            0  # monotonic; the counter is read densely until then or until it ticks
        )
        self._handle = gpu.handle
        self._gpm = gpm
        self._source = source
        self._gaps = gaps
        self._drained_ns: int | None = None  # when the buffer was last read, monotonic
        self._counter_mj: int | None = None  # the last reading
        self._first = first
        self._strangers: set[int] = set()  # pids on the GPU that are not of a measured command

    def power(self) -> list[Row]:
        """Return new samples of power; once, a row without watts where the sensor stopped answering."""
        try:
            samples = self._drain() if self._source == "nvml_buffer" else [self._poll()]
        except PowerError as error:
            if self._gaps.lost:
                return []
            log.warning("%s: %s Its power is unknown until it answers again.", self.uuid, error)
            self._gaps.lost = True
            return [stamped(moment(), self._source, True)]
        return [
            {
                "time_ns": time_ns,
                "monotonic_ns": monotonic_ns,
                "source": self._source,
                "power_w": power_w,
                "gap": self._gaps.before(time_ns),
            }
            for time_ns, power_w, monotonic_ns in samples
        ]

    def _drain(self) -> list[tuple[int, float, int | None]]:
        """Return new samples of the buffer; the stamps are the driver's, so their monotonic time is not known."""
        now_ns = time.monotonic_ns()
        if self._drained_ns is not None and now_ns - self._drained_ns > HISTORY_NS:
            log.warning(
                "%s: the buffer was not read for %.1f s, so that samples are lost",
                self.uuid,
                (now_ns - self._drained_ns) / 1e9,
            )
            self._gaps.lost = True
        samples = buffer(self._handle, (self._gaps.last_ns or 0) // 1000)
        self._drained_ns = now_ns
        return [(stamp_us * 1000, power_w, None) for stamp_us, power_w in samples]

    def _poll(self) -> tuple[int, float, int]:
        start = moment()
        power_w = polled_power_w(self._handle, self._source)
        at = middle(start, moment())
        return at.time_ns, power_w, at.monotonic_ns

    def mark(self, now_ns: int) -> None:
        """Have the counter read densely until its next tick."""
        self._counter_mj = None
        self.burst_until_ns = now_ns + BURST_NS

    def energy(self) -> list[Row]:
        """Return one reading of the energy counter, if there is one."""
        start = moment()
        counter_mj = self._counted.read_mj(self._handle)
        ticked = self._counter_mj is not None and counter_mj != self._counter_mj
        if counter_mj is None or ticked or start.monotonic_ns > self.burst_until_ns:
            self.burst_until_ns = 0
        self._counter_mj = counter_mj
        if counter_mj is None:
            return []
        row = stamped(middle(start, moment()), self._counted.source, False)
        return [{**row, "counter_mj": counter_mj}]

    def activity(self) -> list[Row]:
        """Return the activity since the row before; GPM that stops answering is not called again."""
        if self._gpm is None or not self._gpm.is_open:
            return []
        try:
            row = self._gpm.read()
        except PowerError as error:
            log.warning("%s: %s No activity is known from now on.", self.uuid, error)
            self._gpm.close()
            return []
        return [{**stamped(moment(), "nvml_gpm", False), **row}]

    def conditions(self) -> list[Row]:
        """Return clocks, temperature, activity, memory, limit and throttling now."""
        row = conditions(self._handle)
        return [{**stamped(moment(), "nvml_conditions", False), **row}]

    def processes(self) -> list[Row]:
        """Return how many processes the GPU has, and its power profiles in force."""
        first, self._first = self._first, False
        pids = running_pids(self._handle)
        profiles = power_profiles(self._handle)
        if pids is None and profiles is None:
            return []
        row = {
            "processes": None if pids is None else self._count_strangers(pids, first),
            "power_profiles": profiles,
        }
        return [{**stamped(moment(), "nvml_conditions", False), **row}]

    def _count_strangers(self, pids: Sequence[int], first: bool) -> int:
        """Return how many processes there are without those of a measured command, which are expected."""
        spans, watched = os.environ.get(ENVIRONMENT), os.environ.get(WATCHED)
        if watched is not None:
            return sum(is_of(pid, watched) is False for pid in pids)
        if spans is None:
            return len(pids)
        # before the command starts, a process that cannot be looked at is a stranger; later it may be the command's
        harmless = (True,) if first else (True, None)
        self._strangers |= {pid for pid in pids if reports_to(pid, spans) not in harmless}
        return len(self._strangers.intersection(pids))


class NvmlMeter:
    """Reads visible GPUs of this node, by default all, or the modules that they are on (power.scope)."""

    name = "nvml"
    about: Mapping[str, str] = MappingProxyType({})

    def __init__(self, power: Power, uuids: Sequence[str] | None = None) -> None:
        """Open NVML and probe it; AbsentError where it shows no GPU, PowerError where no power sensor answers.

        With `uuids` these GPUs alone.
        """
        self._gpms: dict[str, Gpm | None] = {}
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise AbsentError(f"nvmlInit: {error}.") from error
        try:
            self._gpus = find_gpus(uuids)
            self.driver: str | None = call_or_none("nvmlSystemGetDriverVersion")
            self._gpms = {gpu.device["uuid"]: open_gpm(gpu.handle) for gpu in self._gpus}
            self.boundary = power.scope
            if power.scope == "module":
                check_modules(self._gpus)
            self.source = best_source(self._gpus, power.scope)
            self._counters = {
                gpu.device["uuid"]: energy_counter(gpu.handle, power.scope) for gpu in self._gpus
            }
            self.period_ms = self._measure_period_ms(power)
        except BaseException:
            self.close()
            raise
        self.devices = [gpu.device for gpu in self._gpus]
        self.begin({})

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
        longest_ns = longest_spacing_ns(self.source, self.period_ms)
        self._power = Beat(period_ns, now_ns)
        self._conditions = Beat(CONDITIONS_NS, now_ns)
        self._activity = Beat(GPM_NS, now_ns)
        self._burst = Beat(BURST_PERIOD_NS, now_ns)
        self._traces = [
            GpuTrace(
                gpu,
                self._gpms[gpu.device["uuid"]],
                self.source,
                Gaps(longest_ns, last_ns.get(gpu.device["uuid"])),
                # staggered, as the calls of many GPUs in a row would hold up the polls
                counter=Beat(COUNTER_NS, now_ns + COUNTER_NS * (place + 1) // len(self._gpus)),
                counted=self._counters[gpu.device["uuid"]],
                first=not last_ns,
            )
            for place, gpu in enumerate(self._gpus)
        ]
        self._edge = False  # a window's edge was marked since the last reading
        self._first = True

    def due_ns(self) -> int:
        """Return the monotonic time of the next reading."""
        bursts = [self._burst.next_ns] if any(t.burst_until_ns for t in self._traces) else []
        return min(
            self._power.next_ns,
            self._conditions.next_ns,
            self._activity.next_ns,
            *bursts,
            *(trace.counter.next_ns for trace in self._traces),
        )

    def read(self) -> list[Reading]:
        """Return the rows that are due: power first, as the counter's slow calls would make it late."""
        now_ns = time.monotonic_ns()
        power_due = self._power.take(now_ns)
        conditions_due = self._conditions.take(now_ns) or self._edge
        activity_due = self._activity.take(now_ns) or self._edge
        burst_due = self._burst.take(now_ns)
        counters = [
            trace
            for trace in self._traces
            if trace.counter.take(now_ns) or self._first or (burst_due and trace.burst_until_ns > 0)
        ]
        wanted = [GpuTrace.activity] if activity_due else []
        wanted += [GpuTrace.power] if power_due else []
        wanted += [GpuTrace.conditions] if conditions_due else []
        wanted += [GpuTrace.processes] if self._first else []
        self._first = self._edge = False
        return [
            *(reading for rows_of in wanted for reading in _readings(self._traces, rows_of)),
            *_readings(counters, GpuTrace.energy),
        ]

    def mark(self) -> None:
        """Read each counter densely until its next tick, which shows to some ms what it stood at; and GPM once."""
        now_ns = time.monotonic_ns()
        self._edge = True
        self._burst = Beat(BURST_PERIOD_NS, now_ns)
        for trace in self._traces:
            trace.mark(now_ns)

    def finish(self) -> list[Reading]:
        """Return one reading of everything."""
        kinds = (
            GpuTrace.power,
            GpuTrace.activity,
            GpuTrace.conditions,
            GpuTrace.processes,
            GpuTrace.energy,
        )
        return [reading for rows_of in kinds for reading in _readings(self._traces, rows_of)]

    def close(self) -> None:
        """Close NVML."""
        for gpm in self._gpms.values():
            if gpm is not None:
                gpm.close()
        call_or_none("nvmlShutdown")


def _readings(
    traces: Sequence[GpuTrace], rows_of: Callable[[GpuTrace], list[Row]]
) -> list[Reading]:
    """Return the rows of one kind, of each GPU in turn."""
    return [(trace.uuid, row) for trace in traces for row in rows_of(trace)]


def best_source(gpus: Sequence[Gpu], boundary: str = "gpu") -> str:
    """Return the first sensor that every GPU has, as a node's energy is of one kind of sensor; PowerError for none."""
    answers = [sources(gpu.handle, boundary) for gpu in gpus]
    for source in answers[0]:
        if all(source in other for other in answers):
            return source
    by_gpu = "; ".join(
        f"{gpu.device['uuid']}: {', '.join(found) or 'none'}"
        for gpu, found in zip(gpus, answers, strict=True)
    )
    why = ""
    if boundary == "module":
        why = " power.scope=module is for superchips whose driver reports power of the module."
    elif any(is_superchip(gpu.handle) for gpu in gpus):
        why = " On a superchip the driver has to know the scope of its power, as newer ones do."
    raise PowerError(
        f"no power sensor answers for all visible GPUs ({by_gpu}).{why} Run `wattflow doctor` on this node."
    )


def check_modules(gpus: Sequence[Gpu]) -> None:
    """Raise PowerError where two GPUs share a module, or may: its joules would be counted for each of them."""
    taken: dict[int, str] = {}
    for gpu in gpus:
        own, uuid = sockets(gpu.handle), gpu.device["uuid"]
        if len(gpus) > 1 and not own:
            raise PowerError(
                f"power.scope=module: the driver does not say which module {uuid} is on, so that one may be counted "
                "for several GPUs. Take power.scope=gpu, or one GPU a node."
            )
        for socket in own or ():
            if socket in taken:
                raise PowerError(
                    f"power.scope=module: {taken[socket]} and {uuid} are on one module, whose joules would be counted "
                    "twice. Take power.scope=gpu."
                )
            taken[socket] = uuid
