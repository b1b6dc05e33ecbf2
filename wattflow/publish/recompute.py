"""Every attempt of a sweep once more from its traces and timings, compared with what was published of it."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from wattflow.collect.attempt import collect_attempt
from wattflow.collect.collect import newest_valid, untried
from wattflow.collect.row import AttemptRows, Choices
from wattflow.config import choices as config_choices
from wattflow.config import identity
from wattflow.errors import DamagedError, RefusedError
from wattflow.publish import kept, plausibility
from wattflow.publish.copies import Copies
from wattflow.publish.results import Results, Row
from wattflow.publish.verdict import AttemptCheck, Difference, Key, Verdict, named
from wattflow.store.columns import CHOICE_KEYS
from wattflow.store.files import own_files
from wattflow.store.grid import GridPoint
from wattflow.store.layout import AttemptDir
from wattflow.store.phases import NOT_WITHIN
from wattflow.store.schema import Record, beside_devices

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}")


class Recomputation:
    """All attempts of what was published, recomputed: what differs, the rows that came out, and the records read."""

    def __init__(self, results: Results, verdict: Verdict) -> None:
        """Recompute all of it; what concerns no attempt alone goes into the verdict."""
        self._results, self._verdict = results, verdict
        self._copies = Copies(results.sweep)
        self.checks: dict[Key, AttemptCheck] = {}
        self.rows: dict[Key, Row] = {}
        self.records: list[Record] = []
        self._stays: list[plausibility.Stay] = []
        for point in results.grid:
            self._check_point(point)
        self._check_counts()
        self._check_stays()
        self._check_keys()

    def _check_point(self, point: GridPoint) -> None:
        point_id = point.point_id
        problem: str | None = None
        try:
            choices = point.choices()
            problem = self._wrong_id(point)
            attempts = self._results.sweep.attempts(point_id) + self._results.unrecorded(point_id)
            blank = untried(point, Choices.of(choices))
        except (
            RefusedError,
            DamagedError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            self._verdict.problems.append(f"point {point_id!a}: its choices are none ({error!a}).")
            return
        absent = self._results.damaged | self._results.gone
        if not attempts and not any(key[0] == point_id for key in absent):
            self._compare(blank, problem)
        for attempt in attempts:
            self._check_attempt(attempt, choices, problem)

    def _wrong_id(self, point: GridPoint) -> str | None:
        """Return why a point_id is not the hash of its choices; null where it is, or where a bundle withholds them."""
        if self._results.measured and self._results.bundled:
            self._verdict.withheld_ids += 1
            return None
        command = point.command() if self._results.measured else None
        made = (
            identity.point_id(point.config()) if command is None else identity.command_id(command)
        )
        if made == point.point_id:
            self._verdict.right_ids += 1
            return None
        return f"its choices are not those of {point.point_id}: they hash to {made}."

    def _check_attempt(
        self, attempt: AttemptDir, choices: dict[str, Any], problem: str | None
    ) -> None:
        key: Key = (attempt.point_id, attempt.number)
        record, chosen, problems = self._read(attempt, choices)
        one = collect_attempt(attempt, chosen)
        if key in self._results.pruned:
            self._check_kept(key, one, [*problems, *([problem] if problem else [])])
            return
        if record is not None and self._has_figures(key, record, one):
            problems += self._implausible(attempt, record, chosen)
        check = self._compare(one, problem)
        if check.damaged:
            return
        check.problems[:0] = problems  # causes before their effects
        if record is not None:
            check.problems += self._copies.wrong(one, (attempt.point_id, attempt.number))

    def _read(
        self, attempt: AttemptDir, choices: dict[str, Any]
    ) -> tuple[Record | None, Choices, list[str]]:
        """Read an attempt's record; return it, the choices that its row follows from, and what is wrong with it."""
        problems: list[str] = []
        chosen = Choices.of(choices)
        try:
            record = attempt.read_record()
            if record is not None:
                self.records.append(record)
                if self._results.bundled:
                    _check_names(record)
                if not self._results.measured:
                    problems += _other_choices(record, choices)
                if self._results.measured and "choices" in record:
                    chosen = Choices.of(record["choices"])
        except RefusedError:
            raise
        except (DamagedError, LookupError, TypeError, AttributeError, ValueError) as error:
            return None, chosen, [*problems, f"record.json is none ({error!a})."]
        return record, chosen, problems

    def _check_kept(self, key: Key, one: AttemptRows, problems: list[str]) -> None:
        """Hold the row of a pruned attempt to what is left: its other files, its own sums, the copy laid aside."""
        results = self._results
        published, phases = results.points.get(key), results.phases.get(key, [])
        if published is None:
            self._verdict.problems.append(f"{named(key)}: pruned, and not in the results.")
            return
        self.rows[key] = dict(published)
        check = self.checks[key] = _check_of(key, published, one.point, published)
        check.kept = True
        check.recomputed_j = None
        check.problems += problems
        columns = [name for name in results.columns if name not in results.redefined]
        kept.compare_left(check, published, one.point, columns)
        kept.compare_sums(check, published, phases)
        if results.bundled:
            if published["counts"]:
                check.problems.append("it counts, and nothing in the bundle shows how it was made.")
        elif (copy := results.kept_points.get(key)) is None:
            check.problems.append("it is marked as pruned, and `wattflow prune` kept no row of it.")
        else:
            kept.compare_copy(check, published, copy, columns)
            _compare_phases(
                check, phases, results.kept_phases.get(key, []), results.redefined_phases
            )

    def _has_figures(self, key: Key, record: Record, one: AttemptRows) -> bool:
        """Return whether an attempt has figures, now or in the results; of others a reason in their row says why."""
        row = self._results.points.get(key)
        return record["status"] == "finished" and bool(one.point["valid"] or (row and row["valid"]))

    def _implausible(self, attempt: AttemptDir, record: Record, chosen: Choices) -> list[str]:
        """Return what cannot be of one attempt; what others must not have too is kept until all are known."""
        problems = _strange_traces(attempt, record)
        try:
            strange, stays = plausibility.strange(attempt, record, chosen.config)
        except FileNotFoundError as error:
            return [*problems, f"{error.filename}: not there."]
        except (DamagedError, LookupError, TypeError, AttributeError, ValueError) as error:
            return [*problems, f"its files cannot be held to one another ({error!a})."]
        self._stays += stays
        return problems + strange

    def _check_stays(self) -> None:
        """Find what two attempts that count cannot both have: one GPU's time, or its samples."""
        counting = {key for key, row in self.rows.items() if row["counts"]}
        settings = {
            key: tuple(repr(row[name]) for name in CHOICE_KEYS if name != "repeat")
            for key, row in self.rows.items()
            if key in counting
        }
        stays = [stay for stay in self._stays if stay.key in counting]
        for key, problems in plausibility.strange_stays(stays, settings).items():
            self.checks[key].problems += problems

    def _compare(self, one: AttemptRows, problem: str | None) -> AttemptCheck:
        """Compare one recomputed row, and its phases, with what was published."""
        row = one.point
        key: Key = (row["point_id"], row["attempt"])
        published = self._results.points.get(key)
        self.rows[key] = row
        check = self.checks[key] = _check_of(key, published, row, row)
        if problem is not None:
            check.problems.append(problem)
        if published is None:
            if row["status"] == "running":
                self._verdict.notes.append(f"{named(key)}: not collected yet.")
            else:
                check.problems.append("not in the results. `wattflow collect` adds it.")
            return check
        damaged = "damaged" in (published["reasons"] or ()) and not published["counts"]
        check.damaged = damaged and "damaged" in row["reasons"]
        if check.damaged:
            return check
        for column in self._results.columns:
            if column in self._results.redefined:
                continue
            if column != "counts":
                check.compare(Difference("points", column, published[column], row[column]))
        redefined = self._results.redefined_phases
        _compare_phases(check, self._results.phases.get(key, []), one.phases, redefined)
        stale = published["record_stamp_ns"] not in (None, row["record_stamp_ns"])
        if check.differences and stale:
            self._verdict.notes.append(
                f"{named(key)}: its record was written, or copied, after the results were made. If its files are "
                "right, `wattflow collect` makes the results anew."
            )
        return check

    def _check_counts(self) -> None:
        """Compare which attempts count: it follows from all rows together."""
        keys = list(self.rows)
        counting = newest_valid([(key[0], bool(self.rows[key]["valid"])) for key in keys])
        for i, key in enumerate(keys):
            self.rows[key]["counts"] = i in counting
            if key in self._results.points:
                published = bool(self._results.points[key]["counts"])
                self.checks[key].compare(Difference("points", "counts", published, i in counting))

    def _check_keys(self) -> None:
        """Find rows of the results that are of no point or attempt, or stand there twice."""
        problems = self._verdict.problems
        grid = {point.point_id for point in self._results.grid}
        damaged = self._results.damaged
        for key, row in self._results.points.items():
            if key[0] in grid and key not in self.rows:
                if row["status"] == "waiting" and any(one[0] == key[0] for one in self.rows):
                    self._verdict.notes.append(f"{named(key)}: tried since it was collected.")
                elif key in self._results.gone | self._results.pruned:
                    text = f"{named(key)}: its files are gone, so that nothing is left to verify it by."
                    (problems if row["counts"] else self._verdict.notes).append(text)
                elif key in damaged:
                    self.checks[key] = AttemptCheck(*key, row["status"], False, False, damaged=True)
                else:
                    problems.append(f"{named(key)}: in the results, and not on disk.")
        problems += [
            f"{named(key)}: in the results and not in the grid."
            for key in self._results.points
            if key[0] not in grid
        ]
        problems += [f"{named(key)}: twice in the results." for key in self._results.doubled]
        problems += [
            f"{named(key)}: has phases in the results and no row among the points."
            for key in self._results.phases
            if key not in self._results.points
        ]


def _check_of(key: Key, published: Row | None, recomputed: Row, shown: Row) -> AttemptCheck:
    """Return an attempt's check before anything is compared, with the samples of the row that is shown."""
    return AttemptCheck(
        *key,
        status=(published or recomputed)["status"],
        counts=bool(published and published["counts"]),
        simulated=bool(shown["simulated"]),
        energy_j=published["energy_j"] if published else None,
        recomputed_j=recomputed["energy_j"],
        **{name: shown[name] for name in ("gpus", "samples", "samples_expected", "coverage")},
    )


# --- one record -----------------------------------------------------------------------------------


def _other_choices(record: Record, choices: Mapping[str, Any]) -> list[str]:
    """Return where a record's choices are not those of the grid."""
    theirs = record.get("choices", choices)
    if theirs == choices:
        return []
    ours, others = config_choices.flat(dict(choices)), config_choices.flat(dict(theirs))
    keys = sorted(
        k
        for k in {*ours, *others}
        if ours.get(k) != others.get(k)
        and not identity.is_replaceable(k)  # which a resume may set anew
    )
    if not keys:
        return []
    values = ", ".join(f"{k} {ours.get(k)!a} and {others.get(k)!a}" for k in keys[:5])
    return [f"grid.parquet and record.json differ in {values}."]


def _strange_traces(attempt: AttemptDir, record: Record) -> list[str]:
    """Return which devices of a record have no trace, and which traces are of none of its devices."""
    ranks = {(rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}
    nodes = record["nodes"]
    devices = {(info["node"], one["uuid"]) for info in nodes for one in info["devices"]}
    beside = {(info["node"], one["uuid"]) for info in nodes for one in beside_devices(info)}
    problems = []
    strange = sorted(uuid for _, uuid in ranks - devices)
    if strange:
        problems.append(f"ranks ran on {', '.join(strange)}, which no node of the record measured.")
    wanted = {attempt.trace_path(*device).name: device for device in ranks | devices}
    allowed = {*wanted, *(attempt.trace_path(*device).name for device in beside)}
    there = {path.name for path in own_files(attempt.path / "traces", "*.parquet")}
    problems += [
        f"GPU {wanted[name][1]} of the record has no trace." for name in sorted(set(wanted) - there)
    ]
    return problems + [
        f"traces/{name}: a trace of no device of the record." for name in sorted(there - allowed)
    ]


def _check_names(record: Record) -> None:
    """RefusedError where a record's node or device is no plain name, since paths are made of them."""
    names = [name for rank in record.get("ranks", []) for name in (rank["node"], rank["gpu_uuid"])]
    for info in record.get("nodes", []):
        names += [info["node"], *(device["uuid"] for device in info["devices"])]
        names += [one["uuid"] for one in beside_devices(info)]
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name or "/" in name:
            raise RefusedError(f"a record names a node or device {str(name)[:200]!a}: not a name.")


# --- phases ---------------------------------------------------------------------------------------


def _compare_phases(
    check: AttemptCheck,
    published: Sequence[Row],
    recomputed: Sequence[Row],
    redefined: Collection[str],
) -> None:
    ours = {_phase_of(row): row for row in recomputed}
    theirs = {_phase_of(row): row for row in published}
    if len(theirs) < len(published):
        check.problems.append("a phase of a device stands twice in phases.parquet.")
    for some, what in (
        (theirs.keys() - ours.keys(), "in phases.parquet do not come out again"),
        (ours.keys() - theirs.keys(), "are not in phases.parquet"),
    ):
        if some:
            phase, _, uuid = min(some, key=str)
            check.problems.append(f"{len(some)} phases {what}, such as {phase} of {uuid}.")
    for key in (key for key in theirs if key in ours):
        phase, _, uuid = key
        for column in theirs[key]:
            if column in redefined and phase not in NOT_WITHIN:
                continue
            values = theirs[key][column], ours[key][column]
            check.compare(Difference("phases", f"{phase} {column}", *values, device=uuid))


def _phase_of(row: Row) -> tuple[str, str, str]:
    return row["phase"], row["node"], row["gpu_uuid"]
