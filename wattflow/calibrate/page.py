"""The page of passports: what the sensors of each GPU show, as tables and figures; it opens offline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattflow.analysis import figures as draw
from wattflow.calibrate.documents import Aliasing, Answer, Passport, Sensor, Series
from wattflow.calibrate.sources import COUNTER, NAMES, POWER
from wattflow.energy import response
from wattflow.energy.response import MS
from wattflow.report.html import render

Rows = list[list[str]]


@dataclass(frozen=True)
class _Section:
    """One passport as the page lays it out: cells of its tables, and its charts as Vega-Lite."""

    name: str
    about: dict[str, str]
    sensors: Rows
    charts: list[dict[str, Any]]
    power_sources: list[str]  # columns of both tables of aliasing
    aliasing: Rows
    windows_1s: Rows
    idle: Rows
    costs: Rows


def draw_page(passports: Sequence[Passport]) -> str:
    """Return one page of all passports, which opens offline."""
    models = sorted({one["gpu"]["name"] for one in passports})
    return render(
        "calibrate/passports.html.j2",
        title="wattflow: sensors",
        models=models,
        counter=NAMES[COUNTER],
        sections=[_section(one) for one in passports],
    )


def _section(one: Passport) -> _Section:
    sources = [source for source in one["sources"] if source in POWER]
    return _Section(
        name=one["gpu"]["name"],
        about=_about(one),
        sensors=[_sensor_cells(NAMES[name], of) for name, of in one["sources"].items()],
        charts=[chart.to_dict() for chart in charts(one).values()],
        power_sources=[NAMES[source] for source in sources],
        aliasing=[_aliasing_cells(of, sources) for of in one["aliasing"]],
        windows_1s=[_window_cells(of, sources) for of in one["aliasing"]],
        idle=_idle_rows(one),
        costs=_cost_rows(one),
    )


def _fixed(value: float | None, digits: int) -> str:
    """Return a number with so many decimals; `-` for null."""
    return "-" if value is None else f"{value:.{digits}f}"


def _about(one: Passport) -> dict[str, str]:
    gpu, levels = one["gpu"], one["levels_w"]
    least_w, most_w = gpu["power_limit_min_w"], gpu["power_limit_max_w"]
    return {
        "GPU": f"{gpu['uuid']}, {gpu['bus_id']}",
        "driver": str(one["driver"]),
        "made": f"{one['made']}, {one['minutes']:g} minutes, wattflow {one['wattflow']}",
        "limit": "-" if most_w is None else f"{least_w:g} to {most_w:g} W",
        "load": f"{one['load']}: {levels['off_w']:g} W off, {levels['on_w']:g} W on"
        if levels
        else "-",
        "remarks": "other processes came onto the GPU meanwhile: do not trust these figures"
        if one["others_on_the_gpu"]
        else "-",
    }


def _sensor_cells(name: str, of: Sensor) -> list[str]:
    period, answer = of["period_ms"], of["answer"]
    history, shown = of.get("history"), of.get("shown_after_ms")
    renewed = ["-", "-"]
    if period:
        renewed = [
            f"{of['beat_ms'] or period['median']:.1f}",
            f"{period['p5']:.1f} to {period['p95']:.1f}",
        ]
    fit = ["-", "-", str(of["answer_reason"]), "-", "-"]
    if answer:
        fit = [f"{answer['lag_ms']:.1f}", f"{answer['window_ms']:.1f}", answer["shape"]]
        fit += [f"{100 * answer['rms']:.1f}", str(answer["edges"])]
    return [
        name,
        *renewed,
        *fit,
        f"{history['samples']} samples, {history['seconds']:.2f} s" if history else "-",
        f"{shown['median']:.0f} ({shown['least']:.0f} to {shown['most']:.0f})" if shown else "-",
    ]


def _aliasing_cells(of: Aliasing, sources: Iterable[str]) -> list[str]:
    """Return one load period's long window: its joules by the counter, and each source's over those."""
    counted_j = of["energy_j"].get(COUNTER)
    share, levels_j = of["on_share"], of["levels_j"]
    by_levels = None if counted_j is None or levels_j is None else counted_j / levels_j
    return [
        f"{of['period_ms']:g}",
        _fixed(of["seconds"], 2),
        _fixed(None if share is None else 100 * share, 1),
        _fixed(counted_j, 1),
        _fixed(by_levels, 4),
        *(_fixed(of["ratio"].get(source), 4) for source in sources),
    ]


def _window_cells(of: Aliasing, sources: Iterable[str]) -> list[str]:
    """Return how far windows of 1 s are off their mean, by the counter and by each source."""
    ranges = [of["windows_1s"].get(source) for source in (COUNTER, *sources)]
    return [
        f"{of['period_ms']:g}",
        *("-" if r is None else " to ".join(f"{100 * (v - 1):+.1f}" for v in r) for r in ranges),
    ]


_STATES = {
    "bare": "no process on it, no call of the driver",
    "sidecar": "a sidecar records it, as in a sweep",
    "context": "a process holds it, and does nothing",
    "watched": "the same, and all sensors are read as densely as here",
}


def _idle_rows(one: Passport) -> Rows:
    rows = []
    for state, of in one["idle_w"].items():
        cells = ["-", "-", "-"]
        if of:
            each = [of["buffer"], of["counter"]]
            cells = [f"{of['power_w']:.1f}"]
            cells += [" / ".join(f"{power_w:.1f}" for power_w in by) or "-" for by in each]
        rows.append([state, _STATES[state], *cells])
    return rows


def _cost_rows(one: Passport) -> Rows:
    rows = []
    for source, costs in one["costs_ms"].items():
        cells = [NAMES[source]]
        for name in ("idle", "busy"):
            of = costs.get(name)
            cells += (
                [f"{ms:.3f}" for ms in (of["median"], of["p95"], of["most"])] if of else ["-"] * 3
            )
        rows.append(cells)
    return rows


# --- charts ---------------------------------------------------------------------------------------


def charts(one: Passport) -> dict[str, Any]:
    """Return Altair charts by name: the loads by each sensor, answers to an edge, spacings, aliasing."""
    drawn: dict[str, Any] = {}
    for load, trace in one["figures"]["traces"].items():
        lines = {NAMES[source]: points for source, points in trace["lines"].items()}
        drawn[load] = draw.sensor_traces(lines, trace["edges_s"], f"The {load} load by each sensor")
    answers = {
        source: (answer, points)
        for source, points in one["figures"]["answers"].items()
        if (answer := one["sources"][source]["answer"]) is not None
    }
    if answers:
        drawn["answers"] = draw.sensor_answers(
            {NAMES[source]: points for source, (_, points) in answers.items()},
            {NAMES[source]: _fit(*both) for source, both in answers.items()},
        )
    spacings = {
        NAMES[source]: {**histogram}
        for source, of in one["sources"].items()
        if (histogram := of["spacings_ms"]) is not None
    }
    if spacings:
        drawn["spacings"] = draw.sensor_spacings(spacings)
    ranges = [
        (
            NAMES[source],
            of["period_ms"],
            100 * (energy_j / (of["levels_j"] or of["energy_j"][COUNTER]) - 1),
            100 * (reach[0] - 1),
            100 * (reach[1] - 1),
        )
        for of in one["aliasing"]
        for source, energy_j in of["energy_j"].items()
        if (reach := of["windows_1s"].get(source)) is not None
    ]
    if ranges:
        drawn["aliasing"] = draw.sensor_aliasing(ranges)
    return drawn


def _fit(answer: Answer, points: Series) -> Series:
    """Return the fitted answer over the time of the points: ms since the edge, share of the step."""
    since_ms = np.linspace(min(p[0] for p in points), max(p[0] for p in points), 200)
    lag_ns, window_ns = answer["lag_ms"] * MS, answer["window_ms"] * MS
    share = response.answer(since_ms * MS, lag_ns, window_ns, answer["shape"])
    return [[float(ms), float(y)] for ms, y in zip(since_ms, share, strict=True)]
