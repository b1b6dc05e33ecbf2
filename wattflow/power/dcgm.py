"""DCGM: watts, the energy counter and conditions of each visible GPU, by `dcgmi dmon`, where a site has it.

Two dcgmi processes run beside the sidecar, as reading some fields costs the driver more than others:

    power     field 157 (instant), else 155 (as NVML's power usage): each power.poll_ms
    the rest  each second: energy counter, clocks, temperature, activity, memory, limit in force, reasons for lower
              clocks, and profiling fields where power.dcgm_profiling asks for them

Rows have no stamp of their own (see dcgmi.py); what a process that died did not print is marked as a gap. Fields go by
number, as DCGM 4.6 renamed them. NVML says which GPUs are this job's: DCGM's numbers are the node's.
"""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.power.credible import credible_watts
from wattflow.power.dcgmi import Arrival, Stream, Values, dcgmi, numbers_of_gpus, sample_rows
from wattflow.power.gpus import find_gpus
from wattflow.power.meter import Beat, Gaps, Reading, Row, stamped
from wattflow.power.nvml_calls import call, call_or_none
from wattflow.power.nvml_sensors import is_superchip, usage_source
from wattflow.store.schema import TRACE, Device
from wattflow.store.sources import MS, longest_spacing_ns, source_of

INSTANT, USAGE, COUNTER = 157, 155, 156
MIB = 1024 * 1024

# the column that a field fills, and what its value is multiplied by
CONDITIONS = {
    100: ("sm_clock_mhz", 1),
    101: ("memory_clock_mhz", 1),
    112: ("throttle_reasons", 1),
    150: ("temperature_c", 1),
    164: ("power_limit_w", 1),
    203: ("gpu_activity_pct", 1),
    204: ("memory_activity_pct", 1),
    252: ("memory_used_bytes", MIB),
}
# shares of 1, and bytes per second
PROFILING = {
    1001: ("graphics_activity_pct", 100),
    1002: ("sm_activity_pct", 100),
    1003: ("sm_occupancy_pct", 100),
    1004: ("tensor_activity_pct", 100),
    1005: ("dram_activity_pct", 100),
    1009: ("pcie_tx_mib_s", 1 / MIB),
    1010: ("pcie_rx_mib_s", 1 / MIB),
    1011: ("nvlink_tx_mib_s", 1 / MIB),
    1012: ("nvlink_rx_mib_s", 1 / MIB),
}

REST_MS = source_of("dcgm").counter_age_ns // MS
DRAIN_NS = 50_000_000  # how often received rows are flushed; they were stamped when they came


# ---- which fields answer ----


def power_field(gpus: Sequence[int]) -> int:
    """Return the first of fields 157 and 155 that all GPUs have; PowerError, with each field's fault, for none.

    157 may read 0 W where it is not supported, so that 0 W is no reading.
    """
    faults = []
    for field in (INSTANT, USAGE):
        try:
            rows = sample_rows([field], gpus, 100)
        except PowerError as error:
            faults.append(str(error))
            continue
        silent = set(gpus) - {gpu for gpu, values in rows if credible_watts(values[field], "dcgm")}
        if not silent:
            return field
        faults.append(f"field {field} has no watts of {_listed(silent)}.")
    raise PowerError(f"DCGM has no power of all GPUs {_listed(gpus)}: {' '.join(faults)}")


def check_profiling(gpus: Sequence[int]) -> None:
    """PowerError where DCGM has no profiling values of a GPU for this user."""
    rows = sample_rows(list(PROFILING), gpus, 500)
    silent = set(gpus) - {gpu for gpu, values in rows if set(values.values()) != {None}}
    if silent:
        raise PowerError(
            f"power.dcgm_profiling=true: DCGM has no profiling values of GPU {_listed(silent)}. They need a "
            "data-centre GPU, often a host engine that runs as root, and no other profiler. "
            "Set power.dcgm_profiling=false."
        )


def _listed(gpus: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(gpus)))


# ---- the meter ----


class DcgmMeter:
    """Reads visible GPUs of this node through DCGM, by default all."""

    name = "dcgm"
    boundary = "gpu"
    late_polls = 0  # dcgmi keeps its own pace: lateness shows in the stamps

    def __init__(self, power: Power, uuids: Sequence[str] | None = None) -> None:
        """Find the GPUs and probe their fields; PowerError where dcgmi, its host engine or a GPU's power is missing.

        With `uuids` these GPUs alone.
        """
        self._streams: list[Stream] = []
        numbers = numbers_of_gpus()
        found = visible_devices(uuids)
        self.devices, self.driver = found.devices, found.driver
        self._counted = "dcgm_module_counter" if found.superchip else "dcgm_counter"
        unknown = [device["uuid"] for device in self.devices if device["uuid"] not in numbers]
        if unknown:
            raise PowerError(
                f"DCGM does not know {', '.join(unknown)}; `dcgmi discovery -l` shows {', '.join(numbers)}."
            )
        self._uuids = {numbers[device["uuid"]]: device["uuid"] for device in self.devices}
        self._gpus = sorted(self._uuids)
        self._field = power_field(self._gpus)
        self._profiling = PROFILING if power.dcgm_profiling else {}
        if self._profiling:
            check_profiling(self._gpus)
        averaged = self._field == USAGE and found.usage_is_mean
        self.source = "dcgm_mean" if averaged else "dcgm"
        self.period_ms = float(power.poll_ms)
        self._version = version()

    @property
    def about(self) -> dict[str, str]:
        """Which field the watts are, what time they average, and how old a value may be when it is stamped."""
        known: dict[str, str | None] = {
            "dcgm_version": self._version,
            "dcgm_field": str(self._field),
            "averaging": source_of(self.source).averages,
            "stamped": "on arrival",
            "age_ms": f"0 to {self.period_ms:g}",
            "counter_age_ms": f"0 to {REST_MS}",
        }
        return {key: value for key, value in known.items() if value is not None}

    def begin(self, last_ns: Mapping[str, int]) -> None:
        """Start a trace; there is no history, so whatever came before is dropped."""
        if not self._streams:
            rest = [COUNTER, *CONDITIONS, *self._profiling]
            self._streams = [
                Stream([self._field], self._gpus, round(self.period_ms)),
                Stream(rest, self._gpus, REST_MS),
            ]
        for stream in self._streams:
            stream.take()
        longest_ns = longest_spacing_ns(self.source, self.period_ms)
        self._gaps = {uuid: Gaps(longest_ns, last_ns.get(uuid)) for uuid in self._uuids.values()}
        self._drain = Beat(DRAIN_NS, time.monotonic_ns())

    def due_ns(self) -> int:
        """Return the monotonic time at which received rows are next flushed."""
        return self._drain.next_ns

    def read(self) -> list[Reading]:
        """Return the rows that came since the last call."""
        return self._take() if self._drain.take(time.monotonic_ns()) else []

    def mark(self) -> None:
        """Nothing to do: the host engine reads the counter at its own pace, and more readings disturb the GPU."""

    def finish(self) -> list[Reading]:
        """Return the rows that came and one more of every field, so that samples and counter enclose the window."""
        readings = self._take()
        for stream, period_ms in zip(self._streams, (self.period_ms, REST_MS), strict=True):
            stream.wait(2 * period_ms / 1e3 + 0.5)
        return readings + self._take()

    def close(self) -> None:
        """End both processes."""
        for stream in self._streams:
            stream.close()
        self._streams = []

    def _take(self) -> list[Reading]:
        power, rest = self._streams
        return [
            *(reading for arrival in power.take() for reading in self._power_rows(arrival)),
            *(reading for arrival in rest.take() for reading in self._rest_rows(arrival)),
        ]

    def _power_rows(self, arrival: Arrival) -> Iterator[Reading]:
        """Yield a sample; where dmon ended, a row without watts of each device, marked as a gap."""
        if arrival.gpu is None:
            for device in self.devices:
                self._gaps[device["uuid"]].lost = True
                yield device["uuid"], stamped(arrival.at, self.source, True)
            return
        uuid = self._uuids[arrival.gpu]
        power_w = arrival.values[self._field]
        if not credible_watts(power_w, self.source):  # such as 0 W
            power_w = None
        gap = power_w is not None and self._gaps[uuid].before(arrival.at.time_ns)
        yield uuid, {**stamped(arrival.at, self.source, gap), "power_w": power_w}

    def _rest_rows(self, arrival: Arrival) -> Iterator[Reading]:
        """Yield the counter, the conditions and the profiling values, each in a row of its own."""
        if arrival.gpu is None:
            return
        uuid = self._uuids[arrival.gpu]
        counter_mj = arrival.values[COUNTER]
        # a counter that was printed with an exponent has lost its joules
        if isinstance(counter_mj, int):
            yield uuid, {**stamped(arrival.at, self._counted, False), "counter_mj": counter_mj}
        row = columns(CONDITIONS, arrival.values)
        yield uuid, {**stamped(arrival.at, "dcgm_conditions", False), **row}
        if self._profiling:
            row = columns(self._profiling, arrival.values)
            yield uuid, {**stamped(arrival.at, "dcgm_profiling", False), **row}


class Visible(NamedTuple):
    """The GPUs that CUDA shows, and what NVML knows of their sensors."""

    devices: list[Device]
    driver: str | None
    usage_is_mean: bool  # of the power usage of one of them at least
    superchip: bool  # one of them at least, whose energy counter is that of its module


def visible_devices(uuids: Sequence[str] | None = None) -> Visible:
    """Return the GPUs that CUDA shows, of them `uuids`; PowerError where NVML shows none.

    DCGM runs outside of the job, and does not know which of the node's GPUs are its.
    """
    call("nvmlInit")
    try:
        gpus = find_gpus(uuids)
        return Visible(
            [gpu.device for gpu in gpus],
            call_or_none("nvmlSystemGetDriverVersion"),
            any(usage_source(gpu.handle) == "nvml_usage_mean" for gpu in gpus),
            any(is_superchip(gpu.handle) for gpu in gpus),
        )
    finally:
        call_or_none("nvmlShutdown")


def version() -> str | None:
    """Return DCGM's version, or None where dcgmi does not print it."""
    with contextlib.suppress(PowerError):
        if found := re.search(r"\d+(?:\.\d+)+", dcgmi("--version")):
            return found[0]
    return None


def columns(filled: Mapping[int, tuple[str, float]], values: Values) -> Row:
    """Return the trace columns that some fields fill; null for what is blank, and for what the column cannot hold."""
    row: Row = {}
    for field, (column, factor) in filled.items():
        value = values[field]
        kind = TRACE.field(column).type
        if value is not None and pa.types.is_integer(kind):
            whole = round(value * factor)
            row[column] = whole if whole < 2 ** (kind.bit_width - 1) else None
        else:
            row[column] = None if value is None else value * factor
    return row
