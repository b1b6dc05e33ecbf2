"""Charts of settings, as Vega-Lite whose rows, titles and orders are filled in: whichever choice stands on an axis.

A template names its fields by their place: x, color, panel, value. Altair draws each once, and `fill` puts in what a
person chose. The report's script fills the same templates in a browser, so that paper and page show one chart.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt

from wattflow.analysis.axes import heading, in_words, is_work
from wattflow.analysis.figures import GREY, INK, PALETTE, PLAIN_X, styled
from wattflow.analysis.means import Setting, expanded_column, nulls_last
from wattflow.errors import RefusedError

Spec = dict[str, Any]  # a Vega-Lite specification
Row = dict[str, Any]

THROUGH = "through"  # the layer whose line leads from point to point
SETTINGS = "settings"  # the name of the rows
STATES = ("front", "not established", "dominated")
_MANY = "viridis"  # of more values than the eye can part by hue
_CROWDED = 5.5  # pixels a letter below an axis, from which on labels stand aslant


@dataclass(frozen=True)
class Metric:
    """A figure that charts show: its column, title and unit, and whether it is of watts, which simulation makes `~`."""

    column: str
    title: str
    unit: str
    power: bool


METRICS = (
    Metric("energy_per_token_j", "Energy per token", "J per output token", power=True),
    Metric("tokens_per_s", "Throughput", "output tokens/s", power=False),
    Metric("power_w", "Mean power", "W, all devices of the job", power=True),
    Metric("energy_per_response_j", "Energy per response", "J per response", power=True),
    Metric("responses_per_s", "Responses", "responses/s", power=False),
)


# --- what a person chooses ------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """The choices that stand on x, in colour and in panels; null for none."""

    x: str
    color: str | None = None
    facet: str | None = None

    def named(self) -> list[str]:
        """Return the choices that have a place."""
        return [name for name in (self.x, self.color, self.facet) if name is not None]


def places(settings: Sequence[Setting], axes: Sequence[str]) -> Places:
    """Return where choices stand unless a person says otherwise: on x the number of most values.

    In colour then the first with few enough for the eye to part, in panels the next of at most six.
    """
    counts = {axis: len(orders(settings, axis)) for axis in axes}
    numbers = [axis for axis in axes if is_numeric(settings, axis)]
    x = max(numbers or axes, key=counts.__getitem__)
    few = [axis for axis in axes if axis != x and 1 < counts[axis] <= len(PALETTE)]
    few.sort(key=is_work)  # settings that do other work do not compete
    panels = [axis for axis in few[1:] if counts[axis] <= 6]
    return Places(x, few[0] if few else None, panels[0] if panels else None)


def is_numeric(settings: Iterable[Setting], axis: str) -> bool:
    """Return whether the values of a choice are numbers, through which a line may lead."""
    known = [one.chosen[axis] for one in settings if one.chosen[axis] is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def orders(settings: Sequence[Setting], axis: str) -> list[str]:
    """Return the values of a choice as texts: numbers by size, names in the grid's order, what is not made last."""
    values = dict.fromkeys(one.chosen[axis] for one in settings)
    if is_numeric(settings, axis):
        return [in_words(value) for value in sorted(values, key=lambda v: nulls_last([v]))]
    return [in_words(value) for value in sorted(values, key=lambda v: v is None)]


# --- templates and what fills them ----------------------------------------------------------------


@dataclass(frozen=True)
class Filling:
    """What is put into a template: rows, and by field the title and the order of values; no title, no legend."""

    rows: list[Row]
    titles: Mapping[str, str | None]
    orders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    joined: bool = True  # whether a line leads through the points
    log: bool = False  # a logarithmic axis of the figure
    width: int = 300  # of a panel
    columns: int = 3


def fill(template: Spec, of: Filling) -> Spec:
    """Return a template with its rows, titles, orders and sizes; `report.js` does the same."""
    spec = copy.deepcopy(template)
    _visit(spec, of)
    sized = spec.get("spec", spec)
    sized["width"] = of.width
    if "columns" in spec:
        spec["columns"] = of.columns
    spec["datasets"] = {SETTINGS: of.rows}
    return spec


def _visit(part: Any, of: Filling) -> None:
    if isinstance(part, list):
        for one in part:
            _visit(one, of)
    elif isinstance(part, dict):
        if "layer" in part and not of.joined:
            part["layer"] = [one for one in part["layer"] if one.get("name") != THROUGH]
        # the low end of a bar stands at the axis of its middle
        of_field = str(part.get("field"))
        named = _LOW.get(of_field, of_field)
        if named in of.titles and "title" in part:
            part["title"] = of.titles[named]
        if named == "value" and of.log and "zero" in part.get("scale", {}):
            part["scale"] = {"type": "log"}
        if named in of.orders and "sort" in part:
            _order(part, of.orders[named], of)
        for one in part.values():
            _visit(one, of)


_LOW = {"low": "value", "other_low": "other"}


def _order(channel: Spec, values: Sequence[str], of: Filling) -> None:
    channel["sort"] = [*values]
    if "range" in channel.get("scale", {}):
        colours = {"range": PALETTE} if len(values) <= len(PALETTE) else {"scheme": _MANY}
        channel["scale"] = {"domain": [*values], **colours}
        if channel["title"] is None:
            channel["legend"] = None
    if "labelAngle" in channel.get("axis", {}):
        letters = sum(len(value) + 2 for value in values)
        channel["axis"]["labelAngle"] = -40 if letters * _CROWDED > of.width else 0


def templates() -> dict[str, Spec]:
    """Return the templates by name: `lines`, `map` and `front`."""
    return {name: make().to_dict() for name, make in _TEMPLATES.items()}


def _lines() -> Any:
    """A figure against a choice, another in colour, a third in panels; bars of its uncertainty."""
    drawn = alt.Chart(alt.NamedData(SETTINGS)).transform_filter("isValid(datum.value)")
    base = drawn.encode(
        x=alt.X(
            "x:O",
            title="x",
            sort=[""],
            axis=alt.Axis(labelAngle=0, labelLimit=160, grid=False),
            scale=alt.Scale(padding=0.5),
        ),
        color=alt.Color(
            "color:N", title="color", sort=[""], scale=alt.Scale(domain=[""], range=PALETTE)
        ),
    )
    y = alt.Y("value:Q", title="value", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))
    line = base.mark_line(strokeWidth=1.5, opacity=0.55).encode(y=y, detail="line:N")
    low = alt.Y("low:Q", title="low")
    layers = alt.layer(
        line.properties(name=THROUGH),
        base.mark_rule(strokeWidth=1.5).encode(y=low, y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, tooltip=_TOOLTIP),
    )
    return _in_panels(layers, 220)


def _map() -> Any:
    """A figure as the colour of a cell, a choice along each side; grey where there is none."""
    cells = alt.Chart(alt.NamedData(SETTINGS)).encode(
        x=alt.X("x:O", title="x", sort=[""], axis=alt.Axis(labelAngle=0, labelLimit=160)),
        y=alt.Y("color:O", title="color", sort=[""]),
        tooltip=_TOOLTIP,
    )
    shade = alt.Color(
        "value:Q",
        title="value",
        scale=alt.Scale(range=["#f3f8fa", "#58a4c4"], zero=False),
        legend=alt.Legend(gradientLength=160),
    )
    known = alt.condition("isValid(datum.value)", shade, alt.value("#e4e7eb"))
    layers = alt.layer(
        cells.mark_rect(stroke="#fff").encode(color=known),
        cells.mark_text(fontSize=11, color=INK).encode(text="shown:N"),
    )
    return _in_panels(layers, 240)


_TOOLTIP = [
    alt.Tooltip("setting:N"),
    alt.Tooltip("value:Q", title="value", format=".4g"),
    alt.Tooltip("half:Q", title="±", format=".2g"),
    alt.Tooltip("n:Q", title="repeats"),
    alt.Tooltip("why:N", title="why not"),
]


def _in_panels(layers: Any, height: int) -> Any:
    header = alt.Header(labelColor=GREY, labelFontSize=12)
    facet = alt.Facet("panel:N", title=None, sort=[""], header=header)
    return styled(layers.properties(width=300, height=height).facet(facet, columns=3))


def _front() -> Any:
    """An energy against another figure: a dot a setting with both 95 % intervals, a line through the front."""
    data = alt.NamedData(SETTINGS)
    y = alt.Y("value:Q", title="value", scale=alt.Scale(zero=True))
    x = alt.X("other:Q", title="other", scale=alt.Scale(zero=True), axis=PLAIN_X)
    hue = alt.Color(
        "state:N",
        title=None,
        scale=alt.Scale(domain=list(STATES), range=[PALETTE[0], PALETTE[1], "#cbd2d9"]),
    )
    base = alt.Chart(data).encode(color=hue)
    on_it = alt.Chart(data).transform_filter("datum.state === 'front'")
    tooltip = [
        alt.Tooltip("setting:N"),
        alt.Tooltip("value:Q", title="value", format=".4g"),
        alt.Tooltip("other:Q", title="other", format=".4g"),
        alt.Tooltip("state:N"),
    ]
    return styled(
        alt.layer(
            on_it.mark_line(strokeWidth=1.5, opacity=0.55, color=PALETTE[0]).encode(x=x, y=y),
            base.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q", title="low"), y2="high:Q"),
            base.mark_rule(strokeWidth=1.5).encode(
                y=y, x=alt.X("other_low:Q", title="low"), x2="other_high:Q"
            ),
            base.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, tooltip=tooltip),
        ).properties(width=420, height=280)
    )


_TEMPLATES = {"lines": _lines, "map": _map, "front": _front}


# --- charts that Python fills ---------------------------------------------------------------------


def filling(
    view: Literal["lines", "map"],
    settings: Sequence[Setting],
    at: Places,
    metric: Metric,
    *,
    log: bool = False,
) -> Filling:
    """Return what fills a template with the settings of one kind of joules.

    RefusedError for a choice that does not vary, or a figure that no setting has.
    """
    axes = list(settings[0].chosen)
    if unknown := [name for name in at.named() if name not in axes]:
        raise RefusedError(f"{', '.join(unknown)}: does not vary here; {', '.join(axes)} do.")
    if all(_mean(one, metric) is None for one in settings):
        raise RefusedError(f"{metric.column}: no setting has it.")
    simulated = any(one.simulated for one in settings)
    fields = {"x": at.x, "color": at.color, "panel": at.facet}
    named = {place: None if name is None else heading(name) for place, name in fields.items()}
    titles = {**named, "value": f"{'~ ' if simulated and metric.power else ''}{metric.unit}"}
    del titles["panel"]
    sorted_ = {
        place: [""] if name is None else orders(settings, name) for place, name in fields.items()
    }
    if at.facet is not None:
        sorted_["panel"] = [f"{heading(at.facet)} {value}" for value in sorted_["panel"]]
    others = [name for name in axes if name not in at.named()]
    rows = [_row(one, at, others, metric) for one in settings]
    joined = view == "lines" and is_numeric(settings, at.x)
    return Filling(rows, titles, sorted_, joined=joined, log=log and view == "lines")


def _row(one: Setting, at: Places, others: Sequence[str], metric: Metric) -> Row:
    texts = {axis: in_words(value) for axis, value in one.chosen.items()}
    value, half = _mean(one, metric), half_of(one, metric.column)
    return {
        "x": texts[at.x],
        "color": "" if at.color is None else texts[at.color],
        "panel": "" if at.facet is None else f"{heading(at.facet)} {texts[at.facet]}",
        "line": ", ".join(texts[name] for name in others),
        "setting": ", ".join(f"{heading(axis)} {text}" for axis, text in texts.items()),
        "n": one.n,
        "value": value,
        "half": half,
        **ends(value, half),
        "shown": "-" if value is None else f"{value:.3g}",
        "why": None if value is not None else ", ".join(one.reasons) or "not measured",
    }


def ends(value: float | None, half: float | None) -> Row:
    """Return the ends of a bar; one that would reach to 0 begins at its middle: a logarithm has no place for it."""
    if value is None:
        return {"low": None, "high": None}
    low = value - (half or 0.0)
    return {"low": low if low > 0 else value, "high": value + (half or 0.0)}


def _mean(one: Setting, metric: Metric) -> float | None:
    return one.means[metric.column].mean


def half_of(one: Setting, column: str) -> float | None:
    """Return half of a bar: the expanded uncertainty (k = 2) where a figure has one, else a standard deviation."""
    if expanded_column(column) != column:
        return one.expanded_u(column)
    return one.means[column].sd


def front(
    settings: Sequence[Mapping[str, Any]], metric: str, against: str, *, simulated: bool
) -> Spec:
    """Draw energy against another figure: a dot a setting with both 95 % intervals, a line through the front.

    Each setting: setting, its name; state; value and other, each with its low and high, null of one repeat.
    """
    rows = [
        {
            **one,
            **{low: one[of] for of, low in _ENDS if one[low] is None},
        }
        for one in sorted(settings, key=lambda one: float(one["other"]))
    ]
    sign = "~ " if simulated else ""
    titles = {"value": f"{sign}{heading(metric)}", "other": heading(against)}
    return fill(_front().to_dict(), Filling(rows, titles, width=420))


_ENDS = (("value", "low"), ("value", "high"), ("other", "other_low"), ("other", "other_high"))
