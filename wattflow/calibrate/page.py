"""The page of passports: what the sensors of each GPU show, as tables and figures; it opens offline."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from wattflow.analysis import figures as draw
from wattflow.calibrate.sources import COUNTER, NAMES, POWER, Passport
from wattflow.energy import response
from wattflow.energy.response import MS
from wattflow.report.html import figure, html_table, page, td


def draw_page(passports: Sequence[Passport]) -> str:
    """One page of all passports, which opens offline."""
    figures: list[dict[str, Any]] = []
    models = sorted({one["gpu"]["name"] for one in passports})
    parts = [
        "<p class='brand'>wattflow</p>",
        f"<h1>What the power sensors of {escape(', '.join(models))} show</h1>",
        f"<p class='note'>{_HOW}</p>",
    ]
    for one in passports:
        parts += [
            f"<section><h2>{escape(one['gpu']['name'])}</h2>{_about(one)}</section>",
            f"<section><h2>Sensors</h2>{_sensors(one)}</section>",
            *_figures(one, figures),
            f"<section><h2>Aliasing</h2>{_aliasing(one)}</section>",
            f"<section><h2>An idle GPU</h2>{_idle_table(one)}</section>",
            f"<section><h2>What a call takes</h2>{_costs_table(one)}</section>",
        ]
    return page("wattflow: sensors", "\n".join(parts), figures)


_HOW = (
    "A load was switched on and off at instants that are known to some microseconds, and all sensors were read beside "
    "one another. A sensor's <b>lag</b> is the time from an edge until its values begin to follow, its <b>window</b> "
    "the time from there until they have arrived: over so long a value averages, if the answer is a box; the time "
    "constant, if it is exponential. Polled values are stamped when they were first seen."
)
_LONG = (
    "The load was on for half of each period, as nearly as its process could switch. Below each sensor stand its "
    "joules over the counter's, in one window between two of its ticks; the counter's own stand over what the plateaus "
    "of the slow load make of the time that the load was on, which leaves out how the board rises and falls."
)
_SHORT = (
    "Windows of about 1 s, wherever they begin, all of which truly hold the same joules: how far the least and the "
    "most are off their mean, %."
)


def _about(one: Passport) -> str:
    gpu, levels = one["gpu"], one["levels_w"]
    others = one["others_on_the_gpu"]
    told = {
        "GPU": f"{gpu['uuid']}, {gpu['bus_id']}",
        "driver": one["driver"],
        "made": f"{one['made']}, {one['minutes']:g} minutes, wattflow {one['wattflow']}",
        "limit": f"{gpu['power_limit_min_w']:g} to {gpu['power_limit_max_w']:g} W"
        if gpu["power_limit_max_w"] is not None
        else "-",
        "load": f"{one['load']}: {levels['off_w']:g} W off, {levels['on_w']:g} W on"
        if levels
        else "-",
        "remarks": "others came onto the GPU meanwhile: nothing here is to be trusted"
        if others
        else "-",
    }
    rows = [f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in told.items()]
    return f"<div class='wide'><table class='facts'><tbody>{''.join(rows)}</tbody></table></div>"


def _sensors(one: Passport) -> str:
    head = [
        "sensor",
        "renewed each, ms",
        "5 to 95 %",
        "lag, ms",
        "window, ms",
        "answer",
        "left, %",
        "edges",
    ]
    head += ["history", "readable after, ms"]
    rows = []
    for source, told in one["sources"].items():
        period, answer = told["period_ms"], told["answer"]
        cells = [NAMES[source]]
        cells += (
            [
                f"{told['beat_ms'] or period['median']:.1f}",
                f"{period['p5']:.1f} to {period['p95']:.1f}",
            ]
            if period
            else ["-", "-"]
        )
        if answer:
            cells += [f"{answer['lag_ms']:.1f}", f"{answer['window_ms']:.1f}", answer["shape"]]
            cells += [f"{100 * answer['rms']:.1f}", str(answer["edges"])]
        else:
            cells += ["-", "-", told["answer_reason"], "-", "-"]
        history, shown = told.get("history"), told.get("shown_after_ms")
        cells.append(
            f"{history['samples']} samples, {history['seconds']:.2f} s" if history else "-"
        )
        cells.append(
            f"{shown['median']:.0f} ({shown['least']:.0f} to {shown['most']:.0f})" if shown else "-"
        )
        rows.append(_row(cells, {1, 2, 3, 4, 6, 7}))
    return html_table(head, rows, {1, 2, 3, 4, 6, 7})


def _row(cells: Sequence[str], numeric: set[int]) -> str:
    return f"<tr>{''.join(td(cell, numeric=k in numeric) for k, cell in enumerate(cells))}</tr>"


def _aliasing(one: Passport) -> str:
    sources = [source for source in one["sources"] if source in POWER]
    names = [NAMES[source] for source in sources]
    long, short = [], []
    for of in one["aliasing"]:
        counted = of["energy_j"].get(COUNTER)
        cells = [f"{of['period_ms']:g}"]
        told = ["-"] * 4
        if counted is not None:
            by_levels = None if of["levels_j"] is None else counted / of["levels_j"]
            told = [f"{of['seconds']:.2f}", f"{100 * of['on_share']:.1f}", f"{counted:.1f}"]
            told.append("-" if by_levels is None else f"{by_levels:.4f}")
        ratios = [of["ratio"].get(source) for source in sources]
        told += ["-" if ratio is None else f"{ratio:.4f}" for ratio in ratios]
        ranges = [of["windows_1s"].get(source) for source in (COUNTER, *sources)]
        reached = [
            "-" if r is None else f"{100 * (r[0] - 1):+.1f} to {100 * (r[1] - 1):+.1f}"
            for r in ranges
        ]
        long.append(_row([*cells, *told], set(range(len(told) + 1))))
        short.append(_row([*cells, *reached], set(range(len(reached) + 1))))
    head = ["load, ms", "window, s", "on, %", "counter, J", "counter / levels", *names]
    right = range(len(head))
    return (
        f"<p class='note'>{_LONG}</p>{html_table(head, long, right)}"
        f"<p class='note'>{_SHORT}</p>{html_table(['load, ms', NAMES[COUNTER], *names], short, right)}"
    )


def _idle_table(one: Passport) -> str:
    meanings = {
        "bare": "no process on it, nobody asks the driver",
        "sidecar": "a sidecar records it, as in a sweep",
        "context": "a process holds it, and does nothing",
        "watched": "that, and all sensors are asked as densely as here",
    }
    rows = []
    for name, of in one["idle_w"].items():
        each = (
            [" / ".join(f"{w:.1f}" for w in of[by]) or "-" for by in ("buffer", "counter")]
            if of
            else ["-", "-"]
        )
        rows.append(_row([name, meanings[name], f"{of['power_w']:.1f}" if of else "-", *each], {2}))
    return html_table(["state", "what it is", "W", "each time, by buffer", "by counter"], rows, {2})


def _costs_table(one: Passport) -> str:
    head = ["call", "idle: median, ms", "95 %", "most", "busy: median, ms", "95 %", "most"]
    rows = []
    for source, costs in one["costs_ms"].items():
        cells = [NAMES[source]]
        for name in ("idle", "busy"):
            of = costs.get(name)
            cells += [f"{of[key]:.3f}" for key in ("median", "p95", "most")] if of else ["-"] * 3
        rows.append(_row(cells, set(range(1, 7))))
    return html_table(head, rows, range(1, 7))


def _figures(one: Passport, figures: list[dict[str, Any]]) -> list[str]:
    """All figures, a section each."""
    return [f"<section>{figure(figures, chart)}</section>" for chart in charts(one).values()]


def charts(one: Passport) -> dict[str, Any]:
    """The same load by each sensor (slow, fast), the answers to an edge, the spacings, the aliasing: by name."""
    drawn: dict[str, Any] = {}
    for load, told in one["figures"]["traces"].items():
        lines = {NAMES[source]: points for source, points in told["lines"].items()}
        drawn[load] = draw.sensor_traces(lines, told["edges_s"], f"The {load} load by each sensor")
    points = one["figures"]["answers"]
    if points:
        fits = {
            NAMES[source]: _fit(one["sources"][source]["answer"], of)
            for source, of in points.items()
        }
        drawn["answers"] = draw.sensor_answers({NAMES[s]: of for s, of in points.items()}, fits)
    spacings = {
        NAMES[source]: told["spacings_ms"]
        for source, told in one["sources"].items()
        if told["spacings_ms"]
    }
    if spacings:
        drawn["spacings"] = draw.sensor_spacings(spacings)
    ranges = [
        (
            NAMES[source],
            of["period_ms"],
            100 * (energy_j / (of["levels_j"] or of["energy_j"][COUNTER]) - 1),
            *(100 * (share - 1) for share in reach),
        )
        for of in one["aliasing"]
        for source, energy_j in of["energy_j"].items()
        if (reach := of["windows_1s"].get(source)) is not None
    ]
    if ranges:
        drawn["aliasing"] = draw.sensor_aliasing(ranges)
    return drawn


def _fit(answer: Passport, points: list[list[float]]) -> list[list[float]]:
    """The fitted answer over the time of the points: ms since the edge, share of the step."""
    since_ms = np.linspace(min(p[0] for p in points), max(p[0] for p in points), 200)
    lag_ns, window_ns = answer["lag_ms"] * MS, answer["window_ms"] * MS
    share = response.answer(since_ms * MS, lag_ns, window_ns, answer["shape"])
    return [[float(ms), float(y)] for ms, y in zip(since_ms, share, strict=True)]
