"""One sidecar process: commands go in, replies come out."""

import os
from pathlib import Path

import pytest
from processes import gone
from traces import SIMULATED, new_attempt

from wattflow.config.choices import Control, Power
from wattflow.power.sidecar_process import SidecarProcess, child_environment

ROOT = Path(__file__).parent.parent


@pytest.fixture
def start(tmp_path):
    """A function that starts a sidecar; none is left after the test."""
    processes = []

    def started(power=SIMULATED):
        log = tmp_path / "sidecar.log"
        processes.append(SidecarProcess("n1", tmp_path / "spool", power, Control(), log))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait()


def test_a_command_is_answered(start, tmp_path):
    """An attempt that is opened is ready once a sample lies on disk; closed, its energy comes before its end."""
    process = start()
    attempt = new_attempt(tmp_path)
    replies = process.replies()
    process.send({"open": str(attempt.path), "point_id": "0123456789ab", "attempt": 1})
    assert next(replies)["ready"]["meter"] == "simulated"
    process.send({"close": True})
    rest = [next(replies)]
    while "closed" not in rest[-1]:
        rest.append(next(replies))
    assert [list(reply) for reply in rest[-2:]] == [["so_far"], ["closed"]]


def test_one_that_records_nothing_ends_with_its_input(start):
    """At the end of its stdin it ends by itself."""
    process = start()
    assert not process.is_dead
    process.end_idle()
    assert process.is_dead
    assert gone(process.pid)


def test_a_fault_is_a_reply(start):
    """A meter that does not exist is reported, with exit code 1."""
    process = start(Power(meter="wattmeter"))
    (reply,) = process.replies()
    assert "power.meter=wattmeter: not one of" in reply["error"]
    assert process.wait() == 1


def test_to_a_dead_process_nothing_is_sent(start):
    """What dies in between raises nothing where a command was on its way."""
    process = start()
    process.kill()
    assert process.wait() == -9
    process.send({"mark": True})


def test_a_child_finds_the_same_wattflow(monkeypatch):
    """From a checkout its folder comes first on the path, before what was there."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert child_environment()["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]
