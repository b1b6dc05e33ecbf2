"""The directory that `wattflow measure` leaves, and how the other verbs read it."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from measurements import THREE_LINES, call, python, row
from processes import until

from wattflow import open_sweep
from wattflow.config.identity import command_id
from wattflow.errors import DamagedError, RefusedError
from wattflow.store.layout import SweepDir


def test_a_folder_takes_attempts_at_one_command_alone(where):
    """The newest valid attempt counts, all are kept; another command and somebody else's folder are refused."""
    call("sleep", "0.1")
    call("sleep", "0.1")
    attempts = open_sweep(Path("out")).attempts
    assert attempts["attempt"].to_list() == [1, 2]
    assert attempts["counts"].to_list() == [False, True]
    assert "another command" in call("sleep", "0.2", code=2).stderr
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    assert "holds no measurement" in call("true", code=2, out="mine").stderr


def test_a_command_that_writes_nothing_leaves_few_private_files_and_an_empty_spool(
    where, monkeypatch
):
    """A row by samples on both sides; mode 0600, at most three files more than nodes and GPUs."""
    (where / "spool").mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(where / "spool"))
    assert call("true").stdout == ""
    assert row()["energy_j"] >= 0
    files = [path for path in Path("out").glob("points/*/attempt-1/**/*") if path.is_file()]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert len(files) <= 3 + 1 + 1
    assert list((where / "spool").iterdir()) == []


def report():
    """The page of the measurement in ./out."""
    words = [sys.executable, "-m", "wattflow.cli", "report", "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()).read_text()


def test_the_report_draws_a_measurement(where):
    """One point without a model or batch: the page is written, with the command above its timeline."""
    call(*python(THREE_LINES))
    assert "Power of point" in report()


def test_the_report_shows_a_command_as_it_was_typed(where):
    """Its words stand as a shell takes them; unknown tokens are no 0, and one dot is no figure."""
    call("sleep", "0.3", "0.1")
    page = report()
    assert "<td>sleep 0.3 0.1</td>" in page
    assert "<b>-</b><span>output tokens</span>" in page
    assert "<h2>By choice</h2>" not in page


def test_status_knows_a_measurement_and_resume_refuses_it(where):
    """It is done; no submit, resume or run can send a command as if it were a grid's point."""
    call("true")
    words = [sys.executable, "-m", "wattflow.cli"]
    done = subprocess.run([*words, "status", "out"], capture_output=True, text=True, check=True)
    assert "1 done" in done.stdout
    done = subprocess.run([*words, "resume", "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds a measurement" in done.stderr
    with pytest.raises(RefusedError):
        SweepDir(Path("out")).refuse_measurement()


def test_a_part_that_is_none_of_ours_is_damaged(where):
    """A foreign JSON among the parts costs the attempt, by name."""
    call("true")
    (attempt,) = SweepDir(Path("out").absolute()).attempts(command_id(["true"]))
    (attempt.path / "timings" / "x.json").write_text("[1]")
    with pytest.raises(DamagedError, match="none of ours"):
        attempt.read_record()


def test_a_daemon_outlives_the_measurement_and_is_counted(where):
    """A command that daemonises ends with its first process; what lives on is named, and is not killed."""
    call(
        *python(
            "import os, sys, time\n"
            "if os.fork():\n"
            " while not os.path.exists('daemon.pid'): time.sleep(0.01)\n"
            " sys.exit(0)\n"
            "os.setsid()\n"
            "if os.fork(): os._exit(0)\n"
            "os.closerange(0, 256)\n"
            "open('daemon.pid', 'w').write(str(os.getpid()))\n"
            "time.sleep(600)\n"
        )
    )
    pid = int(until(lambda: Path("daemon.pid").exists() and Path("daemon.pid").read_text()))
    os.kill(pid, signal.SIGKILL)
    assert "still_running" in row()["reasons"]
    assert row()["valid"]


def test_a_line_that_is_no_span_is_a_remark(where):
    """A program that writes what it likes to the file keeps its joules, and the row says so."""
    call("sh", "-c", 'echo nonsense >>"$WATTFLOW_SPANS"')
    assert "bad_spans" in row()["reasons"]
    assert row()["valid"]
