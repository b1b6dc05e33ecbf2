"""What the GPUs of an attempt did in its measured window, and whether a power limit or clock that was asked for held.

Readings of conditions come each second and at the window's edges. Means and extremes are of the readings inside the
window; limits and clocks that were asked for must also hold at the readings next to it, before and after.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.energy.curve import Curve
from wattflow.store.schema import RankInfo
from wattflow.store.sources import SECOND_NS

# NVML's clock-event bits: hardware slowdown, software and hardware thermal slowdown, power brake
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
POWER_CAP = 0x4  # and that of the software power cap
SAME_W = 0.5  # a limit in force this near the one asked for is it
CLOCK_STEP_MHZ = 15  # clocks come in steps of this
BOUND = 0.01  # the share of a window from which on a cap counts as having held power back
NEAR_LIMIT = 0.97  # of the limit: power this high is held back by it

_ACTIVITY = [
    "sm_activity_pct",
    "sm_occupancy_pct",
    "tensor_activity_pct",
    "dram_activity_pct",
    "pcie_tx_mib_s",
    "pcie_rx_mib_s",
    "nvlink_tx_mib_s",
    "nvlink_rx_mib_s",
]

Row = dict[str, Any]


class Seen(Protocol):
    """One device of an attempt: its readings, its power, and the measured window by its node's clock."""

    @property
    def who(self) -> tuple[str, str]:
        """Node and GPU UUID."""

    @property
    def readings(self) -> pa.Table:
        """All readings but the power samples, schema.TRACE."""

    @property
    def power(self) -> Curve:
        """Its power."""

    @property
    def window(self) -> tuple[int, int]:
        """Start and end, unix ns."""


def of_window(
    devices: Sequence[Seen],
    ranks: Sequence[RankInfo],
    asked_w: int | None,
    asked_mhz: int | None,
) -> tuple[Row, list[str]]:
    """Columns of the attempt's row, null where no sensor told them, and codes of what is doubtful.

    `ranks` are the job's own, each a process on its GPU; `asked_w` and `asked_mhz` what control.* asks of each GPU.
    """
    row: Row = {}
    reasons: list[str] = []
    inside = pa.concat_tables([_inside(device) for device in devices])
    around = [_around(device) for device in devices]
    row.update(
        gpu_activity_pct=pc.mean(inside["gpu_activity_pct"]).as_py(),
        memory_activity_pct=pc.mean(inside["memory_activity_pct"]).as_py(),
        memory_used_bytes=pc.max(inside["memory_used_bytes"]).as_py(),
        sm_clock_mhz=pc.mean(inside["sm_clock_mhz"]).as_py(),
        temperature_c=pc.max(inside["temperature_c"]).as_py(),
        power_limit_w=pc.min(pa.concat_tables(around)["power_limit_w"]).as_py(),
    )
    bits = _told(inside, "throttle_reasons")
    if len(bits):
        row["throttle_reasons"] = int(np.bitwise_or.reduce(bits))
        if row["throttle_reasons"] & THROTTLED:
            reasons.append("throttled")
    spent = [_told(_inside(device), "under_cap_ns") for device in devices]
    if all(len(ns) > 1 for ns in spent):
        row["under_cap_s"] = sum(int(ns.max() - ns.min()) for ns in spent) / SECOND_NS
    for column in _ACTIVITY:
        row[column] = _mean([_mean_since(device, column) for device in devices])
    row["power_profiles"] = _profiles(devices)
    if not all(_in_force(table, asked_w, asked_mhz) for table in around):
        reasons.append("not_applied")
    if row["power_limit_w"] is not None:
        row["cap_bound"] = any(map(_cap_bound, devices, around))
        if asked_w is not None and not row["cap_bound"]:
            reasons.append("did_not_bind")
    if any(_had_company(device, ranks) for device in devices):
        reasons.append("other_process")
    return row, reasons


def _told(table: pa.Table, column: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table[column].drop_null().to_numpy()
    return values


def _inside(device: Seen) -> pa.Table:
    """The readings inside the window."""
    stamps, (start, end) = device.readings["time_ns"], device.window
    return device.readings.filter(
        pc.and_(pc.greater_equal(stamps, start), pc.less_equal(stamps, end))
    ).replace_schema_metadata(None)


def _around(device: Seen) -> pa.Table:
    """The readings that tell a limit or a clock, from the last one before the window to the first one after it."""
    table = device.readings.filter(
        pc.or_(
            pc.is_valid(device.readings["power_limit_w"]),
            pc.is_valid(device.readings["sm_clock_mhz"]),
        )
    ).sort_by("time_ns")
    first, after = np.searchsorted(table["time_ns"].to_numpy(), device.window)
    first = max(0, int(first) - 1)
    return table.slice(first, int(after) + 1 - first).replace_schema_metadata(None)


def _in_force(around: pa.Table, asked_w: int | None, asked_mhz: int | None) -> bool:
    """Whether one device had what was asked for at each reading; a cap may hold clocks lower at times."""
    limits_w, clocks_mhz = _told(around, "power_limit_w"), _told(around, "sm_clock_mhz")
    if asked_w is not None and not (len(limits_w) and np.all(np.abs(limits_w - asked_w) <= SAME_W)):
        return False
    if asked_mhz is None:
        return True
    return bool(len(clocks_mhz) and abs(int(clocks_mhz.max()) - asked_mhz) <= CLOCK_STEP_MHZ)


def _cap_bound(device: Seen, around: pa.Table) -> bool:
    """Whether the power limit held a device back in the window: by NVML's time under the cap, or by power itself.

    1 % of the time between the readings or more; where NVML does not tell that time, its clock-event bit in 1 % of the
    readings; or 1 % of the power samples at 97 % of the limit or above.
    """
    stamps = around.filter(pc.is_valid(around["under_cap_ns"]))["time_ns"].to_numpy()
    spent_ns = _told(around, "under_cap_ns")
    if len(spent_ns) > 1:
        if int(spent_ns.max() - spent_ns.min()) >= BOUND * (stamps[-1] - stamps[0]):
            return True
    else:
        bits = _told(around, "throttle_reasons")
        if len(bits) and np.mean(bits & POWER_CAP != 0) >= BOUND:
            return True
    limit_w = pc.min(around["power_limit_w"]).as_py()
    start, end = device.window
    watts = device.power.power_w[(device.power.time_ns >= start) & (device.power.time_ns <= end)]
    return bool(limit_w and len(watts) and np.mean(watts >= NEAR_LIMIT * limit_w) >= BOUND)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean, or null where a device has none."""
    known = list(values)
    told = [value for value in known if value is not None]
    return sum(told) / len(told) if told and len(told) == len(known) else None


def _mean_since(device: Seen, column: str) -> float | None:
    """The mean inside the window of a column whose rows hold means since the row before, weighted by time."""
    if device.readings[column].null_count == device.readings.num_rows:
        return None
    means = pa.array(["nvml_gpm", "dcgm_profiling"])
    told = device.readings.filter(pc.is_in(device.readings["source"], means))
    stamps = np.clip(told["time_ns"].to_numpy(), *device.window)
    weights, values = np.diff(stamps), told[column].to_numpy()[1:]
    known = np.isfinite(values) & (weights > 0)
    return float(np.average(values[known], weights=weights[known])) if known.any() else None


def _profiles(devices: Sequence[Seen]) -> str | None:
    """The workload power profiles seen, `3,7 + none` where they changed or devices differ; null unless all told."""
    told = [device.readings["power_profiles"].drop_null().to_pylist() for device in devices]
    if not all(told):
        return None
    return " + ".join(sorted({name or "none" for names in told for name in names}))


def _had_company(device: Seen, ranks: Sequence[RankInfo]) -> bool:
    """Whether a GPU had more processes than ranks of this job, at either end of its trace."""
    own = sum((rank["node"], rank["gpu_uuid"]) == device.who for rank in ranks)
    counts = _told(device.readings, "processes")
    return bool(len(counts) and counts.max() > own)
