"""Which boards of a node some processes are on, by NVML alone."""

import os

import pytest
from fake_nvml import curves

from wattflow.power.in_use import Board, boards, used_by

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.mark.fake_nvml
def test_each_board_has_its_own_processes(fake_driver, monkeypatch, tmp_path):
    """Two GPUs: one process is on both, another on the second alone; what CUDA shows this process is no matter."""
    (tmp_path / "pids").write_text(f"{os.getpid()}\n77@1\n")
    monkeypatch.setenv("FAKE_NVML_GPUS", "2")
    monkeypatch.setenv("FAKE_NVML_PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    first, second = (curves.uuid("n1", index) for index in range(2))
    there = boards()
    assert there == [Board(first, [os.getpid()]), Board(second, sorted([os.getpid(), 77]))]
    assert used_by(there, lambda pid: pid == 77) == [second]
    assert used_by(there, lambda _: None) == []


def test_without_nvml_nothing_is_known(monkeypatch):
    """No library of the driver's: null, and no error."""
    from wattflow.errors import PowerError
    from wattflow.power import in_use

    def absent(*_):
        raise PowerError("nvmlInit: Library Not Found.")

    monkeypatch.setattr(in_use, "call", absent)
    assert boards() is None
