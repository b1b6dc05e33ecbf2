"""The verb that draws the front of energy against throughput or latency."""

from pathlib import Path
from typing import Annotated

import typer

from wattflow.analysis.axes import in_words
from wattflow.analysis.comparisons import of_watts
from wattflow.analysis.pareto import Candidate
from wattflow.analysis.pareto import pareto as front
from wattflow.analysis.statistics import Mean
from wattflow.cli.arguments import AsJson, SweepArguments, check_folder_of
from wattflow.cli.opened import opened
from wattflow.cli.printing import print_json, print_table, print_text, talk
from wattflow.errors import RefusedError
from wattflow.nullable import with_doubt
from wattflow.report.text import interval, mark
from wattflow.store.files import write_atomic


def pareto(
    sweeps: SweepArguments,
    metric: Annotated[
        str, typer.Option("--metric", metavar="COLUMN", help="The energy.")
    ] = "energy_per_token_j",
    against: Annotated[
        str, typer.Option("--against", metavar="COLUMN", help="The throughput or latency.")
    ] = "tokens_per_s",
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw the front into FILE.svg.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show the settings that no other beats in energy and throughput both.

    A setting is off the front where one on it is established to be better in both; else that is said to be open.
    """
    if svg is not None and svg.suffix != ".svg":
        raise RefusedError(f"--svg {svg}: a name that ends in .svg.")
    if svg is not None:
        check_folder_of("--svg", svg)
    points = opened(sweeps).points
    found = front(points, metric, against)
    simulated = bool(points.filter("counts")["simulated"].any())
    if svg is not None:
        from wattflow.analysis import charts, figures  # noqa: PLC0415 (altair is slow to import)

        drawn = charts.front([_drawn(one) for one in found], metric, against, simulated=simulated)
        write_atomic(svg, figures.svg(drawn).encode())
        print_text(svg)
    elif as_json:
        print_json([_document(one, metric, against) for one in found])
    else:
        _print(found, metric, against, simulated=simulated)


def _print(found: list[Candidate], metric: str, against: str, *, simulated: bool) -> None:
    marks = [mark(simulated and of_watts(name)) for name in (metric, against)]
    print_table(
        [*found[0].chosen, "n", metric, "95 % interval", against, "95 % interval", "front"],
        [
            [
                *(*one.chosen.values(), one.energy.n),
                *(*_cells(one.energy, marks[0]), *_cells(one.other, marks[1])),
                _state(one),
            ]
            for one in found
        ],
    )
    if simulated:
        talk("~ marks what was simulated, not measured: nothing is established by it.")


def _cells(mean: Mean, sign: str) -> list[str]:
    return [
        with_doubt(mean.mean, mean.expanded_u, mark=sign),
        interval(mean.low, mean.high, ".4g", sign),
    ]


def _words(chosen: dict[str, object]) -> str:
    return ", ".join(f"{name} {in_words(value)}" for name, value in chosen.items())


def _state(one: Candidate) -> str:
    if one.by is None:
        return "on it"
    if one.state == "dominated":
        return f"off: {_words(one.by)} is better in both"
    return f"open: {_words(one.by)} may be better in both"


def _drawn(one: Candidate) -> dict[str, object]:
    return {
        "setting": _words(one.chosen),
        "state": one.state,
        "value": one.energy.mean,
        "low": one.energy.low,
        "high": one.energy.high,
        "other": one.other.mean,
        "other_low": one.other.low,
        "other_high": one.other.high,
    }


def _document(one: Candidate, metric: str, against: str) -> dict[str, object]:
    return {
        **one.chosen,
        metric: vars(one.energy),
        against: vars(one.other),
        "state": one.state,
        "by": one.by,
    }
