"""The common sidecar is kept alive, and ends once its traces are closed."""

import contextlib
import os
import signal

import numpy as np
import pytest
from fake_nvml import curves
from processes import gone, until
from traces import new_attempt, power_of, samples

from wattflow.errors import PowerError
from wattflow.power.common_sidecar import CommonSidecar

pytest_plugins = ("fake_nvml.fixtures", "common_sidecars")
pytestmark = pytest.mark.fake_nvml

BOARDS = [curves.uuid("n1", k) for k in range(2)]


def test_after_a_kill_all_points_go_on_with_the_next_one(connect, tmp_path):
    """kill -9 under two points: both have a restart, and a gap only where the buffer did not reach back."""
    points = [connect(board) for board in BOARDS]
    attempts = [new_attempt(tmp_path, k) for k in (1, 2)]
    for point, attempt in zip(points, attempts, strict=True):
        point.start(attempt)
    killed = points[0].pid
    os.kill(killed, signal.SIGKILL)
    until(lambda: all(point.restarts == 1 for point in points))
    until(lambda: samples(tmp_path, 1))
    infos = [point.stop() for point in points]
    assert [info["sidecar_restarts"] for info in infos] == [1, 1]
    for attempt, board in zip(attempts, BOARDS, strict=True):
        stamps, _, gaps = power_of(attempt, board)
        assert len(stamps) > 10
        missing = np.flatnonzero(np.diff(stamps) > 40_000_000) + 1
        assert [*missing] == [*np.flatnonzero(gaps)]


def test_its_end_closes_what_is_open_and_leaves_no_process(nvml_path, connect, common, tmp_path):
    """A task that ends while a point is recorded: the trace lies closed in the attempt."""
    attempt = new_attempt(tmp_path)
    point = connect(BOARDS[0])
    point.start(attempt)
    pid = point.pid
    common.__exit__()
    assert attempt.trace_path("n1", BOARDS[0]).exists()
    until(lambda: gone(pid))


def test_a_node_without_gpus_has_none(nvml_path, tmp_path, monkeypatch):
    """The reason is the sidecar's own, and nothing is left running."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with CommonSidecar("n1", tmp_path / "spool", 2, os.getpid()) as one:

        def lost():
            with contextlib.suppress(PowerError):
                one.check()
                return False
            return True

        until(lost)
        with pytest.raises(PowerError, match="no GPU is visible"):
            one.check()


def test_one_that_listens_or_may_still_come_to_is_no_fault(nvml_path, common):
    """Points start beside it and wait for it themselves."""
    common.check()
    until(lambda: common._listens)
    common.check()
