"""Cray's pm_counters: stamps, scans, restarts and what is no reading. On a folder made like the node controller's."""

import time

import pytest
from node_counters import Cray

from wattflow.energy import curve
from wattflow.errors import PowerError
from wattflow.power import cray
from wattflow.power.cray import ACCELERATORS, CrayMeter
from wattflow.power.meter import Moment


@pytest.fixture
def counters(tmp_path):
    """A node with two accelerators."""
    return Cray(tmp_path, accelerators=2)


@pytest.fixture
def clock(monkeypatch):
    """The meter's clocks, set by hand."""
    now = {"ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()}

    def forward(seconds):
        now["ns"] += round(seconds * 1e9)
        now["monotonic_ns"] += round(seconds * 1e9)
        return now["ns"] // 1000

    class Clock:
        """Stands in for the module `time`."""

        time_ns = staticmethod(lambda: now["ns"])
        monotonic_ns = staticmethod(lambda: now["monotonic_ns"])

    monkeypatch.setattr(cray, "time", Clock)
    monkeypatch.setattr(cray, "moment", lambda: Moment(now["ns"], now["monotonic_ns"], now["ns"]))
    return forward


def power_of(readings):
    return [(uuid, row["power_w"], row["gap"]) for uuid, row in readings if "power_w" in row]


def test_samples_stand_at_the_controllers_own_stamps(counters):
    """742 W stamped 40 ms before they are read are placed there by both clocks, once, with the joules beside them."""
    meter = CrayMeter(counters.folder, "n1", 50.0)
    stamp_ns = counters.renew(
        {"": 742}, joules=98_213_345, stamp_us=time.time_ns() // 1000 - 40_000
    )
    (uuid, row), (_, counted) = meter.finish()
    assert (uuid, row["power_w"], row["time_ns"], row["gap"]) == ("node-n1", 742.0, stamp_ns, False)
    assert abs(row["time_ns"] - row["monotonic_ns"] - (time.time_ns() - time.monotonic_ns())) < 5e6
    assert (counted["source"], counted["counter_mj"]) == ("cray_counter", 98_213_345_000)
    assert meter.finish() == []


def test_accelerators_are_devices_of_their_own(counters):
    """Each has its watts under its own name and never the node's."""
    meter = CrayMeter(counters.folder, "n1", 50.0, ACCELERATORS)
    counters.renew({"": 742, "accel0_": 187, "accel1_": 201})
    assert power_of(meter.finish()) == [("accel0-n1", 187.0, False), ("accel1-n1", 201.0, False)]
    assert (meter.source, meter.boundary) == ("cray_accelerator", "accelerator")


def test_joules_of_a_ramp_are_those_of_its_stamps(counters, clock):
    """100 W rising by 10 W a scan, read late by 0 to 90 ms: joules are of the stamps, and not of the reads."""
    meter = CrayMeter(counters.folder, "n1", 50.0)
    rows, stamps = [], []
    for k in range(40):
        stamps.append(clock(0.1 - 0.001 * (37 * (k - 1) % 90 if k else 0)))
        counters.renew({"": 100 + 10 * k}, joules=1000 + k, stamp_us=stamps[-1])
        clock(0.001 * (37 * k % 90))
        rows += [row for _, row in meter.finish() if "power_w" in row]
    at_ns, watts = [row["time_ns"] for row in rows], [row["power_w"] for row in rows]
    power = curve.curve(at_ns, watts, longest_ns=400_000_000)
    found = curve.between(power, at_ns[:1], at_ns[-1:])
    assert at_ns == [1000 * stamp for stamp in stamps]
    assert found.energy_j[0] == pytest.approx(3.9 * (100 + 490) / 2, rel=1e-6)
    assert not any(row["gap"] for row in rows)


@pytest.mark.parametrize(
    "restart",
    [
        lambda counters: counters.write("startup", 8),
        lambda counters: counters.write("generation", 0),
        lambda counters: setattr(counters, "freshness", 3),
    ],
    ids=["startup", "generation", "freshness"],
)
def test_counters_that_were_started_anew_leave_a_gap(counters, restart):
    """What came between is not known, though the next watts are fine."""
    meter = CrayMeter(counters.folder, "n1", 50.0)
    counters.renew({"": 700})
    first = meter.finish()
    restart(counters)
    counters.renew({"": 710})
    second = meter.finish()
    counters.renew({"": 720})
    found = power_of(first + second + meter.finish())
    assert found == [("node-n1", 700.0, False), ("node-n1", 710.0, True), ("node-n1", 720.0, False)]


def test_joules_that_fall_are_a_restart_and_a_new_cap_is_none(counters):
    """A higher generation says that somebody changed a cap: watts go on."""
    meter = CrayMeter(counters.folder, "n1", 50.0)
    found = []
    for joules, generation in ((2000, 1), (2070, 2), (5, 2), (75, 2)):
        counters.write("generation", generation)
        counters.renew({"": 700}, joules=joules)
        found += [gap for _, _, gap in power_of(meter.finish())]
    assert found == [False, False, True, False]


def test_a_controller_that_stands_still_has_no_watts(counters, clock):
    """Its last scan is one sample; after a second without another the power is unknown, once; then there is a gap."""
    meter = CrayMeter(counters.folder, "n1", 50.0)
    counters.renew({"": 700}, stamp_us=clock(0.1))
    found = power_of(meter.finish())
    for _ in range(30):
        clock(0.1)
        found += power_of(meter.finish())
    counters.renew({"": 705}, stamp_us=clock(0.1))
    found += power_of(meter.finish())
    assert found == [("node-n1", 700.0, False), ("node-n1", None, True), ("node-n1", 705.0, True)]


def test_a_stamp_that_stands_still_is_no_new_sample(counters, clock):
    """Though the controller counts its scans: the same stamp again is the same reading, and soon none at all."""
    meter = CrayMeter(counters.folder, "n1", 50.0)
    stamp_us = clock(0.1)
    found = []
    for _ in range(15):
        counters.renew({"": 700}, stamp_us=stamp_us)
        found += power_of(meter.finish())
        clock(0.1)
    assert found == [("node-n1", 700.0, False), ("node-n1", None, True)]


@pytest.mark.parametrize(
    "torn",
    [
        "",
        "742",
        "742 W",
        "742 W 17169",
        "-742 W {} us",
        "742 J {} us",
        "742 W {}",
        "NaN W {} us",
        "0x2e6 W {} us",
    ],
)
def test_a_file_that_is_torn_is_a_gap(counters, torn):
    """Half a line, another unit or no whole number is no reading."""
    meter = CrayMeter(counters.folder, "n1", 50.0)
    stamp_us = time.time_ns() // 1000
    counters.renew({"": 700}, stamp_us=stamp_us)
    counters.write("power", torn.format(stamp_us))
    lost = power_of(meter.finish())
    counters.renew({"": 710})
    assert lost + power_of(meter.finish()) == [("node-n1", None, True), ("node-n1", 710.0, True)]


def test_a_scan_is_never_mixed_of_two(counters, monkeypatch):
    """Where the counters are renewed while they are read, they are read again."""
    meter = CrayMeter(counters.folder, "n1", 50.0, ACCELERATORS)
    counters.renew({"accel0_": 100, "accel1_": 200})
    real, once = cray._values, []

    def slow(folder, name):
        found = real(folder, name)
        if not once:
            once.append(name)
            counters.renew({"accel0_": 110, "accel1_": 220})
        return found

    monkeypatch.setattr(cray, "_values", slow)
    assert [watts for _, watts, _ in power_of(meter.finish())] == [110.0, 220.0]


def closed(_):
    """A folder of another user's."""
    raise PermissionError(13, "Permission denied")


def test_counters_that_cannot_be_used_are_refused(counters, tmp_path, monkeypatch):
    """None there, closed to this user, no accelerators, or stamps of another clock: the error says which."""
    with pytest.raises(PowerError, match="no pm_counters"):
        CrayMeter(tmp_path / "none", "n1", 50.0)
    monkeypatch.setattr(type(tmp_path), "iterdir", closed)
    with pytest.raises(PowerError, match=r"no pm_counters there \(Permission denied\)"):
        CrayMeter(counters.folder, "n1", 50.0)
    monkeypatch.undo()
    counters.renew({"": 700}, stamp_us=time.time_ns() // 1000 - 12_000_000)
    with pytest.raises(PowerError, match="stamped by another clock"):
        CrayMeter(counters.folder, "n1", 50.0)
    (tmp_path / "bare").mkdir()
    with pytest.raises(PowerError, match="no accelerators"):
        CrayMeter(Cray(tmp_path / "bare").folder, "n1", 50.0, ACCELERATORS)
