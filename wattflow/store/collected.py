"""What results/ and pruned/ have of attempts: their files may be gone, their numbers and figures are not given up."""

import functools
from dataclasses import dataclass
from pathlib import Path

from wattflow.errors import DamagedError
from wattflow.store.tables import read_columns

Collected = dict[str, list["CollectedAttempt"]]  # by point_id, in the order of attempts


@dataclass(frozen=True)
class CollectedAttempt:
    """One attempt with a row in the results."""

    number: int
    finished: bool


def read_collected(path: Path) -> Collected:
    """Read which attempts have a row in a points.parquet; none where there is no such file or it is damaged."""
    try:
        about = path.stat()
    except OSError:
        return {}
    return _read(path, about.st_mtime_ns, about.st_ino)


@functools.lru_cache(maxsize=4)  # two files are asked for each point of a sweep
def _read(path: Path, _changed_ns: int, _inode: int) -> Collected:
    found: Collected = {}
    try:
        table = read_columns(path, ["point_id", "attempt", "status"])
        columns = [table[name].to_pylist() for name in table.column_names]
    except (OSError, DamagedError, ValueError):
        return {}
    for point_id, number, status in zip(*columns, strict=True):
        if isinstance(number, int) and isinstance(point_id, str):
            one = CollectedAttempt(number, status == "finished")
            found.setdefault(point_id, []).append(one)
    return found
