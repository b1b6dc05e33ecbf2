"""The verb that lists sweeps."""

from pathlib import Path
from typing import Annotated

import typer

from wattflow.cli.arguments import AsJson
from wattflow.cli.printing import print_json, print_table, talk
from wattflow.nullable import NO_DOUBT, is_undoubted, with_doubt
from wattflow.submit.overview import Entry, overview


def list(  # noqa: A001 (a verb's function has its name)
    folder: Annotated[
        str, typer.Argument(metavar="[FOLDER]", help="A folder of sweeps; ./sweeps.")
    ] = "sweeps",
    as_json: AsJson = False,
    *,
    tag: Annotated[
        str, typer.Option("--tag", metavar="NAME", help="Only sweeps with this tag.")
    ] = "",
) -> None:
    """List all sweeps below a folder: state, points, what varies, kWh, when.

    A damaged one has a line that says why.
    """
    entries = [one for one in overview(Path(folder)) if not tag or tag in one.tags]
    if as_json:
        print_json([vars(entry) for entry in entries])
        return
    tagged, noted = (any(one.tags for one in entries), any(one.note for one in entries))
    print_table(
        [
            "sweep",
            "state",
            "points",
            "varies",
            "kWh",
            "when",
            *["tags"] * tagged,
            *["note"] * noted,
        ],
        [
            [*_cells(entry), *[", ".join(entry.tags) or None] * tagged, *[entry.note] * noted]
            for entry in entries
        ],
        numbers=[4],
    )
    for entry in entries:
        if entry.problem is not None:
            talk(f"{entry.sweep}: {entry.problem}")
    if any(entry.simulated for entry in entries):
        talk("~ marks what was simulated, not measured.")
    if any(
        not entry.simulated and is_undoubted(entry.energy_kwh, entry.energy_expanded_u_kwh)
        for entry in entries
    ):
        talk(NO_DOUBT)


def _cells(entry: Entry) -> tuple[str | None, ...]:
    if entry.problem is not None or entry.counts is None:
        return (entry.sweep, entry.state, None, None, None, None)
    counts = ", ".join(f"{n} {state}" for state, n in entry.counts.items())
    mark = "~" if entry.simulated else ""
    kwh = with_doubt(entry.energy_kwh, entry.energy_expanded_u_kwh, mark=mark)
    when = None if entry.when is None else f"{entry.when:%Y-%m-%d %H:%M}"
    return (entry.sweep, entry.state, counts, ", ".join(entry.varies or []) or None, kwh, when)
