"""Collect a sweep: every attempt on disk becomes rows of results/.

    wattflow collect sweeps/NAME

    points/<id>/attempt-<n>/  ->  results/points.parquet  phases.parquet  traces/<first two hex digits>.parquet

It may run at any time and as often as one likes: each file is replaced whole, and what was collected before and has
not changed is taken over, as are the rows of attempts whose files `wattflow prune` removed. A damaged file costs its
attempt alone.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from wattflow import __version__
from wattflow.collect.attempt import collect_attempt
from wattflow.collect.copies import CopiedAttempts, Traces, copy_traces
from wattflow.collect.description import Description
from wattflow.collect.row import AttemptRows, Choices, Figures, attempt_rows
from wattflow.errors import DamagedError
from wattflow.store.columns import PHASE, POINT, SERVED
from wattflow.store.files import changed_ns, has_own, own_files
from wattflow.store.grid import GridPoint
from wattflow.store.kept import Kept, Key, keys_of, of_attempts
from wattflow.store.layout import AttemptDir, SweepDir, served_path
from wattflow.store.lock import folder_lock
from wattflow.store.packing import pack_or_say
from wattflow.store.schema import SCHEMA_VERSION
from wattflow.store.tables import read_table, write_table

_log = logging.getLogger(__name__)
# what may be put right later without a change of the record
_LOOK_AGAIN = {"files_gone", "damaged", "missing_trace", "missing_node", "missing_rank"}
_ENDED = ("finished", "failed", "interrupted")
_ABOUT = {"schema_version": str(SCHEMA_VERSION), "wattflow": __version__}
_AT_ONCE = 1000  # points whose rows are Python's objects
_PATIENCE_S = 300.0  # how long a collection waits for another one's end


@dataclass(frozen=True)
class Summary:
    """What one collection found."""

    points: int
    attempts: int
    counting: int  # points with a valid finished attempt
    new: int  # attempts read by this collection, the others were taken over
    gone: int  # attempts whose files were removed since an earlier collection, whose rows are kept
    pruned: int  # attempts whose files `prune` removed, whose rows are kept
    unfinished: int  # points that could run and have no finished attempt
    damaged: list[str]  # one line an attempt: its name and the fault
    seconds: float


def collect_task(sweep_path: str) -> Summary:
    """Collect a sweep, as its own Slurm job does, print how much was found, and pack what tasks did not come to."""
    sweep = SweepDir.existing(sweep_path)
    summary = collect(sweep)
    print(f"collected {summary.attempts} attempts, {summary.counting} points count", flush=True)
    points = sweep.points()
    if points and points[0].config().cluster.pack:
        pack_or_say(sweep, [point.point_id for point in points])
    return summary


def collect(sweep: SweepDir) -> Summary:
    """Write the sweep's results/ anew and return what was found.

    DamagedError where grid.parquet or the rows of pruned attempts cannot be read; RefusedError where another process
    collects the sweep for minutes.
    """
    began = time.monotonic()
    sweep.make()
    with collect_lock(sweep):
        return _collect(sweep, began)


def files_gone(sweep: SweepDir) -> set[Key]:
    """Return the attempts whose figures can no longer be made anew: files that they were made of were removed."""
    return _Before.read(sweep).gone(sweep, {point.point_id for point in sweep.points()})


def collect_lock(sweep: SweepDir) -> AbstractContextManager[object]:
    """Hold within what lets one process at a time replace a sweep's results, or remove what they are made of."""
    return folder_lock(sweep.path / "collecting", "collecting", _PATIENCE_S)


def _collect(sweep: SweepDir, began: float) -> Summary:
    grid = sweep.points()
    known = {point.point_id for point in grid}
    before = _Before.read(sweep)
    kept = _of_points(Kept.read(sweep), known)
    gone = before.gone(sweep, known) - kept.keys
    points, phases = [before.marked(gone), kept.points], [kept.phases]
    requests: list[pa.Table] = []
    copied = _Copied(sweep)
    same: set[Key] = set()
    for start in range(0, len(grid), _AT_ONCE):
        some = grid[start : start + _AT_ONCE]
        new, held = _collect_some(sweep, some, before, gone | kept.keys, copied)
        points.append(pa.Table.from_pylist([one.point for one in new], POINT))
        phases.append(pa.Table.from_pylist([row for one in new for row in one.phases], PHASE))
        requests.append(pa.Table.from_pylist([row for one in new for row in one.requests], SERVED))
        same |= held
    copied.copy()
    table = _counted(_merged(before.points, same, points, grid, POINT))
    rows = _merged(before.phases, same | gone, phases, grid, PHASE)
    served = _merged(before.requests, same | gone | kept.keys, requests, grid, SERVED)
    if served.num_rows or served_path(sweep).is_file():
        write_table(served_path(sweep), served.replace_schema_metadata(_ABOUT))
    write_table(sweep.phases_path, rows.replace_schema_metadata(_ABOUT))
    write_table(sweep.points_path, table.replace_schema_metadata(_ABOUT))
    first = grid[:1]
    if any(Choices.of(point.choices()).config.cluster.group_readable for point in first):
        sweep.open_to_group()
    if any(Choices.of(point.choices()).config.sweep.block == "neighbours" for point in first):
        _keep_controls(sweep)
    taken = Taken(len(same), len(gone), len(kept.keys))
    return _summary(table, len(grid), taken, time.monotonic() - began)


def _of_points(kept: Kept, points: Collection[str]) -> Kept:
    """Return the kept rows of these points."""
    keys = {key for key in kept.keys if key[0] in points}
    return Kept(of_attempts(kept.points, keys), of_attempts(kept.phases, keys))


def _keep_controls(sweep: SweepDir) -> None:
    """Write what neighbours change, by the points of a control; a compute node may lack what that needs."""
    try:
        from wattflow.analysis import control_runs, controls  # noqa: PLC0415 - they load polars
        from wattflow.analysis.sweep import open_sweep  # noqa: PLC0415 - as above
    except ImportError as error:
        _log.warning(
            "what neighbours change is not written, collect elsewhere once more: %s", error
        )
        return
    controls.keep(sweep, control_runs.measure(sweep.name, open_sweep(sweep.path).points))


@dataclass(frozen=True)
class _Before:
    """What an earlier collection wrote; empty tables where there is none. Another version's has no stamps."""

    points: pa.Table
    phases: pa.Table
    requests: pa.Table
    stamps: dict[Key, int]  # the record's time of change, of attempts whose rows may be taken over

    @classmethod
    def read(cls, sweep: SweepDir) -> "_Before":
        """Return the earlier results, or nothing where they are absent or damaged."""
        try:
            points = read_table(sweep.points_path, POINT)
            phases = read_table(sweep.phases_path, PHASE)
        except (FileNotFoundError, DamagedError):
            points, phases = POINT.empty_table(), PHASE.empty_table()
        try:
            requests, lost = read_table(served_path(sweep), SERVED), False
        except (FileNotFoundError, DamagedError):
            requests, lost = SERVED.empty_table(), points["load_requests"].null_count < len(points)
        about = points.schema.metadata or {}
        ours = about.get(b"wattflow") == __version__.encode() and points.schema.names == POINT.names
        known = points if ours and not lost else POINT.empty_table()
        columns = ["point_id", "attempt", "status", "reasons", "record_stamp_ns"]
        stamps = {
            (row["point_id"], row["attempt"]): row["record_stamp_ns"]
            for row in known.select(columns).to_pylist()
            if row["status"] in _ENDED
            and row["record_stamp_ns"] is not None
            and not _LOOK_AGAIN & set(row["reasons"])
        }
        return cls(points, phases, requests, stamps)

    def gone(self, sweep: SweepDir, points: set[str]) -> set[Key]:
        """Return the attempts at some points that ended, and whose files were removed since: rows are all there is.

        An attempt needs its record, and the files that its figures were made of: those of each device with a phase.
        """
        names = ["point_id", "attempt", "status", "reasons", "energy_j", "unfinished_energy_j"]
        columns = self.points.select(names)
        sources = self._sources(sweep)
        found: set[Key] = set()
        for row in columns.to_pylist():
            if row["status"] not in _ENDED or row["point_id"] not in points:
                continue
            empty = row["status"] == "finished" and row["energy_j"] is None
            if empty or "damaged" in row["reasons"]:  # nothing that would be lost
                continue
            key = row["point_id"], row["attempt"]
            attempt = sweep.attempt(*key)
            needed = {attempt.record_path, *sources[key]}
            if "in_pieces" in row["reasons"]:  # earlier attempts' files too
                needed.update(*(sources[key[0], number] for number in range(1, key[1])))
            lost = row["unfinished_energy_j"] is not None and not own_files(
                attempt.path / "traces", "*"
            )
            if lost or not all(has_own(one) for one in needed):
                found.add(key)
        return found

    def _sources(self, sweep: SweepDir) -> dict[Key, set[Path]]:
        """Return the files that the phases of each attempt were made of."""
        owners = ["point_id", "attempt", "node", "gpu_uuid"]
        devices = self.phases.select(owners).group_by(owners).aggregate([])
        measured = sweep.measured_path.is_file()  # a measured command has no requests
        found: dict[Key, set[Path]] = defaultdict(set)
        for row in devices.to_pylist():
            attempt = sweep.attempt(row["point_id"], row["attempt"])
            files = found[attempt.point_id, attempt.number]
            files |= {
                attempt.spans_path(row["node"]),
                attempt.trace_path(row["node"], row["gpu_uuid"]),
            }
            if not measured:
                files.add(attempt.requests_path)
        return found

    def marked(self, gone: set[Key]) -> pa.Table:
        """Return the earlier rows of attempts whose files are gone, which say so."""
        rows = of_attempts(self.points, gone).to_pylist()
        marked = [
            row | {"reasons": list(dict.fromkeys([*row["reasons"], "files_gone"]))} for row in rows
        ]
        return pa.Table.from_pylist(marked, POINT)


class _Copied:
    """The copies of traces in files by the first two digits of points, which spares inodes, and what they lack."""

    def __init__(self, sweep: SweepDir) -> None:
        self._sweep = sweep
        self._held: dict[Path, CopiedAttempts] = {}
        self._new: dict[Path, dict[Key, Traces]] = defaultdict(dict)

    def holds(self, key: Key) -> bool:
        """Return whether the copies of an attempt's traces were made."""
        return key in self._of(self._sweep.copies_path(key[0])).attempts

    def add(self, one: AttemptRows) -> None:
        """Note an attempt's traces to be copied, if it has a record."""
        if one.point["record_stamp_ns"]:
            point_id = one.point["point_id"]
            path = self._sweep.copies_path(point_id)
            self._new[path][point_id, one.point["attempt"]] = one.traces

    def copy(self) -> None:
        """Copy what was added."""
        for path, new in self._new.items():
            copy_traces(path, self._of(path), new)

    def _of(self, path: Path) -> CopiedAttempts:
        if path not in self._held:
            self._held[path] = CopiedAttempts.read(path)
        return self._held[path]


def _collect_some(
    sweep: SweepDir, points: list[GridPoint], before: _Before, taken: set[Key], copied: _Copied
) -> tuple[list[AttemptRows], set[Key]]:
    """Return the rows of what is new at some points, and the attempts whose earlier rows still hold.

    Attempts that are `taken` have rows already.
    """
    new: list[AttemptRows] = []
    same: set[Key] = set()
    taken_points = {point_id for point_id, _ in taken}
    for point in points:
        there = sweep.attempts(point.point_id)
        attempts = [one for one in there if (one.point_id, one.number) not in taken]
        kept = [one for one in attempts if _is_kept(one, copied, before)]
        same |= {(one.point_id, one.number) for one in kept}
        if attempts and len(kept) == len(attempts):
            continue
        choices = Choices.of(point.choices())
        if not attempts and point.point_id not in taken_points:
            new.append(untried(point, choices))
        for attempt in attempts:
            if attempt not in kept:
                new.append(collect_attempt(attempt, choices))
                copied.add(new[-1])
                reasons = new[-1].point["reasons"]
                _log.debug("point %s, attempt %d: %s", point.point_id, attempt.number, reasons)
    return new, same


def _is_kept(attempt: AttemptDir, copied: _Copied, before: _Before) -> bool:
    """Return whether the earlier rows of an attempt still hold: its record has not changed since."""
    key = (attempt.point_id, attempt.number)
    if key not in before.stamps or not copied.holds(key):
        return False
    try:
        return changed_ns(attempt.record_path) == before.stamps[key]
    except FileNotFoundError:
        return False


def untried(point: GridPoint, choices: Choices) -> AttemptRows:
    """Return the row of a point without an attempt: infeasible, or waiting."""
    state = "waiting" if point.reason is None else "infeasible"
    about = Description(state, error=point.reason)
    return attempt_rows(point.point_id, None, choices, Figures(about, [state]))


def _merged(
    before: pa.Table,
    same: Collection[Key],
    tables: list[pa.Table],
    grid: list[GridPoint],
    schema: pa.Schema,
) -> pa.Table:
    """Return the rows of the attempts that stay the same of an earlier table, and those of other tables.

    They are in the grid's order, then by attempt; rows of one attempt keep theirs.
    """
    position = {point.point_id: i for i, point in enumerate(grid)}
    plain = [
        one.select(schema.names).cast(schema).replace_schema_metadata(None)
        for one in (before, *tables)
    ]
    whole = pa.concat_tables(plain)
    order = sorted(
        (position[point_id], attempt or 0, row)
        for row, (point_id, attempt) in enumerate(keys_of(whole))
        if row >= before.num_rows or (point_id, attempt) in same
    )
    rows = [row for _, _, row in order]
    # a copy of all takes as much again
    return whole if rows == list(range(whole.num_rows)) else whole.take(pa.array(rows, pa.int64()))


def newest_valid(rows: Iterable[tuple[str, bool]]) -> set[int]:
    """Return the places of the rows that count, of (point_id, valid) in order of attempts: the last valid ones."""
    newest = {point_id: i for i, (point_id, valid) in enumerate(rows) if valid}
    return set(newest.values())


def _counted(table: pa.Table) -> pa.Table:
    """Return the table with `counts` true on the newest valid attempt of each point, and on no other."""
    points, valid = table["point_id"].to_pylist(), table["valid"].to_pylist()
    rows = newest_valid(zip(points, valid, strict=True))
    counts = pa.array([i in rows for i in range(table.num_rows)], pa.bool_())
    at = table.schema.get_field_index("counts")
    return table.set_column(at, POINT.field("counts"), counts)


@dataclass(frozen=True)
class Taken:
    """How many attempts were not read anew."""

    same: int  # their records have not changed
    gone: int  # their files were removed, by whomever
    pruned: int  # their files were removed by `prune`


def _summary(table: pa.Table, points: int, taken: Taken, seconds: float) -> Summary:
    rows = table.select(["point_id", "attempt", "status", "counts", "reasons", "error"]).to_pylist()
    tried = [row for row in rows if row["attempt"] is not None]
    finished = {row["point_id"] for row in tried if row["status"] == "finished"}
    infeasible = sum(row["status"] == "infeasible" for row in rows)
    return Summary(
        points=points,
        attempts=len(tried),
        counting=sum(row["counts"] for row in rows),
        new=len(tried) - taken.same - taken.gone - taken.pruned,
        gone=taken.gone,
        pruned=taken.pruned,
        unfinished=points - infeasible - len(finished),
        damaged=[
            f"point {row['point_id']}, attempt {row['attempt']}: {row['error']}"
            for row in tried
            if "damaged" in row["reasons"]
        ],
        seconds=seconds,
    )
