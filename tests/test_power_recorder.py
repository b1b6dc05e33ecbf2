"""The recorder of a calibration, with a fake driver and fake loads."""

import sys
from pathlib import Path

import pytest
from fake_nvml import curves

from wattflow.errors import RefusedError
from wattflow.power.calibration_steps import Step
from wattflow.power.recorder import Recorder

pytest_plugins = ("fake_nvml.fixtures",)

FAKE_LOAD = [sys.executable, str(Path(__file__).with_name("fake_load.py"))]
STEPS = [
    Step("bare", 0.1, "silent", context=False),
    Step("slow", 1.0, "dense", half_s=0.2),
    Step("costs-on", 0.1, "alone", load_on=True),
]


@pytest.fixture
def board(fake_driver, tmp_path, monkeypatch):
    """Two idle GPUs at 100 W, and 400 W while their load is on."""
    for name in ("LOAD", "STATE"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"FAKE_NVML_{name}", str(tmp_path / name))
    monkeypatch.setenv("FAKE_NVML_CURVE", "load:100:300")
    monkeypatch.setenv("FAKE_NVML_PROCESSES", "0")


@pytest.mark.fake_nvml
class TestFakeDriver:
    """A node with two GPUs."""

    def test_steps_are_recorded_with_the_edges_of_their_loads(self, board):
        """No edges without a load; pairs of on and off on each GPU; one pair for a load that is on all the time."""
        said = []
        with Recorder(FAKE_LOAD) as recorder:
            records = recorder.record(STEPS, said.append)
            assert recorder.load_name == "a fake"
            assert recorder.strangers() == {}
            rows = recorder.rows(curves.uuid("n1", 0))
            assert recorder.failed(curves.uuid("n1", 0)) == {}
        assert said == ["1/3 bare, 0 s", "2/3 slow, 1 s", "3/3 costs-on, 0 s"]
        assert [record["name"] for record in records] == ["bare", "slow", "costs-on"]
        assert records[0]["edges_ns"] == {}
        for record in records[1:]:
            assert set(record["edges_ns"]) == {curves.uuid("n1", index) for index in range(2)}
            assert all(len(edges) % 2 == 0 and edges for edges in record["edges_ns"].values())
        assert {row[0] for row in rows} == {0, 1, 2}
        assert {row[5] for row in rows if row[1] == "nvml_instant"} <= {100.0, 400.0}

    @pytest.mark.parametrize(("processes", "reason"), [("2", "is in use"), ("", "no GPU")])
    def test_a_gpu_that_is_not_free_is_refused(self, board, monkeypatch, processes, reason):
        """Others' processes would be taken for the load; and without a GPU there is nothing to calibrate."""
        if processes:
            monkeypatch.setenv("FAKE_NVML_PROCESSES", processes)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(RefusedError, match=reason):
            Recorder(FAKE_LOAD)
