"""Why ranks of an attempt failed: each rank leaves a file of its own, as rank 0 alone writes the record.

points/<point_id>/attempt-<n>/logs/error-rank<k>.json
"""

import contextlib
from dataclasses import asdict, dataclass

from wattflow.errors import DamagedError
from wattflow.store.files import read_json, write_json
from wattflow.store.layout import AttemptDir


@dataclass(frozen=True)
class RankError:
    """Why one rank failed, in one line, and when."""

    rank: int
    time_ns: int
    interrupted: bool  # by a signal
    error: str
    reason: str | None = None  # a code of columns.REASONS, where there is one
    traceback: str = ""


def write(attempt: AttemptDir, error: RankError) -> None:
    """Write a rank's error."""
    write_json(attempt.error_path(error.rank), asdict(error))


def first(attempt: AttemptDir) -> RankError | None:
    """The error that came first on any rank, signals last, as they may follow from it; null where there is none."""
    errors = []
    for path in attempt.logs.glob("error-rank*.json"):
        with contextlib.suppress(DamagedError, KeyError, TypeError, ValueError):
            fields = read_json(path)
            errors.append(
                RankError(
                    rank=int(fields["rank"]),
                    time_ns=int(fields["time_ns"]),
                    interrupted=bool(fields["interrupted"]),
                    error=str(fields["error"]),
                    reason=fields.get("reason"),
                )
            )
    return min(errors, key=lambda error: (error.interrupted, error.time_ns), default=None)
