"""Pack a collected sweep, or a measurement, into one file by which anyone can check its figures.

    wattflow bundle sweeps/NAME [--out FILE]

    records, timings, traces, grid, words, results  ->  pseudonymised  ->  README, METHODS, lock, sha256sums  ->  zip

Nothing is copied as it is: each table and record is written anew from what `wattflow.pseudonyms` carries, so that logs,
answers, journals and whatever else lies in a sweep stay there.
"""

import contextlib
import csv
import getpass
import io
import json
import os
import platform
import pwd
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from wattflow.errors import DamagedError, RefusedError
from wattflow.publish import archive
from wattflow.publish.pseudonyms import Names, Pseudonyms
from wattflow.report import methods
from wattflow.run.provenance import versions
from wattflow.store.columns import CHOICE_KEYS, PHASE, POINT
from wattflow.store.files import read_json
from wattflow.store.grid import GridPoint, write_grid
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import REQUEST, SCHEMA_VERSION, SPAN, TRACE, Record
from wattflow.store.tables import read_table, write_table

Row = dict[str, Any]

BUNDLE_VERSION = 1
ABOUT, CSV, LOCK, SWEEP = "bundle.json", "points.csv", "lock.txt", "sweep"
README, METHODS = "README.md", "METHODS.md"
_SALT = "bundle.salt"
_FINISHED = "finished"


@dataclass(frozen=True)
class Bundled:
    """What a bundle holds."""

    path: Path
    members: list[tuple[str, int]]  # name, bytes
    left_out: list[str]  # attempts whose files are not whole, a line each
    sha256: str | None  # of the bundle; null in a dry run
    salt: Path | None  # where the salt is kept; null where the sweep cannot be written to


def bundle(sweep: SweepDir, out: Path | None, *, dry_run: bool = False) -> Bundled:
    """Write the bundle of a sweep, by default NAME.zip here, and say what is in it; a dry run writes nothing.

    RefusedError where the sweep was not collected, the file exists, or a choice that makes a point_id holds a name.
    """
    path = (out or Path(f"{sweep.name}.zip")).expanduser().absolute()
    if path.exists() and not dry_run:
        raise RefusedError(f"{path}: exists. Name another --out, or remove it.")
    if not path.parent.is_dir():
        raise RefusedError(f"{path.parent}: no such folder.")
    packing = _Packing(sweep)
    salt = _salt(sweep, keep=not dry_run)
    with tempfile.TemporaryDirectory(prefix="wattflow-bundle-") as name:
        folder = Path(name)
        packing.write(folder, Pseudonyms(salt, packing.names, measured=packing.measured))
        archive.write_sums(folder)
        members = [(member, (folder / member).stat().st_size) for member in archive.files(folder)]
        if not dry_run:
            archive.pack(folder, path)
    return Bundled(
        path=path,
        members=members,
        left_out=packing.left_out,
        sha256=None if dry_run else archive.sha256(path),
        salt=found if (found := sweep.path / _SALT).is_file() else None,
    )


def _salt(sweep: SweepDir, *, keep: bool) -> bytes:
    """The sweep's own salt, made once and kept in it where it can be written to: the same bundle comes of it again."""
    path = sweep.path / _SALT
    try:
        return bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError):
        salt = secrets.token_bytes(32)
    if keep:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        except OSError:  # somebody else's sweep, or a read-only disk
            return salt
        with os.fdopen(descriptor, "w") as file:
            file.write(salt.hex() + "\n")
    return salt


class _Packing:
    """One sweep on its way into a bundle."""

    def __init__(self, sweep: SweepDir) -> None:
        """Read its tables and records; RefusedError where there are no results."""
        self._sweep = sweep
        self.measured = sweep.measured_path.is_file()
        self.left_out: list[str] = []
        try:
            self._points = read_table(sweep.points_path, POINT)
            self._phases = read_table(sweep.phases_path, PHASE)
        except FileNotFoundError:
            raise RefusedError(
                f"{sweep.path}: no results yet. Run `wattflow collect {sweep.path}` first."
            ) from None
        self._grid = sweep.points()
        self._choices = {point.point_id: point.choices() for point in self._grid}
        strange = set(self._points["point_id"].to_pylist()) - set(self._choices)
        if strange:
            raise RefusedError(
                f"{sweep.points_path}: point {min(strange)} is not in the grid. Run `wattflow collect {sweep.path}`."
            )
        self.names = self._names()

    def _attempts(self) -> Iterator[tuple[AttemptDir, Record]]:
        """The attempts that have a record, in the grid's order."""
        for point_id in self._choices:
            for attempt in self._sweep.attempts(point_id):
                try:
                    record = attempt.read_record()
                except DamagedError as error:
                    self._leave_out(attempt, error)
                    continue
                if record is not None:
                    yield attempt, record

    def _leave_out(self, attempt: AttemptDir, error: Exception) -> None:
        line = f"point {attempt.point_id}, attempt {attempt.number}: {type(error).__name__}"
        if line not in self.left_out:
            self.left_out.append(line)

    @contextlib.contextmanager
    def _leaving_out(self, attempt: AttemptDir) -> Iterator[None]:
        """What is wrong in an attempt's files costs that attempt alone, as it does in `collect`."""
        try:
            yield
        except RefusedError:
            raise
        except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            self._leave_out(attempt, error)

    def _names(self) -> Names:
        """Whose machine and account this is, and on which nodes the attempts ran."""
        names = Names()
        names.users = {getpass.getuser(), *_owners(self._sweep.path)}
        names.nodes = {platform.node(), platform.node().split(".")[0]} - {""}
        for choices in self._choices.values():
            names.add(choices)
        for attempt, record in self._attempts():
            with self._leaving_out(attempt):
                names.nodes |= {rank["node"] for rank in record.get("ranks", [])}
                names.nodes |= {info["node"] for info in record.get("nodes", [])}
        names.nodes = {
            name for name in names.nodes if isinstance(name, str)
        }  # a record may be no good
        return names

    # --- writing ---

    def write(self, folder: Path, told: Pseudonyms) -> None:
        """Write all members but the hashes below an empty folder."""
        target = SweepDir(folder / SWEEP)
        target.results.mkdir(parents=True)
        write_grid(target.grid_path, [self._told_point(point, told) for point in self._grid])
        self._write_words(target, told)
        records = []
        traced: set[tuple[str, int]] = set()
        for attempt, record in self._attempts():
            mine = AttemptDir(
                target.path / "points" / told.point(attempt.point_id) / attempt.path.name,
                told.point(attempt.point_id),
                attempt.number,
            )
            mine.path.mkdir(parents=True)
            with self._leaving_out(attempt):
                own = told.record(record)
                if _is_measured(record):
                    self._write_attempt(attempt, record, mine, told)
                    traced.add((attempt.point_id, attempt.number))
                _write_json(mine.record_path, own)
                records.append(own)
            if not mine.record_path.is_file():
                shutil.rmtree(mine.path)
        points = told.points(self._points, self._choices, traced)
        _write(target.points_path, points)
        _write(target.phases_path, told.phases(self._phases))
        self._write_papers(folder, points, records)

    def _told_point(self, point: GridPoint, told: Pseudonyms) -> GridPoint:
        return GridPoint(
            told.point(point.point_id),
            point.position,
            point.reason and told.text(point.reason),
            json.dumps(told.choices(self._choices[point.point_id])),
        )

    def _write_words(self, target: SweepDir, told: Pseudonyms) -> None:
        """The words of each submit, or the place of a measured command's."""
        if self.measured:
            held = read_json(self._sweep.measured_path)
            _write_json(
                target.measured_path,
                {
                    "point_id": told.point(held["point_id"]),
                    "command": told.command(held["command"]),
                },
            )
            return
        try:
            lines = self._sweep.sweep_yaml.read_text().splitlines()
        except FileNotFoundError:
            return
        # as `submit` writes them: JSON's lists are YAML too
        words = [json.loads(line[9:]) for line in lines if line.startswith("  words: [")]
        text = "".join(f"- words: {json.dumps(told.words(some))}\n" for some in words)
        target.sweep_yaml.write_text(f"# What was asked, oldest first.\n{text}")

    def _write_attempt(
        self, attempt: AttemptDir, record: Record, mine: AttemptDir, told: Pseudonyms
    ) -> None:
        """The tables of an attempt that was measured, or a piece of which was."""
        for name in ("timings", "traces"):
            (mine.path / name).mkdir()
        nodes = record.get("nodes", [])
        devices = [(info["node"], device["uuid"]) for info in nodes for device in info["devices"]]
        devices += [(info["node"], host["uuid"]) for info in nodes if (host := info.get("host"))]
        for node in sorted({rank["node"] for rank in record["ranks"]}):
            spans = told.spans(read_table(attempt.spans_path(node), SPAN))
            _write(mine.spans_path(told.node(node)), spans)
        if "measure" not in record:
            requests = told.requests(read_table(attempt.requests_path, REQUEST))
            _write(mine.requests_path, requests)
        for part in record.get("parts", []):
            _write_json(mine.part_path(told.node(part["node"])), told.part(part))
        for node, uuid in devices:
            if attempt.trace_path(node, uuid).is_file():
                trace = told.trace(read_table(attempt.trace_path(node, uuid), TRACE))
                _write(mine.trace_path(told.node(node), told.device(uuid)), trace)

    def _write_papers(self, folder: Path, points: pa.Table, records: list[Row]) -> None:
        """What people read."""
        rows = points.to_pylist()
        (folder / CSV).write_text(points_csv(rows))
        (folder / METHODS).write_text(_methods(rows, records))
        (folder / LOCK).write_text(methods.lock(records))
        tried = [row for row in rows if row["attempt"] is not None]
        ours = versions()
        about = {
            "bundle_version": BUNDLE_VERSION,
            "schema_version": SCHEMA_VERSION,
            "kind": "measurement" if self.measured else "sweep",
            "points": len(self._grid),
            "attempts": len(tried),
            "counting": sum(row["counts"] for row in rows),
            "simulated": any(row["simulated"] for row in tried),
            "results_by": (points.schema.metadata or {}).get(b"wattflow", b"unknown").decode(),
            "bundled_by": {name: ours[name] for name in ("wattflow", "python", "pyarrow", "numpy")},
            "left_out": self.left_out,
        }
        _write_json(folder / ABOUT, about)
        (folder / README).write_text(_README.format(**about, joules=methods.joules(rows)))


def _is_measured(record: Record) -> bool:
    """Whether an attempt has figures of its own: it finished, or a later one goes on from a piece of it."""
    if "pieces" in record:
        return any(piece["attempt"] == record["attempt"] for piece in record["pieces"])
    return record["status"] == _FINISHED


def _owners(path: Path) -> set[str]:
    """The name of the user to whom a sweep belongs."""
    try:
        return {pwd.getpwuid(path.stat().st_uid).pw_name}
    except KeyError:  # a user that this machine does not know
        return set()


def _write(path: Path, table: pa.Table) -> None:
    metadata = {"schema_version": str(SCHEMA_VERSION), **(table.schema.metadata or {})}
    write_table(path, table.replace_schema_metadata(metadata))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def csv_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of points.csv: what tells the points apart, and every figure that some row has."""
    first = ["point_id", "attempt", "status", "counts", "valid", "reasons"]
    figures = [name for name in POINT.names if name not in CHOICE_KEYS and name not in first]
    chosen = dict.fromkeys(["model", "repeat", *methods.varying(rows)])
    return [
        *first,
        *chosen,
        *(name for name in figures if any(row.get(name) is not None for row in rows)),
    ]


def points_csv(rows: Sequence[Row]) -> str:
    """points.csv: rows of results/points.parquet for a spreadsheet; numbers with all their digits."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    columns = csv_columns(rows)
    lines.writerow(columns)
    lines.writerows([[csv_cell(row[column]) for column in columns] for row in rows])
    return text.getvalue()


def csv_cell(value: Any) -> str:
    """A value as points.csv has it; empty for null."""
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _methods(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    table = "\n".join(methods.table_lines(rows))
    text = "\n\n".join(methods.paragraphs(rows, records))
    return f"# Methods\n\n{text}\n\n## Results\n\nMean and standard deviation over the repeats that count.\n\n{table}\n"


_README = """\
# A bundle of measured joules

{kind} of {points} points, {attempts} attempts, of which {counting} count: {joules} in their measured windows.

    sha256sum -c sha256sums        each file is as it was packed
    wattflow verify FILE.zip       every figure follows from the traces; needs no GPU
    wattflow report sweep          the figures and timelines, once unpacked and after `wattflow collect sweep`

| file | what it is |
| --- | --- |
| METHODS.md | how it was measured, in words, and the means |
| points.csv | the figures, for a spreadsheet |
| lock.txt | the exact versions of the software that ran |
| sweep/ | a sweep's directory as wattflow keeps it, without logs and texts |
| sweep/points/ID/attempt-N/traces/ | the power of each GPU: every sample, with the driver's time stamps |
| sweep/points/ID/attempt-N/timings/ | when each phase of each batch ran on each rank |
| sweep/points/ID/attempt-N/record.json | what ran: choices, devices, versions |
| sweep/results/ | the published figures |
| bundle.json, sha256sums | what was packed by what; the hash of each file |

Users, accounts, hosts, paths, prompts and answers are not in it. Nodes, GPUs and jobs have pseudonyms by a salted hash:
the same GPU has the same one throughout, and the salt is not here. That the figures follow from the traces does not
show that the traces are genuine; compare the sha256 of the whole file with the one that its author published.
"""
