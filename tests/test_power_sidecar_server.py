"""One sidecar for several points at once: each has its own boards' traces and nobody else's."""

import time

import pytest
from fake_nvml import curves
from traces import joules, new_attempt, power_of

from wattflow.errors import PowerError

pytest_plugins = ("fake_nvml.fixtures", "common_sidecars")
pytestmark = pytest.mark.fake_nvml

BOARDS = [curves.uuid("n1", k) for k in range(2)]


def test_two_points_at_once_have_the_joules_of_their_own_boards(connect, tmp_path):
    """Windows that overlap, one process, a trace each whose joules are its board's curve to 0.1 %."""
    first, second = connect(BOARDS[0]), connect(BOARDS[1])
    attempts = [new_attempt(tmp_path, 1), new_attempt(tmp_path, 2)]
    assert [d["uuid"] for d in first.start(attempts[0])["devices"]] == [BOARDS[0]]
    first.mark()
    second.start(attempts[1])
    assert first.pid == second.pid
    second.mark()
    start_ns = time.time_ns()
    time.sleep(0.5)  # the length of a window
    end_ns = time.time_ns()
    second.mark()
    first.mark()
    infos = [first.stop(), second.stop()]
    for attempt, board in zip(attempts, BOARDS, strict=True):
        (path,) = (attempt.path / "traces").iterdir()
        assert board in path.name
        stamps, watts, gaps = power_of(attempt, board)
        truth = curves.curve(board).joules(start_ns, end_ns)
        assert joules(stamps, watts, start_ns, end_ns) == pytest.approx(truth, rel=1e-3)
        assert not any(gaps)
    assert [info["beside"]["slots"] for info in infos] == [2, 2]
    assert infos[1]["beside"]["neighbours"] == 1.0
    assert 0.0 < infos[0]["beside"]["neighbours"] <= 1.0


def test_the_next_point_of_a_slot_waits_until_its_boards_are_free(connect, tmp_path):
    """The point before is gone without a word: its trace is closed, then the board is the next one's."""
    first, second = connect(BOARDS[0]), connect(BOARDS[0])
    attempt = new_attempt(tmp_path, 1)
    first.start(attempt)
    first.close()
    second.start(new_attempt(tmp_path, 2))
    assert attempt.trace_path("n1", BOARDS[0]).exists()
    assert second.stop()["beside"]["neighbours"] is None  # no window was marked


def test_a_board_of_another_task_is_refused(connect, tmp_path):
    """What the task does not see it does not measure; the reason names the boards that it has."""
    other = curves.uuid("n1", 7)
    with pytest.raises(PowerError, match=rf"{other} is none of this task's GPUs .*{min(BOARDS)}"):
        connect(other).start(new_attempt(tmp_path))


def test_a_fault_of_one_point_leaves_its_neighbour_alone(connect, tmp_path):
    """One point's sidecar cannot write where its attempt was; the other one closes as if nothing were."""
    first, second = connect(BOARDS[0]), connect(BOARDS[1])
    lost, kept = new_attempt(tmp_path, 1), new_attempt(tmp_path, 2)
    first.start(lost)
    second.start(kept)
    for path in (lost.path / "traces", lost.path / "logs", lost.path / "timings", lost.path):
        for file in path.iterdir():
            if file.is_file():
                file.unlink()
        path.rmdir()
    with pytest.raises(PowerError):
        first.stop()
    second.stop()
    assert kept.trace_path("n1", BOARDS[1]).exists()
