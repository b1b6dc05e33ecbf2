"""What polled meters of a host share."""

import time

from wattflow.config.choices import Power
from wattflow.power.simulated import SimulatedMeter


def test_a_late_start_is_a_gap():
    """A sidecar that comes back 5 s after its last sample marks a gap, as the load in between was not counted."""
    meter = SimulatedMeter(Power(), "n1")
    meter.begin({"host-n1": time.time_ns() - 5_000_000_000})
    time.sleep(0.03)
    rows = [row for _, row in meter.finish()]
    time.sleep(0.03)
    rows += [row for _, row in meter.finish()]
    assert [row["gap"] for row in rows] == [True, False]


def test_nothing_is_due_before_the_period():
    """Reading before the deadline gives no rows."""
    meter = SimulatedMeter(Power(poll_ms=10_000), "n1")
    assert meter.read() == []
    assert 9e9 < meter.due_ns() - time.monotonic_ns() <= 10e9
