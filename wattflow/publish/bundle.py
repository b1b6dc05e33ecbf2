"""Pack a collected sweep, or a measurement, into one file by which anyone can check its figures.

    wattflow bundle sweeps/NAME [--out FILE]

    records, timings, traces, grid, overrides, results  ->  pseudonyms  ->  README, METHODS, lock, sha256sums  ->  zip

Nothing is copied as it is: each table and record is written anew with what `publish.records` and `publish.tables` list,
so that logs, answers, journals and whatever else lies in a sweep stay there.
"""

import csv
import io
import json
import os
import platform
import pwd
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from wattflow import process
from wattflow.analysis.axes import choice_columns, shown_axes
from wattflow.errors import DamagedError, RefusedError
from wattflow.publish import archive, records, tables
from wattflow.publish.pseudonyms import Pseudonyms, Surroundings, private_texts
from wattflow.publish.vocabulary import hardware_words
from wattflow.report import methods
from wattflow.report.html import render
from wattflow.run.provenance import versions
from wattflow.store.columns import CHOICE_KEYS, PHASE, POINT
from wattflow.store.files import expanded, has_own, read_json, read_own, write_atomic, write_json
from wattflow.store.grid import GridPoint, write_grid
from wattflow.store.kept import PRUNED, Kept
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import (
    ITERATION,
    REQUEST,
    SCHEMA_VERSION,
    SPAN,
    TRACE,
    Record,
    beside_devices,
)
from wattflow.store.tables import read_table, write_table

Row = dict[str, Any]

BUNDLE_VERSION = 1
ABOUT, CSV, LOCK, SWEEP = "bundle.json", "points.csv", "lock.txt", "sweep"
README, METHODS = "README.md", "METHODS.md"
_SALT = "bundle.salt"
_FINISHED = "finished"
# what reading a file of an attempt that is cut or foreign may raise
_DAMAGE = (DamagedError, AttributeError, LookupError, OSError, TypeError, ValueError)


class Member(NamedTuple):
    """A file of a bundle."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds."""

    path: Path
    members: list[Member]
    left_out: list[str]  # attempts whose files are not whole, a line each
    sha256: str | None  # of the bundle; null in a dry run
    salt: Path | None  # where the salt is kept; null where the sweep cannot be written to


@dataclass(frozen=True)
class About:
    """bundle.json: what was packed, and by what."""

    bundle_version: int
    schema_version: int
    kind: str  # sweep or measurement
    points: int
    attempts: int
    counting: int
    simulated: bool
    results_by: str  # the version of wattflow
    bundled_by: dict[str, str]
    left_out: list[str]


@dataclass(frozen=True)
class _Contents:
    """The tables of a collected sweep, and its choices by point_id."""

    sweep: SweepDir
    measured: bool  # a command under `measure`
    grid: list[GridPoint]
    choices: dict[str, dict[str, Any]]
    points: pa.Table
    phases: pa.Table

    @property
    def pruned(self) -> set[tuple[str, int]]:
        """Attempts whose files `wattflow prune` removed."""
        names = ("point_id", "attempt", "reasons")
        rows = zip(*(self.points[name].to_pylist() for name in names), strict=True)
        return {
            (point_id, number) for point_id, number, reasons in rows if PRUNED in (reasons or ())
        }


def bundle(sweep: SweepDir, out: Path | None, *, dry_run: bool = False) -> Bundle:
    """Write the bundle of a sweep, by default NAME.zip here, and return what is in it; a dry run writes nothing.

    RefusedError where the sweep was not collected, the file exists, or a choice that makes a point_id holds a name.
    """
    path = expanded(out or f"{sweep.name}.zip").absolute()
    if path.exists() and not dry_run:
        raise RefusedError(f"{path}: exists. Name another --out, or remove it.")
    if not path.parent.is_dir():
        raise RefusedError(f"{path.parent}: no such folder.")
    contents = _read(sweep)
    _refuse_older(contents)
    _refuse_pruned(contents)
    around = _surroundings(contents)
    names = Pseudonyms(_salt(sweep, keep=not dry_run), around, measured=contents.measured)
    with tempfile.TemporaryDirectory(prefix="wattflow-bundle-") as name:
        folder = Path(name)
        left_out = _write(contents, folder, names)
        archive.write_sums(folder)
        members = [Member(name, (folder / name).stat().st_size) for name in archive.files(folder)]
        if not dry_run:
            archive.pack(folder, path)
    return Bundle(
        path=path,
        members=members,
        left_out=left_out,
        sha256=None if dry_run else archive.sha256(path),
        salt=found if (found := sweep.path / _SALT).is_file() else None,
    )


def _salt(sweep: SweepDir, *, keep: bool) -> bytes:
    """Return the sweep's own salt, made once and kept in it where possible: the same bundle comes of it again."""
    path = sweep.path / _SALT
    try:
        return bytes.fromhex(read_own(path).decode().strip())
    except (OSError, ValueError):
        salt = secrets.token_bytes(32)
    if keep:
        try:
            write_atomic(path, f"{salt.hex()}\n".encode())
        except OSError:  # somebody else's sweep, or a read-only disk
            return salt
    return salt


# --- reading --------------------------------------------------------------------------------------


def _read(sweep: SweepDir) -> _Contents:
    """Read a sweep's tables; RefusedError where there are no results, or those of other points."""
    try:
        points = read_table(sweep.points_path, POINT)
        phases = read_table(sweep.phases_path, PHASE)
    except FileNotFoundError:
        raise RefusedError(
            f"{sweep.path}: no results yet. Run `wattflow collect {sweep.path}` first."
        ) from None
    grid = sweep.points()
    choices = {point.point_id: point.choices() for point in grid}
    strange = set(points["point_id"].to_pylist()) - set(choices)
    if strange:
        raise RefusedError(
            f"{sweep.points_path}: point {min(strange)} is not in the grid. Run `wattflow collect {sweep.path}`."
        )
    return _Contents(sweep, sweep.measured_path.is_file(), grid, choices, points, phases)


def _attempts(contents: _Contents) -> Iterator[tuple[AttemptDir, Record | DamagedError | None]]:
    """Read the records of all attempts in the grid's order; null without one, and the error of a damaged one."""
    for point_id in contents.choices:
        for attempt in contents.sweep.attempts(point_id):
            try:
                yield attempt, attempt.read_record()
            except DamagedError as error:
                yield attempt, error


def _refuse_older(contents: _Contents) -> None:
    """RefusedError where an attempt ended after the results were made: its bundle would contradict itself."""
    columns = [contents.points[name].to_pylist() for name in ("point_id", "attempt", "status")]
    collected = {
        (point_id, number): status for point_id, number, status in zip(*columns, strict=True)
    }
    for attempt, record in _attempts(contents):
        status = collected.get((attempt.point_id, attempt.number))
        if isinstance(record, DamagedError) or record is None or status == record["status"]:
            continue
        if status is not None or record["status"] != "running":
            raise RefusedError(
                f"point {attempt.point_id}, attempt {attempt.number} is {record['status']}, and "
                f"{f'was {status}' if status else 'unknown'} when the results were made. Run `wattflow collect "
                f"{contents.sweep.path}`, then bundle."
            )


def _refuse_pruned(contents: _Contents) -> None:
    """RefusedError where the traces of an attempt that counts are gone: nobody could check its figures."""
    names = ("point_id", "attempt", "counts")
    rows = zip(*(contents.points[name].to_pylist() for name in names), strict=True)
    pruned = contents.pruned | Kept.read(contents.sweep).keys
    kept = [
        point_id for point_id, number, counts in rows if counts and (point_id, number) in pruned
    ]
    if kept:
        raise RefusedError(
            f"{contents.sweep.path}: the traces of {len(kept)} points that count were pruned, such as {kept[0]}. A "
            "bundle is there for others to recompute its figures, so bundle a sweep before `wattflow prune --traces`. "
            f"`wattflow export {contents.sweep.path}` writes the results alone."
        )


def _surroundings(contents: _Contents) -> Surroundings:
    """Return whose machine and account this is, on which nodes the attempts ran, and what choices withhold."""
    nodes: set[object] = {platform.node(), platform.node().split(".")[0]}
    devices: set[object] = set()
    for _, record in _attempts(contents):
        if isinstance(record, DamagedError) or record is None:
            continue
        try:
            nodes |= {rank["node"] for rank in record.get("ranks", [])}
            nodes |= {info["node"] for info in record.get("nodes", [])}
            devices |= {one["name"] for info in record.get("nodes", []) for one in info["devices"]}
        except _DAMAGE:  # the attempt is left out when it is written
            continue
    return Surroundings(
        users=frozenset({*_callers(), *_owners(contents.sweep.path)}),
        nodes=frozenset(name for name in nodes if isinstance(name, str)),
        private=private_texts(contents.choices.values()),
        hardware=hardware_words(name for name in devices if isinstance(name, str)),
    )


def _callers() -> set[str]:
    """Return the names by which this user may be called here."""
    said = (os.environ.get(name) for name in ("LOGNAME", "USER", "USERNAME"))
    return {process.user_name(), *filter(None, said)}


def _owners(path: Path) -> set[str]:
    """Return the name of the user to whom a sweep belongs."""
    try:
        return {pwd.getpwuid(path.stat().st_uid).pw_name}
    except KeyError:  # a user that this machine does not know
        return set()


# --- writing --------------------------------------------------------------------------------------


def _write(contents: _Contents, folder: Path, names: Pseudonyms) -> list[str]:
    """Write all members but the hashes below an empty folder; return which attempts are left out, and why."""
    target = SweepDir(folder / SWEEP)
    target.results.mkdir(parents=True)
    grid = [_grid_point(point, contents.choices[point.point_id], names) for point in contents.grid]
    write_grid(target.grid_path, grid)
    _write_overrides(contents, target, names)
    published: list[Record] = []
    traced: set[tuple[str, int]] = set()
    left_out = []
    pruned = contents.pruned
    for attempt, record in _attempts(contents):
        point_id = names.point(attempt.point_id)
        path = target.path / "points" / point_id / attempt.path.name
        if record is None:
            left_out.append(
                f"point {point_id}, attempt {attempt.number}: has no record; it still runs, or was killed"
            )
            continue
        try:
            if isinstance(record, DamagedError):
                raise record
            own = AttemptDir(path, point_id, attempt.number)
            whole = _is_measured(record) and (attempt.point_id, attempt.number) not in pruned
            published.append(_write_attempt(attempt, record, own, names, whole=whole))
            if whole:
                traced.add((attempt.point_id, attempt.number))
        except RefusedError:
            raise
        except _DAMAGE as error:
            # as in `collect`, it costs that attempt alone
            shutil.rmtree(path, ignore_errors=True)
            left_out.append(f"point {point_id}, attempt {attempt.number}: {type(error).__name__}")
    points = tables.published_points(contents.points, contents.choices, traced, names)
    _write_table(target.points_path, points)
    _write_table(target.phases_path, tables.published_phases(contents.phases, names))
    _write_papers(contents, folder, points, published, left_out)
    return left_out


def _grid_point(point: GridPoint, choices: Mapping[str, Any], names: Pseudonyms) -> GridPoint:
    return GridPoint(
        names.point(point.point_id),
        point.position,
        point.reason and names.text(point.reason),
        json.dumps(records.published_choices(choices, names)),
    )


def _write_overrides(contents: _Contents, target: SweepDir, names: Pseudonyms) -> None:
    """Write the overrides of each submit, or for a measured command that there was one."""
    if contents.measured:
        held = read_json(contents.sweep.measured_path)
        command = records.published_command(held["command"])
        _write_json(
            target.measured_path, {"point_id": names.point(held["point_id"]), "command": command}
        )
        return
    try:
        lines = read_own(contents.sweep.sweep_yaml).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return
    # as `submit` writes them: JSON's lists are YAML too
    submits = [json.loads(line[9:]) for line in lines if line.startswith("  words: [")]
    published = [records.published_overrides(overrides, names) for overrides in submits]
    text = "".join(f"- words: {json.dumps(overrides)}\n" for overrides in published)
    write_atomic(target.sweep_yaml, f"# What was asked, oldest first.\n{text}".encode())


def _is_measured(record: Record) -> bool:
    """Whether an attempt has figures of its own: it finished, or a later one goes on from its batches."""
    if "pieces" in record:
        return any(piece["attempt"] == record["attempt"] for piece in record["pieces"])
    return record["status"] == _FINISHED


def _write_attempt(
    attempt: AttemptDir, record: Record, target: AttemptDir, names: Pseudonyms, *, whole: bool
) -> Record:
    """Write an attempt's record, and its tables where they are `whole`; return the record as it is published."""
    target.path.mkdir(parents=True)
    published = records.published_record(record, names)
    if whole:
        _write_tables(attempt, record, target, names)
    _write_json(target.record_path, published)
    return published


def _write_tables(
    attempt: AttemptDir, record: Record, target: AttemptDir, names: Pseudonyms
) -> None:
    for name in ("timings", "traces"):
        (target.path / name).mkdir()
    for node in sorted({rank["node"] for rank in record["ranks"]}):
        spans = tables.published_spans(read_table(attempt.spans_path(node), SPAN), names)
        _write_table(target.spans_path(names.node(node)), spans)
        if has_own(attempt.iterations_path(node)):
            steps = read_table(attempt.iterations_path(node), ITERATION)
            steps = tables.published_iterations(steps, names)
            _write_table(target.iterations_path(names.node(node)), steps)
    if "measure" not in record:
        requests = tables.published_requests(read_table(attempt.requests_path, REQUEST), names)
        _write_table(target.requests_path, requests)
    for part in record.get("parts", []):
        published = records.published_part(part, names)
        _write_json(target.part_path(published["node"]), published)
    for node, uuid in _devices(record):
        path = attempt.trace_path(node, uuid)
        if has_own(path):
            trace = tables.published_trace(read_table(path, TRACE), names)
            _write_table(target.trace_path(names.node(node), names.device(uuid)), trace)


def _devices(record: Record) -> Iterator[tuple[str, str]]:
    """Yield node and UUID of each measured device, and of what was measured beside them."""
    for info in record.get("nodes", []):
        for device in info["devices"]:
            yield info["node"], device["uuid"]
        for one in beside_devices(info):
            yield info["node"], one["uuid"]


def _write_papers(
    contents: _Contents,
    folder: Path,
    points: pa.Table,
    published: Sequence[Record],
    left_out: list[str],
) -> None:
    """Write what people read."""
    rows = points.to_pylist()
    write_atomic(folder / CSV, points_csv(rows).encode())
    write_atomic(folder / METHODS, methods.text(rows, published).encode())
    write_atomic(folder / LOCK, methods.lock(published).encode())
    tried = [row for row in rows if row["attempt"] is not None]
    ours = versions()
    about = About(
        bundle_version=BUNDLE_VERSION,
        schema_version=SCHEMA_VERSION,
        kind="measurement" if contents.measured else "sweep",
        points=len(contents.grid),
        attempts=len(tried),
        counting=sum(row["counts"] for row in rows),
        simulated=any(row["simulated"] for row in tried),
        results_by=(points.schema.metadata or {}).get(b"wattflow", b"unknown").decode(),
        bundled_by={name: ours[name] for name in ("wattflow", "python", "pyarrow", "numpy")},
        left_out=left_out,
    )
    _write_json(folder / ABOUT, asdict(about))
    readme = render("publish/README.md.j2", about=about, joules=methods.joules(rows))
    write_atomic(folder / README, readme.encode())


def _write_table(path: Path, table: pa.Table) -> None:
    metadata = {"schema_version": str(SCHEMA_VERSION), **(table.schema.metadata or {})}
    write_table(path, table.replace_schema_metadata(metadata))


def _write_json(path: Path, value: object) -> None:
    write_json(path, value)


# --- points.csv -----------------------------------------------------------------------------------


def csv_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns of points.csv: the choices that differ, and every figure that some row has."""
    first = ["point_id", "attempt", "status", "counts", "valid", "reasons"]
    figures = [name for name in POINT.names if name not in CHOICE_KEYS and name not in first]
    chosen = dict.fromkeys(["model", "repeat", *shown_axes(choice_columns(rows))])
    return [
        *first,
        *chosen,
        *(name for name in figures if any(row.get(name) is not None for row in rows)),
    ]


def points_csv(rows: Sequence[Row]) -> str:
    """Return points.csv: rows of results/points.parquet for a spreadsheet; numbers with all their digits."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    columns = csv_columns(rows)
    lines.writerow(columns)
    lines.writerows([[csv_cell(row[column]) for column in columns] for row in rows])
    return text.getvalue()


def csv_cell(value: Any) -> str:
    """Return a value as points.csv has it; empty for null."""
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
