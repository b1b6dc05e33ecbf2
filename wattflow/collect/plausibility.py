"""What no board does: no power at all, watts beyond any board, or not a milliwatt more or less for a second and longer.

Watts below or beyond any board are no readings to begin with (energy/curve.py): the time around one is a gap. They are
named here all the same, as a sensor that says so once may be wrong elsewhere, too.
"""

from collections.abc import Sequence

import numpy as np

from wattflow.collect.reading import Device
from wattflow.energy import curve
from wattflow.energy.counter import counter_between

LEAST_W = 1e-3  # below, a host that is on reads nothing
FROZEN_SAMPLES = 50  # alike to the last digit in a row, though no sensor is that still
BORNE_OUT = 0.02  # so near, beside both uncertainties, a counter makes as many joules of a power that stood still


def is_implausible(devices: Sequence[Device]) -> bool:
    """Return whether a device's samples in the window are what no board does; the row counts, and says so."""
    return any(_is_implausible(device) for device in devices if not device.by_counter)


def _is_implausible(device: Device) -> bool:
    start, end = device.window
    if device.incredible:
        return True
    inside = (device.power.time_ns >= start) & (device.power.time_ns <= end)
    watts = device.power.power_w[inside]
    if not len(watts):
        return False
    return bool(watts.min() < LEAST_W) or _is_frozen(device, device.power.time_ns[inside], watts)


def _is_frozen(device: Device, time_ns: curve.Ints, watts: curve.Floats) -> bool:
    """Return whether the sensor stood still for a while in which no counter made the same joules."""
    changes = np.flatnonzero(np.diff(watts) != 0)
    bounds = np.concatenate([[0], changes + 1, [len(watts)]])
    for first, last in zip(bounds[:-1], bounds[1:] - 1, strict=True):
        if last - first + 1 >= FROZEN_SAMPLES and not _is_borne_out(
            device, int(time_ns[first]), int(time_ns[last])
        ):
            return True
    return False


def _is_borne_out(device: Device, start_ns: int, end_ns: int) -> bool:
    """Return whether the energy counter made as many joules of a time; false where there is none."""
    if len(device.counter.time_ns) < 2:
        return False
    edges = [start_ns], [end_ns]
    counted = counter_between(device.counter, *edges, device.power)
    integral = curve.between(device.power, *edges)
    apart_j = abs(float(counted.energy_j[0] - integral.energy_j[0]))
    allowed_j = 2 * float(np.hypot(counted.u_j[0], integral.u_j[0]))
    return apart_j <= allowed_j + BORNE_OUT * float(integral.energy_j[0])
