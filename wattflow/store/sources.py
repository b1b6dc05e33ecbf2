"""The sensors that rows of a trace name, and all that is known of each: a new sensor is described here alone.

What they show was measured on H100s (docs/calibrate.md) where no other source is named.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

SECOND_NS = 1_000_000_000
MS = 1_000_000  # ns
LEAST_GPU_W = 0.1  # a board that answers draws more, also when it sleeps
MOST_GPU_W = 5000.0  # several times what any board draws
MOST_HOST_W = 100_000.0  # of the packages and memory of one node, or of all of it
OVER_LIMIT = 2.0  # so far above the highest limit it accepts no board was seen: 971 W at 700 W were


# What joules enclose. A module is a superchip: its GPU, its Grace CPU and their memory. An accelerator is what Cray's
# node controller counts as one, which may be either; a node is all of one.
Boundary = Literal["gpu", "module", "accelerator", "host", "node"]
DEVICES: tuple[Boundary, ...] = ("gpu", "module")  # of which each rank has one or more


@dataclass(frozen=True)
class Source:
    """One sensor: what it reads, and how its samples lie in time."""

    name: str  # as in the column `source`
    meter: str  # the choice power.meter that reads it
    kind: Literal["power", "counter", "conditions", "activity"] = "power"
    description: str = ""  # in sentences of reports
    label: str = ""  # in tables of one machine
    boundary: Boundary = "gpu"
    averages: str | None = None  # what a value is a mean of, in the metadata of a trace
    averaging_ns: int = 0  # the same, where it is long: a shorter window has no joules
    renewal_ns: int = 0  # polled fields are renewed this often: two polls within it are one sample
    cached: bool = False  # a value was read up to a period before it came and was stamped
    counter_age_ns: int = 0  # how old a reading of the counter beside it may be
    least_spacing_ns: int = 0  # the driver's buffer has a sample each 20 ms, at most 45 ms apart
    slack_ns: int = 100 * MS  # a poll may come this late on a busy node


def _nvml(
    name: str, label: str, description: str, averaging_ns: int = 0, boundary: Boundary = "gpu"
) -> Source:
    """Return a polled field of NVML's, which is renewed each 100 ms."""
    return Source(
        name,
        "nvml",
        description=description,
        label=label,
        boundary=boundary,
        averaging_ns=averaging_ns,
        renewal_ns=100 * MS,
    )


def _dcgm(name: str, description: str, averages: str, averaging_ns: int = 0) -> Source:
    """Return a sensor of NVML's as DCGM caches it, with a counter that is read each second."""
    return Source(
        name,
        "dcgm",
        description=description,
        averages=averages,
        averaging_ns=averaging_ns,
        renewal_ns=100 * MS,
        cached=True,
        counter_age_ns=SECOND_NS,
    )


_SOURCES = (
    Source(
        "nvml_buffer",
        "nvml",
        description="the driver's own sample buffer (a reading each 20 ms, with the driver's time stamps)",
        label="sample buffer",
        least_spacing_ns=100 * MS,
        slack_ns=0,
    ),
    _nvml("nvml_instant", "field 186, instant", "NVML's instantaneous power, polled"),
    _nvml(
        "nvml_average",
        "field 185, average",
        "NVML's one-second average of power, polled",
        SECOND_NS,
    ),
    # nvmlDeviceGetPowerUsage where it shows a part of each renewal (GA100, Turing and before), and where it is a mean
    _nvml("nvml_usage", "power usage", "NVML's power usage, of a part of each renewal, polled"),
    _nvml(
        "nvml_usage_mean",
        "power usage",
        "NVML's power usage, a mean over one second, polled",
        SECOND_NS,
    ),
    # the same fields of a superchip's module, where the driver knows that scope: power.scope=module
    _nvml(
        "nvml_module_instant",
        "field 186, instant, of the module",
        "NVML's instantaneous power of the whole module, polled",
        boundary="module",
    ),
    _nvml(
        "nvml_module_average",
        "field 185, average, of the module",
        "NVML's one-second average of the whole module's power, polled",
        SECOND_NS,
        "module",
    ),
    # dcgmi dmon: field 157, or 155 where that is instantaneous; and 155 where it is a mean
    _dcgm(
        "dcgm",
        "DCGM's cache of instantaneous power, stamped when it arrived",
        "instantaneous: some 25 ms of each 100 ms (H100, A100: arXiv 2312.02741)",
    ),
    _dcgm(
        "dcgm_mean",
        "DCGM's cache of a one-second average of power, stamped when it arrived",
        "mean over 1 s",
        SECOND_NS,
    ),
    # a sample is the mean between two polls
    Source(
        "rapl",
        "rapl",
        description="RAPL's counters of the host's CPU packages and DRAM, polled",
        boundary="host",
    ),
    # ACPI's power meter averages over 50 ms to 1 s, as its owner set it
    Source(
        "hwmon_grace",
        "hwmon",
        description="ACPI's power meters of the Grace sockets, polled",
        boundary="host",
        renewal_ns=SECOND_NS,
    ),
    # pm_counters: point in time, renewed at raw_scan_hz, 10 Hz where seen
    Source(
        "cray_node",
        "cray",
        description="the node controller's power of the whole node (Cray pm_counters), with its own time stamps",
        boundary="node",
        renewal_ns=100 * MS,
    ),
    Source(
        "cray_accelerator",
        "cray",
        description="the node controller's power of one accelerator (Cray pm_counters), with its own time stamps",
        boundary="accelerator",
        renewal_ns=100 * MS,
    ),
    # always shown with `~`
    Source("simulated", "simulated", description="arithmetic on the CPU's load", boundary="host"),
    Source("nvml_counter", "nvml", "counter", "the hardware energy counter", "energy counter"),
    Source("nvml_counter_field", "nvml", "counter", label="field 83, energy counter"),  # calibrate
    Source(
        "nvml_module_counter",
        "nvml",
        "counter",
        "the hardware energy counter of the whole module",
        "energy counter of the module",
        "module",
    ),
    Source("nvml_conditions", "nvml", "conditions", label="clocks, temperature, limits"),
    Source("nvml_gpm", "nvml", "activity", label="GPM, memory activity"),
    Source("dcgm_counter", "dcgm", "counter"),
    Source("dcgm_module_counter", "dcgm", "counter", boundary="module"),
    Source("dcgm_conditions", "dcgm", "conditions"),
    Source("dcgm_profiling", "dcgm", "activity"),
    Source("cray_counter", "cray", "counter", boundary="node"),
    Source("cray_accelerator_counter", "cray", "counter", boundary="accelerator"),
)
SOURCES = {source.name: source for source in _SOURCES}


@dataclass(frozen=True)
class Response:
    """How samples of a sensor come about: each is a mean of the power before its stamp, as its shape weights it."""

    period_ms: float  # between two samples
    window_ms: float = 0.0  # that a sample averages; of an exponential answer its time constant
    lag_ms: float = 0.0  # from the newest power that a sample holds to its stamp
    shape: Literal["box", "exponential"] = "box"
    lag_u_ms: float | None = (
        None  # standard uncertainties of both; null where nobody measured the lag
    )
    window_u_ms: float | None = None

    @property
    def blind(self) -> bool:
        """Whether a sample says nothing of most of the time since the one before it."""
        reach_ms = self.window_ms * (2 if self.shape == "exponential" else 1)
        return reach_ms < self.period_ms / 2


# By passports of docs/passports (H100, H200: their lags, windows and how far boards differ) and by table 1 of
# arXiv 2312.02741 (SC24): what a value averages and how often it is renewed. The first pattern in a GPU's name counts.
_HOPPER = Response(20.0, 13.7, 3.9, "exponential", 0.4, 0.7)
_PART_TIME = Response(100.0, 25.0)  # 25 ms of each 100 ms
_WHOLE = Response(100.0, 100.0)
_SECOND = Response(100.0, 1000.0)
_RESPONSES: tuple[tuple[str, dict[str, Response]], ...] = (
    (r"GH200", {"nvml_instant": Response(100.0, 20.0)}),
    (r"H[12]00", {"nvml_buffer": _HOPPER, "nvml_instant": _PART_TIME}),
    (r"A(100|800|30)\b", {"nvml_usage": _PART_TIME, "nvml_instant": _PART_TIME}),
    (r"V100|\bP(100|40|4)\b", {"nvml_usage": Response(20.0, 10.0)}),
    (r"\bT4\b|RTX 20|Quadro RTX", {"nvml_usage": _WHOLE}),
    (r"RTX 30|RTX A|\bA(10|16|2|40)\b", {"nvml_instant": _WHOLE}),
    (r"\bK\d0", {"nvml_usage": Response(15.0, 53.0, 8.0, "exponential")}),
)
METERS = tuple(dict.fromkeys(source.meter for source in _SOURCES))


# NVML's fields of a module are those of a GPU, of another scope
_SAME_FIELD = {
    "dcgm": "nvml_instant",
    "dcgm_mean": "nvml_average",
    "nvml_module_instant": "nvml_instant",
    "nvml_module_average": "nvml_average",
}


def of_kind(kind: str, meter: str | None = None) -> tuple[str, ...]:
    """Return the names of all sensors of a kind, or those that one meter reads, the best first."""
    return tuple(
        source.name for source in _SOURCES if source.kind == kind and meter in (None, source.meter)
    )


def counters_beside(source: str) -> tuple[str, ...]:
    """Return the energy counters that count what a sensor of power measures; of a counter that is itself it alone."""
    known = source_of(source)
    if known.kind == "counter":
        return (source,)
    return tuple(name for name in of_kind("counter") if SOURCES[name].boundary == known.boundary)


def source_of(name: str) -> Source:
    """Return what is known of a sensor; of one that this version does not know, what holds for any that is polled."""
    return SOURCES.get(name) or Source(name, "", description=name)


def response_of(source: str, gpu_name: str, period_ms: float) -> Response:
    """Return how a sensor of a GPU samples power; of a GPU that nobody measured, what is said of its sensor.

    A sample of the driver's buffer then stands for an instant, and a polled value for the shortest part of a renewal
    that was seen on any GPU.
    """
    known = source_of(source)
    sensor = _SAME_FIELD.get(source, source)
    for pattern, responses in _RESPONSES:
        if sensor in responses and re.search(pattern, gpu_name):
            found = responses[sensor]
            return replace(found, period_ms=max(found.period_ms, period_ms))
    if known.averaging_ns:
        return replace(_SECOND, period_ms=max(_SECOND.period_ms, period_ms))
    if known.renewal_ns:
        return replace(_PART_TIME, period_ms=max(known.renewal_ns / MS, period_ms))
    # RAPL's samples are means since the poll before, as is the load that is simulated
    return Response(period_ms, period_ms if known.boundary == "host" else 0.0)


def least_w(source: str = "") -> float:
    """Return the watts below which a value of a sensor is no reading: a host may read 0 W, nothing else may."""
    return 0.0 if source_of(source).boundary == "host" else LEAST_GPU_W


def most_w(source: str = "", limit_w: float | None = None) -> float:
    """Return the watts above which a value of a sensor is no reading of a device, whose highest limit may be known."""
    boundary = source_of(source).boundary
    if boundary in ("host", "node"):
        return MOST_HOST_W
    # the limit that NVML reports is the GPU's
    known = boundary == "gpu" and limit_w is not None and 0 < limit_w <= MOST_GPU_W
    return min(MOST_GPU_W, OVER_LIMIT * limit_w) if known and limit_w else MOST_GPU_W


def longest_spacing_ns(source: str, period_ms: float) -> int:
    """Return the longest time between two samples of a source that is no gap yet, ns."""
    known = source_of(source)
    return max(known.least_spacing_ns, int(3 * period_ms * 1e6) + known.slack_ns)


def lag_ns(source: str, period_ms: float) -> int:
    """Return how far the time that a sample stands for may lie from its stamp, ns."""
    known = source_of(source)
    period_ns = int(period_ms * 1e6)
    least_ns = max(known.averaging_ns, known.renewal_ns)
    return period_ns + least_ns if known.cached else max(period_ns, least_ns)
