"""Why ranks of an attempt failed: each rank leaves a file of its own, as rank 0 alone writes the record.

points/<point_id>/attempt-<n>/logs/error-rank<k>.json
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from wattflow.errors import DamagedError
from wattflow.store.files import own_files, read_json, write_json
from wattflow.store.layout import AttemptDir

FILES = "error-rank*.json"


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


def read(path: Path) -> RankError | None:
    """Return the error in a rank's file; null where it is none of ours."""
    try:
        fields = read_json(path)
        return RankError(
            rank=int(fields["rank"]),
            time_ns=int(fields["time_ns"]),
            interrupted=bool(fields["interrupted"]),
            error=str(fields["error"]),
            reason=fields.get("reason"),
            traceback=str(fields.get("traceback", "")),
        )
    except (DamagedError, AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None


def first(attempt: AttemptDir) -> RankError | None:
    """The error that came first on any rank, signals last, as they may follow from it; null where there is none."""
    errors = [error for path in own_files(attempt.logs, FILES) if (error := read(path)) is not None]
    return min(errors, key=lambda error: (error.interrupted, error.time_ns), default=None)
