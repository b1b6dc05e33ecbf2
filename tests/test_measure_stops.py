"""A command that stood still has joules and seconds of a wait: its row says so and counts in no figure."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from measurements import MEASURE, SEVENTY_W, call, python, row
from processes import until

from wattflow.measure.stops import Stops
from wattflow.publish.verify import verify

UNTIL_DONE = """
import os, pathlib, time
pathlib.Path("pid").write_text(str(os.getpid()))
while not pathlib.Path("done").exists():
    time.sleep(0.02)
"""


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("who", ["the command", "measure"])
def test_time_in_which_the_command_stood_still_is_withheld(where, who):
    """By SIGSTOP to the command, or SIGTSTP to `measure` as of Ctrl-Z where the command has no terminal."""
    process = subprocess.Popen([*MEASURE, "--out", "out", *SEVENTY_W, "--", *python(UNTIL_DONE)])
    until(lambda: Path("pid").exists() and Path("pid").read_text())
    pid = int(Path("pid").read_text())
    target, signum = (
        (pid, signal.SIGSTOP) if who == "the command" else (process.pid, signal.SIGTSTP)
    )
    os.kill(target, signum)
    until(lambda: state(pid) == "T" and state(target) == "T")
    stood_s = time.monotonic()
    time.sleep(0.3)  # how long it stands is what is measured
    os.kill(target, signal.SIGCONT)
    until(lambda: state(pid) != "T")
    stood_s = time.monotonic() - stood_s
    Path("done").touch()
    assert process.wait(timeout=60) == 0
    found = row()
    assert "stopped" in found["reasons"]
    assert not found["valid"]
    assert found["duration_s"] > 0.3  # withheld, not mended
    assert verify(Path("out")).verified


def test_a_command_that_never_stood_still_has_no_such_reason(where):
    """Also where somebody continues it that was never stopped, as Slurm does before it ends a job."""
    code = UNTIL_DONE.replace('"pid"', '"pid2"')
    process = subprocess.Popen([*MEASURE, "--out", "out", *SEVENTY_W, "--", *python(code)])
    until(lambda: Path("pid2").exists() and Path("pid2").read_text())
    process.send_signal(signal.SIGCONT)
    Path("done").touch()
    assert process.wait(timeout=60) == 0
    assert "stopped" not in row()["reasons"]


def test_a_stop_outside_the_window_is_none_of_its(where):
    """While the program loads, before its first span that counts: the window is whole."""
    code = """
import os, pathlib, signal, time, wattflow
with wattflow.span("load"):
    pid = os.getpid()
    if os.fork() == 0:
        while pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.02)
        os.kill(pid, signal.SIGCONT)
        os._exit(0)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2)  # the load goes on for longer than `measure` takes to hear of it
with wattflow.span("decode"):
    time.sleep(0.3)  # the window's length
"""
    call(*python(code))
    assert "stopped" not in row()["reasons"]


def test_intervals_close_themselves_and_stand_in_order():
    """One that was begun twice is one; one that never ended does so when it is asked for."""
    stops = Stops()
    stops.begin()
    stops.begin()
    stops.end()
    stops.end()
    stops.begin()
    (first, second) = stops.intervals()
    assert first[0] <= first[1] <= second[0] <= second[1]
