"""The verbs of uncertainty: what one figure's is made of, and what a comparison can establish."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wattflow.analysis import budget
from wattflow.analysis.means import expanded_column
from wattflow.analysis.resolve import LINES, SCATTER, drawn, published, resolvable
from wattflow.analysis.sweep import open_sweep
from wattflow.cli.arguments import AsJson, SweepArgument
from wattflow.cli.printing import print_json, print_table, print_text, talk
from wattflow.errors import RefusedError
from wattflow.nullable import COVERAGE, with_doubt
from wattflow.store.files import write_atomic


def explain(
    sweep: SweepArgument,
    point: Annotated[str, typer.Argument(metavar="POINT", help="The start of a point_id.")],
    as_json: AsJson = False,
) -> None:
    """Show what the uncertainty of one point's energy is made of.

    A budget after the GUM: each input with its standard uncertainty, its share of the variance and its source.
    """
    row = open_sweep(sweep).row(point)
    inputs = budget.budget(row)
    if as_json:
        names = ("energy_j", "energy_expanded_u_j", "energy_per_token_expanded_u_j")
        print_json({**{n: row[n] for n in names}, "inputs": [asdict(one) for one in inputs]})
        return
    talk(budget.heading(row))
    expanded = row["energy_expanded_u_j"]
    assert isinstance(expanded, float)
    rows = [
        [one.name, f"{one.u_j:.4g}", f"{100 * one.share:.2f}", one.distribution, one.source]
        for one in inputs
    ]
    rows.append(
        [
            "combined, k = 1",
            f"{expanded / COVERAGE:.4g}",
            "100.00",
            "",
            "root of the sum of squares",
        ]
    )
    rows.append(["expanded, k = 2", f"{expanded:.4g}", "", "about 95 %", "energy_expanded_u_j"])
    print_table(["input", "u, J", "share, %", "distribution", "source"], rows, numbers=(1, 2))
    for column, unit in (("energy_j", "J"), ("power_w", "W"), ("energy_per_token_j", "J/token")):
        if row[column] is not None:
            doubt = row[expanded_column(column)]
            talk(f"{column}: {with_doubt(row[column], doubt, unit)}")  # type: ignore[arg-type]
    talk(
        "Scatter between repeats is in `wattflow compare` and in the tables' means, not in one row."
    )


def resolve(
    watts: Annotated[
        tuple[float, float],
        typer.Option("--watts", metavar="W W", help="Mean power of a board in both settings."),
    ] = (300.0, 300.0),
    boards: Annotated[
        int | None, typer.Option("--boards", help="Boards that run both settings.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Repeats of each setting on each board.")
    ] = None,
    scatter: Annotated[
        float, typer.Option("--scatter", help="Deviation between repeats, relative.")
    ] = SCATTER,
    *,
    draw: Annotated[
        Path | None,
        typer.Option(
            "--draw", metavar="FILE", help="Draw it for all watts into FILE.svg or FILE.html."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the smallest difference that a comparison can establish.

    By the code of `compare`, in one job and a balanced order: offsets of the boards' sensors, repeats, Student's t.
    Without --boards and --repeats a line each for 1 x 1, 1 x 3, 1 x 10, 3 x 3 and 8 x 3.
    """
    if draw is not None:
        _draw(draw, scatter)
        return
    lines = LINES if boards is None and repeats is None else ((boards or 1, repeats or 3),)
    found = [(*line, resolvable(watts, *line, scatter)) for line in lines]
    if as_json:
        keys = ("boards", "repeats", "smallest_difference")
        print_json([dict(zip(keys, one, strict=True)) for one in found])
        return
    print_table(
        ["boards", "repeats", "smallest difference, %"],
        [
            [one, n, "none can be" if least is None else f"{100 * least:.2f}"]
            for one, n, least in found
        ],
        numbers=(0, 1, 2),
    )
    talk(
        f"At {watts[0]:g} against {watts[1]:g} W, repeats that scatter by {100 * scatter:g} %: smaller "
        "differences cannot be established."
    )


def _draw(path: Path, scatter: float) -> None:
    """Draw the figure into a file and print its path; RefusedError for a name of another kind."""
    from wattflow.analysis import figures  # noqa: PLC0415 (altair is slow to import)

    if path.suffix not in (".svg", ".html"):
        raise RefusedError(f"--draw {path}: a name that ends in .svg or .html.")
    chart = figures.resolution(drawn(scatter), published())
    text = figures.svg(chart) if path.suffix == ".svg" else chart.to_html(inline=True)
    write_atomic(path, text.encode(), 0o644)
    print_text(path)
