"""The results of a sweep as they were published: tables that `verify` recomputes."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from wattflow import __version__
from wattflow.collect.copies import CopiedAttempts
from wattflow.errors import DamagedError, RefusedError
from wattflow.publish.verdict import Key
from wattflow.store.columns import PHASE, POINT
from wattflow.store.files import own_files
from wattflow.store.grid import GridPoint
from wattflow.store.kept import PRUNED, Kept
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.phases import WITHIN
from wattflow.store.tables import read_schema, read_table

Row = dict[str, Any]

# columns that were defined otherwise before results had the one that each is named with
REDEFINED = {
    "board_gain_u_j": "energy_expanded_u_j",
    "computed_tokens": "energy_expanded_u_j",
    "energy_per_computed_token_j": "energy_expanded_u_j",
    "energy_per_computed_token_u_j": "energy_expanded_u_j",
} | dict.fromkeys(
    (
        *("reasons", "edges_u_j", "energy_u_j", "power_u_w", "energy_per_token_u_j"),
        *("energy_per_word_u_j", "energy_per_response_u_j", "net_energy_u_j", "job_energy_u_j"),
        *("energy_expanded_u_j", "power_expanded_u_w", "energy_per_token_expanded_u_j"),
        *("energy_per_response_expanded_u_j", "steady_energy_u_j", "steady_energy_per_token_u_j"),
        *(f"{phase}_energy{of}_j" for phase in WITHIN for of in ("", "_u")),
    ),
    "aliasing_u_j",
)
PHASE_REDEFINED = {"energy_j", "energy_u_j", "power_w"}  # with them, of phases in the window
NO_FIGURES = {"record_stamp_ns"}  # when a record was written, and in a bundle nothing


@dataclass(frozen=True)
class Results:
    """The tables of one sweep's results and its grid, read and never written."""

    sweep: SweepDir
    bundled: bool
    measured: bool  # of a command under `measure`
    made_by: str  # the wattflow that wrote the results
    grid: list[GridPoint]
    points: Mapping[Key, Row]
    phases: Mapping[Key, list[Row]]
    doubled: list[Key]  # that stand twice among the points
    columns: list[str]  # those of the points that are compared
    redefined: set[
        str
    ]  # of these, those that an older version defined otherwise: held to their copies alone
    absent: list[
        str
    ]  # columns of this version that the points lack, or hold by an older definition
    unknown: list[str]  # columns of the points that this version does not know
    kept_points: Mapping[Key, Row]  # rows that `prune` laid aside; a bundle has none
    kept_phases: Mapping[Key, list[Row]]

    @property
    def redefined_phases(self) -> set[str]:
        """Columns of the phases within the window that an older version defined otherwise."""
        return PHASE_REDEFINED if f"{WITHIN[0]}_energy_j" in self.redefined else set()

    @cached_property
    def damaged(self) -> set[Key]:
        """Attempts whose files were damaged when they were collected, of which a bundle has none."""
        return {
            key
            for key, row in self.points.items()
            if self.bundled and "damaged" in (row["reasons"] or ()) and not row["counts"]
        }

    @cached_property
    def gone(self) -> set[Key]:
        """Attempts whose files had been removed when the results were made."""
        return {key for key, row in self.points.items() if "files_gone" in (row["reasons"] or ())}

    @cached_property
    def pruned(self) -> set[Key]:
        """Attempts whose files `wattflow prune` removed, by the rows that it laid aside or by their mark."""
        marked = {key for key, row in self.points.items() if PRUNED in (row["reasons"] or ())}
        return marked | set(self.kept_points)

    def unrecorded(self, point_id: str) -> list[AttemptDir]:
        """Return the attempts at a point that had no record when they were collected, of which a bundle has nothing."""
        there = {attempt.number for attempt in self.sweep.attempts(point_id)}
        return [
            self.sweep.attempt(point_id, number)
            for (of_point, number), row in self.points.items()
            if self.bundled and of_point == point_id and row["status"] == "running"
            if number is not None and number not in there and "damaged" not in row["reasons"]
        ]

    def notes(self) -> list[str]:
        """Return what is not compared, and what may differ for the version alone."""
        out = []
        if self.made_by != __version__:
            out.append(
                f"the results were made by wattflow {self.made_by}, and this is {__version__}: figures may differ for "
                "that alone. Verify with the version that made them, or collect anew."
            )
        if self.absent:
            out.append(
                "the results were made by an older wattflow: they lack columns that this one makes, or define them "
                f"otherwise, and their figures may differ for that alone. Not compared: {', '.join(self.absent)}."
            )
        if self.unknown:
            out.append(f"columns unknown to this version, not compared: {', '.join(self.unknown)}.")
        if not self.bundled and not self.sweep.traces.is_dir():
            out.append(
                "results/traces is not there, so the raw traces have no second copy to be held against."
            )
        files = [] if self.bundled else own_files(self.sweep.traces, "*.parquet")
        if copies := sum(len(CopiedAttempts.read(path).pruned) for path in files):
            out.append(
                f"the second copies of the traces of {copies} attempts were pruned: there is nothing to hold the raw "
                "ones against."
            )
        return out


def read_results(sweep: SweepDir, *, bundled: bool) -> Results:
    """Return the tables of a sweep; RefusedError where there are no results, or a table is none."""
    try:
        grid = sweep.points()
        points = read_table(sweep.points_path, POINT)
        phases = read_table(sweep.phases_path, PHASE)
        kept = Kept(POINT.empty_table(), PHASE.empty_table()) if bundled else Kept.read(sweep)
        there = set(read_schema(sweep.points_path).names)
        of_phases = set(read_schema(sweep.phases_path).names)
    except FileNotFoundError:
        raise RefusedError(
            f"{sweep.path}: no results to verify. Run `wattflow collect {sweep.path}` first."
        ) from None
    except DamagedError as error:
        raise RefusedError(str(error)) from error
    keyed = _keyed(points)
    times = Counter(key for key, _ in keyed)
    redefined = {name for name, since in REDEFINED.items() if since not in there}
    return Results(
        sweep=sweep,
        bundled=bundled,
        measured=sweep.measured_path.is_file(),
        made_by=(points.schema.metadata or {}).get(b"wattflow", b"?").decode(errors="replace"),
        grid=grid,
        points=dict(keyed),
        phases=_by_attempt(phases.select([n for n in PHASE.names if n in of_phases])),
        kept_points=dict(_keyed(kept.points)),
        kept_phases=_by_attempt(kept.phases),
        doubled=[key for key, n in times.items() for _ in range(n - 1)],
        columns=[name for name in POINT.names if name in there - NO_FIGURES],
        redefined=redefined,
        absent=[
            *sorted(set(POINT.names) - there | redefined),
            *(f"{name} of the phases" for name in PHASE.names if name not in of_phases),
        ],
        unknown=sorted(there - set(POINT.names)),
    )


def _keyed(points: pa.Table) -> list[tuple[Key, Row]]:
    return [((row["point_id"], row["attempt"]), row) for row in points.to_pylist()]


def _by_attempt(phases: pa.Table) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = defaultdict(list)
    for row in phases.to_pylist():
        found[row["point_id"], row["attempt"]].append(row)
    return dict(found)
