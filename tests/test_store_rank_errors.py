"""The errors that ranks leave, and which of them is the cause."""

import pytest

from wattflow.store import rank_errors
from wattflow.store.layout import AttemptDir
from wattflow.store.rank_errors import RankError


@pytest.fixture
def attempt(tmp_path):
    made = AttemptDir(tmp_path / "attempt-1", "0123456789ab", 1)
    made.path.mkdir()
    made.make_folders()
    return made


def test_an_error_is_read_as_it_was_written(attempt):
    """All fields; what is none of ours is no error of a rank."""
    rank_errors.write(attempt, RankError(3, 70, False, "boom", "hung", "Traceback ..."))
    assert rank_errors.first(attempt) == RankError(3, 70, False, "boom", "hung", "Traceback ...")


def test_the_first_that_was_no_signal_is_the_cause(attempt):
    """Rank 0 was interrupted at 10 ns, rank 1 failed at 30 and rank 2 at 20: rank 2's is the cause."""
    for rank, time_ns, interrupted in ((0, 10, True), (1, 30, False), (2, 20, False)):
        rank_errors.write(attempt, RankError(rank, time_ns, interrupted, f"error {rank}"))
    cause = rank_errors.first(attempt)
    assert cause is not None
    assert (cause.rank, cause.error) == (2, "error 2")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rank": "x"}'])
def test_a_damaged_file_is_passed_over(attempt, text):
    """A rank that was killed while it wrote has no error; without any there is no cause."""
    attempt.error_path(1).write_text(text)
    assert rank_errors.first(attempt) is None
    rank_errors.write(attempt, RankError(0, 5, True, "ended"))
    cause = rank_errors.first(attempt)
    assert cause is not None
    assert cause.rank == 0
