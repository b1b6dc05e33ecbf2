"""What the GPUs of an attempt did in its measured window, and whether a power limit or clock that was asked for held.

Readings of conditions come each second and at the window's edges. Means and extremes are of the readings inside the
window; limits and clocks that were asked for must also hold at the readings next to it, before and after.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.collect.reading import Device
from wattflow.nullable import complete, quotient
from wattflow.store.schema import RankInfo
from wattflow.store.sources import SECOND_NS, of_kind, source_of

# NVML's clock-event bits: hardware slowdown, software and hardware thermal slowdown, power brake
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
POWER_CAP = 0x4  # and that of the software power cap
SAME_W = 0.5  # a limit in force this near the one asked for is it
CLOCK_STEP_MHZ = 15  # clocks come in steps of this
BOUND = 0.01  # the share of a window from which on a cap counts as having held power back
NEAR_LIMIT = 0.97  # of the limit: power this high is held back by it


@dataclass(frozen=True)
class Conditions:
    """Columns of results/points.parquet, null where no sensor reported them."""

    gpu_activity_pct: float | None = None
    memory_activity_pct: float | None = None
    sm_activity_pct: float | None = None
    sm_occupancy_pct: float | None = None
    tensor_activity_pct: float | None = None
    dram_activity_pct: float | None = None
    pcie_tx_mib_s: float | None = None
    pcie_rx_mib_s: float | None = None
    nvlink_tx_mib_s: float | None = None
    nvlink_rx_mib_s: float | None = None
    memory_used_bytes: int | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_limit_w: float | None = None
    throttle_reasons: int | None = None
    under_cap_s: float | None = None
    cap_bound: bool | None = None
    power_profiles: str | None = None


def conditions(
    devices: Sequence[Device],
    ranks: Sequence[RankInfo],
    asked_w: int | None,
    asked_mhz: int | None,
) -> tuple[Conditions, list[str]]:
    """Return the conditions of all devices, and codes of what is doubtful.

    `ranks` are the job's own, each a process on its GPU; `asked_w` and `asked_mhz` what control.* asks of each GPU.
    """
    each = [_inside(device) for device in devices]
    inside = pa.concat_tables(each)
    around = [_around(device) for device in devices]
    bits = _known(inside, "throttle_reasons")
    throttled_by = int(np.bitwise_or.reduce(bits)) if len(bits) else None
    limit_w = pc.min(pa.concat_tables(around)["power_limit_w"]).as_py()
    bound = None if limit_w is None else any(map(_cap_bound, devices, around))
    found = Conditions(
        gpu_activity_pct=pc.mean(inside["gpu_activity_pct"]).as_py(),
        memory_activity_pct=pc.mean(inside["memory_activity_pct"]).as_py(),
        memory_used_bytes=pc.max(inside["memory_used_bytes"]).as_py(),
        sm_clock_mhz=pc.mean(inside["sm_clock_mhz"]).as_py(),
        temperature_c=pc.max(inside["temperature_c"]).as_py(),
        power_limit_w=limit_w,
        throttle_reasons=throttled_by,
        under_cap_s=quotient(complete(sum, map(_under_cap_ns, each)), SECOND_NS),
        cap_bound=bound,
        power_profiles=_profiles(devices),
        **_activity(devices),
    )
    doubts = {
        "throttled": throttled_by is not None and throttled_by & THROTTLED,
        "not_applied": not all(_in_force(table, asked_w, asked_mhz) for table in around),
        "did_not_bind": asked_w is not None and bound is False,
        "other_process": any(_had_company(device, ranks) for device in devices),
    }
    return found, [code for code, holds in doubts.items() if holds]


def _known(table: pa.Table, column: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table[column].drop_null().to_numpy()
    return values


def _inside(device: Device) -> pa.Table:
    """Return the readings inside the window."""
    stamps, (start, end) = device.readings["time_ns"], device.window
    return device.readings.filter(
        pc.and_(pc.greater_equal(stamps, start), pc.less_equal(stamps, end))
    ).replace_schema_metadata(None)


def _around(device: Device) -> pa.Table:
    """Return the readings of limits and clocks, from the last one before the window to the first one after it."""
    table = device.readings.filter(
        pc.or_(
            pc.is_valid(device.readings["power_limit_w"]),
            pc.is_valid(device.readings["sm_clock_mhz"]),
        )
    ).sort_by("time_ns")
    first, after = np.searchsorted(table["time_ns"].to_numpy(), device.window)
    first = max(0, int(first) - 1)
    return table.slice(first, int(after) + 1 - first).replace_schema_metadata(None)


def _under_cap_ns(inside: pa.Table) -> int | None:
    """Return the time for which the power cap held a device back between its readings; null below two of them."""
    spent_ns = _known(inside, "under_cap_ns")
    return int(spent_ns.max() - spent_ns.min()) if len(spent_ns) > 1 else None


def _in_force(around: pa.Table, asked_w: int | None, asked_mhz: int | None) -> bool:
    """Return whether one device had what was asked for at each reading; a cap may hold clocks lower at times."""
    limits_w, clocks_mhz = _known(around, "power_limit_w"), _known(around, "sm_clock_mhz")
    if asked_w is not None and not (len(limits_w) and np.all(np.abs(limits_w - asked_w) <= SAME_W)):
        return False
    if asked_mhz is None:
        return True
    return bool(len(clocks_mhz) and abs(int(clocks_mhz.max()) - asked_mhz) <= CLOCK_STEP_MHZ)


def _cap_bound(device: Device, around: pa.Table) -> bool:
    """Return whether the power limit held a device back in the window: by NVML's time under the cap, or by power.

    1 % of the time between the readings or more; where NVML does not report that time, its clock-event bit in 1 % of
    the readings; or 1 % of the power samples at 97 % of the limit or above.
    """
    stamps = around.filter(pc.is_valid(around["under_cap_ns"]))["time_ns"].to_numpy()
    spent_ns = _under_cap_ns(around)
    if spent_ns is not None:
        if spent_ns >= BOUND * (stamps[-1] - stamps[0]):
            return True
    else:
        bits = _known(around, "throttle_reasons")
        if len(bits) and np.mean(bits & POWER_CAP != 0) >= BOUND:
            return True
    if source_of(device.source).boundary != "gpu":  # the limit is the GPU's
        return False
    limit_w = pc.min(around["power_limit_w"]).as_py()
    start, end = device.window
    watts = device.power.power_w[(device.power.time_ns >= start) & (device.power.time_ns <= end)]
    return bool(limit_w and len(watts) and np.mean(watts >= NEAR_LIMIT * limit_w) >= BOUND)


def _activity(devices: Sequence[Device]) -> Mapping[str, float | None]:
    """Return the means over devices of what parts of a GPU did, each null where a device has none."""
    columns = (
        *("sm_activity_pct", "sm_occupancy_pct", "tensor_activity_pct", "dram_activity_pct"),
        *("pcie_tx_mib_s", "pcie_rx_mib_s", "nvlink_tx_mib_s", "nvlink_rx_mib_s"),
    )
    totals = {
        column: complete(sum, [_mean_since(device, column) for device in devices])
        for column in columns
    }
    return {c: None if total is None else total / len(devices) for c, total in totals.items()}


def _mean_since(device: Device, column: str) -> float | None:
    """Return the mean inside the window of a column whose rows hold means since the row before, weighted by time."""
    if device.readings[column].null_count == device.readings.num_rows:
        return None
    means = pa.array(of_kind("activity"))
    rows = device.readings.filter(pc.is_in(device.readings["source"], means))
    stamps = np.clip(rows["time_ns"].to_numpy(), *device.window)
    weights, values = np.diff(stamps), rows[column].to_numpy()[1:]
    known = np.isfinite(values) & (weights > 0)
    return float(np.average(values[known], weights=weights[known])) if known.any() else None


def _profiles(devices: Sequence[Device]) -> str | None:
    """Return the workload power profiles seen, `3,7 + none` where they changed; null unless all devices report them."""
    reported = [device.readings["power_profiles"].drop_null().to_pylist() for device in devices]
    if not all(reported):
        return None
    return " + ".join(sorted({name or "none" for names in reported for name in names}))


def _had_company(device: Device, ranks: Sequence[RankInfo]) -> bool:
    """Return whether a GPU had more processes than ranks of this job, at either end of its trace."""
    own = sum((rank["node"], rank["gpu_uuid"]) == device.key for rank in ranks)
    counts = _known(device.readings, "processes")
    return bool(len(counts) and counts.max() > own)
