"""Aliasing: what a load that repeats in step with a sensor's samples may hide from them, however long it is watched.

A line of the load's spectrum at a multiple of the sampling rate looks constant to the sensor, and is taken for power:

    amplitude                       | sampling rate        what is seen at 0 Hz
        o                           |                      is the line at the rate itself,
            o                       |                      as much of it as the sensor's
                o    o    o    o    o    o   ...  f        averaging lets through

Power that steps has lines that fall as 1 / f (their amplitude is at most v / (pi f), v being the watts by which power
goes up and down in a second), so those that can be seen, below half the sampling rate, bound those that cannot. How
much of the hidden line is taken for power depends on how far it is from the multiple: after d x t turns it is averaged
out to 1 / (pi d t). Its phase is not known, so that its share is arcsine-distributed: amplitude / sqrt(2).
"""

import math
from collections.abc import Sequence

import numpy as np

from wattflow.energy.curve import Curve, Floats
from wattflow.store.sources import SECOND_NS, Response

LEAST_SAMPLES = 16  # below, no line can be seen
MOST_SAMPLES = 10_000  # that are looked at
HIGHEST_HZ = 250.0  # no load repeats faster than each 4 ms and still shows
_ABOVE_NOISE = 25.0  # power of a line over the noise around it
_AROUND = 48  # bins of noise, of which a line is one or two
_STRONG = 0.3  # of the steepest line: what counts as one of the load's
_LINE_OFF = 0.06  # of 1 / t: how well a line's frequency is known
_DRIFT = 0.0005  # by which step times and the sensor's period wander
NOTABLE = 0.02  # of the mean power: a smaller hidden line is not worth a remark
UNSEEN = 2.5  # sampling periods: a load that repeats faster has no line that could be seen
_PADDED = 4


def passes(response: Response, frequency_hz: float | Floats) -> Floats:
    """Return which part of a line's amplitude a sensor's averaging lets through."""
    turns = np.asarray(frequency_hz, np.float64) * response.window_ms / 1e3
    if response.shape == "exponential":
        return np.asarray(1 / np.sqrt(1 + (2 * np.pi * turns) ** 2))
    # a mean lets nothing through at whole turns, but no window is known that well
    return np.where(turns < 0.5, np.sinc(turns), 1 / (np.pi * np.maximum(turns, 0.5)))


def aliasing_w(
    power: Curve,
    start_ns: int,
    end_ns: int,
    response: Response,
    known_s: Sequence[float] = (),
) -> float:
    """Return the standard uncertainty, W, of the mean power of a window by lines hidden at multiples of the sampling.

    `known_s` are periods with which the load is known to repeat: one too fast to be seen may swing by all of its power.
    A sensor that is blind for most of its period may show a fast load as a slow one: a line that no known period
    explains counts as hidden, too.
    """
    length_s = (end_ns - start_ns) / SECOND_NS
    mean_w = _mean_w(power, start_ns, end_ns)
    unseen = sum(
        (mean_w * _left(off_hz, length_s) * min(size, 1.0)) ** 2
        for period_s in known_s
        if _is_unseen(period_s, response)
        for off_hz, size in _hidden(period_s, response)
    )
    return math.sqrt(unseen / 2 + _by_lines(power, start_ns, end_ns, response, known_s))


def _mean_w(power: Curve, start_ns: int, end_ns: int) -> float:
    first, last = np.searchsorted(power.time_ns, [start_ns, end_ns])
    return float(power.power_w[first:last].mean()) if last > first else 0.0


def _by_lines(
    power: Curve, start_ns: int, end_ns: int, response: Response, known_s: Sequence[float]
) -> float:
    """Return the variance, W2, of the mean power by what the lines that are seen say of the hidden ones."""
    found = _lines(power, start_ns, end_ns, response)
    if found is None:
        return 0.0
    seconds, line_hz, amplitude_w = found
    length_s = (end_ns - start_ns) / SECOND_NS
    steepness = line_hz * amplitude_w / np.maximum(passes(response, line_hz), 0.1)
    strong = steepness >= _STRONG * steepness.max()
    squares = 0.0
    for hidden_hz in _multiples(response):
        order = np.maximum(np.rint(hidden_hz / line_hz[strong]), 1)
        off_hz = np.abs(order * line_hz[strong] - hidden_hz) - order * _LINE_OFF / seconds
        share = _left(float(off_hz.min()), length_s) * float(passes(response, hidden_hz))
        squares += (steepness.max() / hidden_hz * share) ** 2
    if response.blind:
        for hz, watts in zip(line_hz, amplitude_w, strict=True):
            if not any(_explains(period_s, hz, seconds) for period_s in known_s):
                squares += (watts * _left(float(hz), length_s)) ** 2
    return squares / 2


def is_near(period_s: float, seconds: float, response: Response) -> bool:
    """Return whether a load with a period, watched for so long, may hide a line at a multiple of the sampling.

    Only one that repeats too fast to be seen counts, of a line that may make 2 % of the power: all others are in
    `aliasing_w`.
    """
    if not _is_unseen(period_s, response):
        return False
    return any(
        off_hz <= 0.5 / seconds and size >= NOTABLE for off_hz, size in _hidden(period_s, response)
    )


def _hidden(period_s: float, response: Response) -> list[tuple[float, float]]:
    """Return, for each multiple of the sampling, how far the nearest line of a load is from it, and its amplitude.

    In parts of the mean power, of a load that swings between nothing and twice its mean.
    """
    found = []
    for hidden_hz in _multiples(response):
        order = max(round(hidden_hz * period_s), 1)
        off_hz = max(abs(order / period_s - hidden_hz) - _DRIFT * hidden_hz, 0.0)
        found.append((off_hz, 4 / (math.pi * order) * float(passes(response, hidden_hz))))
    return found


def _multiples(response: Response) -> Floats:
    """Return the multiples of a sensor's sampling rate, Hz."""
    rate_hz = 1e3 / response.period_ms
    return rate_hz * np.arange(1, max(int(HIGHEST_HZ / rate_hz), 1) + 1, dtype=np.float64)


def _is_unseen(period_s: float, response: Response) -> bool:
    return 0 < period_s < UNSEEN * response.period_ms / 1e3


def _left(off_hz: float, seconds: float) -> float:
    """Return the share of a line that is left in the mean of so many seconds."""
    return min(1.0, 1 / (math.pi * max(off_hz, 1e-9) * seconds))


def _explains(period_s: float, line_hz: float, seconds: float) -> bool:
    order = round(line_hz * period_s)
    return order >= 1 and abs(order / period_s - line_hz) <= 1 / seconds


def _lines(
    power: Curve, start_ns: int, end_ns: int, response: Response
) -> tuple[float, Floats, Floats] | None:
    """Return the seconds that were looked at, frequencies and amplitudes (W) of the lines there; null without any."""
    first, last = np.searchsorted(power.time_ns, [start_ns, end_ns])
    beside = max((last - first - MOST_SAMPLES) // 2, 0)  # of a longer window the middle
    inside = slice(first + beside, last - beside)
    stamps, watts = power.time_ns[inside], power.power_w[inside]
    if len(stamps) < 2:
        return None
    period_ns = response.period_ms * 1e6
    if float(np.median(np.diff(stamps))) < 0.75 * period_ns:  # polls repeat a value
        at = np.arange(stamps[0], stamps[-1], period_ns)
        watts = watts[np.searchsorted(stamps, at, side="right") - 1]
        stamps = at.astype(np.int64)
    n = len(watts)
    if n < LEAST_SAMPLES or np.ptp(watts) == 0:
        return None
    seconds = float(stamps[-1] - stamps[0]) / SECOND_NS * n / (n - 1)
    taper = np.hanning(n + 2)[1:-1]
    found = np.fft.rfft((watts - watts.mean()) * taper, _PADDED * n)
    amplitude_w = 2 * np.abs(found) / taper.sum()
    hz = np.arange(len(amplitude_w)) / (_PADDED * seconds)
    inner = amplitude_w[1:-1]
    line = np.append(
        np.append(False, (inner >= amplitude_w[:-2]) & (inner > amplitude_w[2:])), True
    )
    line &= (hz >= 1 / seconds) & (amplitude_w**2 > _ABOVE_NOISE * _noise_w2(amplitude_w))
    return (seconds, hz[line], amplitude_w[line]) if line.any() else None


def _noise_w2(amplitude_w: Floats) -> Floats:
    """Return the mean square of the noise at each frequency: by the median of those around it, which no line moves."""
    blocks = max(len(amplitude_w) // (_PADDED * _AROUND), 1)
    parts = np.array_split(amplitude_w**2, blocks)
    return np.concatenate([np.full(len(of), np.median(of) / math.log(2)) for of in parts])
