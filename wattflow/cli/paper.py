"""The verb of the paper: its figures and tables, the grids that make them, what is sent, what is drawn."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from wattflow.cli import completion
from wattflow.cli.arguments import AsJson, DryRun, Wait
from wattflow.cli.follow import wait_for
from wattflow.cli.printing import print_json, print_table, print_text, shown, talk
from wattflow.cli.sweeps import say_sent
from wattflow.config.overrides import split
from wattflow.errors import RefusedError
from wattflow.paper import plans
from wattflow.paper.objects import Object, chosen
from wattflow.paper.scales import grids
from wattflow.store.files import expanded
from wattflow.submit import status as stage
from wattflow.submit.preview import preview

_STEPS = ("list", "submit", "report")


def paper(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[list|submit|report] [KEY=VALUE,...]...",
            help="What to do (list), then choices for all grids, such as cluster=mysite.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    *,
    scale: Annotated[
        str, typer.Option("--scale", help="full, h200, mini or cpu: how large the grids are.")
    ] = "full",
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="OBJECT", help="Only fig4, table3 ...; may be given again."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the report is written.")
    ] = Path("paper-report"),
    wait: Wait = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run arXiv 2310.03003 as a preset: list its figures, send its grids, draw them.

    `submit` sends what is missing by ordinary submits; `report` draws each object beside the published numbers, with a
    verdict on each claim.
    """
    step, overrides = _step(words or [])
    objects = chosen(only)
    if step == "report":
        _report(scale, overrides, objects, out, as_json=as_json)
    elif step == "submit":
        _submit(scale, overrides, objects, wait=wait, dry_run=dry_run)
    else:
        _list(scale, overrides, objects, as_json=as_json)


def _step(words: list[str]) -> tuple[str, list[str]]:
    """Return what to do, and the overrides; RefusedError for a word that is neither."""
    step = words[0] if words and split(words[0])[1] is None else "list"
    if step not in _STEPS:
        raise RefusedError(f"paper {step}: not one of {', '.join(_STEPS)}, nor KEY=VALUE.")
    return step, words[1:] if words[:1] == [step] else words


def _list(scale: str, overrides: list[str], objects: list[Object], *, as_json: bool) -> None:
    """Print each object with its grid, its points and what they should take."""
    parts = plans.parts(scale, overrides, objects)
    hours = {part.plan.name: _hours(part) for part in parts}
    rows = [
        {
            "object": one.name,
            "shows": one.title,
            "grid": part.grid,
            "sweep": part.plan.name,
            "points": len(part.plan.feasible),
            "done": part.done,
            "cannot_run": len(part.plan.points) - len(part.plan.feasible),
            **hours[part.plan.name],
        }
        for one in objects
        for part in parts
        if part.grid == one.grid
    ]
    if as_json:
        print_json(rows)
        return
    head = list(rows[0]) if rows else []
    print_table(
        [name.replace("_", " ") for name in head],
        [list(row.values()) for row in rows],
        numbers=range(4, len(head)),
    )
    left = [one.name for one in objects if not any(part.grid == one.grid for part in parts)]
    if left:
        talk(
            f"{', '.join(left)}: no grid at scale {scale}; the report says that they cannot be shown here."
        )
    missing = sum(len(part.missing) for part in parts)
    talk(
        f"scale {scale}: {missing} points were never sent; `wattflow paper submit --scale {scale}` sends them."
    )


def _hours(part: plans.Part) -> dict[str, Any]:
    """Return a grid's GPU-hours: at most by time limits, and as expected by what finished; null where unknown."""
    rows = preview(part.plan).rows
    most = [row["gpu_hours"] for row in rows]
    known = all(row["expected"]["unknown"] == 0 for row in rows)
    expected = sum(row["expected"]["gpu_hours"] for row in rows)
    return {
        "gpu_hours_at_most": None if None in most or not rows else round(sum(most), 3),
        "gpu_hours_expected": round(expected, 3) if rows and known else None,
    }


def _submit(
    scale: str, overrides: list[str], objects: list[Object], *, wait: bool, dry_run: bool
) -> None:
    """Send what is missing; each grid's ordinary command is printed with its job ids."""
    parts = plans.parts(scale, overrides, objects)
    for part in parts:
        talk(f"{', '.join(one.name for one in part.objects)}: {shlex.join(part.command)}")
        written = part.plan.sweep.grid_path.is_file()
        can_run = len(part.plan.feasible) == len(part.plan.points)
        if (
            part.missing or not written
        ):  # the report finds a grid's points by its own sweep, whichever ran them
            sent = plans.submit(part, dry_run=dry_run)
        if not part.missing and (written or can_run):
            talk(f"sweep {part.plan.name}: nothing is missing; a grid above may hold its points.")
            continue
        say_sent(sent, dry_run=dry_run)
        for line in sent.left:
            talk(f"sweep {sent.sweep.name}: {line}")
    if wait and not dry_run:
        _follow([part.plan.sweep for part in parts])
    elif not dry_run:
        talk(f"`wattflow paper report --scale {scale}` draws what has finished.")


def _follow(sweeps: list[Any]) -> None:
    """Show the progress of several sweeps until none waits or runs, and collect them."""
    from wattflow.collect.collect import collect  # noqa: PLC0415 - only once points have ended

    for sweep in sweeps:
        wait_for(sweep)
        collect(sweep)
        failed = [row for row in stage.states(sweep) if row.state in ("failed", "interrupted")]
        if failed:
            talk(
                f"{sweep.name}: {len(failed)} points failed; `wattflow status {shown(sweep.path)}` says why."
            )


def _report(
    scale: str, overrides: list[str], objects: list[Object], out: Path, *, as_json: bool
) -> None:
    """Draw the objects, print the verdicts and the page's path."""
    from wattflow.paper.page import document, write  # noqa: PLC0415 - altair and polars are slow to import
    from wattflow.paper.results import found  # noqa: PLC0415

    grids(scale)
    here, notes = found(scale, _sweeps_dir(overrides))
    if not here:
        notes.append(f"Nothing was run: `wattflow paper submit --scale {scale}` sends it.")
    written = write(scale, objects, here, notes, out)
    for note in notes:
        talk(note)
    if as_json:
        print_json(document(written))
    else:
        rows = [[one.claim, one.state, one.why] for one in written.verdicts]
        print_table(["claim", "here", "why"], rows)
        print_text(written.page)


def _sweeps_dir(overrides: list[str]) -> Path:
    """Return the folder of sweeps that overrides name; RefusedError for any other override."""
    folder = Path("sweeps")
    for override in overrides:
        key, value = split(override)
        if key != "sweeps_dir" or not value:
            raise RefusedError(f"paper report {override}: takes sweeps_dir=DIR alone.")
        folder = expanded(value)
    return folder
