"""The report of the paper: each object beside the published numbers, and a verdict on each claim; HTML, SVG and PDF."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattflow import __version__
from wattflow.analysis.axes import in_words
from wattflow.analysis.figures import svg
from wattflow.nullable import number
from wattflow.paper import claims
from wattflow.paper.cells import Cell, cells
from wattflow.paper.claims import Verdict
from wattflow.paper.drawing import Drawn, chart
from wattflow.paper.objects import Object
from wattflow.paper.published import NOT_READABLE, Published, of_object, slips
from wattflow.paper.results import Found
from wattflow.report.html import render
from wattflow.report.text import interval, mark
from wattflow.store.files import make_folder, write_atomic

# What the paper ran with, as far as it says so, by the columns of ours
_SETUP = {
    "gpu_name": "V100 32 GB and A100 80 GB, capped at 250 W",
    "model": "LLaMA v1 7B, 13B, 65B",
    "weights": "Meta's",
    "precision": "fp16 (the loader's; the paper is silent)",
    "engine": "Meta's loop over FairScale",
    "n_prompts": "4,096",
    "temperature": "0.8",
    "top_p": "0.95",
    "max_seq_len": "not said",
    "stop": "rows cut afterwards, no early stop",
    "power_source": "nvidia-smi each 100 ms, DCGM's joules of rank 0's node times nodes",
}


@dataclass(frozen=True)
class Section:
    """One object as the page lays it out."""

    name: str
    title: str
    chart: dict[str, Any]  # a Vega-Lite specification
    head: list[str]
    rows: list[list[str]]
    statements: list[str]  # published numbers that belong to no cell
    differences: list[list[str]]


@dataclass(frozen=True)
class Written:
    """Where the report lies, its verdicts, and what is missing in it."""

    page: Path
    files: list[Path]
    verdicts: list[Verdict]


def write(
    scale: str, objects: Sequence[Object], found: Sequence[Found], notes: Sequence[str], out: Path
) -> Written:
    """Write paper.html, and each object's chart as SVG and PDF, into a folder; return where and the verdicts."""
    import vl_convert  # noqa: PLC0415 (slow to import)

    make_folder(out)
    sections, files = [], []
    for one in objects:
        of_grid = [of for of in found if of.grid == one.grid]
        drawn = [Drawn(of.gpu, cells(one, of)) for of in of_grid]
        drawn = drawn or [Drawn("nothing here", cells(one, None))]
        picture = chart(one, drawn)
        image = svg(picture)
        for path, data in (
            (out / f"{one.name}.svg", image.encode()),
            (out / f"{one.name}.pdf", bytes(vl_convert.svg_to_pdf(image))),
        ):
            write_atomic(path, data, 0o644)
            files.append(path)
        sections.append(_section(one, drawn, of_grid, picture.to_dict()))
    judged = list(claims.verdicts(found))
    page = out / "paper.html"
    text = render(
        "paper/page.html.j2",
        title="wattflow: From Words to Watts",
        scale=scale,
        sections=sections,
        verdicts=[_verdict_row(one) for one in judged],
        comparisons=[_comparison_rows(one) for one in judged],
        notes=notes,
        simulated=any(bool(one.points["simulated"].any()) for one in found),
        version=__version__,
    )
    write_atomic(page, text.encode(), 0o644)
    return Written(page, files, judged)


def _section(
    of: Object, drawn: Sequence[Drawn], found: Sequence[Found], specification: dict[str, Any]
) -> Section:
    return Section(
        name=of.name,
        title=of.title,
        chart=specification,
        head=[
            *("figure", "dataset", "-" if of.series is None else of.series.title, of.x.title),
            *("here", "GPU here", "ours", "95 %", "n", "published", "tag", "GPU", "ratio"),
        ],
        rows=[_cell_row(of, one.gpu, cell) for one in drawn for cell in one.cells],
        statements=_statements(of),
        differences=_differences(found),
    )


def _cell_row(of: Object, gpu: str, cell: Cell) -> list[str]:
    """Return a cell as a row of the page's table."""
    value = cell.value
    sign = mark(value.simulated)
    ours = (
        value.reason or "-"
        if value.mean is None
        else f"{number(value.mean, sign)} {cell.metric.unit}"
    )
    known = [one for one in cell.published if one.value is not None]
    ratios = {id(one): _ratio(low, high) for one, low, high in cell.ratios()}
    return [
        *(cell.metric.title, cell.dataset or "both", cell.series or "-", cell.x or "beyond it"),
        *(cell.here or "-", gpu, ours, interval(value.low, value.high, ".4g", sign), str(value.n)),
        "; ".join(map(published_text, known)) or "null",
        "; ".join(dict.fromkeys(one.tag for one in cell.published)) or "not printed",
        "; ".join(dict.fromkeys(one.gpu for one in cell.published if one.gpu))
        or " and ".join(of.gpus),
        "; ".join(ratios[id(one)] for one in known if id(one) in ratios) or "-",
    ]


def _ratio(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def published_text(one: Published) -> str:
    """Return a published number with its unit, a range with both ends."""
    if one.value is None:
        return "null"
    upper = "" if one.to is None else f" to {one.to:g}"
    return f"{one.value:g}{upper} {one.unit}"


def _statements(of: Object) -> list[str]:
    """Return what is published of an object beside its cells, and what of it does not fit."""
    said = [
        f"{one.gpu}, {one.x}: {one.value:g} times the token rate ({one.tag}, {one.place})."
        for one in of_object(of.name)
        if one.metric == "speedup"
    ]
    if all(one.tag == NOT_READABLE for one in of_object(of.name) if one.metric != "speedup"):
        said.append("No bar of this figure could be read: its published values are null.")
    said += [
        f"The text says {slip.text:g} % {slip.metric} at {slip.series} W; the mean of the table's own cells is "
        f"{slip.cells:.2f} %."
        for slip in slips(of.name)
    ]
    return said


def _differences(found: Sequence[Found]) -> list[list[str]]:
    """Return a row a choice: what the paper ran with, and what ran here."""
    rows = []
    for name, theirs in _SETUP.items():
        here = {value for one in found for value in one.points[name].unique()}
        ours = ", ".join(sorted(in_words(value) for value in here if value is not None))
        rows.append([name.replace("_", " "), theirs, ours or "unknown"])
    return rows


def _verdict_row(one: Verdict) -> list[str]:
    return [one.claim, one.source, one.state, interval(one.low, one.high, ".4g"), one.why]


def _comparison_rows(one: Verdict) -> dict[str, Any]:
    rows = [
        [
            *(of.what, of.where or "-", f"{of.ratio.ratio:.4f}"),
            interval(of.ratio.low, of.ratio.high, ".4g"),
            "established" if of.ratio.established else str(of.ratio.why_not),
        ]
        for of in one.comparisons
    ]
    return {"claim": one.claim, "rows": rows}


def document(written: Written) -> list[dict[str, Any]]:
    """Return the verdicts as JSON has them."""
    return [
        json.loads(
            json.dumps(
                {
                    "claim": one.claim,
                    "source": one.source,
                    "verdict": one.state,
                    "why": one.why,
                    "low": one.low,
                    "high": one.high,
                    "comparisons": len(one.comparisons),
                }
            )
        )
        for one in written.verdicts
    ]
