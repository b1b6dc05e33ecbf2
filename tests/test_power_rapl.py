"""RAPL: which counters are added, and what becomes of wraps, failures and pauses: on a folder like the kernel's."""

import os
import time

import numpy as np
import pytest

from wattflow.config.choices import Power
from wattflow.energy import curve
from wattflow.errors import PowerError
from wattflow.power import polled, rapl
from wattflow.power.meter import Moment
from wattflow.power.open import choose, host_meter
from wattflow.power.rapl import RaplMeter, readable_zones, rise_uj
from wattflow.power.sidecar_client import Sidecar
from wattflow.store import sources
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import read_table

RANGE_UJ = 262_143_328_850
SECOND_NS = 1_000_000_000


def zone(folder, name, energy_uj=0):
    """One counter as the kernel shows it."""
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path):
    """Two packages with their DRAM; the platform that holds them; cores that they hold; a second face of package 0."""
    root = tmp_path / "powercap"
    for package in (0, 1):
        zone(root / f"intel-rapl:{package}", f"package-{package}")
        zone(root / f"intel-rapl:{package}:0", "core")
        zone(root / f"intel-rapl:{package}:1", "dram")
    zone(root / "intel-rapl:2", "psys")
    zone(root / "intel-rapl-mmio:0", "package-0")
    (root / "intel-rapl").mkdir()
    return root


@pytest.fixture
def clock(monkeypatch):
    """Both clocks of the meter, set by hand; calls take no time."""
    now = {"ns": 1_700_000_000 * SECOND_NS}
    for module in (rapl, polled):
        monkeypatch.setattr(module, "moment", lambda: Moment(now["ns"], now["ns"]))
    return now


def add_uj(powercap, **by_zone):
    """Let counters rise, going round at their range."""
    for name, uj in by_zone.items():
        path = powercap / name.replace("_", ":").replace("rapl", "intel-rapl") / "energy_uj"
        new = path.with_name("new")  # put in place whole, as a reader may come at any time
        new.write_text(f"{(int(path.read_text()) + uj) % RANGE_UJ}\n")
        new.replace(path)


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


def test_no_rapl_is_said(tmp_path):
    """power.meter=rapl on a machine without it fails with the folder's name."""
    with pytest.raises(PowerError, match="no RAPL package"):
        choose(Power(meter="rapl", powercap_dir=str(tmp_path)), "n1")


def test_counters_for_root_alone_are_said(powercap, monkeypatch):
    """A counter that this user may not read is refused by name, and beside GPUs it is left out."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PowerError, match="not readable by this user"):
        readable_zones(powercap)
    assert host_meter(Power(powercap_dir=str(powercap)), "n1") is None


def test_auto_takes_rapl_before_arithmetic(powercap, monkeypatch):
    """Without a GPU, auto measures the host by RAPL where it answers; power.host=false keeps it away."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = {"meter": "auto", "powercap_dir": str(powercap)}
    assert choose(Power(**settings), "n1").source == "rapl"
    assert choose(Power(**settings, host=False), "n1").source == "simulated"


def test_a_sidecar_records_the_host_beside_its_gpus(powercap, tmp_path, nvml_path):
    """The host has a trace of its own beside the GPUs', and the sidecar tells which."""
    attempt = AttemptDir(tmp_path / "attempt-1", "0123456789ab", 1)
    attempt.path.mkdir()
    attempt.make_folders()
    power = Power(meter="nvml", poll_ms=20, powercap_dir=str(powercap))
    with Sidecar(power, "n1", tmp_path / "spool") as sidecar:
        ready = sidecar.start(attempt)
        for _ in range(10):
            add_uj(powercap, rapl_0=1_000_000)
            time.sleep(0.05)
        info = sidecar.stop()
    assert info["host"] == ready["host"]
    trace = read_table(attempt.trace_path("n1", info["host"]["uuid"]), TRACE)
    seconds = np.diff(trace["time_ns"].to_numpy()) / SECOND_NS
    assert set(trace["source"].to_pylist()) == {"rapl"}
    assert np.sum(trace["power_w"].to_numpy()[1:] * seconds) == pytest.approx(10.0, rel=0.35)
    assert (
        len(list(attempt.trace_path("n1", "x").parent.glob("*.parquet")))
        == len(info["devices"]) + 1
    )


pytest_plugins = ("fake_nvml.fixtures",)
