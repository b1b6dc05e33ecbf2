"""The directory of a sweep: where each file lies, how it is written, who may claim an attempt.

    sweeps/<name>/
      sweep.yaml  grid.parquet  journal.jsonl
      points/<point_id>/attempt-<n>/   record.json  requests.parquet  timings/  traces/  logs/
      submitit/                        pickles and job logs, mode 0700
      packed/                          archives of attempts that have left points/, see store.packed
      results/                         points.parquet  phases.parquet  traces/  report.html
      pruned/                          points.parquet  phases.parquet: rows of attempts whose files `prune` removed

A file is either written to another name and then renamed, or append-only and readable up to its last whole record.
"""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from wattflow.errors import DamagedError, RefusedError
from wattflow.store import packed
from wattflow.store.collected import CollectedAttempt, read_collected
from wattflow.store.files import (
    check_name,
    check_safe,
    clear_temporaries,
    expanded,
    make_folder,
    open_append,
    open_to_group,
    own_files,
    read_json,
    read_own,
    set_mode,
    write_json,
)
from wattflow.store.grid import GridPoint, read_grid, read_point
from wattflow.store.regular import check_folder
from wattflow.store.schema import SCHEMA_VERSION, JournalLine, Record, Status

_POINT_ID = re.compile(r"[0-9a-f]{12}")
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class AttemptDir:
    """One try at a point."""

    path: Path
    point_id: str
    number: int

    @property
    def record_path(self) -> Path:
        """record.json: what happened."""
        return self.path / "record.json"

    @property
    def requests_path(self) -> Path:
        """requests.parquet: one row a prompt."""
        return self.path / "requests.parquet"

    @property
    def logs(self) -> Path:
        """The folder of logs worth keeping."""
        return self.path / "logs"

    def error_path(self, rank: int) -> Path:
        """Where a rank says why it failed, since only rank 0 writes the record."""
        return self.logs / f"error-rank{rank}.json"

    def sidecar_log_path(self, node: str) -> Path:
        """What the sidecar of a node had to say; there is no such file where it said nothing."""
        return self.logs / f"sidecar-{node}.log"

    def trace_path(self, node: str, gpu_uuid: str, suffix: str = ".parquet") -> Path:
        """The trace of one GPU; `.arrow` while it grows."""
        return self.path / "traces" / f"{node}-{gpu_uuid}{suffix}"

    def spans_path(self, node: str) -> Path:
        """The spans of all ranks of one node, closed."""
        return self.path / "timings" / f"{node}.parquet"

    def iterations_path(self, node: str) -> Path:
        """The iterations of a node's lowest rank, of an engine that schedules by itself."""
        return self.path / "timings" / f"iterations-{node}.parquet"

    def part_path(self, node: str) -> Path:
        """What one node has of a measured command."""
        return self.path / "timings" / f"{node}.json"

    def claim(self) -> bool:
        """Make the attempt's folders; false where somebody made it before."""
        while True:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                self.path.mkdir(mode=0o700)
            except FileExistsError:
                return False
            except FileNotFoundError:
                continue  # attempts before this one were packed meanwhile, and their point's folder went
            self.make_folders()
            return True

    def has_record(self) -> bool:
        """Whether there is a record, alone or packed, whatever is in it."""
        return os.path.lexists(self.record_path) or packed.find(self.record_path) is not None

    def make_folders(self) -> None:
        """Create the folders below the attempt, readable by the owner only."""
        for folder in ("timings", "traces", "logs"):
            (self.path / folder).mkdir(mode=0o700, exist_ok=True)

    def read_record(self) -> Record | None:
        """The record, or null where none was written yet; DamagedError when it is not one of ours."""
        try:
            record = read_json(self.record_path)
        except FileNotFoundError:
            return None
        if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
            raise DamagedError(
                f"{self.record_path}: not a record of schema version {SCHEMA_VERSION}."
            )
        if record.get("point_id") != self.point_id or record.get("attempt") != self.number:
            raise DamagedError(f"{self.record_path}: belongs to another attempt.")
        if record.get("status") not in get_args(Status):
            raise DamagedError(f"{self.record_path}: its status is {record.get('status')!r}.")
        if "measure" in record:
            self._join_parts(record)
        return cast(Record, record)

    def is_finished(self) -> bool:
        """Whether the record says so; a corrupt record counts as unfinished."""
        try:
            record = self.read_record()
        except DamagedError:
            return False
        return record is not None and record["status"] == "finished"

    def _join_parts(self, record: dict[str, Any]) -> None:
        """Put what the nodes of a measured command have written by now into its record."""
        pieces = [read_json(path) for path in own_files(self.path / "timings", "*.json")]
        try:
            parts = [part for part in pieces if part["status"] == "finished"]
            parts.sort(key=lambda part: part["task"])
            record["ranks"] = [rank for part in parts for rank in part["ranks"]]
            record["nodes"] = [node for part in parts for node in part["nodes"]]
        except (KeyError, TypeError) as error:
            raise DamagedError(f"{self.path}/timings: a node's part is none of ours.") from error
        record["parts"] = parts

    def write_record(self, record: Record) -> None:
        """Replace the record."""
        write_json(self.record_path, record)


@dataclass(frozen=True)
class SweepDir:
    """One sweep."""

    path: Path

    @classmethod
    def named(cls, sweeps_dir: str | Path, name: str) -> "SweepDir":
        """The sweep of that name, whether or not it exists; RefusedError for a name that is no name."""
        return cls(expanded(sweeps_dir).absolute() / check_name(name, "sweep"))

    @classmethod
    def existing(cls, path: str | Path) -> "SweepDir":
        """The sweep at a path, or of that name below ./sweeps; RefusedError when there is none."""
        for candidate in (Path(path), Path("sweeps") / path):
            if (candidate / "grid.parquet").is_file():
                return cls(candidate.absolute())
        raise RefusedError(
            f"{path}: no sweep there (no grid.parquet). Name a sweep's directory, such as sweeps/demo; "
            "`wattflow submit` makes one."
        )

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    @property
    def sweep_yaml(self) -> Path:
        """What was asked, in words."""
        return self.path / "sweep.yaml"

    @property
    def measured_path(self) -> Path:
        """measured.json: the command that `measure` ran, in place of sweep.yaml."""
        return self.path / "measured.json"

    def refuse_measurement(self) -> None:
        """RefusedError where `measure` made this directory: its point is a command, which no submit can send."""
        if self.measured_path.is_file():
            raise RefusedError(
                f"{self.path}: holds a measurement, which `wattflow measure` made. To take it once more, measure the "
                "same command with --out and this directory."
            )

    @property
    def grid_path(self) -> Path:
        """grid.parquet: one row a point."""
        return self.path / "grid.parquet"

    @property
    def journal_path(self) -> Path:
        """journal.jsonl: the write-ahead log of submissions."""
        return self.path / "journal.jsonl"

    @property
    def submitit(self) -> Path:
        """Submitit's pickles and logs."""
        return self.path / "submitit"

    @property
    def results(self) -> Path:
        """What the collector writes."""
        return self.path / "results"

    @property
    def points_path(self) -> Path:
        """results/points.parquet."""
        return self.results / "points.parquet"

    @property
    def phases_path(self) -> Path:
        """results/phases.parquet."""
        return self.results / "phases.parquet"

    @property
    def pruned(self) -> Path:
        """The rows of attempts whose files `prune` removed."""
        return self.path / "pruned"

    @property
    def traces(self) -> Path:
        """results/traces: the collected traces."""
        return self.results / "traces"

    def copies_path(self, point_id: str) -> Path:
        """The file of collected traces that a point shares with all whose ids begin with the same two digits."""
        return self.traces / f"{point_id[:2]}.parquet"

    @property
    def crosscheck_path(self) -> Path:
        """results/crosscheck.parquet: what the site's own meters said, when it was last asked."""
        return self.results / "crosscheck.parquet"

    @property
    def controls_path(self) -> Path:
        """results/neighbours.json: what neighbours change, where the sweep is the control that measured it."""
        return self.results / "neighbours.json"

    @property
    def search_path(self) -> Path:
        """results/search.json: where `optimize` stood when it last looked."""
        return self.results / "search.json"

    @property
    def report_path(self) -> Path:
        """results/report.html."""
        return self.results / "report.html"

    def make(self) -> None:
        """Create the sweep's folders, readable by the owner only."""
        if not self.path.is_dir():
            make_folder(self.path)
        for folder in ("points", "submitit", "results", "results/traces"):
            make_folder(self.path / folder)
        for place in (self.path, self.results, self.traces, self.path / packed.FOLDER):
            clear_temporaries(place)

    def open_to_group(self) -> None:
        """Let the group read results/ and nothing else: the sweep's own folder may only be passed through."""
        open_to_group(self.results)
        set_mode(self.path, 0o710)

    def require_owner(self) -> None:
        """RefusedError unless the sweep belongs to the caller and nobody else may write to it."""
        if not self.submitit.is_dir():  # a bundle's, unpacked
            raise RefusedError(
                f"{self.path}: not submitted from here, so that nothing can be sent."
            )
        for folder in (self.path, self.submitit):
            about = folder.stat()
            if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise RefusedError(
                    f"{folder}: belongs to uid {about.st_uid} with mode {stat.filemode(about.st_mode)}. Only its owner "
                    "may submit to a sweep, and nobody else may be able to write to it."
                )
        check_safe(self.path)

    def point_path(self, point_id: str) -> Path:
        """The folder of one point; RefusedError for what is no point_id."""
        if not _POINT_ID.fullmatch(point_id):
            raise RefusedError(f"point {point_id!r}: a point_id is 12 hex digits.")
        return self.path / "points" / point_id

    def points(self) -> list[GridPoint]:
        """Read the sweep's points, in the order in which they are run; DamagedError where grid.parquet is none."""
        return read_grid(self.grid_path)

    def point(self, point_id: str) -> GridPoint:
        """Read one point; RefusedError where the sweep has no such point."""
        return read_point(self.grid_path, point_id)

    def points_on_disk(self) -> set[str]:
        """The points that have attempts, alone or packed: one listing instead of thousands of failing ones."""
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.path / "points")  # noqa: PTH208 (names alone)
        alone = {name for name in names if _POINT_ID.fullmatch(name)}
        return alone | set(
            packed.points(self.path)
        )  # in this order: a file is packed before it goes

    def attempts(self, point_id: str) -> list[AttemptDir]:
        """The attempts of a point, oldest first."""
        folder = self.point_path(point_id)
        check_folder(folder)
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            names = [entry.name for entry in os.scandir(folder)]
        alone = {int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name))}
        numbers = sorted(alone.union(packed.attempts(self.path, point_id)))
        return [AttemptDir(folder / f"attempt-{n}", point_id, n) for n in numbers]

    def attempt(self, point_id: str, number: int) -> AttemptDir:
        """One attempt of a point, whether or not it is there."""
        return AttemptDir(self.point_path(point_id) / f"attempt-{number}", point_id, number)

    def collected(self, point_id: str) -> list[CollectedAttempt]:
        """What results/ and pruned/ have of the attempts at a point, whose files may have been removed since."""
        found: dict[int, CollectedAttempt] = {}
        for path in (self.pruned / "points.parquet", self.points_path):
            found |= {one.number: one for one in read_collected(path).get(point_id, [])}
        return [found[number] for number in sorted(found)]

    def is_finished(self, point_id: str, after: int = 0) -> bool:
        """Whether a point has a finished attempt with a number above `after`: on disk, or collected and then removed.

        A record that is there says more than results that were made of it once.
        """
        newest_first = reversed(self.attempts(point_id))
        if any(attempt.is_finished() for attempt in newest_first if attempt.number > after):
            return True
        return any(
            one.finished
            and one.number > after
            and not self.attempt(point_id, one.number).has_record()
            for one in self.collected(point_id)
        )

    def last_number(self, point_id: str) -> int:
        """The highest number that an attempt at a point has had, 0 where there was none: none is given twice."""
        numbers = [attempt.number for attempt in self.attempts(point_id)]
        return max([*numbers, *(one.number for one in self.collected(point_id))], default=0)

    def claim_attempt(self, point_id: str) -> AttemptDir:
        """A new attempt that is the caller's alone: mkdir succeeds for exactly one of those who try."""
        folder = self.point_path(point_id)
        folder.parent.mkdir(mode=0o700, exist_ok=True)  # somebody may have removed it
        number = self.last_number(point_id) + 1
        while not (attempt := self.attempt(point_id, number)).claim():
            number += 1
        return attempt

    def append_journal(self, line: JournalLine) -> None:
        """Add one line and fsync it; the sweep's owner is its only writer."""
        data = (
            json.dumps({"schema_version": SCHEMA_VERSION, **line}, allow_nan=False) + "\n"
        ).encode()
        with open_append(self.journal_path) as file:
            if os.write(file.fileno(), data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.journal_path))
            os.fsync(file.fileno())

    def journal(self) -> Iterator[JournalLine]:
        """The journal's lines in order; a last line cut short by a crash is passed over, another damaged one raises."""
        try:
            data = read_own(self.journal_path)
        except FileNotFoundError:
            return
        *whole, _cut = data.split(b"\n")
        for number, text in enumerate(whole, 1):
            # a crash may leave half a line, to which a later call then appends
            start = max(0, text.rfind(b'{"schema_version"'))
            try:
                line = json.loads(text[start:])
                known = line["schema_version"] == SCHEMA_VERSION
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DamagedError(
                    f"{self.journal_path}, line {number}: not a journal line."
                ) from error
            if not known:
                raise DamagedError(
                    f"{self.journal_path}, line {number}: not schema version {SCHEMA_VERSION}."
                )
            yield cast(JournalLine, line)


def served_path(sweep: SweepDir) -> Path:
    """results/requests.parquet: the requests of loads, of all attempts."""
    return sweep.results / "requests.parquet"


def notes_path(sweep: SweepDir) -> Path:
    """notes.json: tags and notes of a person."""
    return sweep.path / "notes.json"
