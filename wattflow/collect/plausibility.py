"""What no board does: no power at all, or not a watt more or less for seconds.

Watts beyond any board are no readings to begin with: energy/curve.py.
"""

from collections.abc import Sequence

import numpy as np

from wattflow.collect.reading import Device

LEAST_W = 1e-3  # below, a board that is on reads nothing
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
    frozen = len(watts) >= FROZEN_SAMPLES and bool(np.all(watts == watts[0]))
    unchecked = len(device.counter.time_ns) < 2
    return bool(watts.min() < LEAST_W or (frozen and unchecked))
