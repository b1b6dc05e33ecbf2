"""The traces of an attempt: copied while they grow, merged at the end, and their energy so far."""

import time
from dataclasses import asdict

import numpy as np
import pyarrow.compute as pc
import pytest
from fake_nvml import curves
from host_counters import add_uj, make_powercap
from node_counters import Cray, make_hwmon
from processes import until
from traces import SIMULATED

from wattflow.config.choices import Power
from wattflow.power.recording import Tally, append, merged
from wattflow.power.sidecar_client import Sidecar
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import TableStream, read_stream, read_table

pytest_plugins = ("fake_nvml.fixtures", "sidecars")


@pytest.fixture
def powercap(tmp_path):
    """The counters of two packages with their DRAM."""
    return make_powercap(tmp_path)


def test_growing_trace_is_copied(sidecar, attempt):
    """While an attempt runs its trace can be read in the attempt's folder; the closed one takes its place."""
    one = sidecar(Power(**{**asdict(SIMULATED), "copy_s": 1.0, "flush_ms": 50}))
    one.start(attempt)
    copy = attempt.trace_path("n1", "host-n1", ".0.arrow")
    until(copy.exists)
    until(lambda: read_stream(copy).num_rows > 5)
    one.stop()
    assert not copy.exists()


def test_copies_add_new_bytes_only(tmp_path):
    """A copy that is brought up to date twice equals its source."""
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"one")
    first = append(source, target, 0)
    source.write_bytes(b"one,two")
    second = append(source, target, first)
    assert (first, second, target.read_bytes()) == (3, 4, b"one,two")


def test_rows_are_merged_by_time(tmp_path):
    """Parts are merged in order of time, and a part that was killed before its schema was written is passed over."""
    for part, times in enumerate(((10, 30, 20), (40,))):
        stream = TableStream(tmp_path / f"{part}.arrow", TRACE)
        for time_ns in times:
            stream.add({"time_ns": time_ns, "source": "simulated", "power_w": 1.0, "gap": False})
        stream.close()
    (tmp_path / "2.arrow").write_bytes(b"\xff\xff")
    parts = [tmp_path / f"{part}.arrow" for part in (1, 0, 2)]
    assert merged(parts)["time_ns"].to_pylist() == [10, 20, 30, 40]


def tallied(*rows):
    """A tally of two devices that took in readings (uuid, s, W, source)."""
    tally = Tally(["a", "b"], "simulated")
    for uuid, time_s, power_w, *source in rows:
        told = {"time_ns": round(time_s * 1e9), "power_w": power_w, "source": "simulated"}
        tally.add(uuid, {**told, **({"source": source[0]} if source else {})})
    return tally


def test_joules_so_far_are_trapezoids_over_the_jobs_devices():
    """100 to 200 W over 2 s are 300 J, 50 W over 1 s are 50 J; other sensors, other devices and nulls add nothing."""
    tally = tallied(
        ("a", 0.0, 100.0),
        ("b", 0.0, 50.0),
        ("a", 1.0, 999.0, "nvml_usage"),
        ("host", 1.0, 999.0),
        ("a", 1.5, None),
        ("b", 1.0, 50.0),
        ("a", 2.0, 200.0),
    )
    assert tally.so_far()["energy_j"] == 350.0


def test_watts_now_are_the_mean_since_they_were_last_told():
    """70 W over 2 s, then 90 W from the same second on; without a sample in between there is no mean."""
    tally = tallied(("a", 0.0, 70.0))
    assert tally.so_far()["power_w"] is None
    tally.add("a", {"time_ns": 2_000_000_000, "power_w": 70.0, "source": "simulated"})
    assert tally.so_far()["power_w"] == 70.0
    assert tally.so_far()["power_w"] is None
    tally.add("a", {"time_ns": 4_000_000_000, "power_w": 110.0, "source": "simulated"})
    of = {"seconds": 4.0, "devices": 2}
    assert tally.so_far() == {"energy_j": 320.0, "power_w": 90.0, "source": "simulated", **of}


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
    seconds = np.diff(trace["time_ns"].to_numpy()) / 1e9
    assert set(trace["source"].to_pylist()) == {"rapl"}
    assert np.sum(trace["power_w"].to_numpy()[1:] * seconds) == pytest.approx(10.0, rel=0.35)
    assert (
        len(list(attempt.trace_path("n1", "x").parent.glob("*.parquet")))
        == len(info["devices"]) + 1
    )


@pytest.mark.fake_nvml
def test_a_superchip_is_recorded_with_its_grace_and_its_node(tmp_path, nvml_path, set_driver):
    """Module, Grace socket, node and accelerators each have a trace, and the sidecar says which is which."""
    set_driver("FAKE_NVML_MODULE_W", "80")
    set_driver("FAKE_NVML_GPUS", "1")
    cray = Cray(tmp_path, accelerators=1)
    attempt = AttemptDir(tmp_path / "attempt-1", "0123456789ab", 1)
    attempt.path.mkdir()
    attempt.make_folders()
    power = Power(
        meter="nvml",
        scope="module",
        poll_ms=20,
        hwmon_dir=str(make_hwmon(tmp_path)),
        cray_dir=str(cray.folder),
    )
    with Sidecar(power, "n1", tmp_path / "spool") as sidecar:
        ready = sidecar.start(attempt)
        for _ in range(5):
            cray.renew({"": 742, "accel0_": 187})
            time.sleep(0.1)
        info = sidecar.stop()
    assert (ready["source"], ready["boundary"]) == ("nvml_module_instant", "module")
    assert info["host"]["source"] == "hwmon_grace"
    found = {}
    for one in (info["host"], *info["others"]):
        trace = read_table(attempt.trace_path("n1", one["uuid"]), TRACE)
        watts = trace.filter(pc.equal(trace["source"], one["source"]))["power_w"]
        found[one["uuid"]] = set(watts.drop_null().to_pylist())
    assert found == {"host-n1": {96.5}, "node-n1": {742.0}, "accel0-n1": {187.0}}


@pytest.mark.fake_nvml
class TestFakeDriver:
    """Traces of a driver whose truth is known."""

    def test_metadata(self, sidecar, attempt, set_driver):
        """A closed trace says whose it is, what measured it and how."""
        one = sidecar(Power(meter="nvml"))
        ready = one.start(attempt)
        one.stop()
        uuid = curves.uuid("n1", 1)
        told = read_table(attempt.trace_path("n1", uuid), TRACE).schema.metadata
        assert {key.decode(): value.decode() for key, value in told.items()} == {
            "schema_version": "1",
            "node": "n1",
            "gpu_uuid": uuid,
            "gpu_name": "NVIDIA Fake 80GB",
            "bus_id": "00000000:11:00.0",
            "driver": "580.00",
            "meter": "nvml",
            "source": "nvml_buffer",
            "boundary": "gpu",
            "scope": "gpu",
            "period_ms": str(ready["period_ms"]),
            "point_id": "0123456789ab",
            "attempt": "1",
            "restarts": "0",
            "late_polls": "0",
            "complete": "true",
        }
        assert 19 < ready["period_ms"] < 21

    def test_late_polls_are_counted(self, sidecar, attempt, set_driver):
        """Two counters of 31 ms each hold up polls of 20 ms at the trace's start: the closed trace tells how often."""
        set_driver("FAKE_NVML_MISSING", "nvmlDeviceGetSamples")
        set_driver("FAKE_NVML_LATENCY_US", "nvmlDeviceGetTotalEnergyConsumption=31000")
        one = sidecar(Power(meter="nvml", poll_ms=20))
        one.start(attempt)
        time.sleep(0.3)
        one.stop()
        for index in range(2):
            path = attempt.trace_path("n1", curves.uuid("n1", index))
            assert int(read_table(path, TRACE).schema.metadata[b"late_polls"]) >= 1
