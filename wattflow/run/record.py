"""The record of an attempt while it runs, and how a failed attempt is closed."""

import contextlib
import time
import traceback
from pathlib import Path
from typing import Unpack

from wattflow.errors import DamagedError, WattflowError
from wattflow.run.provenance import commit, versions
from wattflow.run.signals import InterruptedRunError
from wattflow.run.watchdog import HungError
from wattflow.store import rank_errors
from wattflow.store.files import read_end, write_atomic
from wattflow.store.layout import AttemptDir
from wattflow.store.rank_errors import RankError
from wattflow.store.schema import SCHEMA_VERSION, JobInfo, PartialAttempt, Record

_LOG_BYTES = 2**26  # of a rank's log, which a library may fill without end
_CUT = b"... (the end alone was kept)\n"


def new_record(attempt: AttemptDir, choices: dict[str, object], job: JobInfo) -> Record:
    """The record of an attempt that starts now."""
    return {
        "schema_version": SCHEMA_VERSION,
        "point_id": attempt.point_id,
        "attempt": attempt.number,
        "status": "running",
        "error": None,
        "error_rank": None,
        "started_ns": time.time_ns(),
        "ended_ns": None,
        "choices": choices,
        "job": job,
    }


class RecordWriter:
    """Holds what becomes known of an attempt; rank 0 alone writes it, at the start and at the end."""

    def __init__(
        self, attempt: AttemptDir, rank: int, choices: dict[str, object], job: JobInfo
    ) -> None:
        """Write the record as running."""
        self._attempt, self._rank = attempt, rank
        self._record = new_record(attempt, choices, job)
        self.add(versions=versions(), git=commit())
        if rank == 0:
            attempt.write_record(self._record)

    def add(self, **fields: Unpack[Record]) -> None:
        """Set fields; they are written when the attempt ends."""
        self._record.update(fields)

    def add_partial_attempt(self, first_batch: int, batches: int) -> None:
        """List this attempt's own batches after those of the attempts that it continues."""
        own: PartialAttempt = {
            "attempt": self._attempt.number,
            "first_batch": first_batch,
            "batches": batches,
        }
        self.add(pieces=[*self._record.get("pieces", []), own])

    def finish(self) -> None:
        """Write the record as finished: the last write of an attempt."""
        self.add(status="finished", ended_ns=time.time_ns())
        if self._rank == 0:
            self._attempt.write_record(self._record)

    def fail(self, error: BaseException) -> None:
        """Write why this rank failed; rank 0 also closes the record, with the first error of any rank."""
        rank_errors.write(self._attempt, _rank_error(self._rank, error))
        if self._rank == 0:
            close_failed(self._attempt, self._record)


def _rank_error(rank: int, error: BaseException) -> RankError:
    return RankError(
        rank=rank,
        time_ns=time.time_ns(),
        interrupted=isinstance(error, InterruptedRunError | KeyboardInterrupt),
        error=_sentence(error),
        reason="hung" if isinstance(error, HungError) else None,
        traceback="".join(traceback.format_exception(error)),
    )


def _sentence(error: BaseException) -> str:
    """One line for a person: our own messages as they are, others with their type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, WattflowError) else f"{type(error).__name__}: {text}"


def close_failed(attempt: AttemptDir, record: Record, otherwise: str = "") -> None:
    """Write a record as failed or interrupted, with the first error of any rank, else with `otherwise`."""
    cause = rank_errors.first(attempt)
    attempt.write_record(
        {
            **record,
            "status": "interrupted" if cause is not None and cause.interrupted else "failed",
            "error": otherwise if cause is None else cause.error,
            "error_rank": None if cause is None else cause.rank,
            "reason": None if cause is None else cause.reason,
            "ended_ns": time.time_ns(),
        }
    )


def close_left(attempt: AttemptDir, spool: Path, otherwise: str) -> None:
    """Close the attempt of ranks that are gone: keep the logs in their spool, and write the record as failed.

    With the first error of any rank, else with `otherwise`. Of a very long log the end is kept; what is a link or no
    regular file is no log of a rank's. DamagedError where the record that is there is none of ours: it stays.
    """
    for log in spool.glob("rank*.log"):
        with contextlib.suppress(DamagedError, OSError):
            end, cut = read_end(log, _LOG_BYTES)
            write_atomic(attempt.logs / log.name, _CUT + end if cut else end, durable=False)
    record = attempt.read_record() or {
        "schema_version": SCHEMA_VERSION,
        "point_id": attempt.point_id,
        "attempt": attempt.number,
    }
    close_failed(attempt, record, otherwise)
