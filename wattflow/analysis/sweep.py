"""A sweep's results in Python and notebooks.

import wattflow
s = wattflow.open_sweep("sweeps/demo")
s.points, s.attempts, s.phases          polars DataFrames; docs/results.md explains every column
s.traces()                              a polars LazyFrame of all power samples
s.timeline(s.points["point_id"][0])     an Altair chart
s.sql("select model, min(energy_per_token_j) from points where counts group by model")

wattflow.open_sweep(["sweeps/a", "sweeps/b"])    the same tables of several sweeps, with a column `sweep` in front
"""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import polars as pl
import pyarrow as pa

from wattflow.analysis import bills, caps, comparisons, copies
from wattflow.analysis.controls import Control, near
from wattflow.analysis.means import of_mean
from wattflow.analysis.query import query
from wattflow.errors import DamagedError, RefusedError
from wattflow.store.columns import COLLECTED_TRACE, PHASE, POINT, SERVED, collected_trace
from wattflow.store.files import has_own, own_files
from wattflow.store.layout import SweepDir, served_path
from wattflow.store.phases import NOT_WITHIN
from wattflow.store.schema import SPAN, TRACE
from wattflow.store.tables import open_table, read_rows, read_table

if TYPE_CHECKING:
    import altair as alt

_Frame = TypeVar("_Frame", pl.DataFrame, pl.LazyFrame)
TIMELINE_BINS = 400  # more samples than a figure has pixels show nothing more


class Sweep:
    """The collected results of one sweep. What lies on disk is read when first asked for."""

    def __init__(self, directory: SweepDir) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        """Return where the sweep lies and how many points it has."""
        return f"<sweep {self.directory.path}: {len(self.points)} points>"

    @property
    def name(self) -> str:
        """The sweep's name, as text."""
        return _text(self.directory.name)

    @cached_property
    def attempts(self) -> pl.DataFrame:
        """One row a point and attempt; points never tried have one row without an attempt."""
        return _read(self.directory.points_path, POINT)

    @cached_property
    def points(self) -> pl.DataFrame:
        """One row a point: the attempt that counts, else the newest; infeasible and failed points too."""
        order = self.attempts.with_row_index("order_")
        best = order.sort("counts", "attempt", nulls_last=False).unique(
            "point_id", keep="last", maintain_order=True
        )
        position = order.group_by("point_id").agg(pl.col("order_").min().alias("at_"))
        return best.join(position, on="point_id").sort("at_").drop("order_", "at_")

    @cached_property
    def phases(self) -> pl.DataFrame:
        """One row a point, attempt, phase and GPU."""
        return _read(self.directory.phases_path, PHASE)

    @property
    def requests(self) -> pl.DataFrame:
        """One row a request of attempts whose requests came while others were in work; no rows where none did."""
        if not served_path(self.directory).is_file():
            return _frame(SERVED.empty_table())
        return _read(served_path(self.directory), SERVED)

    def compare(
        self,
        by: str,
        metric: str = "energy_per_token_j",
        reference: object = None,
        along: Sequence[str] = (),
    ) -> pl.DataFrame:
        """Return what each value of one choice costs, over the points that count and share all other choices.

        One row an arm: the other choices that vary, `by`, n, boards, mean, sd_within, sd_between, low and high (95 %);
        then ratio, ratio_low, ratio_high to the arm of `reference` (default: the first), how it was found, established,
        why_not; moves_along, what else differs between the two arms; break_even_host_w, the extra host watts at which
        both cost the same energy a token, whatever the metric, break_even_low_w and _high_w (95 %), or
        break_even_why_not.

        RefusedError for a column that is no choice, no number, or has one value only, and where two choices move along
        with `by` that are not in `along`.
        """
        arms = comparisons.arms(self.points, by, metric, reference, along, controls=self.controls)
        found = [arm.row(by) for arm in arms]
        return pl.DataFrame(found, infer_schema_length=None)

    @cached_property
    def controls(self) -> list[Control]:
        """What neighbours change, by the controls in the sweeps beside this one (grid=neighbours)."""
        return near(self.directory)

    def cost(self, settings: Sequence[str] = ()) -> pl.DataFrame:
        """Return a row an attempt: GPU-hours, kWh, and price and carbon by the factors that its site profile declares.

        `settings` are `cluster.cost.KEY=VALUE`, each in a factor's place. docs/results.md has the columns.
        RefusedError for a factor without a source, or a table that cannot be read.
        """
        return _frame(bills.table(self.attempts.to_dicts(), settings))

    def boards(self) -> pl.DataFrame:
        """Return a row a board under the fixed reference load (sweep.reference_s), dearest first; empty without any.

        Columns node, gpu_uuid, n, power_w and power_sd_w over n reference phases, power_expanded_u_w (k = 2, null where
        the gain of the sensor is unknown), and relative: its power over the mean of all boards. That one is dearer may
        be its sensor's gain or its silicon: the load alone cannot say which.
        """
        measured = self.phases.filter(
            (pl.col("phase") == "reference") & pl.col("power_w").is_not_null()
        )
        boards = measured.group_by("node", "gpu_uuid").agg(
            pl.len().alias("n"),
            pl.col("power_w").mean(),
            pl.col("power_w").std().alias("power_sd_w"),
            pl.when(pl.col("energy_expanded_u_j").null_count() == 0)
            .then((pl.col("energy_expanded_u_j") / pl.col("seconds")).mean())
            .alias("shared"),
        )
        doubts = [
            None if row["shared"] is None else of_mean(row["shared"], row["power_sd_w"], row["n"])
            for row in boards.to_dicts()
        ]
        own = pl.Series("power_expanded_u_w", doubts, dtype=pl.Float64)
        boards = boards.with_columns(own).drop("shared")
        relative = (pl.col("power_w") / pl.col("power_w").mean()).alias("relative")
        return boards.with_columns(relative).sort("power_w", "gpu_uuid", descending=True)

    def caps(
        self,
        reference: int | None,
        by: str = "control_power_limit_w",
        along: Sequence[str] = (),
    ) -> list[tuple[dict[str, object], list[caps.Row]]]:
        """Return what each power cap, or clock (by="control_sm_clock_mhz"), changes against a reference.

        One entry a combination of the other choices that vary: those choices, and a row a cap. A null cap is a board
        as it was found. RefusedError where no point at the reference counts, or none beside it, and where two choices
        move along with the caps that are not in `along`.
        """
        return caps.by_cap(self.points, reference, by, along)

    def traces(self) -> pl.LazyFrame:
        """Return all readings of all GPUs of finished attempts, with point_id, attempt, node and gpu_uuid."""
        paths = own_files(self.directory.traces, "*.parquet")
        for path in paths:
            with open_table(
                path, COLLECTED_TRACE
            ):  # named if it is none, where polars would see bytes alone
                pass
        return pl.scan_parquet(paths) if paths else _frame(COLLECTED_TRACE.empty_table()).lazy()

    def sql(self, statement: str) -> pl.DataFrame:
        """Return what one SELECT finds in the tables points, attempts, phases and traces.

        RefusedError without DuckDB, which is the extra wattflow[query], and for a statement that cannot run.
        """
        return query(statement, _tables(self))

    def row(self, point: str) -> dict[str, object]:
        """Return the row of `points` whose point_id is or starts with `point`; RefusedError unless just one is."""
        found = self.points.filter(pl.col("point_id").str.starts_with(point))
        if len(found) != 1 or not point:
            raise RefusedError(
                f"point {point!r}: {len(found)} points of {self.directory.path} start so. "
                "The column point_id of `points` lists them."
            )
        return found.row(0, named=True)

    def power(self, point: str) -> pl.DataFrame:
        """Return the power of each GPU of a point in at most 400 bins, by seconds since its node's window began.

        Columns node, gpu_uuid, seconds, power_w (mean), lowest_w, highest_w. RefusedError for an unknown point.
        """
        return self.power_of(self.row(point))

    def power_of(self, row: Mapping[str, Any], bins: int = TIMELINE_BINS) -> pl.DataFrame:
        """Return the same of a row of `points`, in at most so many bins."""
        zero = _zero_ns(self.spans_of(row))
        path = self.directory.copies_path(str(row["point_id"]))
        found = COLLECTED_TRACE.empty_table()
        if path.is_file():
            found = read_rows(path, COLLECTED_TRACE, "point_id", str(row["point_id"]))
        if not found.num_rows and row["energy_j"] is not None:  # pruned: the raw ones may be there
            found = self._raw_traces(row)
        samples = (
            _frame(found)
            .filter(
                (pl.col("attempt") == row["attempt"])
                & (pl.col("source") == str(row["power_source"]).split(" + ")[0])
                & pl.col("power_w").is_not_null()
            )
            .select("node", "gpu_uuid", "time_ns", "power_w")
        )
        if samples.is_empty():
            return samples.with_columns(seconds=pl.lit(0.0), lowest_w=0.0, highest_w=0.0)
        samples = samples.join(zero, on="node", how="left").with_columns(
            seconds=(pl.col("time_ns") - pl.col("zero_ns")) / 1e9
        )
        first, last = samples["seconds"].min(), samples["seconds"].max()
        assert isinstance(first, float)
        assert isinstance(last, float)
        width = max((last - first) / bins, 1e-9)
        at = ((pl.col("seconds") - first) / width).floor().cast(pl.Int64)
        return (
            samples.group_by("node", "gpu_uuid", at.alias("bin"))
            .agg(
                pl.col("seconds").mean(),
                pl.col("power_w").mean(),
                pl.col("power_w").min().alias("lowest_w"),
                pl.col("power_w").max().alias("highest_w"),
            )
            .sort("node", "gpu_uuid", "bin")
            .drop("bin")
        )

    def _raw_traces(self, row: Mapping[str, Any]) -> pa.Table:
        """Return the raw traces of an attempt's devices in the form of collected ones; empty where they are gone."""
        attempt = self.directory.attempt(str(row["point_id"]), int(row["attempt"] or 0))
        devices = self._all_spans(row).select("node", "gpu_uuid").unique().rows()
        tables = [COLLECTED_TRACE.empty_table()]
        for node, uuid in devices:
            path = attempt.trace_path(node, uuid)
            if has_own(path):
                owner = (attempt.point_id, attempt.number, node, uuid)
                tables.append(collected_trace(read_table(path, TRACE), owner))
        return pa.concat_tables(tables)

    def spans(self, point: str) -> pl.DataFrame:
        """Return the spans of each node's lowest rank, straight from the point's attempt; empty if it has none."""
        return self.spans_of(self.row(point))

    def spans_of(self, row: Mapping[str, Any]) -> pl.DataFrame:
        """Return the same of a row of `points`."""
        spans = self._all_spans(row)
        return spans.filter(pl.col("rank") == pl.col("rank").min().over("node"))

    def windows(self, row: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
        """Return node, GPU UUID, and start and end (unix ns) of its measured window, of an attempt's row."""
        within = self._all_spans(row).filter(~pl.col("phase").is_in(NOT_WITHIN))
        edges = (pl.col("start_ns").min(), pl.col("end_ns").max())
        return within.group_by("node", "gpu_uuid", maintain_order=True).agg(*edges).rows()

    def _all_spans(self, row: Mapping[str, Any]) -> pl.DataFrame:
        """Return the spans of all ranks, straight from the attempt of a row; empty where it has none."""
        tables = []
        if isinstance(row["attempt"], int):
            attempt = self.directory.attempt(str(row["point_id"]), row["attempt"])
            for node in _listed(row["node_names"]):
                path = attempt.spans_path(str(node))
                if has_own(path):
                    tables.append(_frame(read_table(path, SPAN)))
        return pl.concat(tables) if tables else _frame(SPAN.empty_table())

    def timeline(self, point: str) -> "alt.LayerChart":
        """Draw the power of each GPU of one point, its phases shaded; RefusedError where nothing was measured."""
        from wattflow.analysis import figures  # noqa: PLC0415 (altair is slow to import)

        power, spans = self.power(point), self.spans(point)
        row = self.row(point)
        if power.is_empty() or spans.is_empty():
            raise RefusedError(
                f"point {row['point_id']}: no trace to draw; its status is {row['status']}, its reasons "
                f"{', '.join(map(str, _listed(row['reasons'])))}."
            )
        return figures.timeline(power, spans, row)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _zero_ns(spans: pl.DataFrame) -> pl.DataFrame:
    """Return the measured window's start on each node: clocks of two nodes are never compared."""
    return (
        spans.filter(~pl.col("phase").is_in(NOT_WITHIN))
        .group_by("node")
        .agg(pl.col("start_ns").min().alias("zero_ns"))
    )


class Sweeps:
    """The collected results of several sweeps, one below the other; `sweep`, the first column, has each one's path.

    Of an attempt that two of them hold, as a copied sweep does, the rows of the first are there alone.
    """

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        self.sweeps = sweeps

    def __repr__(self) -> str:
        """Return how many sweeps there are, and how many points."""
        return f"<{len(self.sweeps)} sweeps: {len(self.points)} points>"

    @cached_property
    def points(self) -> pl.DataFrame:
        """One row a point."""
        return self._together([one.points for one in self.sweeps])

    @cached_property
    def attempts(self) -> pl.DataFrame:
        """One row a point and attempt."""
        return self._together([one.attempts for one in self.sweeps])

    @cached_property
    def phases(self) -> pl.DataFrame:
        """One row a point, attempt, phase and GPU."""
        return self._together([one.phases for one in self.sweeps])

    @cached_property
    def controls(self) -> list[Control]:
        """What neighbours change, by the controls beside any of the sweeps."""
        return [control for one in self.sweeps for control in one.controls]

    def traces(self) -> pl.LazyFrame:
        """Return all readings of all GPUs of finished attempts."""
        return self._together([one.traces() for one in self.sweeps])

    @cached_property
    def notes(self) -> list[str]:
        """What is not in the tables, a line a sweep."""
        found = [
            (_path(one), line)
            for one, copied in zip(self.sweeps, self._copied, strict=True)
            for line in copies.note(copied)
        ]
        return [f"{name}: {line}" for name, line in found]

    @cached_property
    def _copied(self) -> list[pl.DataFrame]:
        """The attempts of each sweep that one before it holds."""
        earlier = copies.Earlier()
        found = []
        for one in self.sweeps:
            found.append(earlier.copies(one.attempts))
            earlier.add(_path(one), one.attempts)
        return found

    def _together(self, frames: Sequence[_Frame]) -> _Frame:
        """Return tables one below the other; a column that older results lack is null there."""
        each = [
            _named(one, copies.without(frame, copied))
            for one, frame, copied in zip(self.sweeps, frames, self._copied, strict=True)
        ]
        return pl.concat(each, how="diagonal")

    def sql(self, statement: str) -> pl.DataFrame:
        """Return what one SELECT finds in the tables points, attempts, phases and traces, as `Sweep.sql` does."""
        return query(statement, _tables(self))


def _named(sweep: Sweep, frame: _Frame) -> _Frame:
    """Return a table with the sweep's path as its first column."""
    return frame.select(pl.lit(_path(sweep)).alias("sweep"), pl.all())


def _path(sweep: Sweep) -> str:
    return _text(str(sweep.directory.path))


def _text(path: str) -> str:
    """Return a path as text that a file can hold: a folder's name may have bytes that are none."""
    return os.fsencode(path).decode(errors="replace")


def _tables(results: Sweep | Sweeps) -> dict[str, pl.DataFrame | pl.LazyFrame]:
    """Return the tables that SQL finds, by name; readings are many, and read only where they are asked for."""
    return {
        "points": results.points,
        "attempts": results.attempts,
        "phases": results.phases,
        "traces": results.traces(),
    }


@overload
def open_sweep(path: str | Path) -> Sweep: ...
@overload
def open_sweep(path: list[str] | list[Path] | list[str | Path]) -> Sweeps: ...
def open_sweep(
    path: str | Path | list[str] | list[Path] | list[str | Path],
) -> Sweep | Sweeps:
    """Return the results of the sweep at a path, or of that name below ./sweeps; of several, one below the other.

    Raises RefusedError where there is no sweep, or where it was not collected yet.
    """
    if not isinstance(path, str | Path):
        return Sweeps([open_sweep(one) for one in _distinct(path)])
    directory = SweepDir.existing(path)
    if not directory.points_path.is_file():
        raise RefusedError(
            f"{directory.path}: no results yet. Run `wattflow collect {directory.path}`; it may run at any time."
        )
    return Sweep(directory)


def _distinct(paths: Sequence[str | Path]) -> list[str | Path]:
    """Return paths of sweeps; RefusedError where there is none, or where one stands twice and would count twice."""
    places = [SweepDir.existing(path).path.resolve() for path in paths]
    if not places:
        raise RefusedError("no sweep: name one or more, such as sweeps/*.")
    twice = [str(path) for i, path in enumerate(paths) if places[i] in places[:i]]
    if twice:
        raise RefusedError(f"{', '.join(twice)}: named twice; its rows would count twice.")
    return [*paths]


def _read(path: Path, schema: object) -> pl.DataFrame:
    """Return a table of results; RefusedError naming `wattflow collect` where it is absent or damaged."""
    try:
        return _finite(path, _frame(read_table(path, schema)))
    except (FileNotFoundError, DamagedError) as error:
        sweep = path.parent.parent
        raise RefusedError(
            f"{str(error).rstrip('.')}. Run `wattflow collect {sweep}` to write the results anew."
        ) from error


def _finite(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table of results; DamagedError where a number is none: what collect cannot know it leaves out."""
    for name in frame.select(pl.col(pl.Float64, pl.Float32)).columns:
        if not frame[name].is_finite().all():
            raise DamagedError(f"{path}: {name} has values that are no numbers")
    return frame


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
