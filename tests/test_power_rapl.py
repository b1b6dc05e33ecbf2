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


def watts_of(powercap, clock, readings_uj, period_ms=50.0):
    """The watts of one package's readings, a poll apart; null for a gap. The first is where the meter starts."""
    path = powercap / "intel-rapl:0/energy_uj"
    path.write_text(f"{readings_uj[0]}\n")
    meter = RaplMeter(powercap, "n1", period_ms)
    rows = []
    for reading in readings_uj[1:]:
        path.write_text(f"{reading}\n")
        clock["ns"] += round(period_ms * 1e6)
        rows += [row for _, row in meter.finish()]
    assert all(row["gap"] or row["power_w"] is not None for row in rows)
    return [row["power_w"] for row in rows]


@pytest.mark.parametrize("stray", [0, 100, 4_999_000_000, 200_000_000_000, RANGE_UJ])
def test_one_reading_that_goes_back_or_leaps_is_a_gap(powercap, clock, stray):
    """100 W of a package, and one reading that no package can come to: no joule of it, and the ones after are right."""
    readings = [5_000_000_000 + 5_000_000 * i for i in range(8)]
    readings[4] = stray
    watts = watts_of(powercap, clock, readings)
    assert watts == pytest.approx([100.0, 100.0, 100.0, None, 100.0, 100.0, 100.0])


def test_several_stray_readings_are_gaps(powercap, clock):
    """A counter that shows 0 five times is not taken for one that starts anew."""
    readings = [5_000_000_000 + 5_000_000 * i for i in range(12)]
    readings[4:9] = [0] * 5
    watts = watts_of(powercap, clock, readings)
    assert watts == pytest.approx([100.0] * 3 + [None] * 5 + [100.0] * 3)


def test_a_counter_that_starts_anew_is_a_gap_until_it_has_settled(powercap, clock):
    """Reset by its driver at 5 kJ, it counts on from 0: unknown for a second, then 100 W again, and never a wrap."""
    readings = [5_000_000_000 + 5_000_000 * i for i in range(4)]
    readings += [5_000_000 * i for i in range(40)]
    watts = watts_of(powercap, clock, readings)
    assert watts[:3] == pytest.approx([100.0] * 3)
    assert watts[3:23] == [None] * 20
    assert watts[23:] == pytest.approx([100.0] * 20)


def test_a_frozen_counter_is_no_host_at_0_w(powercap, clock):
    """A host that runs draws power: counters that rest for more than 1 s show none, and later all that they did not."""
    readings = [0, 50_000_000, *[50_000_000] * 4, 250_000_000]
    watts = watts_of(powercap, clock, readings, period_ms=500.0)
    assert watts == pytest.approx([100.0, 0.0, 0.0, None, None, 200.0 / 1.5])


@pytest.mark.parametrize(
    "text", ["-5", "1_000", "nan", "", "\u0665", str(RANGE_UJ + 1), "0x10", "1e9"]
)
def test_what_is_no_reading_of_a_counter_is_a_gap(powercap, clock, text):
    """Below 0, beyond its range, or no whole number as the kernel writes one."""
    watts = watts_of(powercap, clock, [1_000_000, 6_000_000])
    assert watts == pytest.approx([100.0])
    meter = RaplMeter(powercap, "n1", 50.0)
    (powercap / "intel-rapl:0/energy_uj").write_text(text)
    clock["ns"] += SECOND_NS
    assert [(row.get("power_w"), row["gap"]) for _, row in meter.finish()] == [(None, True)]


def test_a_package_draws_no_more_than_twice_its_highest_limit(powercap, clock):
    """With limits of 125 W and 250 W, 400 W are a reading and 600 W are none; without limits 600 W are one."""
    risen = [0, 20_000_000, 50_000_000]  # in 50 ms each
    assert watts_of(powercap, clock, risen) == pytest.approx([400.0, 600.0])
    for k, watts in enumerate((125, 250)):
        path = powercap / f"intel-rapl:0/constraint_{k}_max_power_uw"
        path.write_text(f"{watts * 1_000_000}\n")
    assert watts_of(powercap, clock, risen) == pytest.approx([400.0, None])


def test_a_package_without_its_range_is_refused_and_not_left_out(powercap):
    """Without it the host's joules would lack a package."""
    (powercap / "intel-rapl:1/max_energy_range_uj").write_text("many\n")
    with pytest.raises(PowerError, match="max_energy_range_uj: 'many' is no whole number"):
        readable_zones(powercap)


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
