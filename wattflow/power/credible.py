"""The one rule for what a meter reads: a value outside what a device or the format can give is no reading.

It becomes null where the value enters, so that it is a gap and never a joule. How a counter's readings follow from
each other is judged where they are counted (energy/counter.py).
"""

import math

from wattflow.power.meter import Row
from wattflow.store.sources import least_w, most_w

_MOST_RATE_MIB_S = 1e8  # of a link, far beyond any
_INT32 = 2**31 - 1

# the least and the most of each column of a trace; those of power depend on the device
_RANGES: dict[str, tuple[float, float]] = {
    "counter_mj": (0, 2**63 - 1),
    "sm_clock_mhz": (0, 100_000),
    "memory_clock_mhz": (0, 100_000),
    "temperature_c": (-100, 300),
    "memory_used_bytes": (0, 2**50),
    "throttle_reasons": (0, 2**63 - 1),
    "under_cap_ns": (0, 2**63 - 1),
    "processes": (0, _INT32),
    **dict.fromkeys(
        (
            *("gpu_activity_pct", "memory_activity_pct", "graphics_activity_pct"),
            *("sm_activity_pct", "sm_occupancy_pct", "tensor_activity_pct", "dram_activity_pct"),
        ),
        (0, 110),  # profiling goes a little beyond 100 at times
    ),
    **dict.fromkeys(
        ("pcie_tx_mib_s", "pcie_rx_mib_s", "nvlink_tx_mib_s", "nvlink_rx_mib_s"),
        (0, _MOST_RATE_MIB_S),
    ),
}
_WATTS = ("power_w", "power_limit_w")


def credible_watts(power_w: float | None, source: str, limit_w: float | None = None) -> bool:
    """Return whether a device can draw so much: of a board that answers neither 0 W nor some milliwatts."""
    if power_w is None or not math.isfinite(power_w):
        return False
    return least_w(source) <= power_w <= most_w(source, limit_w)


def credible(row: Row, limit_w: float | None = None) -> Row:
    """Return a row of a trace with null in place of each value that is no reading.

    `limit_w` is the highest limit that its device accepts, where that is known.
    """
    faults = [
        name
        for name, (least, most) in _RANGES.items()
        if (value := row.get(name)) is not None and not least <= value <= most
    ]
    faults += [
        name
        for name in _WATTS
        if row.get(name) is not None and not credible_watts(row[name], row["source"], limit_w)
    ]
    return {**row, **dict.fromkeys(faults)} if faults else row
