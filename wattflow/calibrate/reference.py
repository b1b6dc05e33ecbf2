"""Gain and offset of one board, from the trace of an external meter beside what its own sensor reported.

    wattflow calibrate --from passports --reference meter.csv --meter-u 0.5

    reading = (1 + gain) x true + offset

The meter has to see the board alone, as one in the slot and the power cables does: a wall meter's watts hold the host
and the losses of the power supply, which no trace can part from a gain. Clocks need not agree: both traces are shifted
against each other to where they correlate best.
"""

import csv
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from wattflow.energy.curve import Floats, Ints
from wattflow.errors import RefusedError
from wattflow.store.files import read_given

GRID_S = 0.02
BIN_S = 0.5
MOST_SHIFT_S = 120.0  # between the two clocks
LEAST_MATCH = 0.95  # of the correlation at the best shift
LEAST_SPAN_W = 40.0  # between plateaus, or gain and offset cannot be parted
LEAST_BINS = 8


@dataclass(frozen=True)
class Fit:
    """What a meter found of one board: standard uncertainties, the meter's own included, and how it was found."""

    gain: float
    offset_w: float
    gain_u: float
    offset_u_w: float
    correlation: float
    shift_s: float  # of the meter's clock against the node's
    match: float  # the correlation there
    bins: int
    low_w: float
    high_w: float


def read_meter(path: Path) -> tuple[Floats, Floats]:
    """Return unix seconds and watts of a CSV with the columns `time` (unix s or ISO 8601) and `power_w`.

    RefusedError where it is none; lines have to rise in time.
    """
    try:
        rows = list(csv.DictReader(read_given(path).decode().splitlines()))
        seconds = np.array([_seconds(row["time"]) for row in rows])
        watts = np.array([float(row["power_w"]) for row in rows])
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise RefusedError(
            f"{path}: {why}. It has to be a CSV with the columns time and power_w."
        ) from error
    if len(seconds) < 2 or not np.all(np.diff(seconds) > 0) or not np.all(np.isfinite(watts)):
        raise RefusedError(f"{path}: times have to rise, and watts to be numbers.")
    return seconds, watts


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


def fit(
    sensor_ns: Ints,
    sensor_w: Floats,
    meter_s: Floats,
    meter_w: Floats,
    *,
    meter_u: float,
    meter_offset_u_w: float = 0.0,
) -> Fit:
    """Return a board's gain and offset; `meter_u` is the meter's own relative standard uncertainty.

    RefusedError where the traces share too little, do not match, or hold no two levels far enough apart.
    """
    sensor_s = sensor_ns / 1e9
    shift_s, match = _best_shift(sensor_s, sensor_w, meter_s, meter_w)
    if not match >= LEAST_MATCH:
        raise RefusedError(
            f"the meter's trace matches the sensor's at no shift of up to {MOST_SHIFT_S:g} s (best correlation "
            f"{match:.2f}, {LEAST_MATCH:g} is needed): is it of the same board and time?"
        )
    reading, true = _plateaus(sensor_s, sensor_w, meter_s + shift_s, meter_w)
    if len(true) < LEAST_BINS or np.ptp(true) < LEAST_SPAN_W:
        raise RefusedError(
            f"{len(true)} stretches of {BIN_S:g} s of even power over {np.ptp(true) if len(true) else 0:.0f} W: "
            f"{LEAST_BINS} over {LEAST_SPAN_W:g} W are needed. Record a load that is on and off for seconds."
        )
    design = np.stack([true, np.ones(len(true))], axis=1)
    (slope, offset_w), *_ = np.linalg.lstsq(design, reading, rcond=None)
    rest = reading - design @ np.array([slope, offset_w])
    # neighbours share what a level is off by: fewer of them are independent
    shared = (
        float(np.clip(np.corrcoef(rest[:-1], rest[1:])[0, 1], 0.0, 0.95)) if np.ptp(rest) else 0.0
    )
    inflation = (1 + shared) / (1 - shared)
    variance = float(rest @ rest) / (len(true) - 2) * inflation
    covariance = variance * np.linalg.inv(design.T @ design)
    gain_u = math.sqrt(covariance[0, 0] + (slope * meter_u) ** 2)
    offset_u_w = math.sqrt(covariance[1, 1] + meter_offset_u_w**2)
    return Fit(
        gain=float(slope - 1),
        offset_w=float(offset_w),
        gain_u=gain_u,
        offset_u_w=offset_u_w,
        correlation=float(covariance[0, 1] / (gain_u * offset_u_w)) if gain_u * offset_u_w else 0.0,
        shift_s=shift_s,
        match=match,
        bins=len(true),
        low_w=float(true.min()),
        high_w=float(true.max()),
    )


def _best_shift(
    sensor_s: Floats, sensor_w: Floats, meter_s: Floats, meter_w: Floats
) -> tuple[float, float]:
    """Return what to add to the meter's times so that both correlate best, and the correlation there."""
    origin = sensor_s[0]
    grid = np.arange(0.0, sensor_s[-1] - origin, GRID_S)
    ours = np.interp(grid, sensor_s - origin, sensor_w)
    other_grid = np.arange(0.0, meter_s[-1] - meter_s[0], GRID_S)
    theirs = np.interp(other_grid, meter_s - meter_s[0], meter_w)
    size = 1 << (len(ours) + len(theirs)).bit_length()
    spectrum = np.fft.rfft(ours - ours.mean(), size) * np.conj(
        np.fft.rfft(theirs - theirs.mean(), size)
    )
    crossed = np.fft.irfft(spectrum, size)
    steps = np.arange(size)
    steps[steps > size // 2] -= size
    # a step k: the meter's first sample lies k grid steps after the sensor's
    shifts_s = origin + steps * GRID_S - meter_s[0]
    allowed = np.abs(shifts_s) <= MOST_SHIFT_S
    if not allowed.any():
        return 0.0, 0.0
    shift_s = float(shifts_s[np.argmax(np.where(allowed, crossed, -np.inf))])
    moved_s = meter_s + shift_s
    inside = (grid + origin >= moved_s[0]) & (grid + origin <= moved_s[-1])
    if inside.sum() < LEAST_BINS * BIN_S / GRID_S:
        return shift_s, 0.0
    beside = np.interp(grid[inside] + origin, moved_s, meter_w)
    if not np.ptp(beside) or not np.ptp(ours[inside]):
        return shift_s, 0.0
    return shift_s, float(np.corrcoef(ours[inside], beside)[0, 1])


def _plateaus(
    sensor_s: Floats, sensor_w: Floats, meter_s: Floats, meter_w: Floats
) -> tuple[Floats, Floats]:
    """Return the sensor's and the meter's mean watts of stretches in which, and beside which, power is even."""
    first, last = max(sensor_s[0], meter_s[0]), min(sensor_s[-1], meter_s[-1])
    edges = np.arange(first, last, BIN_S)
    if len(edges) < 4:
        return np.zeros(0), np.zeros(0)
    means = [
        np.diff(_integral(s, w, edges)) / BIN_S
        for s, w in ((sensor_s, sensor_w), (meter_s, meter_w))
    ]
    reading, true = means
    allowed_w = max(1.0, 0.03 * float(np.ptp(true)))
    even = np.abs(np.diff(true)) <= allowed_w
    kept = np.concatenate([[False], even[:-1] & even[1:], [False]])
    return reading[kept], true[kept]


def _integral(seconds: Floats, watts: Floats, at_s: Floats) -> Floats:
    """Return the joules from the first sample to some instants, straight lines between samples."""
    steps = np.diff(seconds) * (watts[1:] + watts[:-1]) / 2
    running = np.concatenate([[0.0], np.cumsum(steps)])
    place = np.clip(np.searchsorted(seconds, at_s, side="right") - 1, 0, len(seconds) - 2)
    since = at_s - seconds[place]
    slope = (watts[place + 1] - watts[place]) / (seconds[place + 1] - seconds[place])
    joules: Floats = running[place] + since * (watts[place] + slope * since / 2)
    return joules
