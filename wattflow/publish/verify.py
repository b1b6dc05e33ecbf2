"""Recompute every published figure of a sweep, or of a bundle, from its raw traces and timings, without a GPU.

    wattflow verify sweeps/NAME | BUNDLE.zip

    hashes (of a bundle) -> choices against point_ids -> devices against records -> traces, records -> rows -> tables

It reads only, and shares with `collect` what makes an attempt's row. A bundle is somebody else's: nothing in it is
unpickled or run, names are checked before a path is made of them, sizes before anything is read.
"""

import csv
import io
import re
import resource
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wattflow import __version__
from wattflow.collect.attempt import collect_attempt
from wattflow.collect.collect import in_order_of_time, newest_valid, untried
from wattflow.collect.reading import Collected, Row
from wattflow.config import choices as config_choices
from wattflow.config import identity
from wattflow.errors import DamagedError, RefusedError
from wattflow.publish import archive
from wattflow.publish.bundle import (
    ABOUT,
    BUNDLE_VERSION,
    CSV,
    LOCK,
    METHODS,
    README,
    SWEEP,
    csv_cell,
)
from wattflow.publish.verdict import Checked, Difference, Key, Verdict, compare, named
from wattflow.report import methods
from wattflow.store.columns import COLLECTED_TRACE, PHASE, POINT
from wattflow.store.files import read_json
from wattflow.store.grid import GridPoint
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import TRACE, Record
from wattflow.store.tables import read_table

MOST_ROWS = 10_000_000  # of a table in a bundle: two days of samples each 20 ms
MOST_TABLE_BYTES = 2**30  # of its columns, unpacked
MOST_JSON_BYTES = 2**26
MEMORY_BYTES = 8 * 2**30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}")
# when a record was written, and in a bundle nothing: no figure
_NO_FIGURES = {"record_stamp_ns"}


def verify(path: Path) -> Verdict:
    """Check a sweep's directory, a bundle, or an unpacked bundle; RefusedError for what is none of these."""
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="wattflow-verify-") as name:
            folder = Path(name)
            archive.unpack(path, folder)
            return _bundle(path, folder, archive.sha256(path))
    if (path / ABOUT).is_file():
        return _bundle(path, path, None)
    if path.suffix == ".zip" and not path.exists():
        raise RefusedError(f"{path}: no such file. `wattflow bundle` makes one of a sweep.")
    return _Checking(SweepDir.existing(path), bundled=False).verdict(path)


def limit_memory() -> None:
    """Let this process take no more memory than any honest bundle needs, so that a crafted one ends it alone."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _bundle(path: Path, folder: Path, sha256: str | None) -> Verdict:
    """Check a bundle whose files lie below a folder."""
    sums = archive.read_sums(folder)
    wrong = archive.wrong_sums(folder, sums)
    _check_sizes(folder)
    try:
        about = _about(path, folder)
        checking = _Checking(SweepDir(folder / SWEEP), bundled=True)
    except (RefusedError, DamagedError) as error:
        if not wrong:
            raise RefusedError(str(error)) from error
        verdict = Verdict(path, "bundle", sha256, "?", problems=[str(error)])
        verdict.hashed_files, verdict.wrong_files = len(sums), wrong
        return verdict
    verdict = checking.verdict(path)
    verdict.kind, verdict.sha256 = f"bundle of a {verdict.kind}", sha256
    verdict.hashed_files, verdict.wrong_files = len(sums), wrong
    left_out = about.get("left_out")
    for line in left_out if isinstance(left_out, list) else []:
        verdict.notes.append(f"not whole when it was packed: {line}")
    for name, hold in (
        (CSV, checking.compare_csv),
        (METHODS, checking.compare_means),
        (LOCK, checking.compare_lock),
        (README, checking.compare_joules),
    ):
        try:
            hold((folder / name).read_text())
        except (FileNotFoundError, UnicodeDecodeError):
            verdict.problems.append(f"{name}: not there, or no text.")
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            verdict.problems.append(f"{name}: cannot be held to such records ({error!a}).")
    return verdict


def _about(path: Path, folder: Path) -> dict[str, Any]:
    """What bundle.json says; RefusedError where it is not there, or of another version."""
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else None
    if not isinstance(about, dict) or not (folder / SWEEP / "grid.parquet").is_file():
        raise RefusedError(f"{path}: no bundle: {ABOUT} or {SWEEP}/grid.parquet is not in it.")
    version = about.get("bundle_version")
    if version != BUNDLE_VERSION:
        raise RefusedError(
            f"{path}: a bundle of version {version!a}; this wattflow reads version {BUNDLE_VERSION}."
        )
    return about


def _check_sizes(folder: Path) -> None:
    """RefusedError where a file would unpack to more than an honest one."""
    for name in archive.files(folder):
        path = folder / name
        if not name.endswith(".parquet"):
            if path.stat().st_size > MOST_JSON_BYTES:
                raise RefusedError(f"{name}: {path.stat().st_size} bytes, more than any such file.")
            continue
        try:
            about = pq.read_metadata(path)
            groups = [about.row_group(i) for i in range(about.num_row_groups)]
            chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
            values = max((chunk.num_values for chunk in chunks), default=0)
            size = sum(chunk.total_uncompressed_size for chunk in chunks)
        except (pa.ArrowException, OSError, ValueError):
            continue  # whoever reads it says so
        if max(about.num_rows, values) > MOST_ROWS or size > MOST_TABLE_BYTES:
            raise RefusedError(
                f"{name}: {about.num_rows} rows, {size} bytes unpacked; a table of a bundle has at most {MOST_ROWS} "
                f"and {MOST_TABLE_BYTES}."
            )


# --- a sweep's directory --------------------------------------------------------------------------


class _Checking:
    """One sweep's directory, read but never written."""

    def __init__(self, sweep: SweepDir, *, bundled: bool) -> None:
        """Read its tables; RefusedError where there are no results, or a table is none."""
        self._sweep, self._bundled = sweep, bundled
        self._measured = sweep.measured_path.is_file()
        try:
            self._grid = sweep.points()
            points = read_table(sweep.points_path, POINT)
            phases = read_table(sweep.phases_path, PHASE)
            told_columns = set(pq.read_schema(sweep.points_path).names)
        except FileNotFoundError:
            raise RefusedError(
                f"{sweep.path}: no results to verify. Run `wattflow collect {sweep.path}` first."
            ) from None
        except DamagedError as error:
            raise RefusedError(str(error)) from error
        self._columns = [name for name in POINT.names if name in told_columns - _NO_FIGURES]
        self._absent = sorted(set(POINT.names) - told_columns)
        self._strange = sorted(told_columns - set(POINT.names))
        self._made_by = (
            (points.schema.metadata or {}).get(b"wattflow", b"?").decode(errors="replace")
        )
        self._points: dict[Key, Row] = {}
        self._doubled: list[Key] = []
        for row in points.to_pylist():
            key = row["point_id"], row["attempt"]
            if key in self._points:
                self._doubled.append(key)
            self._points[key] = row
        # attempts whose files were damaged when they were collected, of which a bundle has none
        self._unpacked = {
            key
            for key, row in self._points.items()
            if bundled and "damaged" in (row["reasons"] or ()) and not row["counts"]
        }
        self._phases: dict[Key, list[Row]] = defaultdict(list)
        for row in phases.to_pylist():
            self._phases[row["point_id"], row["attempt"]].append(row)
        self._checked: dict[Key, Checked] = {}
        self._rows: dict[Key, Row] = {}  # recomputed
        self._records: list[Record] = []
        self._verdict = Verdict(sweep.path, "sweep", None, self._made_by)

    def verdict(self, path: Path) -> Verdict:
        """Check all of it."""
        out = self._verdict
        out.path, out.kind = path, "measurement" if self._measured else "sweep"
        out.points = len(self._grid)
        self._note()
        copies = _Copies(self._sweep)
        for point in self._grid:
            self._check_point(point, copies)
        self._check_counts()
        grid = {point.point_id for point in self._grid}
        for key in self._points:
            if key[0] not in grid:
                out.problems.append(f"{named(key)}: in the results and not in the grid.")
        out.problems += [f"{named(key)}: twice in the results." for key in self._doubled]
        out.problems += [
            f"{named(key)}: has phases in the results and no row among the points."
            for key in self._phases
            if key not in self._points
        ]
        out.attempts = list(self._checked.values())
        if not self._bundled and self._sweep.report_path.is_file():
            self._check_report()
        return out

    def _check_report(self) -> None:
        """Whether the report shows the results, which are held to the traces elsewhere."""
        from wattflow.analysis.sweep import Sweep  # noqa: PLC0415 (as above)
        from wattflow.report.page import shows  # noqa: PLC0415 (polars is slow to import, and a bundle has no report)

        found = shows(Sweep(self._sweep))
        if found is None:
            self._verdict.notes.append(
                "results/report.html: drawn by another wattflow, not compared."
            )
        elif not found:
            self._verdict.problems.append(
                "results/report.html shows other figures than results/points.parquet: it is older, or was changed. "
                f"`wattflow report {self._sweep.path}` draws it anew."
            )

    def _note(self) -> None:
        notes = self._verdict.notes
        if self._made_by != __version__:
            notes.append(
                f"the results were made by wattflow {self._made_by}, and this is {__version__}: figures may differ for "
                "that alone. Verify with the version that made them, or collect anew."
            )
        if self._absent:
            notes.append(
                "the results were made by an older wattflow: they lack columns that this one makes, and their figures "
                f"may differ for that alone. Not compared: {', '.join(self._absent)}."
            )
        if self._strange:
            notes.append(
                f"columns unknown to this version, not compared: {', '.join(self._strange)}."
            )
        if not self._bundled and not self._sweep.traces.is_dir():
            notes.append(
                "results/traces is not there, so the raw traces have no second copy to be held against."
            )

    # --- one point ---

    def _check_point(self, point: GridPoint, copies: "_Copies") -> None:
        point_id = point.point_id
        problem: str | None = None
        try:
            choices = point.choices()
            problem = self._wrong_id(point_id, choices)
            attempts = self._sweep.attempts(point_id)
            blank = untried(point, choices)
        except (
            RefusedError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            self._verdict.problems.append(f"point {point_id!a}: its choices are none ({error!a}).")
            return
        if not attempts and not any(key[0] == point_id for key in self._unpacked):
            self._take(Collected(blank, [], {}), problem)
        for attempt in attempts:
            self._check_attempt(attempt, choices, problem, copies)

    def _wrong_id(self, point_id: str, choices: dict[str, Any]) -> str | None:
        """Why a point_id is not the hash of its choices; null where it is, or where a bundle withholds them."""
        if self._measured and self._bundled:
            self._verdict.withheld_ids += 1
            return None
        command = choices["measure"]["command"] if self._measured else None
        made = identity.point_id(choices) if command is None else identity.command_id(command)
        if made == point_id:
            self._verdict.right_ids += 1
            return None
        return f"its choices are not those of {point_id}: they hash to {made}."

    def _check_attempt(
        self, attempt: AttemptDir, choices: dict[str, Any], problem: str | None, copies: "_Copies"
    ) -> None:
        problems = []
        try:
            record = attempt.read_record()
            if record is not None:
                self._records.append(record)
                if self._bundled:
                    _check_names(record)
                problems += self._against_record(attempt, record, choices)
                if self._measured and "choices" in record:
                    choices = dict(record["choices"])
        except RefusedError:
            raise
        except (DamagedError, LookupError, TypeError, AttributeError, ValueError) as error:
            problems.append(f"record.json is none ({error!a}).")
            record = None
        one = collect_attempt(attempt, choices)
        checked = self._take(one, problem)
        if checked.damaged:
            return
        checked.problems[:0] = problems  # causes before their effects
        if record is not None:
            checked.problems += copies.wrong(one, (attempt.point_id, attempt.number))

    def _against_record(
        self, attempt: AttemptDir, record: Record, choices: Mapping[str, Any]
    ) -> list[str]:
        """What the record says otherwise than the grid, and which of its devices have no trace, or none of ours."""
        problems = []
        told = record.get("choices", choices)
        if not self._measured and told != choices:
            ours, theirs = config_choices.flat(dict(choices)), config_choices.flat(dict(told))
            keys = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
            values = ", ".join(f"{k} {ours.get(k)!a} and {theirs.get(k)!a}" for k in keys[:5])
            problems.append(f"grid.parquet and record.json differ in {values}.")
        published = self._points.get((attempt.point_id, attempt.number))
        if record["status"] != "finished" or (published is not None and not published["valid"]):
            return problems  # why it counts in no figure is a reason in its row
        ranks = {(rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}
        nodes = record["nodes"]
        devices = {(info["node"], one["uuid"]) for info in nodes for one in info["devices"]}
        hosts = {(info["node"], host["uuid"]) for info in nodes if (host := info.get("host"))}
        strange = sorted(uuid for _, uuid in ranks - devices)
        if strange:
            problems.append(
                f"ranks ran on {', '.join(strange)}, which no node of the record measured."
            )
        wanted = {attempt.trace_path(*who).name: who for who in ranks | devices}
        allowed = {*wanted, *(attempt.trace_path(*who).name for who in hosts)}
        there = {path.name for path in (attempt.path / "traces").glob("*.parquet")}
        problems += [
            f"GPU {wanted[name][1]} of the record has no trace."
            for name in sorted(set(wanted) - there)
        ]
        return problems + [
            f"traces/{name}: a trace of no device of the record."
            for name in sorted(there - allowed)
        ]

    def _take(self, one: Collected, problem: str | None) -> Checked:
        """Compare one recomputed row, and its phases, with what was published."""
        row = one.point
        key: Key = (row["point_id"], row["attempt"])
        published = self._points.get(key)
        self._rows[key] = row
        checked = Checked(
            point_id=row["point_id"],
            attempt=row["attempt"],
            status=(published or row)["status"],
            counts=bool(published and published["counts"]),
            simulated=bool(row["simulated"]),
            energy_j=published["energy_j"] if published else None,
            recomputed_j=row["energy_j"],
            **{name: row[name] for name in ("gpus", "samples", "samples_expected", "coverage")},
        )
        self._checked[key] = checked
        if problem is not None:
            checked.problems.append(problem)
        if published is None:
            if row["status"] == "running":
                self._verdict.notes.append(f"{named(key)}: not collected yet.")
            else:
                checked.problems.append("not in the results. `wattflow collect` adds it.")
            return checked
        damaged = "damaged" in (published["reasons"] or ()) and not published["counts"]
        checked.damaged = damaged and "damaged" in row["reasons"]
        if checked.damaged:
            return checked
        for column in self._columns:
            if column != "counts":
                compare(checked, Difference("points", column, published[column], row[column]))
        self._compare_phases(checked, self._phases.get(key, []), one.phases)
        stale = published["record_stamp_ns"] not in (None, row["record_stamp_ns"])
        if checked.differences and stale:
            self._verdict.notes.append(
                f"{named(key)}: its record was written, or copied, after the results were made. If its files are "
                "right, `wattflow collect` makes the results anew."
            )
        return checked

    def _compare_phases(
        self, checked: Checked, published: Sequence[Row], recomputed: Sequence[Row]
    ) -> None:
        ours = {_who(row): row for row in recomputed}
        theirs = {_who(row): row for row in published}
        if len(theirs) < len(published):
            checked.problems.append("a phase of a device stands twice in phases.parquet.")
        for some, told in (
            (theirs.keys() - ours.keys(), "in phases.parquet do not come out again"),
            (ours.keys() - theirs.keys(), "are not in phases.parquet"),
        ):
            if some:
                first = min(some, key=str)
                checked.problems.append(
                    f"{len(some)} phases {told}, such as {first[0]} of {first[2]}."
                )
        for who in (who for who in theirs if who in ours):
            for column in PHASE.names:
                compare(
                    checked,
                    Difference(
                        "phases",
                        f"{who[0]} {column}",
                        theirs[who][column],
                        ours[who][column],
                        device=who[2],
                    ),
                )

    def _check_counts(self) -> None:
        """Which attempts count follows from all rows together."""
        keys = list(self._rows)
        counting = newest_valid([(key[0], bool(self._rows[key]["valid"])) for key in keys])
        for i, key in enumerate(keys):
            self._rows[key]["counts"] = i in counting
            if key in self._points:
                published = bool(self._points[key]["counts"])
                compare(
                    self._checked[key], Difference("points", "counts", published, i in counting)
                )
        grid = {point.point_id for point in self._grid}
        for key, row in self._points.items():
            if key in self._rows or key[0] not in grid:
                continue
            if key in self._unpacked:
                self._checked[key] = Checked(*key, row["status"], False, False, damaged=True)
            else:
                self._verdict.problems.append(f"{named(key)}: in the results, and not on disk.")

    def compare_csv(self, text: str) -> None:
        """Hold points.csv to the rows of points.parquet, of which it was made."""
        try:
            heading, *lines = list(csv.reader(io.StringIO(text)))
            at = heading.index("point_id"), heading.index("attempt")
            keys = [(line[at[0]], int(line[at[1]]) if line[at[1]] else None) for line in lines]
        except (csv.Error, ValueError, IndexError) as error:
            self._verdict.problems.append(f"{CSV}: not as it was written ({error!a}).")
            return
        if sorted(map(str, keys)) != sorted(map(str, self._points)):
            self._verdict.problems.append(f"{CSV}: its rows are not those of points.parquet.")
        for column in set(heading) - set(self._columns) - _NO_FIGURES:
            self._verdict.problems.append(
                f"{CSV}: its column {column!a} is none of points.parquet."
            )
        for key, line in zip(keys, lines, strict=True):
            row, checked = self._rows.get(key), self._checked.get(key)
            if row is None or checked is None or checked.damaged:
                continue
            for column, cell in zip(heading, line, strict=False):
                # what it has from points.parquet was compared there
                if column in self._columns and cell != csv_cell(self._points[key][column]):
                    compare(checked, Difference(CSV, column, _number(cell), row[column]))

    def compare_means(self, text: str) -> None:
        """Hold the table of METHODS.md, means and deviations over repeats, to the recomputed rows."""
        published = [line for line in text.splitlines() if line.startswith("|")]
        recomputed = methods.table_lines(list(self._rows.values()))
        for mine, other in zip_longest(published, recomputed):
            if mine != other:
                self._verdict.problems.append(f"{METHODS}: {mine} where the means are {other}")

    def compare_joules(self, text: str) -> None:
        """Hold the joules that README.md tells to the recomputed rows."""
        joules = methods.joules(list(self._rows.values()))
        if f"count: {joules} in their" not in text:
            self._verdict.problems.append(
                f"{README}: does not tell the joules that count, {joules}."
            )

    def compare_lock(self, text: str) -> None:
        """Hold lock.txt to the versions that the records tell."""
        if text != methods.lock(self._records):
            self._verdict.problems.append(f"{LOCK}: its versions are not those of the records.")


def _who(row: Row) -> tuple[str, str, str]:
    return row["phase"], row["node"], row["gpu_uuid"]


def _check_names(record: Record) -> None:
    """RefusedError where a record's node or device is no plain name, since paths are made of them."""
    names = [name for rank in record.get("ranks", []) for name in (rank["node"], rank["gpu_uuid"])]
    for info in record.get("nodes", []):
        host = info.get("host")
        names += [info["node"], *(device["uuid"] for device in info["devices"])]
        names += [host["uuid"]] if host else []
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name or "/" in name:
            raise RefusedError(f"a record names a node or device {str(name)[:200]!a}: not a name.")


def _number(cell: str) -> float | str:
    """A cell of points.csv as a float where it is one."""
    try:
        return float(cell)
    except ValueError:
        return cell


# --- the second copy of a trace -------------------------------------------------------------------


class _Copies:
    """results/traces, the collected copies of the raw traces, where they are there."""

    def __init__(self, sweep: SweepDir) -> None:
        self._sweep = sweep
        self._bucket: str | None = None
        self._groups: dict[tuple[str, int, str, str], int] = {}
        self._file: pq.ParquetFile | None = None

    def wrong(self, one: Collected, key: tuple[str, int]) -> list[str]:
        """Which raw traces of an attempt are not the copies that were collected of them."""
        if not self._sweep.traces.is_dir():
            return []
        wrong = []
        self._open(key[0][:2])
        for (node, uuid), path in one.traces.items():
            group = self._groups.get((*key, node, uuid))
            trace = read_table(path, TRACE)
            if self._file is None or group is None:
                if trace.num_rows:
                    wrong.append(f"the trace of {uuid} has no copy in results/traces.")
                continue
            raw = in_order_of_time(trace).select(TRACE.names).replace_schema_metadata(None)
            copy = (
                self._file.read_row_group(group).select(TRACE.names).replace_schema_metadata(None)
            )
            if raw.num_rows != copy.num_rows:
                wrong.append(
                    f"the trace of {uuid} has {raw.num_rows} rows, its copy in results/traces {copy.num_rows}."
                )
            elif not all(_same(raw[name], copy[name]) for name in TRACE.names):
                wrong.append(
                    f"the trace of {uuid} is not its copy in results/traces: {_first(raw, copy)}."
                )
        return wrong

    def _open(self, bucket: str) -> None:
        if bucket == self._bucket:
            return
        self._bucket, self._groups, self._file = bucket, {}, None
        try:
            self._file = pq.ParquetFile(self._sweep.traces / f"{bucket}.parquet")
            owner = COLLECTED_TRACE.names[:4]
            for group in range(self._file.num_row_groups):
                first = self._file.read_row_group(group, columns=owner).slice(0, 1).to_pylist()[0]
                self._groups[
                    first["point_id"], first["attempt"], first["node"], first["gpu_uuid"]
                ] = group
        except (OSError, pa.ArrowException, LookupError):
            self._file = None


def _same(mine: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns are equal, a NaN, which GPM tells at times, being equal to another."""
    if mine.equals(other):
        return True
    if not pa.types.is_floating(mine.type) or mine.type != other.type:
        return False
    nans = pc.is_nan(mine), pc.is_nan(other)
    none = pa.scalar(0.0, mine.type)
    values = pc.if_else(nans[0], none, mine), pc.if_else(nans[1], none, other)
    return bool(nans[0].equals(nans[1]) and values[0].equals(values[1]))


def _first(raw: pa.Table, copy: pa.Table) -> str:
    """The first value in which two tables of equal length differ."""
    name = next(name for name in TRACE.names if not _same(raw[name], copy[name]))
    pairs = zip(raw[name].to_pylist(), copy[name].to_pylist(), strict=True)
    found = (
        f"{name} of row {row} is {mine}, was {other}"
        for row, (mine, other) in enumerate(pairs)
        if mine != other and not (mine != mine and other != other)  # noqa: PLR0124 - NaN
    )
    return next(found, f"{name} is of another type")
