"""The sidecar as a process: what it records, and what becomes of it when things die."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from processes import gone, until
from traces import SIMULATED, new_attempt, power_of, samples

from wattflow.config.choices import Control
from wattflow.errors import PowerError
from wattflow.store.schema import TRACE
from wattflow.store.tables import read_stream, read_table

pytest_plugins = ("sidecars",)

ROOT = Path(__file__).parent.parent


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
