"""What NVML's sensors read on one GPU, in our units: watts, unix microseconds, trace columns.

NVML's milliwatts become watts here and nowhere else. A value that NVML does not have is null.
"""

import ctypes
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wattflow.errors import PowerError
from wattflow.power.credible import credible_watts
from wattflow.power.gpm import Gpm
from wattflow.power.gpus import text
from wattflow.power.meter import Row
from wattflow.power.nvml_calls import call, call_or_none, pynvml
from wattflow.store.sources import source_of

FIELD_INSTANT = 186
FIELD_AVERAGE = 185
FIELD_COUNTER = 83
FIELD_LIMIT_IN_FORCE = 190
FIELD_UNDER_CAP_NS = 74
_STALE_US = 10_000_000  # fields are renewed each 100 ms
_AHEAD_US = 1_000_000  # a stamp this far in the future is none: all later samples would be older


def number(kind: int, value: Any) -> float | int | None:
    """Return the number in NVML's union, by its kind; None for a kind that we do not know."""
    names = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
    name = names.get(kind)
    return None if name is None else getattr(value, name)


def fields(handle: Any, ids: Sequence[int]) -> list[float | int | None]:
    """Return field values in the order of their ids; None for each that has an error of its own."""
    return [
        number(answer.valueType, answer.value) if answer.nvmlReturn == pynvml.NVML_SUCCESS else None
        for answer in call("nvmlDeviceGetFieldValues", handle, list(ids))
    ]


def buffer(handle: Any, last_us: int) -> list[tuple[int, float]]:
    """Return the driver's samples later than `last_us`, oldest first, as (unix us, watts); [] if none is new.

    Watts that no board draws and stamps of a time to come are no readings.
    """
    try:
        kind, samples = pynvml.nvmlDeviceGetSamples(
            handle, pynvml.NVML_TOTAL_POWER_SAMPLES, last_us
        )
    except pynvml.NVMLError_NotFound:
        return []
    except pynvml.NVMLError as error:
        raise PowerError(f"nvmlDeviceGetSamples: {error}.") from error
    new = []
    latest_us = time.time_ns() // 1000 + _AHEAD_US
    for sample in samples:
        power_w = watts(number(kind, sample.sampleValue))
        # the driver also returns stamps that were read before, and unused places with stamp 0
        if power_w is not None and last_us < sample.timeStamp <= latest_us:
            new.append((int(sample.timeStamp), power_w))
            last_us = int(sample.timeStamp)
    return new


def watts(value_mw: float | None) -> float | None:
    """Return NVML's milliwatts as watts; null for what no board draws, such as -1 as a whole number without sign."""
    power_w = None if value_mw is None else value_mw / 1e3
    return power_w if credible_watts(power_w, "") else None


def polled_power_w(handle: Any, source: str) -> float:
    """Return watts now, by a polled sensor; PowerError where it does not answer with what a board can draw."""
    if source.startswith("nvml_usage"):
        name, value = "nvmlDeviceGetPowerUsage", call("nvmlDeviceGetPowerUsage", handle)
    else:
        field = FIELD_INSTANT if source.endswith("instant") else FIELD_AVERAGE
        scope = SCOPES[source_of(source).boundary]
        name = f"nvmlDeviceGetFieldValues: field {field} of scope {scope}"
        value = _fresh_field(handle, field, scope)
    power_w = watts(value)
    if power_w is None:
        raise PowerError(f"{name} has no value." if value is None else f"{name}: {value} mW.")
    return power_w


def _fresh_field(handle: Any, field: int, scope: int) -> float | int | None:
    """Return a field's value, stamped in unix us; PowerError where it was read long ago, so that it is not of now.

    Null where the driver answers for another scope than was asked for.
    """
    (answer,) = call("nvmlDeviceGetFieldValues", handle, [(field, scope)])
    if answer.nvmlReturn != pynvml.NVML_SUCCESS or answer.scopeId != scope:
        return None
    age_us = time.time_ns() // 1000 - answer.timestamp
    if answer.timestamp > 0 and age_us > _STALE_US:
        raise PowerError(
            f"nvmlDeviceGetFieldValues: field {field} was read {age_us / 1e6:.0f} s ago."
        )
    return number(answer.valueType, answer.value)


# ---- what a superchip's sensors cover ----

SCOPES = {"gpu": 0, "module": 1}  # of field values, by boundary: NVML_POWER_SCOPE_GPU, _MODULE
_SUPERCHIP = re.compile(r"\bG[HB][23]00\b")


def _parts_scopes(handle: Any, field: int) -> bool:
    """Return whether a field says more of a GPU's module than of the GPU.

    A driver that does not know scopes answers both alike, but for a reading that is renewed between the two.
    """
    return all(_is_more_of_module(handle, field) for _ in range(2))


def _is_more_of_module(handle: Any, field: int) -> bool:
    wanted = [(field, scope) for scope in SCOPES.values()]
    try:
        answers = call("nvmlDeviceGetFieldValues", handle, wanted)
    except PowerError:
        return False
    gpu, module = (
        number(answer.valueType, answer.value)
        if answer.nvmlReturn == pynvml.NVML_SUCCESS and answer.scopeId == scope
        else None
        for answer, (_, scope) in zip(answers, wanted, strict=True)
    )
    return gpu is not None and module is not None and module > gpu


def has_module(handle: Any) -> bool:
    """Return whether a GPU's driver reports power of the module beside that of the GPU, as on a Grace superchip."""
    return any(_parts_scopes(handle, field) for field in (FIELD_INSTANT, FIELD_AVERAGE))


def is_superchip(handle: Any) -> bool:
    """Return whether a GPU shares a module with a CPU: by its power's scopes, else by its name."""
    name = text(call_or_none("nvmlDeviceGetName", handle) or "")
    return has_module(handle) or _SUPERCHIP.search(name) is not None


@dataclass(frozen=True)
class EnergyCounter:
    """How a GPU's energy counter is read, and what it covers."""

    source: str
    scope: int | None = None  # of field 83; null: by the call that knows of none

    def read_mj(self, handle: Any) -> int | None:
        """Return the counter, mJ; null where it does not answer."""
        if self.scope is None:
            found = call_or_none("nvmlDeviceGetTotalEnergyConsumption", handle)
        else:
            try:
                found = _fresh_field(handle, FIELD_COUNTER, self.scope)
            except PowerError:
                return None
        return None if found is None else int(found)


def energy_counter(handle: Any, boundary: str) -> EnergyCounter:
    """Return the energy counter of a GPU that covers a boundary where there is one, else that which there is.

    On a superchip the call without a scope counts the module (GH200: Zeus, pull request 172), so that it is no check on
    the GPU's power; field 83 counts what it is asked for where its values of both scopes differ.
    """
    if not is_superchip(handle):
        return EnergyCounter("nvml_counter")
    if not _parts_scopes(handle, FIELD_COUNTER):
        return EnergyCounter("nvml_module_counter")
    name = "nvml_module_counter" if boundary == "module" else "nvml_counter"
    return EnergyCounter(name, SCOPES[boundary])


def sockets(handle: Any) -> frozenset[int] | None:
    """Return the NUMA nodes beside a GPU, which those on one module share; null where the driver does not say."""
    masks = call_or_none(
        "nvmlDeviceGetMemoryAffinity", handle, _NODE_WORDS, pynvml.NVML_AFFINITY_SCOPE_SOCKET
    )
    if masks is None:
        return None
    return frozenset(
        64 * word + bit for word, mask in enumerate(masks) for bit in range(64) if mask >> bit & 1
    )


_NODE_WORDS = 4  # 256 NUMA nodes


def conditions(handle: Any) -> Row:
    """Return clocks, temperature, activity, memory, limit and throttling of a GPU; null where NVML has no answer."""
    activity = call_or_none("nvmlDeviceGetUtilizationRates", handle)
    memory = call_or_none("nvmlDeviceGetMemoryInfo", handle)
    reasons = call_or_none("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # its name before driver 535
        reasons = call_or_none("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    try:
        limit_mw, under_cap_ns = fields(handle, [FIELD_LIMIT_IN_FORCE, FIELD_UNDER_CAP_NS])
    except PowerError:
        limit_mw, under_cap_ns = None, None
    if limit_mw is None:
        limit_mw = call_or_none("nvmlDeviceGetEnforcedPowerLimit", handle)
    return {
        "sm_clock_mhz": call_or_none("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": call_or_none("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_MEM),
        "temperature_c": call_or_none(
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
    """Return the ids of the workload power profiles in force, as 3,7; empty for none, null where NVML knows of none."""
    profiles = pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
    name = "nvmlDeviceWorkloadPowerProfileGetCurrentProfiles"
    # pynvml hands on what it gets, and by value the driver would take the structure's bytes for an address
    if call_or_none(name, handle, ctypes.byref(profiles)) is None:
        return None
    words = profiles.enforcedProfilesMask.mask
    return ",".join(str(bit) for bit in range(255) if words[bit // 32] >> bit % 32 & 1)


def running_pids(handle: Any) -> list[int] | None:
    """Return the processes with a compute context on a GPU that this user sees; null where NVML has no answer."""
    processes = call_or_none("nvmlDeviceGetComputeRunningProcesses", handle)
    return None if processes is None else sorted(int(process.pid) for process in processes)


def usage_source(handle: Any) -> str:
    """Return the source that PowerUsage is: instantaneous on GA100 and before Ampere, else a mean over 1 s (manual).

    Where the architecture is not known it is taken for a mean, which withholds more.
    """
    architecture = call_or_none("nvmlDeviceGetArchitecture", handle)
    name = text(call_or_none("nvmlDeviceGetName", handle) or "")
    ga100 = architecture == pynvml.NVML_DEVICE_ARCH_AMPERE and re.search(r"\bA(100|30|800)\b", name)
    older = architecture is not None and architecture < pynvml.NVML_DEVICE_ARCH_AMPERE
    return "nvml_usage" if ga100 or older else "nvml_usage_mean"


def sources(handle: Any, boundary: str = "gpu") -> list[str]:
    """Return the power sensors of a boundary that answer for a GPU, the best first.

    On a superchip those whose scope can be asked for: neither the buffer nor the power usage says what it covers. There
    is none where the driver knows no scopes.
    """
    if boundary == "module":
        names = ["nvml_module_instant", "nvml_module_average"] if has_module(handle) else []
    elif is_superchip(handle):
        names = ["nvml_instant", "nvml_average"] if has_module(handle) else []
    else:
        names = ["nvml_buffer", "nvml_instant", "nvml_average", usage_source(handle)]
    found = []
    for source in names:
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
    """Return a GPU's activity counters, or None where they do not answer this user."""
    try:
        return Gpm(handle)
    except PowerError:
        return None
