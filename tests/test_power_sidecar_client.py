"""The sidecar as its parent sees it: what it records, and what becomes of it when things die."""

import os
import re
import signal
import time

import numpy as np
import pytest
from fake_nvml import curves
from processes import until
from traces import SIMULATED, joules, new_attempt, power_of, samples

from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.store.schema import TRACE
from wattflow.store.tables import read_table

pytest_plugins = ("fake_nvml.fixtures", "sidecars")


def why_lost(sidecar):
    """What `check` says once the sidecar is lost."""

    def why():
        try:
            sidecar.check()
        except PowerError as error:
            return str(error)

    return until(why)


def test_simulated_attempt(sidecar, attempt, tmp_path):
    """An attempt without a GPU leaves one closed trace of the host, nothing in the spool, and no log."""
    one = sidecar(SIMULATED)
    ready = one.start(attempt)
    start_ns = time.time_ns()
    time.sleep(0.5)
    end_ns = time.time_ns()
    info = one.stop()
    time_ns, power_w, gap = power_of(attempt, "host-n1")
    took_j = joules(time_ns, power_w, time_ns[0], time_ns[-1])
    closed = {"sidecar_restarts": 0, "energy_j": pytest.approx(took_j), "beside": None}
    assert info == {**ready, **closed}
    assert joules(time_ns, power_w, start_ns, end_ns) == pytest.approx(
        70.0 * (end_ns - start_ns) / 1e9, rel=1e-9
    )
    assert not any(gap)
    assert [path.name for path in attempt.path.rglob("*") if path.is_file()] == [
        "n1-host-n1.parquet"
    ]
    assert [path.name for path in (tmp_path / "spool").glob("*.arrow")] == []


def test_one_sidecar_serves_attempts_in_turn(sidecar, tmp_path):
    """After stop the same object records another attempt, and the traces do not mix."""
    one = sidecar(SIMULATED)
    ends = []
    for number in (1, 2):
        attempt = new_attempt(tmp_path, number)
        one.start(attempt)
        one.stop()
        time_ns, _, _ = power_of(attempt, "host-n1")
        ends.append((time_ns[0], time_ns[-1]))
    assert ends[0][1] < ends[1][0]


def test_the_parent_knows_joules_and_watts_while_an_attempt_runs(sidecar, attempt):
    """At a constant 70 W the told watts are 70, and the attempt's joules are those of its whole trace."""
    recording = sidecar(SIMULATED)
    recording.start(attempt)
    until(lambda: recording.so_far() is not None)
    assert recording.so_far()["power_w"] == pytest.approx(70.0)
    info = recording.stop()
    time_ns, _, _ = power_of(attempt, "host-n1")
    assert info["energy_j"] == pytest.approx(70.0 * (time_ns[-1] - time_ns[0]) / 1e9)


def test_joules_of_a_sidecar_that_died_are_kept(sidecar, attempt, tmp_path):
    """What the one before had told is added to what the new one tells."""
    recording = sidecar(SIMULATED)
    recording.start(attempt)
    until(lambda: recording.so_far() is not None)
    before_j = recording.so_far()["energy_j"]
    os.kill(recording.pid, signal.SIGKILL)
    until(lambda: samples(tmp_path, 1))
    assert recording.stop()["energy_j"] > before_j > 300.0


def test_absent_nvml_is_told_at_the_start(sidecar, attempt, monkeypatch):
    """A sidecar that cannot measure says why, once, and where its log lies."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        PowerError, match=r"sidecar of n1: power.meter=nvml .*sidecar-n1.log"
    ) as told:
        sidecar(Power(meter="nvml")).start(attempt)
    assert str(told.value).count("power.meter=nvml on n1") == 1


def test_stop_before_start_is_an_error(sidecar):
    """There is nothing to stop in a sidecar that was never started."""
    with pytest.raises(PowerError, match="was not started"):
        sidecar(SIMULATED).stop()


def test_sigterm_closes_the_traces(sidecar, attempt):
    """A sidecar ended by SIGTERM leaves closed traces, and its parent learns that they end too early."""
    one = sidecar(SIMULATED)
    one.start(attempt)
    os.kill(one.pid, signal.SIGTERM)
    until(attempt.trace_path("n1", "host-n1").exists)
    assert "ended by SIGTERM" in why_lost(one)


def test_killed_simulated_sidecar_is_a_gap(sidecar, attempt, tmp_path):
    """A sidecar without a driver's history is started again, and what it missed is marked as a gap."""
    one = sidecar(SIMULATED)
    one.start(attempt)
    until(lambda: samples(tmp_path, 0) > 5)
    os.kill(one.pid, signal.SIGKILL)
    until(lambda: samples(tmp_path, 1) > 5)
    assert one.stop()["sidecar_restarts"] == 1
    time_ns, _, gap = power_of(attempt, "host-n1")
    assert sum(gap) == 1
    assert 1 + int(np.argmax(np.diff(time_ns))) == gap.index(True)


@pytest.mark.fake_nvml
class TestFakeDriver:
    """The whole way from the driver to the closed trace, against curves whose joules are known."""

    @pytest.mark.parametrize(
        "case",
        [
            ("constant:70", "nvml_buffer", 1e-3),
            ("ramp", "nvml_buffer", 1e-3),
            ("square:50:200:0.4", "nvml_buffer", 1e-2),
            ("constant:70", "nvml_instant", 1e-3),
            ("ramp", "nvml_instant", 5e-2),  # the field is renewed each 100 ms only
        ],
    )
    def test_joules_are_the_curves(self, sidecar, attempt, set_driver, case):
        """The integral over a window equals the curve's, on each GPU, by the buffer and by polling."""
        curve, source, within = case
        set_driver("FAKE_NVML_CURVE", curve)
        if source != "nvml_buffer":
            set_driver("FAKE_NVML_MISSING", "nvmlDeviceGetSamples")
        one = sidecar(Power(meter="nvml"))
        ready = one.start(attempt)
        start_ns = time.time_ns()
        time.sleep(1.5)
        end_ns = time.time_ns()
        one.stop()
        assert ready["source"] == source
        for index in range(2):
            uuid = curves.uuid("n1", index)
            time_ns, power_w, _ = power_of(attempt, uuid)
            truth = curves.curve(uuid).joules(start_ns, end_ns)
            assert joules(time_ns, power_w, start_ns, end_ns) == pytest.approx(truth, rel=within)

    def test_killed_sidecar_loses_nothing(self, sidecar, attempt, set_driver, tmp_path):
        """After SIGKILL the next sidecar fetches what came in between from the driver: no sample is lost or doubled.

        The fake driver remembers a minute, so that this also holds where a process takes seconds to start.
        """
        set_driver("FAKE_NVML_DEPTH", "3000")
        one = sidecar(Power(meter="nvml"))
        one.start(attempt)
        start_ns = time.time_ns()
        time.sleep(1.3)
        os.kill(one.pid, signal.SIGKILL)
        until(lambda: samples(tmp_path, 1))
        end_ns = time.time_ns()
        info = one.stop()
        assert info["sidecar_restarts"] == 1
        for index in range(2):
            uuid = curves.uuid("n1", index)
            time_ns, power_w, gap = power_of(attempt, uuid)
            spacing_ms = np.diff(time_ns) / 1e6
            assert spacing_ms.min() > 10
            assert spacing_ms.max() < 250
            assert not any(gap)
            truth = curves.curve(uuid).joules(start_ns, end_ns)
            assert joules(time_ns, power_w, start_ns, end_ns) == pytest.approx(truth, rel=1e-3)

    def test_lost_gpu(self, sidecar, attempt, set_driver, tmp_path):
        """The trace of a lost GPU ends with a gap and no 0 W, the other's goes on, and the log names the lost one."""
        set_driver("FAKE_NVML_LOST", f"1@{tmp_path / 'lost'}")
        lost, kept = curves.uuid("n1", 1), curves.uuid("n1", 0)
        one = sidecar(Power(meter="nvml"))
        one.start(attempt)
        (tmp_path / "lost").touch()
        until(lambda: lost in attempt.sidecar_log_path("n1").read_text())
        time.sleep(1.2)
        one.stop()
        rows = read_table(attempt.trace_path("n1", lost), TRACE).to_pylist()
        marks = [row for row in rows if row["source"] == "nvml_buffer" and row["gap"]]
        assert [row["power_w"] for row in marks] == [None]
        assert power_of(attempt, lost)[1].min() > 50
        assert power_of(attempt, kept)[0][-1] - power_of(attempt, lost)[0][-1] > 1e9
        assert (
            f"{lost}: nvmlDeviceGetSamples: GPU is lost"
            in attempt.sidecar_log_path("n1").read_text()
        )

    def test_not_ready_in_time(self, sidecar, attempt, set_driver):
        """A driver that does not answer makes start fail after its time-out, and leaves no process."""
        set_driver("FAKE_NVML_LATENCY_US", "nvmlInitWithFlags=30000000")
        one = sidecar(Power(meter="nvml"), ready_timeout_s=0.5)
        with pytest.raises(PowerError, match=r"not ready after 0.5 s"):
            one.start(attempt)
        assert one.pid is None

    def test_lost_for_good(self, sidecar, attempt, set_driver):
        """When restarts come to nothing the parent is told, by check and by stop."""
        one = sidecar(Power(meter="nvml"))
        one.start(attempt)
        set_driver("FAKE_NVML_GPUS", "0")
        os.kill(one.pid, signal.SIGKILL)
        assert re.search("in a row.*no GPU is visible", why_lost(one))
        with pytest.raises(PowerError, match="in a row"):
            one.stop()

    def test_another_sensor_after_a_restart(self, sidecar, attempt, set_driver):
        """A restarted sidecar that finds another sensor is lost: one trace has watts of one kind."""
        one = sidecar(Power(meter="nvml"))
        one.start(attempt)
        set_driver("FAKE_NVML_MISSING", "nvmlDeviceGetSamples")
        os.kill(one.pid, signal.SIGKILL)
        assert re.search("measures nvml_instant .* after a restart", why_lost(one))
