"""What no board does: no power at all, far more than its limit, or not a watt more or less for seconds."""

from collections.abc import Sequence

import numpy as np

from wattflow.collect.reading import Device

LEAST_W = 1e-3  # below, a board that is on reads nothing
LIMITS = 3.0  # times the limit in force: a 700 W board was seen at 971 W for 20 ms
MOST_W = 5000.0  # where no limit is known
FROZEN_SAMPLES = 50  # alike to the last digit, though no sensor is that still


def is_implausible(devices: Sequence[Device]) -> bool:
    """Return whether a device's samples in the window are what no board does; the row counts, and says so."""
    return any(_is_implausible(device) for device in devices if not device.by_counter)


def _is_implausible(device: Device) -> bool:
    start, end = device.window
    inside = (device.power.time_ns >= start) & (device.power.time_ns <= end)
    watts = device.power.power_w[inside]
    if not len(watts):
        return False
    limits_w = device.readings["power_limit_w"].drop_null().to_numpy()
    most_w = LIMITS * float(limits_w.max()) if len(limits_w) else MOST_W
    frozen = len(watts) >= FROZEN_SAMPLES and bool(np.all(watts == watts[0]))
    unchecked = len(device.counter.time_ns) < 2
    return bool(watts.min() < LEAST_W or watts.max() > most_w or (frozen and unchecked))
