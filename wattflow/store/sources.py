"""The sensors that rows of a trace name, and all that is known of each: a new sensor is described here alone.

What they show was measured on H100s (docs/calibrate.md) where no other source is named.
"""

from dataclasses import dataclass
from typing import Literal

SECOND_NS = 1_000_000_000
MS = 1_000_000  # ns
MOST_GPU_W = 5000.0  # several times what any board draws
MOST_HOST_W = 100_000.0  # of the packages and memory of one node
OVER_LIMIT = 2.0  # so far above the highest limit it accepts no board was seen: 971 W at 700 W were


@dataclass(frozen=True)
class Source:
    """One sensor: what it reads, and how its samples lie in time."""

    name: str  # as in the column `source`
    meter: str  # the choice power.meter that reads it
    kind: Literal["power", "counter", "conditions", "activity"] = "power"
    description: str = ""  # in sentences of reports
    label: str = ""  # in tables of one machine
    boundary: Literal["gpu", "host"] = "gpu"
    averages: str | None = None  # what a value is a mean of, in the metadata of a trace
    averaging_ns: int = 0  # the same, where it is long: a shorter window has no joules
    renewal_ns: int = 0  # polled fields are renewed this often: two polls within it are one sample
    cached: bool = False  # a value was read up to a period before it came and was stamped
    counter_age_ns: int = 0  # how old a reading of the counter beside it may be
    least_spacing_ns: int = 0  # the driver's buffer has a sample each 20 ms, at most 45 ms apart
    slack_ns: int = 100 * MS  # a poll may come this late on a busy node


def _nvml(name: str, label: str, description: str, averaging_ns: int = 0) -> Source:
    """Return a polled field of NVML's, which is renewed each 100 ms."""
    return Source(
        name,
        "nvml",
        description=description,
        label=label,
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
    # nvmlDeviceGetPowerUsage where it is instantaneous (GA100, Turing and before), and where it is a mean
    _nvml("nvml_usage", "power usage", "NVML's instantaneous power usage, polled"),
    _nvml(
        "nvml_usage_mean",
        "power usage",
        "NVML's power usage, a mean over one second, polled",
        SECOND_NS,
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
    # always shown with `~`
    Source("simulated", "simulated", description="arithmetic on the CPU's load", boundary="host"),
    Source("nvml_counter", "nvml", "counter", "the hardware energy counter", "energy counter"),
    Source("nvml_counter_field", "nvml", "counter", label="field 83, energy counter"),  # calibrate
    Source("nvml_conditions", "nvml", "conditions", label="clocks, temperature, limits"),
    Source("nvml_gpm", "nvml", "activity", label="GPM, memory activity"),
    Source("dcgm_counter", "dcgm", "counter"),
    Source("dcgm_conditions", "dcgm", "conditions"),
    Source("dcgm_profiling", "dcgm", "activity"),
)
SOURCES = {source.name: source for source in _SOURCES}
METERS = tuple(dict.fromkeys(source.meter for source in _SOURCES))


def of_kind(kind: str, meter: str | None = None) -> tuple[str, ...]:
    """Return the names of all sensors of a kind, or those that one meter reads, the best first."""
    return tuple(
        source.name for source in _SOURCES if source.kind == kind and meter in (None, source.meter)
    )


def source_of(name: str) -> Source:
    """Return what is known of a sensor; of one that this version does not know, what holds for any that is polled."""
    return SOURCES.get(name) or Source(name, "", description=name)


def most_w(source: str = "", limit_w: float | None = None) -> float:
    """Return the watts above which a value of a sensor is no reading of a device, whose highest limit may be known."""
    if source_of(source).boundary == "host":
        return MOST_HOST_W
    known = limit_w is not None and 0 < limit_w <= MOST_GPU_W
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
