"""A living attempt is known by its heartbeat, so that no two processes run one point at a time."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import at_once, until

from wattflow import process
from wattflow.store import heartbeat
from wattflow.store.heartbeat import Beat, Heartbeat
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import SCHEMA_VERSION

POINT = "0123456789ab"


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    made = SweepDir(tmp_path / "demo")
    made.make()
    return made


def say(attempt: AttemptDir, status: str) -> None:
    attempt.write_record(
        {
            "schema_version": SCHEMA_VERSION,
            "point_id": POINT,
            "attempt": attempt.number,
            "status": status,  # type: ignore[typeddict-item]
        }
    )


def left_by(sweep: SweepDir, by: str | None, status: str | None = "running") -> AttemptDir:
    """An attempt that some process left, with a heartbeat that nobody renews."""
    attempt = sweep.claim_attempt(POINT)
    if by is not None:
        (attempt.path / "heartbeat.json").write_text(json.dumps({"by": by, "beat": 3}))
    if status is not None:
        say(attempt, status)
    return attempt


def test_a_heartbeat_holds_progress_and_the_energy_so_far(sweep, monkeypatch):
    """Batch 1 of 4 as last reported, and 70 J and 35 W on two nodes as they are read when it beats."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    heart = heartbeat.claim(sweep, POINT)
    assert heart is not None
    with heart:
        heart.report_progress("batches", 1, 4)
        heart.report_energy(lambda: {"energy_j": 70.0, "power_w": 35.0, "source": "rapl"}, 2)
        until(lambda: (now := heartbeat.read(heart.attempt)) and now.energy_j)
        beat = heartbeat.read(heart.attempt)
    assert beat == Beat(beat.by, beat.beat, "batches", 1, 4, 70.0, 35.0, "rapl", None, None, 2)
    assert process.lives(beat.by)


def test_a_field_of_another_type_is_null(sweep):
    """A foreign file's words and lists are no numbers; without a process's name it is no heartbeat at all."""
    attempt = left_by(sweep, None)
    path = attempt.path / "heartbeat.json"
    path.write_text(json.dumps({"by": "local:n:1:1", "phase": 3, "done": "1", "energy_j": [70]}))
    assert heartbeat.read(attempt) == Beat("local:n:1:1", *[None] * 10)
    path.write_text(json.dumps({"by": 7, "phase": "idle"}))
    assert heartbeat.read(attempt) is None


def test_the_first_claim_has_the_point(sweep):
    """Attempt 1, with a heartbeat that names this process and goes away when it ends."""
    heart = heartbeat.claim(sweep, POINT)
    assert heart is not None
    with heart:
        beat = heartbeat.read(heart.attempt)
        assert beat is not None
        assert process.lives(beat.by)
    assert heart.attempt.number == 1
    assert heartbeat.read(heart.attempt) is None


def test_who_comes_while_an_attempt_runs_steps_aside_and_leaves_nothing(sweep):
    """The living process keeps its point; the newcomer's folder is gone."""
    with Heartbeat(sweep, sweep.claim_attempt(POINT)):
        say(sweep.attempts(POINT)[0], "running")
        assert heartbeat.claim(sweep, POINT) is None
    assert [attempt.number for attempt in sweep.attempts(POINT)] == [1]


def test_an_attempt_whose_process_died_on_this_machine_is_in_nobodys_way(sweep):
    """Its pid lives no more, so the next claim has the point at once."""
    machine = process.job_id(os.getpid()).split(":")[1]
    left_by(sweep, f"local:{machine}:999999999:1")
    began = time.monotonic()
    heart = heartbeat.claim(sweep, POINT)
    assert heart is not None
    heart.stop()
    assert heart.attempt.number == 2
    assert time.monotonic() - began < heartbeat.SILENT_S


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted"])
def test_a_closed_attempt_is_in_nobodys_way(status, sweep):
    """Its record says that it ended, whatever its heartbeat says."""
    left_by(sweep, "local:elsewhere:1:1", status)
    heart = heartbeat.claim(sweep, POINT)
    assert heart is not None
    heart.stop()


def test_an_attempt_of_another_machine_counts_as_alive_when_its_heartbeat_moves(sweep, monkeypatch):
    """Clocks are not compared: the newcomer watches for a change."""
    attempt = left_by(sweep, "local:elsewhere:1:1")
    path = attempt.path / "heartbeat.json"
    beat = json.dumps({"by": "local:elsewhere:1:1", "beat": 4})
    timer = threading.Timer(1.5, path.write_text, [beat])
    timer.start()
    assert heartbeat.claim(sweep, POINT) is None
    timer.join()


def test_an_attempt_of_another_machine_counts_as_gone_when_its_heartbeat_stands_still(
    sweep, monkeypatch
):
    """After SILENT_S, here cut to 2 s, the newcomer has the point."""
    monkeypatch.setattr(heartbeat, "SILENT_S", 2.0)
    left_by(sweep, "local:elsewhere:1:1")
    heart = heartbeat.claim(sweep, POINT)
    assert heart is not None
    heart.stop()


def test_a_process_that_was_frozen_too_long_is_ended_by_its_own_heartbeat(sweep):
    """A later attempt has a record: this one asks its own process to end, which closes it as interrupted."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from wattflow.store import heartbeat\n"
        "from wattflow.store.layout import SweepDir\n"
        "heartbeat.BEAT_S = 0.5\n"
        "claimed = heartbeat.claim(SweepDir(Path(sys.argv[1])), sys.argv[2])\n"
        "print(claimed.attempt.number, flush=True)\n"
        "time.sleep(600)\n"
    )
    words = [sys.executable, "-c", code, str(sweep.path), POINT]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as frozen:
        assert frozen.stdout is not None
        assert frozen.stdout.readline() == "1\n"
        say(sweep.claim_attempt(POINT), "running")
        assert frozen.wait(timeout=600) == -15


def test_of_two_that_claim_at_once_one_runs(sweep):
    """Four processes claim one point at one moment: one has it until all have spoken, three step aside."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from wattflow.store import heartbeat\n"
        "from wattflow.store.layout import SweepDir\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "claimed = heartbeat.claim(SweepDir(Path(sys.argv[1])), sys.argv[2])\n"
        "print('aside' if claimed is None else 'runs', flush=True)\n"
        "sys.stdin.read()\n"
    )
    said = at_once(4, code, str(sweep.path), POINT)
    assert sorted(said) == ["aside", "aside", "aside", "runs"]
