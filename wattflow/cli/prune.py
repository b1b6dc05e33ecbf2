"""The verb that gives disk back: `prune`."""

from typing import Annotated

import typer

from wattflow.cli.arguments import AsJson, SweepArgument
from wattflow.cli.printing import print_json, print_table, print_text, shown, talk
from wattflow.errors import RefusedError
from wattflow.prune import prune as removing
from wattflow.store.layout import SweepDir


def prune(
    sweep: SweepArgument,
    *,
    copies: Annotated[
        bool, typer.Option("--copies", help="results/traces, the second copies.")
    ] = False,
    traces: Annotated[
        bool, typer.Option("--traces", help="Raw traces of attempts that count.")
    ] = False,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Files of attempts that another one replaced.")
    ] = False,
    logs: Annotated[
        bool, typer.Option("--logs", help="Logs and pickles of what has ended.")
    ] = False,
    leftovers: Annotated[
        bool, typer.Option("--leftovers", help="Temporary files of killed writers.")
    ] = False,
    loose: Annotated[
        bool, typer.Option("--loose", help="Files that lie alone: into archives, nothing lost.")
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove them; without it nothing changes.")
    ] = False,
    files: Annotated[bool, typer.Option("--files", help="Print each file's path.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove files that collected results no longer need; a dry run unless --apply.

    Results and records stay. What `verify` can still recompute is said before anything goes.
    """
    asked = {
        "copies": copies,
        "traces": traces,
        "superseded": superseded,
        "logs": logs,
        "leftovers": leftovers,
        "loose": loose,
    }
    kinds = [kind for kind, wanted in asked.items() if wanted]
    if apply and not kinds:
        raise RefusedError(f"--apply: say what goes: {', '.join(f'--{kind}' for kind in asked)}.")
    found = removing.prune(SweepDir.existing(sweep), kinds or list(asked), apply=apply)
    if as_json:
        print_json(
            {
                "applied": apply,
                "kinds": {
                    part.kind: {"files": len(part.files), "bytes": part.size_bytes}
                    for part in found.parts
                },
                "counting": found.counting,
                "recomputable": found.recomputable,
                "last_copies": found.last_copies,
            }
        )
        return
    if files:
        for part in found.parts:
            for file in part.files:
                print_text(shown(found.sweep.path.joinpath(*file.parts)))
    else:
        rows = [[p.kind, len(p.files), p.size_bytes, removing.KINDS[p.kind]] for p in found.parts]
        print_table(["kind", "files", "bytes", "what it is"], rows, numbers=[1, 2])
    _say(found, applied=apply)


def _say(found: removing.Pruning, *, applied: bool) -> None:
    """Say how much goes or went, and what `verify` can still do."""
    verb = "removed" if applied else "would be removed"
    kept = found.counting - found.recomputable
    talk(f"sweep {found.sweep.name}: {found.files} files, {found.size_bytes:,} bytes {verb}.")
    talk(
        f"of {found.counting} points that count, `wattflow verify` can recompute {found.recomputable}"
        + (
            f"; {kept} are kept as they were collected, and no bundle can be made of them."
            if kept
            else "."
        )
    )
    if found.last_copies:
        talk(
            f"results/traces has the last traces of {found.last_copies} attempts, whose own files were removed: the "
            "files with them stay."
        )
    if not applied and found.files:
        talk("Nothing was changed. --apply with the kinds to remove does it.")
