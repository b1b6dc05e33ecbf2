"""The sidecar as a process: what it records, and what becomes of it when things die."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from fake_nvml import curves
from processes import gone, until

from wattflow.config.choices import Control, Power
from wattflow.errors import DamagedError, PowerError
from wattflow.power.recording import Tally, append, merged
from wattflow.power.sidecar_client import Sidecar
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import TableStream, read_stream, read_table

pytest_plugins = ("fake_nvml.fixtures",)

ROOT = Path(__file__).parent.parent
SIMULATED = Power(meter="simulated", poll_ms=20, simulated_idle_w=70.0, simulated_full_w=70.0)


def new_attempt(folder, number=1):
    attempt = AttemptDir(folder / f"attempt-{number}", "0123456789ab", number)
    attempt.path.mkdir()
    attempt.make_folders()
    return attempt


@pytest.fixture
def attempt(tmp_path):
    return new_attempt(tmp_path)


@pytest.fixture
def sidecar(tmp_path):
    """A function that makes a sidecar; none is left running after the test."""
    made = []

    def make(power, **options):
        made.append(Sidecar(power, "n1", tmp_path / "spool", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def power_of(attempt, uuid):
    """Stamps, watts and gaps of a closed trace's power samples."""
    rows = [
        row
        for row in read_table(attempt.trace_path("n1", uuid), TRACE).to_pylist()
        if row["power_w"] is not None
    ]
    return (
        np.array([row["time_ns"] for row in rows]),
        np.array([row["power_w"] for row in rows]),
        [row["gap"] for row in rows],
    )


def joules(time_ns, power_w, start_ns, end_ns):
    """Trapezoids over the true stamps, interpolated at both edges."""
    assert time_ns[0] <= start_ns < end_ns <= time_ns[-1]
    inside = time_ns[(time_ns > start_ns) & (time_ns < end_ns)]
    at = np.concatenate([[start_ns], inside, [end_ns]])
    return np.trapezoid(np.interp(at, time_ns, power_w), (at - start_ns) / 1e9)


def why_lost(sidecar):
    """What `check` says once the sidecar is lost."""

    def why():
        try:
            sidecar.check()
        except PowerError as error:
            return str(error)

    return until(why)


def samples(tmp_path, part):
    """How many rows of an attempt's first device a sidecar has put into the spool: part 0, after a restart part 1."""
    for path in sorted((tmp_path / "spool").glob(f"*.{part}.arrow")):
        with contextlib.suppress(DamagedError):  # begun, and nothing written yet
            return read_stream(path).num_rows
    return 0


def test_no_torch():
    """The sidecar and all its meters load neither torch nor polars."""
    code = (
        "import sys, wattflow.power.sidecar, wattflow.power.nvml, wattflow.power.simulated;"
        "print([m for m in ('torch', 'polars', 'altair', 'fairscale') if m in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]"


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
    assert info == {**ready, "sidecar_restarts": 0, "energy_j": pytest.approx(took_j)}
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
    assert tally.so_far() == {"energy_j": 320.0, "power_w": 90.0, "source": "simulated"}


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


def test_second_sidecar_is_refused(sidecar, attempt, tmp_path):
    """Two sidecars of one job on one node would write the same traces: the second is told who holds the lock."""
    first = sidecar(SIMULATED)
    first.start(attempt)
    with pytest.raises(PowerError, match=rf'already has a sidecar on n1 .*"pid": {first.pid}'):
        sidecar(SIMULATED).start(new_attempt(tmp_path, 2))


def test_lock_of_a_killed_sidecar_is_free(sidecar, attempt, tmp_path):
    """A lock never outlives its holder, so that a new sidecar starts after a kill."""
    first = sidecar(SIMULATED)
    first.start(attempt)
    first.close()
    second = sidecar(SIMULATED)
    assert second.start(new_attempt(tmp_path, 2))["meter"] == "simulated"


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


def test_parents_death_ends_the_sidecar(attempt, tmp_path):
    """A sidecar whose parent is killed closes its traces and is gone."""
    code = f"""
import sys, time
from pathlib import Path
from wattflow.config.choices import Power
from wattflow.power.sidecar_client import Sidecar
from wattflow.store.layout import AttemptDir
one = Sidecar(Power(meter="simulated"), "n1", Path({str(tmp_path / "spool")!r}))
one.start(AttemptDir(Path({str(attempt.path)!r}), "0123456789ab", 1))
print(one.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    until(lambda: gone(pid))
    assert attempt.trace_path("n1", "host-n1").exists()


class Child:
    """A sidecar process spoken to by hand."""

    def __init__(self, spool, power=SIMULATED):
        told = {
            "node": "n1",
            "spool": str(spool),
            "parent_pid": os.getpid(),
            "power": asdict(power),
            "control": asdict(Control()),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wattflow.power.sidecar", json.dumps(told)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def say(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def open(self, attempt):
        self.say(open=str(attempt.path), point_id=attempt.point_id, attempt=attempt.number)
        return self.hear()["ready"]

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def hear_closed(self):
        """Why it closed; what its devices took is told right before."""
        assert self.hear()["so_far"]["energy_j"] >= 0.0
        return self.hear()["closed"]


def test_ready_means_on_disk(attempt, tmp_path):
    """When ready is told, a sample can be read from the spool, whatever becomes of the sidecar."""
    with Child(tmp_path / "spool") as child:
        child.open(attempt)
        child.process.kill()
        child.process.wait()
        (spooled,) = (tmp_path / "spool").glob("*.arrow")
        assert read_stream(spooled)["power_w"].to_pylist()[0] == 70.0


def test_truncated_spool_is_carried_on(attempt, tmp_path):
    """A spool file that ends in the middle of a batch loses that batch alone; a second sidecar writes both parts."""
    with Child(tmp_path / "spool") as child:
        child.open(attempt)
        until(lambda: samples(tmp_path, 0) > 5)
        child.process.kill()
        child.process.wait()
    (spooled,) = (tmp_path / "spool").glob("*.arrow")
    whole = read_stream(spooled).num_rows
    os.truncate(spooled, spooled.stat().st_size - 7)
    kept = read_stream(spooled)["time_ns"].to_pylist()
    assert 0 < len(kept) < whole
    with Child(tmp_path / "spool") as child:
        child.open(attempt)
        child.say(close=True)
        assert child.hear_closed() == "close"
    time_ns, _, _ = power_of(attempt, "host-n1")
    assert time_ns[: len(kept)].tolist() == kept
    assert len(time_ns) > len(kept)
    metadata = read_table(attempt.trace_path("n1", "host-n1"), TRACE).schema.metadata
    assert metadata[b"restarts"] == b"1"


def test_one_process_serves_attempts_in_turn(tmp_path):
    """A process takes open and close any number of times, passes over a close too many, and ends with its stdin."""
    with Child(tmp_path / "spool") as child:
        for number in (1, 2):
            attempt = new_attempt(tmp_path, number)
            child.open(attempt)
            child.say(close=True)
            assert child.hear_closed() == "close"
            assert attempt.trace_path("n1", "host-n1").exists()
        child.say(close=True)
        child.process.stdin.close()
        assert child.process.wait(600) == 0
        child.process.stdin = None


@pytest.fixture
def driver(nvml_path, monkeypatch):
    """A function that sets one of the fake driver's variables for processes started from then on."""
    return monkeypatch.setenv


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
    def test_joules_are_the_curves(self, sidecar, attempt, driver, case):
        """The integral over a window equals the curve's, on each GPU, by the buffer and by polling."""
        curve, source, within = case
        driver("FAKE_NVML_CURVE", curve)
        if source != "nvml_buffer":
            driver("FAKE_NVML_MISSING", "nvmlDeviceGetSamples")
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

    def test_metadata(self, sidecar, attempt, driver):
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

    def test_killed_sidecar_loses_nothing(self, sidecar, attempt, driver, tmp_path):
        """After SIGKILL the next sidecar fetches what came in between from the driver: no sample is lost or doubled.

        The fake driver remembers a minute, so that this also holds where a process takes seconds to start.
        """
        driver("FAKE_NVML_DEPTH", "3000")
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

    def test_lost_gpu(self, sidecar, attempt, driver, tmp_path):
        """The trace of a lost GPU ends with a gap and no 0 W, the other's goes on, and the log names the lost one."""
        driver("FAKE_NVML_LOST", f"1@{tmp_path / 'lost'}")
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

    def test_late_polls_are_counted(self, sidecar, attempt, driver):
        """Two counters of 31 ms each hold up polls of 20 ms at the trace's start: the closed trace tells how often."""
        driver("FAKE_NVML_MISSING", "nvmlDeviceGetSamples")
        driver("FAKE_NVML_LATENCY_US", "nvmlDeviceGetTotalEnergyConsumption=31000")
        one = sidecar(Power(meter="nvml", poll_ms=20))
        one.start(attempt)
        time.sleep(0.3)
        one.stop()
        for index in range(2):
            path = attempt.trace_path("n1", curves.uuid("n1", index))
            assert int(read_table(path, TRACE).schema.metadata[b"late_polls"]) >= 1

    def test_not_ready_in_time(self, sidecar, attempt, driver):
        """A driver that does not answer makes start fail after its time-out, and leaves no process."""
        driver("FAKE_NVML_LATENCY_US", "nvmlInitWithFlags=30000000")
        one = sidecar(Power(meter="nvml"), ready_timeout_s=0.5)
        with pytest.raises(PowerError, match=r"not ready after 0.5 s"):
            one.start(attempt)
        assert one.pid is None

    def test_lost_for_good(self, sidecar, attempt, driver):
        """When restarts come to nothing the parent is told, by check and by stop."""
        one = sidecar(Power(meter="nvml"))
        one.start(attempt)
        driver("FAKE_NVML_GPUS", "0")
        os.kill(one.pid, signal.SIGKILL)
        assert re.search("in a row.*no GPU is visible", why_lost(one))
        with pytest.raises(PowerError, match="in a row"):
            one.stop()

    def test_another_sensor_after_a_restart(self, sidecar, attempt, driver):
        """A restarted sidecar that finds another sensor is lost: one trace has watts of one kind."""
        one = sidecar(Power(meter="nvml"))
        one.start(attempt)
        driver("FAKE_NVML_MISSING", "nvmlDeviceGetSamples")
        os.kill(one.pid, signal.SIGKILL)
        assert re.search("measures nvml_instant .* after a restart", why_lost(one))
