"""Fixtures: a node's common sidecar over two fake GPUs, and its points' ends of it."""

import os

import pytest

from wattflow.config.choices import Power
from wattflow.power.common_sidecar import CommonSidecar
from wattflow.power.sidecar_client import Sidecar
from wattflow.power.sidecar_connection import Common

NVML = Power(meter="nvml", host=False)


@pytest.fixture
def common(nvml_path, tmp_path, monkeypatch):
    """The sidecar of two slots, a GPU each."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "2")
    monkeypatch.setenv("FAKE_NVML_PROCESSES", "0")
    with CommonSidecar("n1", tmp_path / "spool", 2, os.getpid()) as one:
        yield one


@pytest.fixture
def connect(common, tmp_path):
    """A function that returns the sidecar as a point on some boards sees it; all are closed after the test."""
    made = []

    def point(*boards):
        spool = tmp_path / "spool"
        made.append(Sidecar(NVML, "n1", spool, common=Common(str(spool), list(boards))))
        return made[-1]

    yield point
    for one in made:
        one.close()
