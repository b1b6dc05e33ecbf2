"""Figures from data frames, by Altair. Each says its units, and `~` where watts are simulated."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import altair as alt
import polars as pl

from wattflow.analysis.expanded import mean_power
from wattflow.store.phases import COMMAND, MIXED, NOT_WITHIN, OUTSIDE

INK, GREY, RULE = "#1f2933", "#616e7c", "#e4e7eb"
FONT = "Inter, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
PALETTE = ["#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#9f6b53", "#337ea9", "#787774"]
PHASE_COLOURS = {
    "idle": "#e9ecef",
    "load": "#fdecc8",
    "warmup": "#e8deee",
    "prefill": "#9fcbe6",
    "decode": "#dbeddb",
    "idle_after": "#e9ecef",
    "reference": "#f6dfe3",
    OUTSIDE: "#f4f5f7",
    "window": "#dcebee",  # prefills and decodes too short to be seen apart
    MIXED: "#d5d9e0",
    COMMAND: "#dbeddb",
}
PLAIN_X = alt.Axis(grid=False, format=",~r")


def timeline(power: pl.DataFrame, spans: pl.DataFrame, row: dict[str, Any]) -> alt.LayerChart:
    """Draw the power of each GPU over the seconds since the measured window's start on its node, phases shaded.

    `power` has node, gpu_uuid, seconds, power_w, lowest_w, highest_w; `spans` those of each node's lowest rank.
    """
    first = first_phase(spans)
    shades = phase_shades(spans, first)
    said = timeline_titles(row, first)
    # digits beyond what a figure shows only make the page heavier
    lines = power.select(
        pl.col("seconds").round(3),
        pl.col("power_w", "lowest_w", "highest_w").round(1),
        gpu=pl.col("node") + "  " + pl.col("gpu_uuid").str.slice(0, 12),
    )
    phases = shades["phase"].unique(maintain_order=True).to_list()
    return _timeline(lines, shades, phases, said, alone=lines["gpu"].n_unique() == 1)


@dataclass(frozen=True)
class TimelineTitles:
    """What stands over a timeline and at its axes."""

    text: str
    subtitle: str
    watts: str
    seconds: str


def timeline_titles(row: Mapping[str, Any], first: str) -> TimelineTitles:
    """Return what is said of the timeline of an attempt, whose measured window begins with a phase."""
    what = f"{row['model']}, {row['dataset']}, shards {row['shards']}, batch {row['batch_size']}"
    if row["command"] is not None:
        what = " ".join(json.loads(row["command"]))[:100]
    return TimelineTitles(
        text=f"Power of point {row['point_id']}, attempt {row['attempt']}",
        subtitle=f"{what}; boundary {row['boundary']}, sensor {row['power_source']}; {mean_power(row)}",
        watts="power, W" + (" (~ simulated)" if row["simulated"] else ""),
        seconds=f"seconds since the first {first}",
    )


def timeline_template(phases: Sequence[str]) -> dict[str, Any]:
    """Return a timeline as Vega-Lite without its data, named `power` and `spans`, and with titles to be filled in.

    A script that has `power` as rows of gpu, seconds, power_w, lowest_w, highest_w, and `spans` as those of phase,
    batch, start_s, end_s, draws any point by it.
    """
    empty = TimelineTitles("", "", "", "")
    data = alt.NamedData("power"), alt.NamedData("spans")
    found: dict[str, Any] = _timeline(*data, phases, empty, alone=False).to_dict()
    return found


_Data = pl.DataFrame | alt.NamedData


def _timeline(
    lines: _Data, shades: _Data, phases: Sequence[str], said: TimelineTitles, *, alone: bool
) -> alt.LayerChart:
    title = alt.TitleParams(said.text, subtitle=said.subtitle)
    layers = [_phases(shades, phases), *_lines(lines, said, alone=alone)]
    chart = alt.layer(*layers).resolve_scale(color="independent")
    return cast(alt.LayerChart, styled(chart.properties(width=760, height=230, title=title)))


def _phases(shades: _Data, phases: Sequence[str]) -> alt.Chart:
    """Shade the phases behind a timeline."""
    colours = phase_colours(phases)
    colour = alt.Color(
        "phase:N",
        title="phase",
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
        legend=alt.Legend(symbolType="square", symbolStrokeWidth=0, orient="top", columns=5),
    )
    tooltip = [
        alt.Tooltip("phase:N"),
        alt.Tooltip("batch:Q"),
        alt.Tooltip("start_s:Q", title="from, s", format=".3f"),
        alt.Tooltip("end_s:Q", title="to, s", format=".3f"),
    ]
    rects = alt.Chart(shades).mark_rect(opacity=0.75)
    return cast(
        alt.Chart,
        rects.encode(x=alt.X("start_s:Q"), x2="end_s:Q", color=colour, tooltip=tooltip),
    )


def _lines(lines: _Data, said: TimelineTitles, *, alone: bool) -> list[alt.Chart]:
    """Draw the mean power of each device, over a band from its lowest to its highest sample."""
    x = alt.X(
        "seconds:Q",
        title=said.seconds,
        axis=alt.Axis(grid=False, format="~g"),
        scale=alt.Scale(nice=False),
    )
    stroke: Any = alt.Stroke("gpu:N", title="device", scale=alt.Scale(range=PALETTE))
    if alone:
        stroke = alt.value(INK)
    tooltip = [
        alt.Tooltip("gpu:N", title="device"),
        alt.Tooltip("seconds:Q", title="s", format=".3f"),
        alt.Tooltip("power_w:Q", title="W", format=".1f"),
    ]
    base = alt.Chart(lines)
    lowest = alt.Y("lowest_w:Q", title=said.watts)
    mean = alt.Y("power_w:Q", title=said.watts, scale=alt.Scale(zero=True))
    band = base.mark_area(opacity=0.18).encode(
        x=x, y=lowest, y2="highest_w:Q", detail="gpu:N", color=alt.value(INK)
    )
    line = base.mark_line(strokeWidth=1.3).encode(
        x=x, y=mean, stroke=stroke, detail="gpu:N", tooltip=tooltip
    )
    return [band, line]


def svg(chart: Any) -> str:
    """Return a chart of Altair's, or its specification, as SVG, without a browser."""
    import vl_convert  # noqa: PLC0415 (slow to import)

    return str(vl_convert.vegalite_to_svg(_specification(chart)))


def pdf(chart: Any) -> bytes:
    """Return the same as PDF, whose letters are text."""
    import vl_convert  # noqa: PLC0415 (slow to import)

    return bytes(vl_convert.vegalite_to_pdf(_specification(chart)))


def _specification(chart: Any) -> dict[str, Any]:
    specification: dict[str, Any] = chart if isinstance(chart, dict) else chart.to_dict()
    return specification


def first_phase(spans: pl.DataFrame) -> str:
    """Return the phase that begins the measured window: prefill, or what a measured command reported first."""
    within = spans.filter(~pl.col("phase").is_in(NOT_WITHIN))
    return str(within.sort("start_ns")["phase"].first())


def phase_colours(phases: Sequence[str]) -> dict[str, str]:
    """Return a colour a phase that is there; those of a program's own naming take paler ones of the palette in turn."""
    own = [phase for phase in phases if phase not in PHASE_COLOURS]
    known = {phase: colour for phase, colour in PHASE_COLOURS.items() if phase in phases}
    return known | {phase: f"{PALETTE[i % len(PALETTE)]}55" for i, phase in enumerate(own)}


def phase_shades(spans: pl.DataFrame, first: str) -> pl.DataFrame:
    """Return the spans of the first node as seconds from its first phase's start; those of others are alike."""
    node = spans["node"].min()
    own = spans.filter(pl.col("node") == node).sort("start_ns")
    zero = own.filter(pl.col("phase") == first)["start_ns"].min()
    return own.select(
        "phase",
        "batch",
        start_s=((pl.col("start_ns") - zero) / 1e9).round(4),
        end_s=((pl.col("end_ns") - zero) / 1e9).round(4),
    )


# --- sensors --------------------------------------------------------------------------------------


def sensor_traces(
    lines: dict[str, list[list[float]]], edges_s: list[float], title: str
) -> alt.LayerChart:
    """Draw one load by several sensors: for each, pairs of seconds and watts; shaded while the load is on."""
    power = pl.DataFrame(
        [(name, *pair) for name, pairs in lines.items() for pair in pairs],
        schema={"sensor": pl.String, "seconds": pl.Float64, "power_w": pl.Float64},
        orient="row",
    )
    last_s = float(power["seconds"].max() or 0.0)  # type: ignore[arg-type]
    ends_s = [*edges_s, last_s] if len(edges_s) % 2 else edges_s
    on = pl.DataFrame({"start_s": ends_s[::2], "end_s": ends_s[1::2]})
    shades = alt.Chart(on).mark_rect(color="#f4f5f7").encode(x="start_s:Q", x2="end_s:Q")
    line = (
        alt.Chart(power)
        .mark_line(strokeWidth=1.4)
        .encode(
            x=alt.X("seconds:Q", title="seconds; the load is on where it is grey", axis=PLAIN_X),
            y=alt.Y("power_w:Q", title="power, W"),
            color=alt.Color("sensor:N", sort=list(lines), scale=_colours(lines), title=None),
            tooltip=["sensor", "seconds", "power_w"],
        )
    )
    return cast(
        alt.LayerChart,
        styled(alt.layer(shades, line).properties(width=760, height=240, title=title)),
    )


def sensor_answers(
    points: dict[str, list[list[float]]], fits: dict[str, list[list[float]]]
) -> alt.ConcatChart:
    """Draw each sensor's answer to a step: pairs of ms since the edge and the share of the step, and the fit."""
    names = {"ms": pl.Float64, "share": pl.Float64}
    panels = []
    for name, pairs in points.items():
        x = alt.X("ms:Q", title="ms since the edge of the load", axis=PLAIN_X)
        y = alt.Y(
            "share:Q", title="share of the step", scale=alt.Scale(domain=[-0.2, 1.2], clamp=True)
        )
        colour = alt.Color("sensor:N", scale=_colours(points), legend=None)
        seen = pl.DataFrame(pairs, schema=names, orient="row").with_columns(sensor=pl.lit(name))
        fit = pl.DataFrame(fits[name], schema=names, orient="row")
        dots = alt.Chart(seen).mark_circle(size=14, opacity=0.5).encode(x=x, y=y, color=colour)
        line = alt.Chart(fit).mark_line(color=INK, strokeWidth=1.2).encode(x=x, y=y)
        panels.append(alt.layer(dots, line).properties(width=220, height=170, title=name))
    return cast(alt.ConcatChart, styled(alt.concat(*panels, columns=3)))


def sensor_spacings(histograms: dict[str, dict[str, Any]]) -> alt.ConcatChart:
    """Draw how far apart each sensor's new values are: for each, the width of a bin in ms and the counts."""
    panels = []
    for name, histogram in histograms.items():
        bins = pl.DataFrame(
            {
                "from_ms": [k * histogram["width"] for k in range(len(histogram["counts"]))],
                "to_ms": [(k + 1) * histogram["width"] for k in range(len(histogram["counts"]))],
                "count": histogram["counts"],
            }
        )
        bars = (
            alt.Chart(bins)
            .mark_rect(color=PALETTE[list(histograms).index(name) % len(PALETTE)])
            .encode(
                x=alt.X("from_ms:Q", title="ms between new values", axis=PLAIN_X),
                x2="to_ms:Q",
                y=alt.Y("count:Q", title="count", scale=alt.Scale(type="symlog")),
                y2=alt.datum(0),
            )
        )
        panels.append(bars.properties(width=220, height=120, title=name))
    return cast(alt.ConcatChart, styled(alt.concat(*panels, columns=3)))


def sensor_aliasing(ranges: list[tuple[str, float, float, float, float]]) -> alt.ConcatChart:
    """Draw how far joules are off: sensor, load period in ms, % in a long window, least and most % in those of 1 s."""
    columns = ("sensor", "period_ms", "long_pct", "least_pct", "most_pct")
    found = pl.DataFrame(ranges, schema=list(columns), orient="row")
    names = found["sensor"].unique(maintain_order=True).to_list()
    reach = max(abs(value) for row in ranges for value in row[2:])
    panels = []
    for name in names:
        of = found.filter(pl.col("sensor") == name)
        x = alt.X(
            "period_ms:Q",
            title="period of the load, ms",
            scale=alt.Scale(type="log", domain=[4, 250]),
            axis=alt.Axis(grid=False, format="~r", values=[5, 10, 20, 50, 100, 200]),
        )
        scale = alt.Scale(domain=[-reach, reach])
        colour = PALETTE[names.index(name) % len(PALETTE)]
        base = alt.Chart(of).encode(x=x)
        rule = base.mark_rule(strokeWidth=5, opacity=0.35, color=colour).encode(
            y=alt.Y("least_pct:Q", title="off, %", scale=scale), y2="most_pct:Q"
        )
        dots = base.mark_point(filled=True, size=40, color=colour, opacity=1).encode(
            y=alt.Y("long_pct:Q", scale=scale), tooltip=list(columns)
        )
        panels.append(alt.layer(rule, dots).properties(width=220, height=170, title=name))
    return cast(alt.ConcatChart, styled(alt.concat(*panels, columns=3)))


def resolution(points: list[dict[str, Any]], dots: list[dict[str, Any]]) -> alt.HConcatChart:
    """Draw the smallest difference that can be established, % over W, a panel a share of watts; dots: published."""
    panels = []
    for share in dict.fromkeys(point["share"] for point in points):
        title = "both at these watts" if share == 1 else f"the other at {share:g} of these watts"
        x = alt.X(
            "watts:Q",
            title="W a board",
            scale=alt.Scale(type="log", domain=[40, 1000]),
            axis=alt.Axis(grid=False, format="~r", values=[50, 100, 200, 500, 1000]),
        )
        percent: dict[str, Any] = {
            "title": "smallest difference, %",
            "scale": alt.Scale(type="log", domain=[0.2, 50], clamp=True, nice=False),
            "axis": alt.Axis(format="~r", values=[0.2, 0.5, 1, 2, 5, 10, 20, 50]),
        }
        y = alt.Y("least:Q", **percent)
        of = alt.Chart(pl.DataFrame([point for point in points if point["share"] == share]))
        layers: list[Any] = [of.mark_line().encode(x=x, y=y, color=alt.Color("line:N", title=None))]
        own = sorted(
            (dot for dot in dots if dot["share"] == share), key=lambda dot: float(dot["saving"])
        )
        # names to both sides in turn, as two dots may lie close together
        sides: tuple[tuple[Any, Literal["left", "right"], int], ...]
        sides = ((own[::2], "left", 7), (own[1::2], "right", -7))
        for side, aligned, shift in sides:
            if side:
                base = alt.Chart(pl.DataFrame(side)).encode(
                    x="watts:Q", y=alt.Y("saving:Q", **percent)
                )
                dot = base.mark_point(filled=True, size=60, color=INK, opacity=1)
                name = base.mark_text(align=aligned, dx=shift, fontSize=9, color=GREY)
                layers += [
                    dot.encode(tooltip=["name", "saving", "source"]),
                    name.encode(text="name:N"),
                ]
        panels.append(alt.layer(*layers).properties(width=250, height=260, title=title))
    return cast(alt.HConcatChart, styled(alt.hconcat(*panels, spacing=24)))


def _colours(names: Iterable[str]) -> alt.Scale:
    return alt.Scale(domain=list(names), range=PALETTE)


def styled(chart: Any) -> Any:
    """Return a chart in the house style: light, few lines, one font, numbers that align."""
    return (
        chart.configure(font=FONT, background="transparent")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=GREY,
            titleColor=GREY,
            titleFontWeight="normal",
            titleFontSize=12,
            labelFontSize=11,
            domainColor="#cbd2d9",
            tickColor="#cbd2d9",
            gridColor=RULE,
            titlePadding=8,
        )
        .configure_title(
            anchor="start",
            color=INK,
            fontSize=14,
            fontWeight=600,
            subtitleColor=GREY,
            subtitleFontSize=12,
            offset=12,
        )
        .configure_legend(
            labelColor=INK,
            titleColor=GREY,
            titleFontWeight="normal",
            titleFontSize=12,
            labelFontSize=12,
        )
    )
