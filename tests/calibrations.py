"""A calibration of one GPU as it lies on disk, from sensors whose period, lag and window are known.

The GPU draws 100 W, and 400 W while its load is on. All arrays are exact: no noise, no poll that comes late.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from wattflow.calibrate.reads import Reads
from wattflow.power.calibration_steps import StepRecord
from wattflow.store.schema import READS

MS = 1_000_000
START_NS = 1_760_000_000_000_000_000
UUID = "GPU-1"
OFF_W, ON_W = 100.0, 400.0


def step(
    name: str,
    start_s: float,
    end_s: float,
    edges_s: Sequence[float] = (),
    *,
    half_s: float | None = None,
    period_ms: float | None = None,
) -> StepRecord:
    """A step's record; seconds after START_NS."""
    return {
        "name": name,
        "half_s": half_s,
        "period_ms": period_ms,
        "start_ns": unix(start_s),
        "end_ns": unix(end_s),
        "edges_ns": {UUID: [unix(edge) for edge in edges_s]} if len(edges_s) else {},
    }


def unix(seconds: float) -> int:
    """Unix ns of seconds after START_NS."""
    return START_NS + round(seconds * 1e9)


def energy_j(seconds: np.ndarray, edges_s: Sequence[float]) -> np.ndarray:
    """The GPU's joules from START_NS until each of some times."""
    on_s = np.zeros(len(seconds))
    for on, off in zip(edges_s[::2], edges_s[1::2], strict=True):
        on_s += np.clip(seconds - on, 0, off - on)
    return OFF_W * seconds + (ON_W - OFF_W) * on_s


def averaged_w(
    seconds: np.ndarray, lag_s: float, window_s: float, edges_s: Sequence[float]
) -> np.ndarray:
    """The mean power over a window that ended a lag before each of some times."""
    until = energy_j(seconds - lag_s, edges_s)
    return (until - energy_j(seconds - lag_s - window_s, edges_s)) / window_s


def buffer_rows(
    number: int, start_s: float, end_s: float, edges_s: Sequence[float] = ()
) -> list[tuple]:
    """A sample each 20 ms with a lag of 15 and a window of 25 ms, as one read 5 ms after the last of them."""
    stamps = np.arange(start_s, end_s, 0.020)
    values = averaged_w(stamps, 0.015, 0.025, edges_s)
    read = (unix(float(stamps[-1]) + 0.005), unix(float(stamps[-1]) + 0.006))
    return [
        (number, "nvml_buffer", *read, unix(float(at)), float(power_w))
        for at, power_w in zip(stamps, values, strict=True)
    ]


def counter_rows(
    number: int, start_s: float, end_s: float, edges_s: Sequence[float] = ()
) -> list[tuple]:
    """Reads 10 ms apart, each 2 ms long, of a counter that ticks each 100 ms and shows the joules until its tick."""
    middles = np.arange(start_s, end_s, 0.010)
    shown_mj = np.rint(energy_j(np.floor(middles / 0.1 + 1e-9) * 0.1, edges_s) * 1e3)
    return [
        (number, "nvml_counter", unix(float(at) - 0.001), unix(float(at) + 0.001), None, float(mj))
        for at, mj in zip(middles, shown_mj, strict=True)
    ]


def reads_of(steps: Sequence[StepRecord], rows: Sequence[tuple]) -> Reads:
    """What a calibration with these steps and rows of schema.READS read."""
    columns = list(zip(*rows, strict=True)) or [()] * len(READS)
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, READS, strict=True)], READS)
    return Reads(steps, UUID, table)
