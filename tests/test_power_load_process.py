"""The process that loads a GPU during a calibration, with a fake load."""

import sys
import time
from pathlib import Path

import pytest

from wattflow.errors import PowerError, RefusedError
from wattflow.power.load_process import Load, load_command

FAKE_LOAD = [sys.executable, str(Path(__file__).with_name("fake_load.py"))]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A fake load of one GPU; its edges go to a file."""
    monkeypatch.setenv("FAKE_NVML_LOAD", str(tmp_path))
    one = Load(FAKE_LOAD, "GPU-1", tmp_path / "load.log")
    yield one
    one.close()


def test_a_command_is_cut_as_a_shell_cuts_it():
    """Quotes hold an argument together; the program must be there."""
    assert load_command("sh -c 'sleep 1'") == ["sh", "-c", "sleep 1"]
    for text, reason in (
        ("", "no command"),
        ("no-such-program x", "no command"),
        ("sh '", "No closing"),
    ):
        with pytest.raises(RefusedError, match=reason):
            load_command(text)


def test_it_reports_when_it_switched(load):
    """Two edges in the past are over at once, and come back."""
    assert load.ready() == "a fake"
    now_ns = time.time_ns()
    load.switch([now_ns - 20, now_ns - 10])
    assert load.switched() == [now_ns - 20, now_ns - 10]


def test_one_that_dies_is_named_with_its_last_line(tmp_path, monkeypatch):
    """The GPU, what was waited for, and the last line of its log."""
    monkeypatch.setenv("FAKE_NVML_LOAD", str(tmp_path))
    monkeypatch.setenv("FAKE_LOAD_DIES", "1")
    one = Load(FAKE_LOAD, "GPU-1", tmp_path / "load.log")
    one.ready()
    one.switch([1, 2])
    with pytest.raises(PowerError, match=r"load of GPU-1 .* its edges; .*: the fake load dies"):
        one.switched()
    one.close()
