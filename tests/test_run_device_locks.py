"""One user of wattflow at a time on each device of this machine."""

import json
import os
import tempfile
import threading

import pytest
from local_runs import SMALL, call
from processes import until

from wattflow.config.choices import Config, Power
from wattflow.errors import PowerError
from wattflow.run.device_locks import device_locks, visible_devices


@pytest.mark.parametrize(
    ("before", "count", "inside"),
    [(None, 2, "0,1"), ("3,5,7", 2, "3,5"), ("GPU-a,GPU-b", 1, "GPU-a"), ("4", 3, "4")],
)
def test_only_the_first_devices_are_visible(before, count, inside, monkeypatch):
    """Of those that were visible before; afterwards all of them are again."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with visible_devices(count):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == inside
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_a_second_one_waits_for_the_lock(tmp_path, monkeypatch):
    """It says so before it waits, and goes on once the first one has let go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config, events = Config(power=Power(meter="simulated")), []

    def second():
        with device_locks(config, lambda: events.append("waits")):
            events.append("runs")

    with device_locks(config, lambda: events.append("never")):
        thread = threading.Thread(target=second)
        thread.start()
        until(lambda: events)
        assert events == ["waits"]
        events.append("released")
    thread.join()
    assert events == ["waits", "released", "runs"]


@pytest.mark.skipif(os.getuid() != 0, reason="giving a folder away needs root")
def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    """Its owner could hold the locks for ever."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"wattflow-locks-{os.getuid()}"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with (
        pytest.raises(PowerError, match="belongs to somebody else"),
        device_locks(Config(power=Power(meter="simulated")), lambda: None),
    ):
        pass


def test_two_sweeps_on_one_machine_take_turns(tmp_path):
    """The second sweep says that it waits, and its window starts after the first one's end."""
    words = [*SMALL, "engine=synthetic", "engine.synthetic_ms_per_token=100", "sweep.repeats=1"]
    call("submit", *words, "sweep=first", cwd=tmp_path)
    until(lambda: list(tmp_path.glob("sweeps/first/points/*/attempt-1/record.json")))
    call("submit", *words, "sweep=second", "--wait", cwd=tmp_path)
    (log,) = tmp_path.glob("sweeps/second/submitit/*/local_0_log.out")
    assert "waiting for another sweep" in log.read_text()
    records = [
        json.loads(next(tmp_path.glob(f"sweeps/{name}/points/*/attempt-1/record.json")).read_text())
        for name in ("first", "second")
    ]
    assert records[0]["ended_ns"] < records[1]["started_ns"]
