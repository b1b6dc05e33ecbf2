"""The DCGM meter: what it makes of dcgmi's output, which fake_dcgmi plays from files in the documented format."""

import os
import re
import signal
import time
from itertools import pairwise

import fake_dcgmi
import pytest
from fake_nvml import curves
from processes import gone, until

from wattflow.config.choices import Power
from wattflow.doctor import examine
from wattflow.errors import PowerError
from wattflow.power.dcgm import columns
from wattflow.power.open import choose
from wattflow.power.sidecar_client import Sidecar
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import read_table

pytest_plugins = ("fake_nvml.fixtures",)

# the fake NVML's GPUs of node n1, which DCGM counts the other way round
FIRST, SECOND = curves.uuid("n1", 0), curves.uuid("n1", 1)


@pytest.fixture
def played(tmp_path, monkeypatch):
    """The folder of what the fake dcgmi plays and of the calls that it got."""
    return fake_dcgmi.install(tmp_path, monkeypatch)


def new_attempt(folder):
    attempt = AttemptDir(folder / "attempt-1", "0123456789ab", 1)
    attempt.path.mkdir()
    attempt.make_folders()
    return attempt


def dmons(played):
    """The pids of the dmons that were started to run until they are ended."""
    return [pid for pid, told in fake_dcgmi.calls(played) if re.search("dmon .* -d [0-9]+$", told)]


# ---- what dcgmi prints ----


def test_units_are_those_of_the_columns():
    """1,024 MiB are 2^30 bytes, a share of 0.25 is 25 %, 1 MiB/s is 2^20 bytes a second, and a blank stays null."""
    filled = {
        252: ("memory_used_bytes", 1024 * 1024),
        1002: ("sm_activity_pct", 100),
        1009: ("pcie_tx_mib_s", 1 / 2**20),
        150: ("temperature_c", 1),
    }
    assert columns(filled, {252: 1024, 1002: 0.25, 1009: 1048576, 150: None}) == {
        "memory_used_bytes": 2**30,
        "sm_activity_pct": 25.0,
        "pcie_tx_mib_s": 1.0,
        "temperature_c": None,
    }


def test_what_a_column_cannot_hold_is_null():
    """A clock of 3e9 MHz does not fit its 32 bits: it is null, and the sidecar lives on."""
    assert columns({100: ("sm_clock_mhz", 1)}, {100: 3_000_000_000}) == {"sm_clock_mhz": None}


# ---- the stream ----


# ---- the meter ----


@pytest.fixture
def opened(fake_driver, played):
    """A function that opens the meter; it is closed after the test."""
    meters = []

    def open_meter(**power):
        meters.append(choose(Power(**{"meter": "dcgm", "poll_ms": 20, **power}), "n1"))
        return meters[-1]

    yield open_meter
    for meter in meters:
        meter.close()


def collected(meter, seconds):
    """The readings of a trace of so long."""
    meter.begin({})
    readings = []
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    while time.monotonic_ns() < end_ns:
        readings += meter.read()
        time.sleep(max(0, meter.due_ns() - time.monotonic_ns()) / 1e9)
    return readings + meter.finish()


def rows_of(readings, source, uuid):
    return [row for who, row in readings if row["source"] == source and who == uuid]


@pytest.mark.fake_nvml
class TestFakeDriver:
    """With the fake NVML, which says which GPUs are the job's."""

    def test_watts_belong_to_the_right_gpu(self, opened):
        """DCGM's GPU 2 is the first by CUDA: its 250.5 W are that UUID's, and GPU 1's 70 W the other's."""
        meter = opened()
        readings = collected(meter, 0.5)
        assert [device["uuid"] for device in meter.devices] == [FIRST, SECOND]
        assert {row["power_w"] for row in rows_of(readings, "dcgm", FIRST)} == {250.5}
        assert {row["power_w"] for row in rows_of(readings, "dcgm", SECOND)} == {70.0}
        assert {who for who, _ in readings} == {FIRST, SECOND}

    def test_only_visible_gpus_are_asked_for(self, opened, played, monkeypatch):
        """A job with one GPU asks DCGM for that one alone, at the period of the configuration."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        meter = opened(poll_ms=70)
        collected(meter, 0.2)
        told = [arguments for _, arguments in fake_dcgmi.calls(played)]
        assert "dmon -e 157 -i 1 -d 70" in told
        assert meter.period_ms == 70.0

    def test_counter_and_conditions(self, opened):
        """Counter and conditions come in rows of their own; a blank value is null."""
        readings = collected(opened(), 2.2)
        counted = [row["counter_mj"] for row in rows_of(readings, "dcgm_counter", SECOND)]
        assert len(counted) >= 2
        assert {after - before for before, after in pairwise(counted)} == {70_000}
        row = rows_of(readings, "dcgm_conditions", SECOND)[0]
        expected = {
            "sm_clock_mhz": 1980,
            "memory_clock_mhz": 2619,
            "throttle_reasons": 4,
            "temperature_c": 61,
            "power_limit_w": 700.0,
            "gpu_activity_pct": 100,
            "memory_activity_pct": 41,
            "memory_used_bytes": 71234 * 2**20,
        }
        assert {key: row[key] for key in expected} == expected
        assert rows_of(readings, "dcgm_conditions", FIRST)[0]["memory_used_bytes"] is None
        assert not any(row["source"] == "dcgm_profiling" for _, row in readings)

    def test_a_counter_with_an_exponent_is_none(self, opened, played):
        """1.26e+11 mJ has lost its joules: such a counter is not recorded."""
        path = played / "conditions.txt"
        path.write_text(re.sub(r"1263\d{8}", "1.26e+11    ", path.read_text()))
        readings = collected(opened(), 0.1)
        assert rows_of(readings, "dcgm_counter", FIRST)
        assert not rows_of(readings, "dcgm_counter", SECOND)

    def test_profiling_fields(self, opened):
        """With power.dcgm_profiling each second has a row of activity: shares in percent, rates in MiB/s."""
        readings = collected(opened(dcgm_profiling=True), 2.2)
        row = rows_of(readings, "dcgm_profiling", SECOND)[0]
        expected = {
            "graphics_activity_pct": 99.8,
            "sm_activity_pct": 91.2,
            "sm_occupancy_pct": 43.7,
            "tensor_activity_pct": 25.1,
            "dram_activity_pct": 63.4,
            "pcie_tx_mib_s": 10.0,
            "pcie_rx_mib_s": 5.0,
            "nvlink_tx_mib_s": 100.0,
            "nvlink_rx_mib_s": 50.0,
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected)
        assert rows_of(readings, "dcgm_profiling", FIRST)[0]["nvlink_tx_mib_s"] is None

    def test_profiling_without_values_is_refused(self, opened, played):
        """A GPU whose profiling values are all blank is named."""
        path = played / "profiling.txt"
        lines = path.read_text().splitlines()
        blank = "GPU 2     " + "N/A   " * 9
        path.write_text("\n".join(blank if line.startswith("GPU 2") else line for line in lines))
        with pytest.raises(PowerError, match="no profiling values of GPU 2"):
            opened(dcgm_profiling=True)

    def test_profiling_that_is_not_permitted_is_refused(self, opened, monkeypatch):
        """Asked for and not there, profiling is an error rather than empty columns."""
        monkeypatch.setenv("FAKE_DCGMI_REFUSE", "1001")
        with pytest.raises(PowerError, match="Field 1001 is not supported"):
            opened(dcgm_profiling=True)

    @pytest.mark.parametrize("how", ["refused", "zero", "blank"])
    def test_without_instant_power_the_usage_is_taken(self, opened, played, monkeypatch, how):
        """Where field 157 is unknown, reads 0 W or is blank, 155 is the source: a mean over 1 s on this GPU."""
        if how == "refused":
            monkeypatch.setenv("FAKE_DCGMI_REFUSE", "157")
        else:
            path = played / "power-instant.txt"
            value = {"zero": "0.000", "blank": "N/A"}[how]
            path.write_text(path.read_text().replace("70.000", value))
        meter = opened()
        assert meter.source == "dcgm_mean"
        assert (meter.about["dcgm_field"], meter.about["averaging"]) == ("155", "mean over 1 s")

    def test_usage_of_an_a100_is_instantaneous(self, opened, monkeypatch):
        """Field 155 is what NVML's power usage is: instantaneous on an A100, so that short windows may have joules."""
        monkeypatch.setenv("FAKE_DCGMI_REFUSE", "157")
        monkeypatch.setenv("FAKE_NVML_ARCHITECTURE", "7")
        monkeypatch.setenv("FAKE_NVML_NAME", "NVIDIA A100-SXM4-80GB")
        meter = opened()
        assert (meter.source, meter.about["dcgm_field"]) == ("dcgm", "155")

    def test_no_power_at_all_is_refused(self, opened, monkeypatch):
        """Where neither field has watts, the error tells what each gave."""
        monkeypatch.setenv("FAKE_DCGMI_REFUSE", "155,157")
        with pytest.raises(PowerError, match=r"no power of all GPUs 1, 2: .*Field 157.*Field 155"):
            opened()

    def test_a_gpu_that_dcgm_does_not_know_is_refused(self, opened, played):
        """A visible GPU that is not in DCGM's list would be measured as another's: the UUIDs are told."""
        path = played / "discovery.txt"
        path.write_text(path.read_text().replace(FIRST, curves.uuid("n3", 0)))
        with pytest.raises(PowerError, match=f"DCGM does not know {FIRST}; .*{SECOND}"):
            opened()

    def test_without_nvml_it_is_refused(self, opened, monkeypatch):
        """Where NVML shows no GPU, nobody can tell which of DCGM's GPUs are the job's."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(PowerError, match="no GPU is visible"):
            opened()

    def test_a_death_is_a_gap_of_every_gpu(self, opened, played, monkeypatch):
        """When dmon ends, each GPU gets a row without a value, and its next sample is marked too, and no other."""
        monkeypatch.setenv("FAKE_DCGMI_ONCE", "1")
        path = played / "power-instant.txt"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
        meter = opened(poll_ms=200)  # a restart takes less than what is a gap by the stamps alone
        meter.begin({})
        rows = {FIRST: [], SECOND: []}  # up to the second sample after the death

        def went_on():
            for uuid, row in meter.read():
                if row["source"] == "dcgm" and len(after(uuid)) < 3:
                    rows[uuid].append(row)
            return all(len(after(uuid)) == 3 for uuid in rows)

        def after(uuid):
            gaps = [i for i, row in enumerate(rows[uuid]) if row["gap"]]
            return rows[uuid][gaps[0] :] if gaps else []

        until(went_on)
        for uuid, watts in ((FIRST, 250.5), (SECOND, 70.0)):
            assert [row.get("power_w") for row in after(uuid)] == [None, watts, watts]
            assert [row["gap"] for row in after(uuid)] == [True, True, False]

    @pytest.mark.parametrize("cell", ["N/A   ", "0.000 ", "70..."])
    def test_a_blank_sample_is_null(self, opened, played, cell):
        """A blank, a cut value or 0 W among the watts is a row without a value: neither 0 W nor a gap of its own."""
        path = played / "power-instant.txt"
        lines = path.read_text().splitlines(keepends=True)
        place = [i for i, line in enumerate(lines) if line.startswith("GPU 1")][10]
        lines[place] = lines[place].replace("70.000", cell)
        path.write_text("".join(lines))
        meter = opened()
        meter.begin({})
        rows = []
        until(
            lambda: (
                rows.extend(rows_of(meter.read(), "dcgm", SECOND))
                or any(row["power_w"] is None for row in rows)
            )
        )
        assert {row["power_w"] for row in rows} == {70.0, None}
        assert [row["gap"] for row in rows if row["power_w"] is None] == [False]

    def test_history_before_a_restart_is_a_gap(self, opened):
        """A sidecar that comes back a second after a GPU's last sample marks a gap, as DCGM keeps no history for it."""
        meter = opened()
        meter.begin({FIRST: time.time_ns() - 1_000_000_000})
        readings = []
        until(lambda: readings.extend(meter.read()) or len(readings) >= 2)
        assert rows_of(readings, "dcgm", FIRST)[0]["gap"]
        assert not rows_of(readings, "dcgm", SECOND)[0]["gap"]

    def test_finish_brings_a_row_of_every_field(self, opened):
        """The end of a trace has watts and counter that were read after it was asked for."""
        meter = opened(poll_ms=200)
        meter.begin({})
        asked_ns = time.time_ns()
        readings = meter.finish()
        for source in ("dcgm", "dcgm_counter"):
            for uuid in (FIRST, SECOND):
                assert rows_of(readings, source, uuid)[-1]["time_ns"] > asked_ns

    def test_sidecar_records_it(self, nvml_path, played, tmp_path):
        """A whole attempt: joules of the file's watts, and metadata that says how old and averaged a value is."""
        attempt = new_attempt(tmp_path)
        with Sidecar(Power(meter="dcgm", poll_ms=20), "n1", tmp_path / "spool") as one:
            ready = one.start(attempt)
            time.sleep(0.5)
            one.stop()
        assert (ready["meter"], ready["source"], ready["period_ms"]) == ("dcgm", "dcgm", 20.0)
        table = read_table(attempt.trace_path("n1", FIRST), TRACE)
        told = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        assert set(table["power_w"].drop_null().to_pylist()) == {250.5}
        assert told["source"] == "dcgm"
        assert (told["dcgm_field"], told["dcgm_version"]) == ("157", "4.6.0")
        assert told["stamped"] == "on arrival"
        assert (told["age_ms"], told["counter_age_ms"]) == ("0 to 20", "0 to 1000")
        assert told["averaging"].startswith("instantaneous")
        assert all(gone(pid) for pid, _ in fake_dcgmi.calls(played))

    def test_no_dmon_outlives_a_killed_sidecar(self, nvml_path, played, tmp_path, monkeypatch):
        """The kernel ends the dmons of a sidecar that is killed, also those that print nothing and notice nothing."""
        monkeypatch.setenv("FAKE_DCGMI_HANGS", "1")
        for name in ("power-instant.txt", "conditions.txt"):
            lines = (played / name).read_text().splitlines(keepends=True)
            (played / name).write_text("".join(lines[:8]))  # three rows of each GPU
        attempt = new_attempt(tmp_path)
        with Sidecar(Power(meter="dcgm", poll_ms=20), "n1", tmp_path / "spool") as one:
            one.start(attempt)
            running = []
            until(lambda: running.extend(dmons(played)[len(running) :]) or len(running) == 2)
            time.sleep(0.3)  # the dmon of power has come to the end of its file
            os.kill(one.pid, signal.SIGKILL)
            until(lambda: all(gone(pid) for pid in running))
            until(lambda: one.restarts == 1)

    def test_doctor_lists_it(self, fake_driver, played):
        """The findings have the command, the host engine with its GPUs, and what the meter would take."""
        found = {finding.check: finding for finding in examine()}
        assert found["dcgmi"].status == "ok"
        assert found["DCGM host engine"].detail == "3 GPU(s) of this node"
        assert found["DCGM meter"].detail.startswith(
            "dcgm, source dcgm, boundary gpu, a sample each 50 ms"
        )

    def test_doctor_tells_a_host_engine_that_is_down(self, fake_driver, played, monkeypatch):
        """A dcgmi without a host engine is told apart from no dcgmi."""
        monkeypatch.setenv("FAKE_DCGMI_DOWN", "1")
        found = {finding.check: finding for finding in examine()}
        assert (found["dcgmi"].status, found["DCGM host engine"].status) == ("ok", "missing")
        assert "DCGM meter" not in found
