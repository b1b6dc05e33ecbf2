"""RAPL: which counters are added, and what becomes of wraps, failures and pauses: on a folder like the kernel's."""

import os

import numpy as np
import pytest
from host_counters import RANGE_UJ, add_uj, make_powercap

from wattflow.config.choices import Power
from wattflow.energy import curve
from wattflow.errors import PowerError
from wattflow.power import polled, rapl
from wattflow.power.meter import Moment
from wattflow.power.open import host_meter
from wattflow.power.rapl import RaplMeter, readable_zones, rise_uj
from wattflow.store import sources

SECOND_NS = 1_000_000_000


@pytest.fixture
def powercap(tmp_path):
    """The counters of two packages with their DRAM."""
    return make_powercap(tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """Both clocks of the meter, set by hand; calls take no time."""
    now = {"ns": 1_700_000_000 * SECOND_NS}
    for module in (rapl, polled):
        monkeypatch.setattr(module, "moment", lambda: Moment(now["ns"], now["ns"]))
    return now


def test_each_joule_is_counted_once(powercap):
    """Packages and DRAM are added; psys, cores and the second face of a package are not."""
    assert [zone.name for zone in readable_zones(powercap)] == [
        "package-0",
        "package-0 dram",
        "package-1",
        "package-1 dram",
    ]


def test_watts_are_the_mean_since_the_poll_before(powercap, clock):
    """In 2 s packages use 100 J and 60 J and one DRAM 8 J: 84 W, stamped half-way; psys' 500 J are in none."""
    meter = RaplMeter(powercap, "n1", 50.0)
    add_uj(powercap, rapl_0=100_000_000, rapl_1=60_000_000, rapl_0_1=8_000_000, rapl_2=500_000_000)
    start_ns = clock["ns"]
    clock["ns"] += 2 * SECOND_NS
    ((uuid, row),) = meter.finish()
    assert uuid == "host-n1"
    assert row["power_w"] == pytest.approx(84.0)
    assert row["time_ns"] == start_ns + SECOND_NS
    assert (row["source"], row["gap"]) == ("rapl", False)


def test_a_wrap_loses_nothing():
    """From 5 J below its range to 7 J above 0 a counter rose by 12 J."""
    assert rise_uj(RANGE_UJ - 5_000_000, 7_000_000, RANGE_UJ) == 12_000_000


def test_joules_of_a_window_over_many_wraps(powercap, clock):
    """90 W of one package for 600 s, polled each 100 ms with a counter that wraps four times within: 54,000 J."""
    for path in powercap.glob("intel-rapl:*/max_energy_range_uj"):
        path.write_text("13000000000\n")
    meter = RaplMeter(powercap, "n1", 100.0)
    rows, path = [], powercap / "intel-rapl:0/energy_uj"
    for tick in range(1, 6002):
        clock["ns"] += SECOND_NS // 10
        path.write_text(f"{tick * 9_000_000 % 13_000_000_000}\n")
        rows += [row for _, row in meter.read()]
    stamps = np.array([row["time_ns"] for row in rows])
    watts = np.array([row["power_w"] for row in rows])
    power = curve.curve(stamps, watts, longest_ns=sources.longest_spacing_ns("rapl", 100.0))
    found = curve.between(power, [stamps[0]], [stamps[0] + 600 * SECOND_NS])
    assert found.energy_j[0] == pytest.approx(54_000.0, rel=1e-9)


def test_a_pause_that_may_hide_a_wrap_is_a_gap(powercap, clock):
    """After 10 minutes at up to 2 kW a counter of 262 kJ may have gone round unseen: no watts, and a gap."""
    meter = RaplMeter(powercap, "n1", 50.0)
    clock["ns"] += 600 * SECOND_NS
    ((_, row),) = meter.finish()
    assert (row["power_w"], row["gap"]) == (None, True)


def test_a_counter_that_fails_is_a_gap_and_none_of_its_joules_are_lost(powercap, clock):
    """A failed reading has no watts; the next one tells the mean over both polls."""
    meter = RaplMeter(powercap, "n1", 50.0)
    path = powercap / "intel-rapl:0/energy_uj"
    path.write_text("no number")
    clock["ns"] += SECOND_NS
    ((_, failed),) = meter.finish()
    path.write_text("30000000")
    clock["ns"] += SECOND_NS
    ((_, row),) = meter.finish()
    assert (failed.get("power_w"), failed["gap"]) == (None, True)
    assert row["power_w"] == pytest.approx(15.0)


def test_a_restart_is_a_gap(powercap, clock):
    """What was used while no sidecar looked is not known in its course."""
    meter = RaplMeter(powercap, "n1", 50.0)
    meter.begin({"host-n1": clock["ns"] - 5 * SECOND_NS})
    clock["ns"] += SECOND_NS // 20
    assert [row["gap"] for _, row in meter.finish()] == [True]


def test_counters_for_root_alone_are_said(powercap, monkeypatch):
    """A counter that this user may not read is refused by name, and beside GPUs it is left out."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PowerError, match="not readable by this user"):
        readable_zones(powercap)
    assert host_meter(Power(powercap_dir=str(powercap)), "n1") is None


pytest_plugins = ("fake_nvml.fixtures",)
