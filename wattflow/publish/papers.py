"""What people read of results, held to them: the report of a sweep, and the papers of a bundle."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from wattflow import __version__
from wattflow.analysis.axes import choice_columns, varying
from wattflow.publish.bundle import CSV, LOCK, METHODS, README, csv_cell
from wattflow.publish.recompute import Recomputation
from wattflow.publish.results import NO_FIGURES, Results, Row
from wattflow.publish.verdict import Difference, same
from wattflow.report import methods
from wattflow.store.files import read_own
from wattflow.store.layout import SweepDir
from wattflow.store.schema import Record

_MOST_PLACES = 5  # of a report that are named


def csv_problems(text: str, results: Results, recomputed: Recomputation) -> list[str]:
    """Return what is wrong in points.csv, made of points.parquet; cells that differ go to their attempts."""
    try:
        heading, *lines = list(csv.reader(io.StringIO(text)))
        at = heading.index("point_id"), heading.index("attempt")
        keys = [(line[at[0]], int(line[at[1]]) if line[at[1]] else None) for line in lines]
    except (csv.Error, ValueError, IndexError) as error:
        return [f"{CSV}: not as it was written ({error!a})."]
    problems = [
        f"{CSV}: its column {column!a} is none of points.parquet."
        for column in set(heading) - set(results.columns) - NO_FIGURES
    ]
    if sorted(map(str, keys)) != sorted(map(str, results.points)):
        problems.append(f"{CSV}: its rows are not those of points.parquet.")
    for key, line in zip(keys, lines, strict=True):
        row, check = recomputed.rows.get(key), recomputed.checks.get(key)
        if row is None or check is None or check.damaged:
            continue
        for column, cell in zip(heading, line, strict=False):
            # what it has from points.parquet was compared there
            if column in results.columns and cell != csv_cell(results.points[key][column]):
                check.compare(Difference(CSV, column, _number(cell), row[column]))
    return problems


def _number(cell: str) -> float | str:
    """Return a cell of points.csv as a float where it is one."""
    try:
        return float(cell)
    except ValueError:
        return cell


def means_problems(text: str, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return what is wrong in the table of METHODS.md, and a note where it pools what this version keeps apart.

    The means are recomputed over the choices that its own heading names.
    """
    heading, _, *lines = [_cells(line) for line in text.splitlines() if line.startswith("|")]
    axes = heading[: heading.index("n")]
    by_sensor = heading[-1] == methods.SENSOR
    doubt = methods.DOUBT in text
    expected = [
        _cells_of(line) for line in methods.table(rows, axes, by_sensor=by_sensor, doubt=doubt)
    ]
    there, wanted = (Counter(map(tuple, of)) for of in ([heading, *lines], expected))
    problems = [
        f"{METHODS}: {_line(mine)} where the means are {_line(other)}"
        for mine, other in zip_longest((there - wanted).elements(), (wanted - there).elements())
    ]
    pooled = set(varying(choice_columns([row for row in rows if row["counts"]]))) - set(axes)
    notes = []
    if pooled:
        notes.append(
            f"{METHODS}: its means are over points that differ in {', '.join(sorted(pooled))}, which this wattflow "
            "keeps apart."
        )
    return problems, notes


def _cells(line: str) -> list[str]:
    """Return the cells of a line of a table in Markdown."""
    return [cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _line(cells: Sequence[str] | None) -> str:
    return "nothing" if cells is None else f"| {' | '.join(cells)} |"


def _cells_of(line: Sequence[str]) -> list[str]:
    return [" ".join(cell.split()).replace("\\", "") for cell in line]


def joules_problems(text: str, rows: Sequence[Row]) -> list[str]:
    """Return what is wrong with the joules that README.md states."""
    joules = methods.joules(rows)
    before = methods.joules(rows, doubt=False)
    if any(f"count: {stated} in their" in text for stated in (joules, before)):
        return []
    return [f"{README}: does not state the joules that count, {joules}."]


def lock_problems(text: str, records: Sequence[Record]) -> list[str]:
    """Return whether lock.txt holds other versions than the records."""
    if text == methods.lock(records):
        return []
    return [f"{LOCK}: its versions are not those of the records."]


# --- the report of a sweep ------------------------------------------------------------------------


def report_problems(directory: SweepDir) -> tuple[list[str], list[str]]:
    """Return where results/report.html has other figures than the results, and a note on what of it is not compared."""
    from wattflow.analysis.sweep import Sweep  # noqa: PLC0415 (polars is slow to import, and a bundle has no report)
    from wattflow.report import page  # noqa: PLC0415 (as above)
    from wattflow.report.sections import figures  # noqa: PLC0415 (as above)

    name = "results/report.html"
    text = read_own(directory.report_path).decode(errors="replace")
    again = f"`wattflow report {directory.path}` draws it anew."
    try:
        document = page.read_figures(text)
    except (ValueError, RecursionError):
        return [f"{name}: the figures in it are no JSON: it was changed. {again}"], []
    if document is None:
        note = f"{name}: predates reports that hold their figures as JSON, not compared. {again}"
        return [], [note]
    if document.get("version") != page.FIGURES_VERSION:
        return [], [f"{name}: has its figures in a form of another version, not compared. {again}"]
    sweep, notes = Sweep(directory), []
    drawn_by = document.pop("wattflow", None)
    expected = page.figures_document(figures(sweep))
    del expected["wattflow"]
    places = list(_differences(document, expected))
    if drawn_by == __version__:
        places += _differences(page.texts(text), page.texts_of_sweep(sweep))
    else:
        notes.append(f"{name}: drawn by another wattflow, so its JSON is compared, not its tables.")
    if not places:
        return [], notes
    more = f", and {len(places) - _MOST_PLACES} more" if len(places) > _MOST_PLACES else ""
    problem = (
        f"{name} shows other figures than results/points.parquet: it is older, or was changed. {again} It differs in "
        f"{'; '.join(places[:_MOST_PLACES])}{more}."
    )
    return [problem], notes


def _differences(published: Any, recomputed: Any, where: str = "") -> Iterator[str]:
    """Return the places in which two documents differ, numbers by more than the tolerance."""
    if isinstance(published, dict) and isinstance(recomputed, dict):
        for key in [*recomputed, *(key for key in published if key not in recomputed)]:
            below = f"{where} {key}".strip()
            yield from _differences(published.get(key), recomputed.get(key), below)
    elif isinstance(published, list) and isinstance(recomputed, list):
        for i, (mine, other) in enumerate(zip_longest(published, recomputed)):
            yield from _differences(mine, other, f"{where} {i + 1}")
    elif not same(published, recomputed)[0]:
        yield f"{where}: {published!a:.80}, recomputed {recomputed!a:.80}"
