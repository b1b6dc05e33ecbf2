"""A rank that hangs is ended, says so, and leaves its stacks; one that moves is left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wattflow.collect.attempt import collect_attempt
from wattflow.collect.row import Choices
from wattflow.store.layout import SweepDir
from wattflow.submit import status

HANGS = """
import sys, threading, time
from wattflow.run import watchdog
from wattflow.run.place import Progress
watchdog.GRACE_S = 0.5
def waits_for_ever():
    {hang}
with watchdog.Watchdog({limit_s}, lambda last: print("ended in", last.phase, flush=True)) as watch:
    {before}
    waits_for_ever()
print("not reached")
"""


def run(limit_s, hang, before="pass"):
    """A process that hangs under a watchdog."""
    program = HANGS.format(limit_s=limit_s, hang=hang, before=before)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.parametrize(
    "hang",
    ["time.sleep(1000)", "threading.Event().wait()", "while True: pass"],
    ids=["in C", "at a lock", "in Python"],
)
def test_what_does_not_move_is_ended_with_its_stacks(hang):
    """The call that hangs stands in stderr, `end` was called once, and the exit code is 1."""
    done = run(0.5, hang)
    assert (done.returncode, done.stdout) == (1, "ended in its start\n")
    assert "in waits_for_ever" in done.stderr


@pytest.mark.parametrize("end", ["1 / 0", "time.sleep(1000)"])
def test_the_process_ends_even_if_its_end_cannot_be_recorded(end):
    """A disk that went away must not keep a rank that hangs alive."""
    before = "watchdog.END_S = 0.3"
    program = HANGS.format(limit_s=0.2, hang="time.sleep(1000)", before=before)
    program = program.replace('print("ended in", last.phase, flush=True)', end)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 1


def test_what_moves_is_left_alone():
    """Ten steps of a fifth of the limit pass, and after the end of the watch anything may take its time."""
    moves = "[(watch.moved(Progress('batches')), time.sleep(0.4)) for _ in range(10)]"
    done = run(2.0, "watch.stop(); time.sleep(3); sys.exit(7)", before=moves)
    assert (done.returncode, done.stdout) == (7, "")
    assert "waits_for_ever" not in done.stderr


def test_a_limit_of_zero_watches_nothing():
    """sweep.hang_s=0 leaves a run to Slurm's time limit."""
    done = run(0, "time.sleep(1); sys.exit(7)")
    assert (done.returncode, done.stderr) == (7, "")


def test_a_hung_point_fails_with_its_reason_and_the_stacks_of_all_ranks(tmp_path: Path):
    """Both ranks sleep in their first batch: the record says hung and in which phase, each log has its rank's stack."""
    words = [
        *("engine=synthetic", "engine.synthetic_ms_per_token=600000", "engine.device=cpu"),
        *(
            "power.meter=simulated",
            "power.idle_s=0",
            "n_prompts=2",
            "batch_size=2",
            "max_gen_len=2",
        ),
        *("shards=2", "sweep.hang_s=20", "sweep=stuck"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "wattflow.cli", "run", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr
    sweep = SweepDir(tmp_path / "sweeps" / "stuck")
    (row,) = status.states(sweep)
    assert row.state == "failed"
    assert row.reason is not None
    assert row.reason.startswith("hung: nothing moved for 20 s in warmup")
    (attempt,) = sweep.attempts(row.point_id)
    record = attempt.read_record()
    assert record is not None
    assert record["reason"] == "hung"
    for rank in (0, 1):
        log = (attempt.logs / f"rank{rank}.log").read_text()
        assert "in prefill" in log
        error = json.loads(attempt.error_path(rank).read_text())
        assert "hung: nothing moved" in error["error"]
        assert "HungError" in error["traceback"]
    collected = collect_attempt(attempt, Choices.of(record["choices"]))
    assert collected.point["reasons"] == ["hung"]
    assert collected.point["unfinished_s"] > 19.0  # it hung for 20 s, which somebody pays


@pytest.mark.slow
def test_a_rank_that_waits_in_a_collective_for_a_frozen_one_is_ended(tmp_path: Path):
    """Rank 1 is frozen in the middle of generation: rank 0's stack shows the collective in which it waited in vain."""
    words = [
        *("model=tiny", "engine.device=cpu", "precision=fp32", "power.meter=simulated"),
        *("power.idle_s=0", "n_prompts=64", "batch_size=1", "dataset.template=plain"),
        *("max_gen_len=64", "shards=2", "sweep.hang_s=30", "sweep=frozen"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "wattflow.cli", "run", *words],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "batches" in line:
                break
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        (frozen,) = [
            pid for pid in children if '"rank": 1' in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        os.kill(int(frozen), signal.SIGSTOP)
        running.communicate(timeout=600)
        assert running.returncode == 1
    sweep = SweepDir(tmp_path / "sweeps" / "frozen")
    (row,) = status.states(sweep)
    assert "hung: nothing moved for 30 s in batches" in str(row.reason)
    (attempt,) = sweep.attempts(row.point_id)
    assert "all_reduce" in (attempt.logs / "rank0.log").read_text()
