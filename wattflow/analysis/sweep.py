"""A sweep's results in Python and notebooks.

import wattflow
s = wattflow.open_sweep("sweeps/demo")
s.points, s.attempts, s.phases          polars DataFrames; docs/results.md explains every column
s.traces()                              a polars LazyFrame of all power samples
s.timeline(s.points["point_id"][0])     an Altair chart
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from wattflow.analysis import caps, cost, statistics
from wattflow.config.checks import check_cost
from wattflow.config.choices import Cost
from wattflow.config.overrides import with_cost
from wattflow.errors import DamagedError, RefusedError
from wattflow.store.columns import CHOICE_KEYS, COLLECTED_TRACE, COST, PHASE, POINT
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.phases import NOT_WITHIN
from wattflow.store.schema import SPAN
from wattflow.store.sources import source_of
from wattflow.store.tables import read_table

if TYPE_CHECKING:
    import altair as alt

TIMELINE_BINS = 400  # more samples than a figure has pixels tell nothing more


class Sweep:
    """The collected results of one sweep. What lies on disk is read when first asked for."""

    def __init__(self, directory: SweepDir) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        """Where the sweep lies and how many points it has."""
        return f"<sweep {self.directory.path}: {len(self.points)} points>"

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.directory.name

    @cached_property
    def attempts(self) -> pl.DataFrame:
        """One row a point and attempt; points never tried have one row without an attempt."""
        return _frame(self.directory.points_path, POINT)

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
        return _frame(self.directory.phases_path, PHASE)

    def compare(
        self, by: str, metric: str = "energy_per_token_j", reference: object = None
    ) -> pl.DataFrame:
        """What each value of one choice costs, over the points that count and share all other choices.

        One row an arm: the other choices that vary, `by`, n, boards, mean, sd_within, sd_between, low and high (95 %);
        then ratio, ratio_low, ratio_high to the arm of `reference` (default: the first), how it was found, established,
        why_not; break_even_host_w, the extra host watts at which both arms cost the same energy a token, whatever the
        metric, break_even_low_w and _high_w (95 %), or break_even_why_not.

        RefusedError for a column that is no choice, no number, or has one value only.
        """
        rows = self._comparable(by, metric)
        others = _varying(rows, by)
        values = rows[by].unique().sort().to_list()
        if reference is not None and str(reference) not in map(str, values):
            there = ", ".join(map(str, values))
            raise RefusedError(f"{by}={reference}: no point that counts. There are {there}.")
        out: list[dict[str, object]] = []
        rows = rows.sort(others, nulls_last=True, maintain_order=True) if others else rows
        groups = rows.group_by(others, maintain_order=True) if others else [((), rows)]
        for key, group in groups:
            arms = {
                value: _values(group.filter(pl.col(by) == value), metric)
                for value in values
                if len(group.filter(pl.col(by) == value))
            }
            base = next((v for v in arms if str(v) == str(reference)), next(iter(arms)))
            for value, arm in arms.items():
                told = vars(statistics.mean(arm))
                if value != base:
                    against = vars(statistics.ratio(arm, arms[base]))
                    told |= {f"ratio_{k}": against[k] for k in ("low", "high")}
                    told |= {k: against[k] for k in ("ratio", "how", "established", "why_not")}
                    if of_watts(metric) and group["simulated"].any():
                        told |= {"established": False, "why_not": "simulated"}
                    told |= _break_even(
                        group.filter(pl.col(by) == value), group.filter(pl.col(by) == base)
                    )
                out.append({**dict(zip(others, key, strict=True)), by: value, **told})
        return pl.DataFrame(out, infer_schema_length=None)

    def cost(self, settings: Sequence[str] = ()) -> pl.DataFrame:
        """A row an attempt: GPU-hours, kWh, and price and carbon by the factors that its site profile declares.

        `settings` are `cluster.cost.KEY=VALUE` words that take a factor's place. docs/results.md has the columns.
        RefusedError for a factor without a source, or a table that cannot be read.
        """
        tried = self.attempts.filter(pl.col("attempt").is_not_null())
        factors = {
            told: _factors(with_cost(Cost(**json.loads(told or "{}")), settings))
            for told in tried["cluster_cost"].unique()
        }
        rows = []
        for row in tried.to_dicts():
            source = row["power_source"] or row["unfinished_source"]
            of_host = row["boundary"] == "host" or source_of(source or "").boundary == "host"
            known = {
                "power_source": source,
                "boundary": None if source is None else "host" if of_host else "gpu",
                "simulated": None if source is None else "simulated" in source.split(" + "),
                "gpu_hours": None if of_host else _gpu_hours(row),
            }
            bill = cost.bill(_used(row), factors[row["cluster_cost"]])
            rows.append({**row, **known, **bill})
        frame = pl.from_arrow(pa.Table.from_pylist(rows, schema=COST))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def boards(self) -> pl.DataFrame:
        """A row a board under the fixed reference load (sweep.reference_s), the dearest first; empty without any.

        Columns node, gpu_uuid, n, power_w and power_sd_w over n reference phases, and relative: its power over the mean
        of all boards. That one is dearer may be its sensor's gain or its silicon: the load alone does not tell.
        """
        told = self.phases.filter(
            (pl.col("phase") == "reference") & pl.col("power_w").is_not_null()
        )
        boards = told.group_by("node", "gpu_uuid").agg(
            pl.len().alias("n"),
            pl.col("power_w").mean(),
            pl.col("power_w").std().alias("power_sd_w"),
        )
        relative = (pl.col("power_w") / pl.col("power_w").mean()).alias("relative")
        return boards.with_columns(relative).sort("power_w", "gpu_uuid", descending=True)

    def caps(
        self, reference: int | None, by: str = "control_power_limit_w"
    ) -> list[tuple[dict[str, object], list[caps.Row]]]:
        """What each power cap, or each clock with by="control_sm_clock_mhz", changes against a reference.

        One entry a combination of the other choices that vary: those choices, and a row a cap. A null cap is a board
        as it was found. RefusedError where no point at the reference counts, or none beside it.
        """
        if by not in ("control_power_limit_w", "control_sm_clock_mhz"):
            raise RefusedError(f"{by}: not control_power_limit_w or control_sm_clock_mhz.")
        rows = self.points.filter(pl.col("counts") & (pl.col("energy_j") > 0))
        found = rows[by].unique().to_list()
        if reference not in found or len(found) < 2:
            there = ", ".join("null" if cap is None else str(cap) for cap in sorted(found, key=str))
            raise RefusedError(
                f"{by}: points that count have {there or 'none'}; a table needs the reference "
                f"{'null' if reference is None else reference} and another. Rows where a cap was not in force do not "
                "count (`not_applied`)."
            )
        others = _varying(rows, by)
        rows = rows.sort(others, nulls_last=True, maintain_order=True) if others else rows
        groups = rows.group_by(others, maintain_order=True) if others else [((), rows)]
        out = []
        for key, group in groups:
            runs = {cap: _runs(group.filter(pl.col(by).eq_missing(cap))) for cap in found}
            runs = {cap: of_cap for cap, of_cap in runs.items() if of_cap}
            if reference in runs and len(runs) > 1:
                chosen = dict(zip(others, key, strict=True))
                out.append((chosen, caps.table(runs, reference)))
        return out

    def _comparable(self, by: str, metric: str) -> pl.DataFrame:
        """The points that count and have the metric; RefusedError where no comparison can be made of them."""
        if by not in CHOICE_KEYS:
            raise RefusedError(
                f"--by {by}: not a choice. The sweep varies {', '.join(_varying(self.points, None))}."
            )
        if metric not in POINT.names or not self.points[metric].dtype.is_numeric():
            raise RefusedError(
                f"--metric {metric}: not a number's column; docs/results.md has them."
            )
        rows = self.points.filter(pl.col("counts") & (pl.col(metric) > 0))
        if rows[by].n_unique() < 2:
            raise RefusedError(
                f"{by}: {rows[by].n_unique()} value among the {len(rows)} points that count and have {metric}; "
                "a comparison needs two."
            )
        kinds = rows.select("boundary", "simulated").unique(maintain_order=True).rows()
        if of_watts(metric) and len(kinds) > 1:
            told = ", ".join(
                f"{boundary}{', simulated' if simulated else ''}" for boundary, simulated in kinds
            )
            raise RefusedError(
                f"--metric {metric}: the points that count have joules of several kinds ({told}), of which there is no "
                "ratio. Compare another metric, such as tokens_per_s."
            )
        return rows

    def traces(self) -> pl.LazyFrame:
        """All readings of all GPUs that took part in finished attempts, with point_id, attempt, node and gpu_uuid."""
        paths = sorted(self.directory.traces.glob("*.parquet"))
        if not paths:
            frame = pl.from_arrow(COLLECTED_TRACE.empty_table())
            assert isinstance(frame, pl.DataFrame)
            return frame.lazy()
        return pl.scan_parquet(paths)

    def row(self, point: str) -> dict[str, object]:
        """The row of `points` whose point_id is, or starts with, `point`; RefusedError unless there is just one."""
        found = self.points.filter(pl.col("point_id").str.starts_with(point))
        if len(found) != 1 or not point:
            raise RefusedError(
                f"point {point!r}: {len(found)} points of {self.directory.path} start so. "
                "The column point_id of `points` lists them."
            )
        return found.row(0, named=True)

    def power(self, point: str) -> pl.DataFrame:
        """The power of each GPU of a point in at most 400 bins: seconds since the measured window's node-wise start.

        Columns node, gpu_uuid, seconds, power_w (mean), lowest_w, highest_w. RefusedError for an unknown point.
        """
        row = self.row(point)
        spans = self.spans(point)
        zero = _zero_ns(spans)
        samples = (
            self.traces()
            .filter(
                (pl.col("point_id") == row["point_id"])
                & (pl.col("attempt") == row["attempt"])
                & (pl.col("source") == str(row["power_source"]).split(" + ")[0])
                & pl.col("power_w").is_not_null()
            )
            .select("node", "gpu_uuid", "time_ns", "power_w")
            .collect()
        )
        if samples.is_empty():
            return samples.with_columns(seconds=pl.lit(0.0), lowest_w=0.0, highest_w=0.0)
        samples = samples.join(zero, on="node", how="left").with_columns(
            seconds=(pl.col("time_ns") - pl.col("zero_ns")) / 1e9
        )
        first, last = samples["seconds"].min(), samples["seconds"].max()
        assert isinstance(first, float)
        assert isinstance(last, float)
        width = max((last - first) / TIMELINE_BINS, 1e-9)
        bins = ((pl.col("seconds") - first) / width).floor().cast(pl.Int64)
        return (
            samples.group_by("node", "gpu_uuid", bins.alias("bin"))
            .agg(
                pl.col("seconds").mean(),
                pl.col("power_w").mean(),
                pl.col("power_w").min().alias("lowest_w"),
                pl.col("power_w").max().alias("highest_w"),
            )
            .sort("node", "gpu_uuid", "bin")
            .drop("bin")
        )

    def spans(self, point: str) -> pl.DataFrame:
        """The spans of each node's lowest rank, straight from the point's attempt; empty if it has none."""
        spans = self._all_spans(self.row(point))
        return spans.filter(pl.col("rank") == pl.col("rank").min().over("node"))

    def windows(self, row: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
        """Node, GPU UUID and the unix ns between which its spans lie in the measured window, of an attempt's row."""
        within = self._all_spans(row).filter(~pl.col("phase").is_in(NOT_WITHIN))
        edges = (pl.col("start_ns").min(), pl.col("end_ns").max())
        return within.group_by("node", "gpu_uuid", maintain_order=True).agg(*edges).rows()

    def _all_spans(self, row: Mapping[str, Any]) -> pl.DataFrame:
        """The spans of all ranks, straight from the attempt of a row; empty where it has none."""
        tables = []
        if isinstance(row["attempt"], int):
            folder = self.directory.point_path(str(row["point_id"])) / f"attempt-{row['attempt']}"
            attempt = AttemptDir(folder, str(row["point_id"]), row["attempt"])
            for node in _listed(row["node_names"]):
                path = attempt.spans_path(str(node))
                if path.is_file():
                    tables.append(pl.from_arrow(read_table(path, SPAN)))
        empty = pl.from_arrow(SPAN.empty_table())
        assert isinstance(empty, pl.DataFrame)
        frames = [table for table in tables if isinstance(table, pl.DataFrame)]
        return pl.concat(frames) if frames else empty

    def timeline(self, point: str) -> "alt.LayerChart":
        """Power per GPU of one point, its phases shaded; RefusedError where nothing was measured."""
        from wattflow.analysis import figures  # noqa: PLC0415 (altair is slow to import)

        power, spans = self.power(point), self.spans(point)
        row = self.row(point)
        if power.is_empty() or spans.is_empty():
            raise RefusedError(
                f"point {row['point_id']}: no trace to draw; its status is {row['status']}, its reasons "
                f"{', '.join(map(str, _listed(row['reasons'])))}."
            )
        return figures.timeline(power, spans, row)


def of_watts(metric: str) -> bool:
    """Whether a column holds watts or joules, which a simulated meter makes up."""
    return "energy" in metric or "power" in metric


def _varying(rows: pl.DataFrame, beside: str | None) -> list[str]:
    """The choices with more than one value, but for the repeat, `beside` and what follows from it or those before."""
    names = [c for c in CHOICE_KEYS if c != "repeat" and not c.startswith(("cluster_", "power_"))]
    out: list[str] = []
    told = 1
    for name in names:
        if name == beside or rows[name].n_unique() < 2:
            continue
        if beside and rows.select(beside, name).n_unique() == rows[beside].n_unique():
            continue
        count = rows.select(*out, name).n_unique()
        if count > told:
            out.append(name)
            told = count
    return out


def _values(rows: pl.DataFrame, metric: str) -> list[statistics.Value]:
    """The repeats of one arm, with their sampling uncertainty where the metric is joules, and their boards."""
    own = re.sub(r"_(j|w)$", r"_u_\1", metric)
    u = pl.lit(0.0)
    if own != metric and own in rows.columns:
        u = pl.col(own)
    elif "energy" in metric or "power" in metric:
        u = pl.col(metric) * pl.col("energy_u_j") / pl.col("energy_j")
    told = rows.select(pl.col(metric).cast(pl.Float64), u.fill_null(0.0).alias("u"), "boards")
    return [statistics.Value(v, u_of, tuple(boards or ())) for v, u_of, boards in told.iter_rows()]


def _break_even(rows: pl.DataFrame, base: pl.DataFrame) -> dict[str, object]:
    """The extra host watts at which two arms cost the same a token, with its interval, or why there are none."""
    arms: list[list[statistics.Run]] = []
    for of in (rows, base):
        known = of.filter((pl.col("energy_per_token_j") > 0) & (pl.col("tokens_per_s") > 0))
        told = known.select("energy_per_token_j", 1.0 / pl.col("tokens_per_s"), "boards")
        arms.append(
            [(energy_j, s, tuple(boards or ())) for energy_j, s, boards in told.iter_rows()]
        )
    if not all(arms):
        return {"break_even_why_not": "no output tokens are known"}
    found = statistics.break_even(*arms)
    return {f"break_even_{name}": value for name, value in vars(found).items()}


def _gpu_hours(row: dict[str, Any]) -> float | None:
    """The GPUs of an attempt times the time for which it had them, where both are known."""
    declared = row["shards"] if row["cluster_gpu_model"] else None  # of one that no rank told of
    gpus = row["gpus"] or len(row["boards"] or ()) or declared
    seconds = row["attempt_s"] or row["unfinished_s"]
    return gpus * seconds / cost.HOUR_S if gpus and seconds else None


def _used(row: dict[str, Any]) -> cost.Used:
    """What an attempt's row says that it took, and when."""
    seconds = row["attempt_s"] or row["unfinished_s"]
    energy_j = row["job_energy_j"]
    if energy_j is not None and row["command"] is None:  # that of a command holds all phases
        energy_j += row["reference_energy_j"] or 0.0
    start_ns = None if row["started"] is None else round(row["started"].timestamp() * 1e9)
    end_ns = None if start_ns is None or not seconds else start_ns + round(seconds * 1e9)
    return cost.Used(
        energy_j=row["unfinished_energy_j"] if energy_j is None else energy_j,
        energy_per_token_j=row["energy_per_token_j"],
        start_ns=start_ns,
        end_ns=end_ns,
    )


def _factors(declared: Cost) -> cost.Factors:
    """The factors as they can be used; RefusedError where one lacks its source, or its table cannot be read."""
    check_cost(declared)
    return cost.Factors(
        price=_factor(
            declared.price_per_kwh, declared.price_path, "price_per_kwh", declared.price_source
        ),
        currency=declared.currency,
        carbon=_factor(
            declared.carbon_g_per_kwh, declared.carbon_path, "g_per_kwh", declared.carbon_source
        ),
        pue=declared.pue,
        pue_source=declared.pue_source,
    )


def _factor(
    value: float | None, path: str | None, column: str, source: str | None
) -> cost.Factor | None:
    if value is not None:
        return cost.Factor(source or "", (value,))
    return None if path is None else _read_factor(path, column, source or "")


def _read_factor(path: str, column: str, source: str) -> cost.Factor:
    try:
        return cost.table(Path(path).expanduser().read_text(), column, source)
    except (OSError, ValueError, csv.Error) as error:
        raise RefusedError(
            f"{path}: {getattr(error, 'strerror', None) or error}. It has to be a CSV with the columns time (ISO 8601 "
            f"with an offset, rising) and {column}."
        ) from error


def _runs(rows: pl.DataFrame) -> list[caps.Run]:
    """The repeats at one cap."""
    return [
        caps.Run(
            time_s=row["duration_s"],
            energy_j=row["energy_j"],
            energy_u_j=row["energy_u_j"] or 0.0,
            tokens_per_s=row["tokens_per_s"],
            boards=tuple(row["boards"] or ()),
            bound=row["cap_bound"],
        )
        for row in rows.to_dicts()
    ]


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _zero_ns(spans: pl.DataFrame) -> pl.DataFrame:
    """The measured window's start on each node: clocks of two nodes are never compared."""
    return (
        spans.filter(~pl.col("phase").is_in(NOT_WITHIN))
        .group_by("node")
        .agg(pl.col("start_ns").min().alias("zero_ns"))
    )


def open_sweep(path: str | Path) -> Sweep:
    """The results of the sweep at a path, or of that name below ./sweeps.

    Raises RefusedError where there is no sweep, or where it was not collected yet.
    """
    directory = SweepDir.existing(path)
    if not directory.points_path.is_file():
        raise RefusedError(
            f"{directory.path}: no results yet. Run `wattflow collect {directory.path}`; it may run at any time."
        )
    return Sweep(directory)


def _frame(path: Path, schema: object) -> pl.DataFrame:
    """A table of results; RefusedError naming `wattflow collect` where it is absent or damaged."""
    try:
        frame = pl.from_arrow(read_table(path, schema))
    except (FileNotFoundError, DamagedError) as error:
        sweep = path.parent.parent
        raise RefusedError(
            f"{error}. Run `wattflow collect {sweep}` to write the results anew."
        ) from error
    assert isinstance(frame, pl.DataFrame)
    return frame
