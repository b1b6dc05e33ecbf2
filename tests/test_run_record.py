"""The record of an attempt while it runs, and how it is closed."""

import pytest

from wattflow.errors import EngineError
from wattflow.run.record import RecordWriter, close_failed
from wattflow.run.signals import InterruptedRunError
from wattflow.run.watchdog import HungError
from wattflow.store import rank_errors
from wattflow.store.layout import AttemptDir
from wattflow.store.rank_errors import RankError

JOB = {"job_id": "7", "array_task": "0", "restart": 0, "cluster": "local"}


@pytest.fixture
def attempt(tmp_path):
    made = AttemptDir(tmp_path / "attempt-2", "0123456789ab", 2)
    made.path.mkdir()
    made.make_folders()
    return made


def writer(attempt, rank=0):
    return RecordWriter(attempt, rank, {"seed": 1}, JOB)


def test_a_record_runs_then_finishes_with_what_was_added(attempt):
    """On disk from the start as running; what is added appears with the end."""
    record = writer(attempt)
    begun = attempt.read_record()
    assert (begun["status"], begun["choices"], begun["job"]) == ("running", {"seed": 1}, JOB)
    record.add(reference_rounds=3)
    assert "reference_rounds" not in attempt.read_record()
    record.finish()
    ended = attempt.read_record()
    assert (ended["status"], ended["reference_rounds"]) == ("finished", 3)
    assert ended["ended_ns"] >= ended["started_ns"] == begun["started_ns"]


def test_partial_attempts_are_listed_in_their_order(attempt):
    """Attempt 1 had batches 0 to 3; this one, the second, adds two from 4 on."""
    record = writer(attempt)
    first = {"attempt": 1, "first_batch": 0, "batches": 4}
    record.add(pieces=[first])
    record.add_partial_attempt(4, 2)
    record.finish()
    second = {"attempt": 2, "first_batch": 4, "batches": 2}
    assert attempt.read_record()["pieces"] == [first, second]


def test_only_rank_0_writes_the_record(attempt):
    """Another rank leaves its error alone, with its traceback."""
    record = writer(attempt, rank=1)
    record.finish()
    record.fail(EngineError("no memory"))
    assert attempt.read_record() is None
    assert "EngineError: no memory" in attempt.error_path(1).read_text()


@pytest.mark.parametrize(
    ("error", "status", "sentence", "reason"),
    [
        (EngineError("no\n  memory"), "failed", "no memory", None),
        (KeyError("weights"), "failed", "KeyError: 'weights'", None),
        (ValueError(), "failed", "ValueError: ValueError", None),
        (HungError("hung: nothing moved"), "failed", "hung: nothing moved", "hung"),
        (InterruptedRunError("preempted"), "interrupted", "preempted", None),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt: KeyboardInterrupt", None),
    ],
)
def test_a_failure_is_one_line_with_its_status(attempt, error, status, sentence, reason):
    """Our own messages stand as they are, others with their type; signals interrupt, all else fails."""
    writer(attempt).fail(error)
    record = attempt.read_record()
    assert (record["status"], record["error"], record["reason"]) == (status, sentence, reason)
    assert record["error_rank"] == 0


def test_the_cause_is_another_rank_s_error_if_that_came_first(attempt):
    """Rank 1 ran out of memory, and rank 0 then met a closed connection: the record names rank 1."""
    rank_errors.write(attempt, RankError(1, 5, interrupted=False, error="out of memory"))
    writer(attempt).fail(RuntimeError("connection closed"))
    record = attempt.read_record()
    assert (record["error"], record["error_rank"]) == ("out of memory", 1)


def test_without_any_rank_s_error_the_record_says_what_is_known(attempt):
    """No rank could write: the caller's sentence stands there, and no rank."""
    writer(attempt)
    close_failed(attempt, attempt.read_record(), "ranks ended: rank 0 with 1")
    record = attempt.read_record()
    assert (record["status"], record["error"]) == ("failed", "ranks ended: rank 0 with 1")
    assert record["error_rank"] is None
