"""The simulated meter, and what all meters share."""

import time

from wattflow.config.choices import Power
from wattflow.power.simulated import SimulatedMeter, busy_and_total


def test_busy_ticks():
    """Idle and waiting for a disk are not busy; guest time, which user time contains, is not counted twice."""
    stat = "cpu  100 20 30 800 40 5 3 2 50 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert busy_and_total(stat) == (160, 1000)


def test_watts_lie_between_idle_and_full():
    """Watts are within idle and full, and each row says that they are simulated."""
    meter = SimulatedMeter(Power(simulated_idle_w=40.0, simulated_full_w=120.0, poll_ms=20), "n1")
    time.sleep(0.05)
    ((uuid, row),) = meter.finish()
    assert uuid == "host-n1"
    assert row["source"] == "simulated"
    assert 40.0 <= row["power_w"] <= 120.0


def test_equal_idle_and_full_are_constant():
    """With idle and full at 70 W the meter tells 70 W whatever the load."""
    meter = SimulatedMeter(Power(simulated_idle_w=70.0, simulated_full_w=70.0), "n1")
    time.sleep(0.03)
    assert [row["power_w"] for _, row in meter.finish()] == [70.0]
