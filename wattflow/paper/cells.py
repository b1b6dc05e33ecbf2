"""The cells of each figure and table: ours, by place beside the paper's, or why there is none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import polars as pl

from wattflow.analysis import caps
from wattflow.analysis.means import expanded_column, settings
from wattflow.errors import RefusedError
from wattflow.paper.objects import SIZE, Axis, Metric, Object
from wattflow.paper.plans import least_shards
from wattflow.paper.published import Published, of_cell
from wattflow.paper.results import LABEL, Found
from wattflow.store.columns import REASONS
from wattflow.workload.model import largest_batch

NOT_RUN = "not run at this scale"
DATASETS = ("alpaca", "gsm8k")
_MEAN = "mean"  # the place of Table III's means over lengths


@dataclass(frozen=True)
class Value:
    """One number of ours: a mean over n repeats with its interval, null with the reason."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    simulated: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Cell:
    """One place of a figure or table; dataset, series and x are the paper's names for it."""

    metric: Metric
    dataset: str | None
    series: str | None
    x: str | None
    here: str  # what of ours stands there
    here_x: str  # and of that our value on the x axis
    value: Value
    published: list[Published]

    def ratios(self) -> list[tuple[Published, float, float]]:
        """Return ours over each published number: the least and the most, of a range its ends."""
        mean = self.value.mean
        return [
            (one, mean / (one.to or one.value), mean / one.value)
            for one in self.published
            if mean is not None and one.value
        ]


def cells(of: Object, found: Found | None) -> list[Cell]:
    """Return all cells of an object with what one cluster has of it; null where it has nothing."""
    if of.kind == "memory":
        return list(_memory_cells(of, found))
    if of.kind == "caps":
        return list(_caps_cells(of, found))
    return list(_mean_cells(of, found))


@dataclass(frozen=True)
class _Place:
    """A place on an axis: the paper's name of it, and our value there; either may be missing."""

    paper: str | None
    ours: Any
    label: str


_NOWHERE = _Place(None, None, "")


def _places(axis: Axis | None, points: pl.DataFrame | None) -> list[_Place]:
    """Return the places of an axis, ours beside the paper's in order."""
    if axis is None:
        return [_NOWHERE]
    ours: list[tuple[Any, str]] = []
    if points is not None:
        label = LABEL if axis.column == SIZE else axis.column
        pairs = points.select(axis.column, pl.col(label).cast(pl.String).alias("label_"))
        known = pairs.drop_nulls().unique().sort(axis.column, "label_", descending=axis.falling)
        ours = [(value, text) for value, text in known.iter_rows()]
    count = max(len(axis.paper), len(ours))
    return [
        _Place(
            axis.paper[i] if i < len(axis.paper) else None,
            ours[i][0] if i < len(ours) else None,
            ours[i][1] if i < len(ours) else "",
        )
        for i in range(count)
    ]


def _of_place(points: pl.DataFrame, axis: Axis | None, place: _Place) -> pl.DataFrame:
    """Return the points at a place of an axis; none where we have no value there."""
    if axis is None:
        return points
    return points.filter(pl.col(axis.column) == place.ours) if place.label else points.clear()


def _mean_cells(of: Object, found: Found | None) -> Iterator[Cell]:
    points = None if found is None else found.points
    at = None if of.at is None else _places(of.at[0], points)[of.at[1]]
    for metric in of.metrics:
        for dataset in DATASETS if of.by_dataset else (None,):
            for series in _places(of.series, points):
                for x in _places(of.x, points):
                    value = Value(None, reason=NOT_RUN)
                    if points is not None:
                        rows = _of_place(_of_place(points, of.x, x), of.series, series)
                        rows = (
                            rows if of.at is None or at is None else _of_place(rows, of.at[0], at)
                        )
                        rows = (
                            rows if dataset is None else rows.filter(pl.col("dataset") == dataset)
                        )
                        value = _value(rows, metric)
                    yield Cell(
                        metric,
                        dataset,
                        series.paper,
                        x.paper,
                        _here(of, series, x),
                        x.label,
                        value,
                        of_cell(of.name, metric.column, dataset, series.paper, x.paper),
                    )


def _here(of: Object, series: _Place, x: _Place) -> str:
    """Return what of ours stands at a place, in words."""
    named = [(of.series, series), (of.x, x)]
    said = [
        place.label if axis.column == SIZE else f"{axis.title} {place.label}"
        for axis, place in named
        if axis is not None and place.label
    ]
    return ", ".join(said)


def _value(rows: pl.DataFrame, metric: Metric) -> Value:
    """Return the mean of the rows that count with its expanded uncertainty, or why there is none."""
    column = metric.column
    if rows.is_empty():
        return Value(None, reason=NOT_RUN)
    expanded = expanded_column(column)
    columns = [column, expanded] if expanded in rows.columns else [column]
    counting = [one for one in settings(rows.to_dicts(), [], columns) if one.n]
    if len(counting) > 1 and metric.watts:
        return Value(None, reason="the joules of two kinds of sensor make no mean")
    known = (
        rows.filter("counts")[column].drop_nulls() if counting else pl.Series([], dtype=pl.Float64)
    )
    if not counting or known.is_empty():
        return Value(None, reason=why_none(rows))
    one = counting[0]
    mean = fmean(known)
    u = one.expanded_u(column) if len(counting) == 1 and expanded != column else None
    if u is None and len(known) > 1:  # of what no sensor of power made, the scatter alone
        u = 2 * float(known.std() or 0.0) / len(known) ** 0.5  # type: ignore[arg-type]
    simulated = bool(metric.watts and one.simulated)
    low, high = (None, None) if u is None else (mean - u, mean + u)
    return Value(mean, low, high, len(known), simulated)


def why_none(rows: pl.DataFrame) -> str:
    """Return why rows have no number: what failed, could not run, was withheld or was never sent."""
    said: list[str] = []
    for row in rows.to_dicts():
        codes = [code for code in row["reasons"] or () if code in REASONS]
        withheld = [REASONS[code].meaning for code in codes if REASONS[code].withheld]
        if row["status"] == "waiting":
            said.append("not run yet")
        elif row["error"]:
            said.append(f"{row['status']}: {row['error']}")
        elif row["counts"]:
            said += [REASONS[code].meaning for code in codes] or ["not recorded"]
        else:
            said += withheld or [str(row["status"])]
    return "; ".join(dict.fromkeys(said))


# --- Table III ------------------------------------------------------------------------------------


def _caps_cells(of: Object, found: Found | None) -> Iterator[Cell]:
    """Yield the changes against the highest cap: one a length and cap, then their means over lengths."""
    points = None if found is None else found.points
    assert of.series is not None
    lengths, limits = _places(of.x, points), _places(of.series, points)
    for metric in of.metrics:
        for cap in limits[1:]:
            values = []
            for length in lengths:
                rows = None if points is None else _of_place(points, of.x, length)
                values.append(_change(rows, limits[0], cap, metric))
                published = of_cell(of.name, metric.column, None, cap.paper, length.paper)
                here = _here(of, cap, length)
                yield Cell(
                    *(metric, None, cap.paper, length.paper, here, length.label),
                    *(values[-1], published),
                )
            published = of_cell(of.name, metric.column, None, cap.paper, _MEAN)
            here = f"mean over lengths, cap {cap.label}"
            yield Cell(metric, None, cap.paper, _MEAN, here, "", _mean_of(values), published)


def _mean_of(values: Sequence[Value]) -> Value:
    """Return the plain mean of some changes, which has no interval; null where one is missing."""
    known = [one.mean for one in values if one.mean is not None]
    if len(known) < len(values):
        reasons = dict.fromkeys(one.reason for one in values if one.reason)
        return Value(None, reason="; ".join(reasons))
    n = min(one.n for one in values)
    return Value(fmean(known), n=n, simulated=any(one.simulated for one in values))


def _change(rows: pl.DataFrame | None, reference: _Place, cap: _Place, metric: Metric) -> Value:
    """Return what a cap changes in percent, with its interval, or why that is not known."""
    if rows is None or not cap.label or rows.is_empty():
        return Value(None, reason=NOT_RUN)
    column = "control_power_limit_w"
    both = rows.filter(pl.col(column).is_in([reference.ours, cap.ours]))
    try:
        tables = caps.by_cap(both, reference.ours, column)
    except RefusedError as error:
        missing = both.filter(~pl.col("counts"))
        return Value(None, reason=str(error) if missing.is_empty() else why_none(missing))
    ratios = [
        row.ratios[metric.column] for _, table in tables for row in table if row.ratios is not None
    ]
    if len(ratios) != 1:
        return Value(None, reason=f"{len(ratios)} tables of caps; one is needed")
    low, high = ratios[0].low, ratios[0].high
    return Value(
        caps.percent(ratios[0].ratio),
        None if low is None else caps.percent(low),
        None if high is None else caps.percent(high),
        sum(both["counts"]) // 2,
        bool(metric.watts and both["simulated"].any()),
    )


# --- Table II -------------------------------------------------------------------------------------


def _memory_cells(of: Object, found: Found | None) -> Iterator[Cell]:
    """Yield the least hardware and the largest batch of each size by the memory model, 256 new tokens."""
    points = None if found is None else found.points
    for metric in of.metrics:
        for x in _places(of.x, points):
            value = Value(None, reason=NOT_RUN)
            if found is not None and x.label:
                value = _fit(found, x.label, metric)
            published = of_cell(of.name, metric.column, None, None, x.paper)
            yield Cell(metric, None, None, x.paper, x.label, x.label, value, published)


_LENGTH = 512  # prompt and output together, the default of the code that the paper ran


def _fit(found: Found, label: str, metric: Metric) -> Value:
    ids = found.points.filter(pl.col(LABEL) == label)["point_id"].to_list()
    config = replace(found.configs[ids[0]], max_seq_len=_LENGTH)
    memory_gib = config.cluster.gpu_memory_gib
    if memory_gib is None:
        return Value(None, reason="the profile does not say what memory its GPUs have")
    shards = least_shards(config)
    if shards is None:
        return Value(None, reason=f"no number of shards holds batch {config.batch_size}")
    if metric.column == "least_gpus":
        return Value(float(shards), n=1)
    batch = largest_batch(replace(config, shards=shards), memory_gib)
    return Value(float(2 ** (batch.bit_length() - 1)), n=1)
