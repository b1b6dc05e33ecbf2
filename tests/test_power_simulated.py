"""The simulated meter, and what all meters share."""

import time

import pytest

from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.power.meter import Beat, Moment, middle
from wattflow.power.open import choose
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


def test_unknown_meter_lists_the_right_ones():
    """A meter that does not exist is refused with the names of those that do."""
    with pytest.raises(PowerError, match="not one of auto, nvml, dcgm, rapl, simulated"):
        choose(Power(meter="wattmeter"), "n1")


def test_deadlines_do_not_drift():
    """A beat that is served late keeps to its period."""
    beat = Beat(period_ns=100, first_ns=1000)
    assert [beat.take(now) for now in (999, 1000, 1030, 1140, 1200)] == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert beat.next_ns == 1300


def test_missed_deadlines_are_passed_over():
    """After a long pause there is one poll, not a burst, and it is counted as late."""
    beat = Beat(period_ns=50_000_000, first_ns=0)
    assert beat.take(260_000_000)
    assert not beat.take(260_000_001)
    assert beat.next_ns == 300_000_000
    assert beat.late == 1


def test_a_slow_call_is_placed_in_its_middle():
    """A value whose call took from 100 to 200 ns belongs to 150 ns, by both clocks."""
    assert middle(Moment(100, 10), Moment(200, 110)) == Moment(150, 60)
