"""The verbs of the command line: each parses its words, calls its stage and prints. `wattflow --help` lists them.

stdout is data, stderr is talk. Exit codes: 0 done, 1 failed while working, 2 refused before anything was sent;
`status` alone also 3 (some points failed), 4 (some wait or run), 5 (Slurm did not answer).
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from wattflow.errors import WattflowError

# Stages are imported by the verb that needs them: --help is asked for far more often than anything else.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure what LLM inference costs in energy on a Slurm cluster, across a grid of choices.",
)

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE,...]...",
        help="Choices in Hydra's grammar: grid=NAME model=a,b shards=1,2 batch_size=range(8,65,8).",
    ),
]
Multirun = Annotated[
    bool,
    typer.Option("-m", "--multirun", help="Expand lists of values (submit and plan always do)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep's directory, or its name below ./sweeps.")
]
DryRun = Annotated[
    bool, typer.Option("-n", "--dry-run", help="Say what would be done; change nothing.")
]


def _talk(text: str) -> None:
    print(text, file=sys.stderr)


def _table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()
) -> None:
    """Print a table: aligned on a terminal, tab-separated into a pipe. Columns in `numbers` are right-aligned."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(headings), *cells]:
            print("\t".join(row))
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, heading in enumerate(headings):
        table.add_column(
            heading, justify="right" if position in numbers else "left", overflow="fold"
        )
    for row in cells:
        table.add_row(*row)
    Console().print(table)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, default=str))


@app.command()
def plan(
    words: Words = None,
    multirun: Multirun = False,
    script: Annotated[
        bool, typer.Option("--script", help="Print the exact batch script of each shape.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a submit of the same words would send: points, shapes, jobs, GPU-hours. Nothing is written."""
    del multirun  # a plan always expands
    from wattflow import submit as stage  # noqa: PLC0415
    from wattflow.grid import plan as make_plan  # noqa: PLC0415

    made = make_plan(words or [])
    if script:
        for text in stage.batch_scripts(made):
            print(text)
        return
    if as_json:
        _print_json(
            {
                "name": made.name,
                "sweep": str(made.sweep.path),
                "duplicates": made.duplicates,
                "points": [
                    {"point_id": p.point_id, "reason": p.reason, **p.choices} for p in made.points
                ],
                "shapes": stage.shape_rows(made),
            }
        )
        return
    varying = _varying(made.points)
    _table(
        ["point_id", *varying, "note"],
        [
            [p.point_id, *(_leaf(p.choices, key) for key in varying), p.reason or ""]
            for p in made.points
        ],
    )
    _talk("")
    _print_shapes(stage.shape_rows(made))
    left_out = len(made.points) - len(made.feasible)
    _talk(
        f"sweep {made.name}: {len(made.feasible)} points to run, {left_out} left out with a reason above."
    )
    if made.duplicates:
        _talk(f"{made.duplicates} combinations came to a point already listed.")


def _print_shapes(rows: Sequence[dict[str, Any]]) -> None:
    """What each resource shape asks of the cluster; the hours are an upper bound, from the time limit."""
    for row in rows:
        limit = (
            f" in {row['tasks']} tasks of at most {row['time_min']} min" if row["time_min"] else ""
        )
        _talk(
            f"{row['cluster']}: {row['points']} points on {row['nodes']} x {row['ranks_per_node']} ranks, "
            f"{row['jobs']} jobs{limit}: at most {row['gpu_hours']:.1f} GPU-hours"
        )


def _leaf(choices: dict[str, Any], key: str) -> Any:
    value: Any = choices
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else None
    return value


def _varying(points: Sequence[Any]) -> list[str]:
    """The keys whose values differ between points; a group stands for all of its keys."""
    from wattflow.config import flat  # noqa: PLC0415

    groups = {
        "model": "model.name",
        "dataset": "dataset.name",
        "engine": "engine.name",
        "cluster": "cluster.name",
    }
    seen: dict[str, set[str]] = {}
    for point in points:
        for key, value in flat(point.choices).items():
            seen.setdefault(key, set()).add(repr(value))
    varying = [key for key, values in seen.items() if len(values) > 1]
    by_name = [name for name in groups.values() if name in varying]
    return by_name + [
        k
        for k in varying
        if k.split(".")[0] not in groups or f"{k.split('.')[0]}.name" not in by_name
    ]


@app.command()
def submit(
    words: Words = None,
    multirun: Multirun = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow until every point has ended.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Send a sweep to Slurm, or with cluster=local to this machine, and return when the jobs are accepted.

    To a sweep that exists it adds the points that were never tried; `resume` retries those that failed.
    """
    del multirun  # a submit always expands
    from wattflow import submit as stage  # noqa: PLC0415
    from wattflow.grid import plan as make_plan  # noqa: PLC0415

    made = make_plan(words or [])
    if dry_run:
        _print_shapes(stage.shape_rows(made))
        return
    _report_submission(stage.submit(made), made.sweep, wait=wait)


@app.command()
def run(words: Words = None, multirun: Multirun = False) -> None:
    """Run points on this machine, one after another, as an ordinary Hydra application (-m for lists of values)."""
    from wattflow import grid  # noqa: PLC0415
    from wattflow.run import run_serially  # noqa: PLC0415

    failed: list[str] = []

    def one(made: grid.Plan, point: grid.Point) -> None:
        grid.save(made)
        if point.reason is not None:
            _talk(f"{point.point_id}: left out: {point.reason}")
            return
        with _Follower(1) as follower:
            failed.extend(run_serially(str(made.sweep.path), [point.point_id], follower.report))

    made = grid.as_hydra_application(words or [], one, multirun=multirun)
    _close(made.sweep, failed)


def main() -> None:
    """Run the command line; our own errors become one line on stderr and their exit code."""
    debug = os.environ.get("WATTFLOW_DEBUG") == "1"
    try:
        app()
    except WattflowError as error:
        if debug:
            raise
        _talk(f"wattflow: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
