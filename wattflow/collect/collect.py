"""Collect a sweep: every attempt on disk becomes rows of results/.

    wattflow collect sweeps/NAME

    points/<id>/attempt-<n>/  ->  results/points.parquet  phases.parquet  traces/<first two hex digits>.parquet

It may run at any time and as often as one likes: each file is replaced whole, and what was collected before and has
not changed is taken over. A damaged file costs its attempt alone.
"""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow import __version__
from wattflow.collect.attempt import collect_attempt
from wattflow.collect.description import Description
from wattflow.collect.reading import DeviceKey
from wattflow.collect.row import AttemptRows, Choices, Figures, Row, attempt_rows
from wattflow.errors import DamagedError
from wattflow.store.columns import COLLECTED_TRACE, PHASE, POINT
from wattflow.store.grid import GridPoint
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import SCHEMA_VERSION, TRACE
from wattflow.store.tables import GroupedTable, read_schema, read_table, write_table, write_tables

Key = tuple[str, int]  # point_id, attempt

_log = logging.getLogger(__name__)
# what may be put right later without a change of the record
_LOOK_AGAIN = {"files_gone", "damaged", "missing_trace", "missing_node", "missing_rank"}
_ENDED = ("finished", "failed", "interrupted")
_ABOUT = {"schema_version": str(SCHEMA_VERSION), "wattflow": __version__}


@dataclass(frozen=True)
class Summary:
    """What one collection found."""

    points: int
    attempts: int
    counting: int  # points with a valid finished attempt
    new: int  # attempts read by this collection, the others were taken over
    gone: int  # attempts whose files were removed since an earlier collection, whose rows are kept
    unfinished: int  # points that could run and have no finished attempt
    damaged: list[str]  # one line an attempt: its name and the fault
    seconds: float


def collect_task(sweep_path: str) -> Summary:
    """Collect a sweep, as its own Slurm job does, and print how much was found."""
    summary = collect(SweepDir.existing(sweep_path))
    print(f"collected {summary.attempts} attempts, {summary.counting} points count", flush=True)
    return summary


def collect(sweep: SweepDir) -> Summary:
    """Write the sweep's results/ anew and return what was found; DamagedError where grid.parquet cannot be read."""
    began = time.monotonic()
    sweep.make()
    grid = sweep.points()
    before = _Before.read(sweep)
    gone = before.gone(sweep, {point.point_id for point in grid})
    point_rows: list[Row] = before.marked(gone)
    phase_rows: list[Row] = []
    kept: list[Key] = []
    for bucket, points in _buckets(grid).items():
        new, same = _collect_bucket(sweep, bucket, points, before, gone)
        point_rows += [one.point for one in new]
        phase_rows += [row for one in new for row in one.phases]
        kept += same
    table = _in_order(_with_rows(before.points, kept, point_rows, POINT), grid)
    table = _counted(table)
    phases = _in_order(_with_rows(before.phases, [*kept, *gone], phase_rows, PHASE), grid)
    write_table(sweep.phases_path, phases.replace_schema_metadata(_ABOUT))
    write_table(sweep.points_path, table.replace_schema_metadata(_ABOUT))
    first = grid[:1]
    if any(Choices.of(point.choices()).config.cluster.group_readable for point in first):
        sweep.open_to_group()
    return _summary(table, len(grid), (len(kept), len(gone)), time.monotonic() - began)


@dataclass(frozen=True)
class _Before:
    """What an earlier collection wrote; empty tables where there is none. Another version's has no stamps."""

    points: pa.Table
    phases: pa.Table
    stamps: dict[Key, int]  # the record's time of change, of attempts whose rows may be taken over

    @classmethod
    def read(cls, sweep: SweepDir) -> "_Before":
        """Return the earlier results, or nothing where they are absent or damaged."""
        try:
            points = read_table(sweep.points_path, POINT)
            phases = read_table(sweep.phases_path, PHASE)
        except (FileNotFoundError, DamagedError):
            points, phases = POINT.empty_table(), PHASE.empty_table()
        about = points.schema.metadata or {}
        ours = about.get(b"wattflow") == __version__.encode() and points.schema.names == POINT.names
        columns = ["point_id", "attempt", "status", "reasons", "record_stamp_ns"]
        stamps = {
            (row["point_id"], row["attempt"]): row["record_stamp_ns"]
            for row in (points if ours else points.slice(0, 0)).select(columns).to_pylist()
            if row["status"] in _ENDED
            and row["record_stamp_ns"] is not None
            and not _LOOK_AGAIN & set(row["reasons"])
        }
        return cls(points, phases, stamps)

    def gone(self, sweep: SweepDir, points: set[str]) -> set[Key]:
        """Return the attempts at some points that ended, and whose files were removed since: rows are all there is.

        An attempt is made with its folders, so where one of them is not there, somebody removed it.
        """
        names = ["point_id", "attempt", "status", "reasons", "duration_s", "energy_j"]
        columns = self.points.select(names)
        found: set[Key] = set()
        for row in columns.to_pylist():
            if row["status"] not in _ENDED or row["point_id"] not in points:
                continue
            empty = row["status"] == "finished" and row["energy_j"] is None
            if empty or "damaged" in row["reasons"]:  # nothing that would be lost
                continue
            path = sweep.point_path(row["point_id"]) / f"attempt-{row['attempt']}"
            needed = [path / "record.json"]
            # its figures were made of them; those of a point in pieces of other attempts' too
            if row["duration_s"] is not None and "in_pieces" not in row["reasons"]:
                needed += [path / "timings", path / "traces"]
            if not all(one.exists() for one in needed):
                found.add((row["point_id"], row["attempt"]))
        return found

    def marked(self, gone: set[Key]) -> list[Row]:
        """Return the earlier rows of attempts whose files are gone, which say so."""
        rows = _with_rows(self.points, list(gone), [], POINT).to_pylist()
        return [
            row | {"reasons": list(dict.fromkeys([*row["reasons"], "files_gone"]))} for row in rows
        ]


def _buckets(grid: list[GridPoint]) -> dict[str, list[GridPoint]]:
    """Return the points by the first two digits of their ids: a file of traces each, which spares inodes."""
    buckets: dict[str, list[GridPoint]] = defaultdict(list)
    for point in grid:
        buckets[point.point_id[:2]].append(point)
    return buckets


def _collect_bucket(
    sweep: SweepDir, bucket: str, points: list[GridPoint], before: _Before, gone: set[Key]
) -> tuple[list[AttemptRows], list[Key]]:
    """Write the traces of what is new in one bucket; return it, and the attempts whose earlier rows still hold."""
    path = sweep.traces / f"{bucket}.parquet"
    traced = _traced(path)
    new: list[AttemptRows] = []
    same: list[Key] = []
    gone_points = {point_id for point_id, _ in gone}
    for point in points:
        there = sweep.attempts(point.point_id)
        attempts = [one for one in there if (one.point_id, one.number) not in gone]
        kept = [one for one in attempts if _is_kept(one, traced, before)]
        same += [(one.point_id, one.number) for one in kept]
        if attempts and len(kept) == len(attempts):
            continue
        choices = Choices.of(point.choices())
        if not attempts and point.point_id not in gone_points:
            new.append(untried(point, choices))
        for attempt in attempts:
            if attempt not in kept:
                new.append(collect_attempt(attempt, choices))
                reasons = new[-1].point["reasons"]
                _log.debug("point %s, attempt %d: %s", point.point_id, attempt.number, reasons)
    recorded = {
        (one.point["point_id"], one.point["attempt"]): one
        for one in new
        if one.point["record_stamp_ns"]
    }
    if recorded:
        _write_traces(path, traced, recorded)
    return new, same


def _is_kept(attempt: AttemptDir, traced: set[Key], before: _Before) -> bool:
    """Return whether the earlier rows of an attempt still hold: its record has not changed since."""
    key = (attempt.point_id, attempt.number)
    if key not in traced or key not in before.stamps:
        return False
    try:
        return attempt.record_path.stat().st_mtime_ns == before.stamps[key]
    except FileNotFoundError:
        return False


def untried(point: GridPoint, choices: Choices) -> AttemptRows:
    """Return the row of a point without an attempt: infeasible, or waiting."""
    state = "waiting" if point.reason is None else "infeasible"
    about = Description(state, error=point.reason)
    return attempt_rows(point.point_id, None, choices, Figures(about, [state]))


def _traced(path: Path) -> set[Key]:
    """Return the attempts whose traces a file holds; none where it is absent or damaged."""
    try:
        about = read_schema(path).metadata or {}
        return {(point_id, attempt) for point_id, attempt in json.loads(about[b"attempts"])}
    except (OSError, KeyError, TypeError, ValueError):
        return set()


def _write_traces(path: Path, traced: set[Key], new: dict[Key, AttemptRows]) -> None:
    """Replace a file of traces: what it held of other attempts, then the new ones, a row group a device."""
    attempts = sorted(traced | set(new))
    schema = COLLECTED_TRACE.with_metadata(
        {"schema_version": str(SCHEMA_VERSION), "attempts": json.dumps(attempts)}
    )

    def tables() -> Iterator[pa.Table]:
        if traced - set(new):
            old = GroupedTable(path)
            for table in map(old.read, range(len(old))):
                key = (table["point_id"][0].as_py(), table["attempt"][0].as_py())
                if key not in new:
                    yield table.replace_schema_metadata(schema.metadata)
        for key, one in new.items():
            for device, trace_path in one.traces.items():
                trace = read_table(trace_path, TRACE)
                if trace.num_rows:
                    yield _owned(trace, key, device, schema)

    write_tables(path, schema, tables())


def _owned(trace: pa.Table, key: Key, device: DeviceKey, schema: pa.Schema) -> pa.Table:
    """Return a device's trace in order of time, with its attempt and device beside each row."""
    owner = dict(zip(("point_id", "attempt", "node", "gpu_uuid"), (*key, *device), strict=True))
    columns = [pa.repeat(pa.scalar(owner[n], schema.field(n).type), trace.num_rows) for n in owner]
    columns += in_order_of_time(trace).select(TRACE.names).columns
    return pa.Table.from_arrays(columns, schema=schema)


def in_order_of_time(trace: pa.Table) -> pa.Table:
    """Return a trace as it is collected: sorted by its stamps where they do not rise already."""
    rising = bool(np.all(np.diff(trace["time_ns"].to_numpy()) >= 0))
    return trace if rising else trace.sort_by("time_ns")


def _with_rows(table: pa.Table, kept: list[Key], new: list[Row], schema: pa.Schema) -> pa.Table:
    """Return the rows of the kept attempts of an earlier table, then the new ones."""
    keys = set(kept)
    rows = zip(table["point_id"].to_pylist(), table["attempt"].to_pylist(), strict=True)
    held = [i for i, key in enumerate(rows) if key in keys]
    earlier = table.take(pa.array(held, pa.int64())).select(schema.names).cast(schema)
    return pa.concat_tables([earlier, pa.Table.from_pylist(new, schema=schema)])


def _in_order(table: pa.Table, grid: list[GridPoint]) -> pa.Table:
    """Return the rows in the grid's order, then by attempt; rows of one attempt keep theirs."""
    position = {point.point_id: i for i, point in enumerate(grid)}
    at = [position[point_id] for point_id in table["point_id"].to_pylist()]
    order = pa.table({"at": pa.array(at, pa.int64()), "attempt": table["attempt"]})
    order = order.append_column("row", pa.array(range(len(at)), pa.int64()))
    by = [("at", "ascending"), ("attempt", "ascending"), ("row", "ascending")]
    return table.take(pc.sort_indices(order, sort_keys=by))


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


def _summary(table: pa.Table, points: int, taken: tuple[int, int], seconds: float) -> Summary:
    kept, gone = taken
    rows = table.select(["point_id", "attempt", "status", "counts", "reasons", "error"]).to_pylist()
    tried = [row for row in rows if row["attempt"] is not None]
    finished = {row["point_id"] for row in tried if row["status"] == "finished"}
    infeasible = sum(row["status"] == "infeasible" for row in rows)
    return Summary(
        points=points,
        attempts=len(tried),
        counting=sum(row["counts"] for row in rows),
        new=len(tried) - kept - gone,
        gone=gone,
        unfinished=points - infeasible - len(finished),
        damaged=[
            f"point {row['point_id']}, attempt {row['attempt']}: {row['error']}"
            for row in tried
            if "damaged" in row["reasons"]
        ],
        seconds=seconds,
    )
