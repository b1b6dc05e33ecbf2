"""The sensors that rows of a trace name, and all that is known of each: a new sensor is described here alone.

What they show was measured on H100s (docs/calibrate.md) where no other source is named.
"""

from dataclasses import dataclass
from typing import Literal

SECOND_NS = 1_000_000_000
MS = 1_000_000  # ns


@dataclass(frozen=True)
class Source:
    """One sensor: what it reads, and how its samples lie in time."""

    name: str  # as in the column `source`
    label: str  # in tables of one machine
    description: str  # in sentences of reports
    meter: str = ""  # the choice power.meter that reads it
    kind: Literal["power", "counter", "conditions", "activity"] = "power"
    boundary: Literal["gpu", "host"] = "gpu"
    averages: str | None = (
        None  # the time that a value is a mean of, where a trace's metadata say so
    )
    averaging_ns: int = 0  # the same, where it is long: a shorter window has no joules
    renewal_ns: int = 0  # polled fields are renewed this often: two polls within it are one sample
    cached: bool = False  # a value was read up to a period before it came and was stamped
    counter_age_ns: int = (
        0  # how old a value of the counter that is read beside it may be when stamped
    )
    least_spacing_ns: int = 0  # the driver's buffer has a sample each 20 ms, at most 45 ms apart
    slack_ns: int = 100 * MS  # a poll may come this late on a busy node


_RENEWED = 100 * MS  # NVML's power fields

SOURCES = {
    source.name: source
    for source in (
        Source(
            "nvml_buffer",
            "sample buffer",
            "the driver's own sample buffer (a reading each 20 ms, with the driver's time stamps)",
            "nvml",
            least_spacing_ns=100 * MS,
            slack_ns=0,
        ),
        Source(
            "nvml_instant",
            "field 186, instant",
            "NVML's instantaneous power, polled",
            "nvml",
            renewal_ns=_RENEWED,
        ),
        Source(
            "nvml_average",
            "field 185, average",
            "NVML's one-second average of power, polled",
            "nvml",
            averaging_ns=SECOND_NS,
            renewal_ns=_RENEWED,
        ),
        Source(  # nvmlDeviceGetPowerUsage where it is instantaneous: GA100, Turing and before
            "nvml_usage",
            "power usage",
            "NVML's instantaneous power usage, polled",
            "nvml",
            renewal_ns=_RENEWED,
        ),
        Source(  # and where it is a mean over 1 s
            "nvml_usage_mean",
            "power usage",
            "NVML's power usage, a mean over one second, polled",
            "nvml",
            averaging_ns=SECOND_NS,
            renewal_ns=_RENEWED,
        ),
        Source(  # dcgmi dmon: field 157, or 155 where that is instantaneous
            "dcgm",
            "DCGM, instant",
            "DCGM's cache of instantaneous power, stamped when it arrived",
            "dcgm",
            averages="instantaneous: some 25 ms of each 100 ms (H100, A100: arXiv 2312.02741)",
            renewal_ns=_RENEWED,
            cached=True,
            counter_age_ns=SECOND_NS,
        ),
        Source(  # field 155 where it is a mean over 1 s
            "dcgm_mean",
            "DCGM, average",
            "DCGM's cache of a one-second average of power, stamped when it arrived",
            "dcgm",
            averages="mean over 1 s",
            averaging_ns=SECOND_NS,
            renewal_ns=_RENEWED,
            cached=True,
            counter_age_ns=SECOND_NS,
        ),
        Source(  # a sample is the mean between two polls
            "rapl",
            "RAPL",
            "RAPL's counters of the host's CPU packages and DRAM, polled",
            "rapl",
            boundary="host",
        ),
        Source(  # always shown with `~`
            "simulated",
            "simulated",
            "arithmetic on the CPU's load",
            "simulated",
            boundary="host",
        ),
        Source("nvml_counter", "energy counter", "the hardware energy counter", "nvml", "counter"),
        Source(  # asked by `wattflow calibrate` alone
            "nvml_counter_field",
            "field 83, energy counter",
            "the hardware energy counter, read as a field",
            "nvml",
            "counter",
        ),
        Source(
            "nvml_conditions",
            "clocks, temperature, limits",
            "NVML's clocks, temperature, activity, limits and processes",
            "nvml",
            "conditions",
        ),
        Source(
            "nvml_gpm",
            "GPM, memory activity",
            "GPM's activity of the GPU's parts",
            "nvml",
            "activity",
        ),
        Source(
            "dcgm_counter",
            "DCGM, energy counter",
            "the hardware energy counter, by DCGM",
            "dcgm",
            "counter",
        ),
        Source(
            "dcgm_conditions",
            "DCGM, clocks, temperature, limits",
            "DCGM's clocks, temperature, activity and limits",
            "dcgm",
            "conditions",
        ),
        Source(
            "dcgm_profiling",
            "DCGM, profiling",
            "DCGM's profiling of the GPU's parts",
            "dcgm",
            "activity",
        ),
    )
}

METERS = tuple(dict.fromkeys(source.meter for source in SOURCES.values()))


def of_kind(kind: str, meter: str | None = None) -> tuple[str, ...]:
    """Return the names of all sensors of a kind, or those that one meter reads, the best first."""
    return tuple(
        source.name
        for source in SOURCES.values()
        if source.kind == kind and meter in (None, source.meter)
    )


def source_of(name: str) -> Source:
    """Return what is known of a sensor; of one that this version does not know, what holds for any that is polled."""
    return SOURCES.get(name) or Source(name, name, name)


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
