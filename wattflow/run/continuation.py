"""What interrupted attempts leave for the next one to continue from, where sweep.on_interrupt=continue.

    attempt-1   batches 0 to 4, interrupted    pieces: [attempt 1: 5 batches from 0]
    attempt-2   batches 5 to 9, finished       pieces: [attempt 1: 5 batches from 0, attempt 2: 5 batches from 5]

Each partial attempt has its own spans, traces and requests, closed when it was interrupted. They are checked before
anything is built on them: a batch is finished when all ranks have spans of its prefill and decode and all its
requests lie on disk.
"""

import contextlib
from dataclasses import dataclass

import pyarrow as pa

from wattflow.errors import DamagedError
from wattflow.store.files import has_own
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import REQUEST, SPAN, PartialAttempt, Record
from wattflow.store.tables import read_table


@dataclass(frozen=True)
class Continuation:
    """The partial attempts that a new attempt may continue from, and the hash of the prompts that they answered."""

    partial_attempts: list[PartialAttempt]
    prompts_sha256: str | None

    @property
    def batches(self) -> int:
        """How many batches need not be run again."""
        return sum(part["batches"] for part in self.partial_attempts)


ANEW = Continuation([], None)


def find(sweep: SweepDir, point_id: str, after: int = 0) -> Continuation:
    """Return what is whole of the newest interrupted attempt above `after`; nothing where there is none."""
    attempts = {attempt.number: attempt for attempt in sweep.attempts(point_id)}
    for number in sorted(attempts, reverse=True):
        if number <= after:
            break
        # a foreign value or a record without a field, whatever it leads to, leaves nothing to continue from
        with contextlib.suppress(AttributeError, LookupError, OSError, TypeError, ValueError):
            record = attempts[number].read_record()
            if record is not None and record["status"] == "interrupted" and record.get("pieces"):
                sha256 = record["prompts"]["sha256"]
                return Continuation(_whole(attempts, record["pieces"], sha256), sha256)
    return ANEW


def _whole(
    attempts: dict[int, AttemptDir], recorded: list[PartialAttempt], sha256: str
) -> list[PartialAttempt]:
    """The first partial attempts of a record, up to the first batch that is not whole on disk."""
    out: list[PartialAttempt] = []
    first = 0
    for part in recorded:
        attempt = attempts.get(part["attempt"])
        record = None if attempt is None else attempt.read_record()
        if attempt is None or record is None or part["first_batch"] != first:
            break
        if record["prompts"]["sha256"] != sha256:
            break
        batches = min(part["batches"], finished_batches(attempt, record, first))
        if batches < 1:
            break
        out.append({"attempt": part["attempt"], "first_batch": first, "batches": batches})
        first += batches
        if batches < part["batches"]:
            break
    return out


def finished_batches(attempt: AttemptDir, record: Record, first: int) -> int:
    """Count the batches from `first` on that all ranks finished; 0 where a file of them is missing or damaged."""
    ranks = {(rank["rank"], rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}
    try:
        spans = [read_table(attempt.spans_path(node), SPAN) for node in {rank[1] for rank in ranks}]
        answered = set(read_table(attempt.requests_path, REQUEST)["batch"].to_pylist())
    except (FileNotFoundError, DamagedError):
        return 0
    if not ranks or not all(has_own(attempt.trace_path(node, uuid)) for _, node, uuid in ranks):
        return 0
    table = pa.concat_tables([table.select(SPAN.names) for table in spans])
    names = ("rank", "phase", "batch")
    timed = set(zip(*(table[name].to_pylist() for name in names), strict=True))
    count = 0
    while first + count in answered and all(
        (rank, phase, first + count) in timed
        for rank, _, _ in ranks
        for phase in ("prefill", "decode")
    ):
        count += 1
    return count


def batches_kept(sweep: SweepDir, point_id: str) -> int:
    """Count the finished batches in the newest record of a point that lists partial attempts."""
    for attempt in reversed(sweep.attempts(point_id)):
        with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
            record = attempt.read_record()
            if record is not None and record.get("pieces"):
                return sum(part["batches"] for part in record["pieces"])
    return 0
