"""The report of a sweep: one HTML file that opens offline.

    wattflow report sweeps/NAME

Its figures stand in it twice: as text, laid out by `sections.html.j2`, and as JSON. `verify` holds the results to both.
"""

import dataclasses
import json
import re
import stat
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from wattflow import __version__
from wattflow.analysis import caps
from wattflow.analysis.axes import heading, is_measured
from wattflow.analysis.cheapest import cheapest
from wattflow.analysis.comparisons import of_watts
from wattflow.analysis.sweep import Sweep
from wattflow.report import interactive, sections
from wattflow.report.html import asset, legible, render, vega
from wattflow.report.sections import Figures
from wattflow.report.text import NUMBERS
from wattflow.store.columns import unit_of
from wattflow.store.files import write_atomic

FIGURES_VERSION = 3  # of the JSON; raised when a name in it changes its meaning


def report(sweep: Sweep, unstarted: Mapping[str, tuple[str, str | None]] | None = None) -> Path:
    """Write results/report.html, which needs nothing but itself, and return its path.

    `unstarted` has the state of points without an attempt, and why, where somebody knows.
    """
    text = page(sweep, unstarted or {})
    shared = sweep.directory.results.stat().st_mode & stat.S_IRGRP  # cluster.group_readable
    write_atomic(sweep.directory.report_path, text.encode(), 0o640 if shared else 0o600)
    return sweep.directory.report_path


def page(sweep: Sweep, unstarted: Mapping[str, tuple[str, str | None]]) -> str:
    """Return the text of a sweep's report."""
    figures = sections.figures(sweep)
    traces = interactive.timelines(sweep, figures)
    return render(
        "report/page.html.j2",
        title=f"wattflow: {sweep.name}",
        scripts=[vega(), asset("report/vendored/dataTables.min.js"), asset("report/report.js")],
        style=asset("report/base.css") + asset("report/report.css"),
        document=figures_document(figures),
        charts=interactive.charts(figures),
        traces_document=dataclasses.asdict(traces),
        # of one dot, the table has its number
        drawn=not (len(figures.results) == 1 and is_measured(sweep.points)),
        traces=traces if traces.points else None,
        **_sections(sweep, figures, unstarted),
    )


def _sections(
    sweep: Sweep, figures: Figures, unstarted: Mapping[str, tuple[str, str | None]]
) -> dict[str, Any]:
    """Return what `sections.html.j2` lays out, but for the charts."""
    more = [name for name in sections.MORE if name in figures.results[0].means]
    return {
        "name": sweep.name,
        "figures": figures,
        "numeric": [axis for axis in figures.axes if sweep.points[axis].dtype.is_numeric()],
        "numbers": NUMBERS,
        # columns that a reader has to ask for: no setting has any
        "unknown": [
            of.column
            for of in NUMBERS
            if figures.cards.counting
            and all(one.means[of.column].mean is None for one in figures.results)
        ],
        "more": {name: _with_unit(name) for name in more},
        "of_watts": [name for name in more if of_watts(name)],
        "cheapest": cheapest(sweep.points),
        "most_works": sections.WORKS,
        "use": sections.USE,
        "metrics": caps.METRICS,
        "compared": sections.COMPARED,
        "about": sections.about(sweep.points),
        "cost": sections.cost(sweep),
        "crosscheck": sections.crosscheck(sweep),
        "failures": sections.failures(sweep.points, unstarted),
        "remarks": sections.remarks(sweep.points),
        "provenance": sections.provenance(sweep.attempts),
    }


def _with_unit(name: str) -> str:
    unit = unit_of(name)
    bare = re.sub(r"_(s|j|w|c|mhz)$", "", name) if unit else name
    return f"{heading(bare)}{f', {unit}' if unit else ''}"


# --- what a page holds, read again ----------------------------------------------------------------


def figures_document(figures: Figures) -> dict[str, Any]:
    """Return figures as the JSON of a page has them."""
    of = {"version": FIGURES_VERSION, "wattflow": __version__, **dataclasses.asdict(figures)}
    found: dict[str, Any] = legible(json.loads(json.dumps(of, default=str)))
    return found


def read_figures(text: str) -> dict[str, Any] | None:
    """Return the JSON of a page; null where it has none, as before reports held their figures."""
    held = re.search(r'<script id="wattflow-figures"[^>]*>(.*?)</script>', text, re.DOTALL)
    return None if held is None else json.loads(held[1])


def texts(text: str) -> dict[str, list[str]]:
    """Return the pieces of text in each section that shows figures, by its id."""
    reader = _Reader()
    reader.feed(text)
    return reader.texts


def texts_of_sweep(sweep: Sweep) -> dict[str, list[str]]:
    """Return the same of the page that `report` would write of a sweep now."""
    values = _sections(sweep, sections.figures(sweep), {})
    return texts(render("report/sections.html.j2", drawn=False, traces=None, **values))


class _Reader(HTMLParser):
    """Gathers the text of sections that have an id."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self._within: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note which section begins."""
        if tag == "section":
            self._within = dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        """Note that it ends."""
        if tag == "section":
            self._within = None

    def handle_data(self, data: str) -> None:
        """Keep the text of a section with an id."""
        if self._within is not None and data.strip():
            self.texts.setdefault(self._within, []).append(" ".join(data.split()))
