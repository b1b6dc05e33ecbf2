"""Draws figures and tables: ours as bars with intervals, published numbers as diamonds, gaps as crosses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from wattflow.analysis.figures import GREY, INK, PALETTE, styled
from wattflow.paper.cells import Cell
from wattflow.paper.objects import Object
from wattflow.report.text import mark

OURS = "here"
_WIDTH, _HEIGHT = 250, 180


@dataclass(frozen=True)
class Drawn:
    """The cells of one object on one GPU."""

    gpu: str
    cells: Sequence[Cell]


def chart(of: Object, drawn: Sequence[Drawn]) -> Any:
    """Return the chart of an object: a panel a metric, dataset and GPU; the x axis has the paper's names and ours."""
    panels = []
    for one in drawn:
        for metric in of.metrics:
            for dataset in dict.fromkeys(cell.dataset for cell in one.cells):
                cells = [c for c in one.cells if c.metric == metric and c.dataset == dataset]
                panels.append(_panel(of, one.gpu, cells))
    columns = 2 if len(panels) in (2, 4) else 3
    title = alt.TitleParams(of.title, subtitle=_subtitle(of, drawn))
    return styled(alt.concat(*panels, columns=columns, spacing=28).properties(title=title))


def _subtitle(of: Object, drawn: Sequence[Drawn]) -> str:
    gpus = ", ".join(one.gpu for one in drawn)
    published = any(p.value is not None for one in drawn for c in one.cells for p in c.published)
    beside = "diamonds: published" if published else "no bar of the published figure has a number"
    return f"bars: {gpus}, with 95 % intervals; {beside} ({', '.join(of.gpus)}); crosses: no number here"


def _panel(of: Object, gpu: str, cells: Sequence[Cell]) -> Any:
    """Return the bars of one metric and dataset on one GPU."""
    metric, dataset = cells[0].metric, cells[0].dataset
    rows = pl.DataFrame(
        [_row(cell) for cell in cells],
        schema={
            **dict.fromkeys(("x", "series", "here", "reason", "tag"), pl.String),
            **dict.fromkeys(("mean", "low", "high", "published"), pl.Float64),
        },
    )
    sign = mark(any(cell.value.simulated for cell in cells))
    names = rows["x"].unique(maintain_order=True).to_list()
    series = rows["series"].unique(maintain_order=True).to_list()
    label = alt.Axis(labelAngle=0, grid=False, labelExpr="split(datum.label, '\\n')")
    x = alt.X("x:N", sort=names, title=f"{of.x.title}: the paper's, and here", axis=label)
    offset = alt.XOffset("series:N", sort=series)
    title = None if of.series is None else of.series.title
    colour: Any = alt.value(PALETTE[0])
    if of.series is not None:
        scale = alt.Scale(domain=series, range=PALETTE)
        colour = alt.Color("series:N", sort=series, title=title, scale=scale)
    y = alt.Y("mean:Q", title=f"{sign}{metric.unit}", axis=alt.Axis(tickCount=5))
    tooltip = ["x:N", "series:N", "here:N", "mean:Q", "low:Q", "high:Q", "published:Q", "tag:N"]
    base = alt.Chart(rows).encode(x=x, xOffset=offset)
    known, missing = rows["mean"].is_not_null(), rows["mean"].is_null()
    layers = []
    if known.any():
        own = alt.Chart(rows.filter(known)).encode(x=x, xOffset=offset)
        layers.append(own.mark_bar(opacity=0.75).encode(y=y, color=colour, tooltip=tooltip))
        layers.append(own.mark_rule(color=INK).encode(y=alt.Y("low:Q"), y2="high:Q"))
    if rows["published"].is_not_null().any():
        theirs = alt.Chart(rows.filter(pl.col("published").is_not_null()))
        diamonds = theirs.mark_point(shape="diamond", filled=True, size=70, color=INK, opacity=1)
        published = alt.Y("published:Q", title=f"{sign}{metric.unit}")
        layers.append(diamonds.encode(x=x, xOffset=offset, y=published, tooltip=tooltip))
    if missing.any():
        gone = alt.Chart(rows.filter(missing)).encode(x=x, xOffset=offset)
        crosses = gone.mark_point(shape="cross", angle=45, size=40, color=GREY)
        layers.append(crosses.encode(y=alt.YDatum(0), tooltip=["x:N", "series:N", "reason:N"]))
    named = [metric.title, *([dataset] if dataset else [])]
    return alt.layer(*(layers or [base.mark_point()])).properties(
        width=_WIDTH,
        height=_HEIGHT,
        title=alt.TitleParams(", ".join(named), subtitle=gpu, fontSize=12, subtitleFontSize=11),
    )


def _row(cell: Cell) -> dict[str, object]:
    """Return a cell as a row of a chart's data."""
    numbers = [one for one in cell.published if one.value is not None]
    one = numbers[0] if numbers else None
    middle = None
    if one is not None and one.value is not None:
        middle = one.value if one.to is None else (one.value + one.to) / 2
    return {
        "x": "\n".join(text for text in (cell.x or "beyond it", cell.here_x) if text),
        "series": cell.series or "",
        "here": cell.here,
        "reason": cell.value.reason,
        "tag": one.tag if one else None,
        "mean": cell.value.mean,
        "low": cell.value.low,
        "high": cell.value.high,
        "published": middle,
    }
