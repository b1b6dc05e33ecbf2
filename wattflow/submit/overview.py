"""All sweeps below a folder, a line each: their state, what varies, what they took.

wattflow list
wattflow list /scratch/me/sweeps
"""

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from wattflow.analysis.axes import columns_of, moving
from wattflow.analysis.means import of_sum
from wattflow.errors import RefusedError, WattflowError
from wattflow.nullable import known_sum
from wattflow.store import notes
from wattflow.store.columns import CHOICE_KEYS
from wattflow.store.grid import GridPoint
from wattflow.store.layout import SweepDir
from wattflow.submit import status

_DEEPEST = 6  # folders below the one that is named
_OF_A_SWEEP = ("sweep.yaml", "journal.jsonl", "points")  # what lies beside a grid
# what files of others may raise: a listing names the sweep and goes on
_BROKEN: tuple[type[Exception], ...] = (WattflowError, OSError, pa.ArrowException, AttributeError)
_BROKEN += (LookupError, TypeError, ValueError, ArithmeticError, struct.error, RecursionError)


@dataclass(frozen=True)
class Entry:
    """One sweep; of a damaged one `problem` says why the rest is null."""

    sweep: str  # its path, from the folder that was named
    state: str  # damaged, or the first of unknown, running, waiting, failed and done that some point is in
    points: int | None = None
    counts: dict[str, int] | None = None  # points by state
    varies: list[str] | None = None  # keys
    energy_kwh: float | None = None  # of finished attempts, known ones alone
    energy_expanded_u_kwh: float | None = None  # k = 2; null where one's is not known
    simulated: bool = False
    when: datetime | None = None  # of the last submit
    problem: str | None = None
    tags: tuple[str, ...] = ()
    note: str | None = None  # the newest


def overview(folder: Path) -> list[Entry]:
    """Return the sweeps below a folder, which may itself be one, by their paths; RefusedError where there is none."""
    found = [_entry(folder, path) for path in _sweeps(folder)]
    if not found:
        raise RefusedError(
            f"{folder}: no sweep, and none in it. Name a sweep, or a folder of them such as ./sweeps."
        )
    return found


def _sweeps(folder: Path, deep: int = 0) -> Iterator[Path]:
    """Yield the folders of sweeps, whole or not, in order; links are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if deep == 0:
            raise RefusedError(f"{folder}: cannot be listed ({error.strerror}).") from error
        return
    names = {entry.name for entry in entries}
    if "grid.parquet" in names or len(names.intersection(_OF_A_SWEEP)) > 1:
        yield folder
        return
    for entry in entries:
        if (
            deep < _DEEPEST
            and not entry.name.startswith(".")
            and entry.is_dir(follow_symlinks=False)
        ):
            yield from _sweeps(Path(entry.path), deep + 1)


def _entry(folder: Path, path: Path) -> Entry:
    name = path.name if path == folder else str(path.relative_to(folder))
    sweep = SweepDir(path)
    try:
        points = sweep.points()
        rows = status.states(sweep)
        said = notes.read(sweep)
        return Entry(
            name,
            state_of(status.counts(rows)),
            len(rows),
            {str(state): n for state, n in status.counts(rows).items()},
            _varies(points),
            _kwh(known_sum(row.energy_j for row in rows)),
            _kwh(of_sum(row.energy_expanded_u_j for row in rows if row.energy_j is not None)),
            any(row.simulated for row in rows),
            datetime.fromtimestamp(sweep.grid_path.stat().st_mtime, UTC).astimezone(),
            tags=said.tags,
            note=said.notes[-1] if said.notes else None,
        )
    except FileNotFoundError as error:
        return Entry(name, "damaged", problem=f"no {Path(str(error.filename)).name}")
    except _BROKEN as error:
        return Entry(name, "damaged", problem=str(error) or type(error).__name__)


def state_of(counts: dict[Any, int]) -> str:
    """Return one word for all points: what one has to look at first; points that cannot run are no failure."""
    for state, there in (
        ("unknown", ("unknown",)),
        ("running", ("running",)),
        ("waiting", ("waiting",)),
        ("failed", ("failed", "interrupted")),
        ("untried", ("untried",)),
        ("done", ("done",)),
    ):
        if any(counts.get(name) for name in there):
            return state
    return "infeasible" if counts else "empty"


def _varies(points: Sequence[GridPoint]) -> list[str]:
    """Return the keys that vary; `command` for a measurement."""
    if any(point.command() is not None for point in points[:1]):  # it has one point
        return ["command"]
    columns = columns_of(point.choices() for point in points)
    return [CHOICE_KEYS[name].removesuffix(".name") for name in moving(columns)] if points else []


def _kwh(energy_j: float | None) -> float | None:
    return None if energy_j is None else energy_j / 3.6e6
