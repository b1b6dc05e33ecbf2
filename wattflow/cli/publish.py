"""The verbs of publishing: a sweep as one file for others, and the proof of its figures."""

from pathlib import Path
from typing import Annotated

import typer

from wattflow.cli.arguments import AsJson, DryRun, SweepArgument
from wattflow.cli.printing import print_json, print_table, print_text, shown, talk
from wattflow.errors import WattflowError
from wattflow.publish import bundle as packing
from wattflow.publish import verdict
from wattflow.publish.confined import verify_confined
from wattflow.publish.verify import verify as verify_here
from wattflow.store.layout import SweepDir


def bundle(
    sweep: SweepArgument,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="The bundle; by default SWEEP.zip.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Pack a sweep into one file, pseudonymised, for others to verify."""
    made = packing.bundle(
        SweepDir.existing(sweep), None if out is None else Path(out), dry_run=dry_run
    )
    total = sum(member.size_bytes for member in made.members)
    for line in made.left_out:
        talk(f"not whole, so without its files: {line}.")
    if dry_run:
        print_table(["bytes", "member"], [[size, name] for name, size in made.members], numbers=[0])
        talk(f"{len(made.members)} files, {total:,} bytes would go into {shown(made.path)}.")
        return
    print_text(shown(made.path))
    talk(f"{len(made.members)} files, {total:,} bytes, sha256 {made.sha256}")
    talk(
        "Publish that hash beside the figures. Left out: users, accounts, hosts, paths, prompts, answers, logs."
    )
    if made.salt is not None:
        talk(f"The pseudonyms' salt is {shown(made.salt)}: keep it to yourself.")
    if not verify_here(made.path).verified:
        raise WattflowError(
            f"{shown(made.path)} is written, and its figures do not follow from its traces: `wattflow verify "
            f"{shown(made.path)}` says where."
        )
    talk(f"`wattflow verify {shown(made.path)}` passes.")


def verify(
    what: Annotated[
        str,
        typer.Argument(metavar="SWEEP|BUNDLE", help="A sweep's directory or name, or a bundle."),
    ],
    as_json: AsJson = False,
) -> None:
    """Recompute every published figure from the raw traces.

    Needs no GPU. Exit code 1 where a figure differs.
    """
    found = verify_confined(Path(what))
    if as_json:
        print_json(found.document)
    else:
        if found.table:
            print_table(verdict.HEADINGS, found.table, numbers=range(2, 8))
        for line in found.lines:
            talk(line)
    raise typer.Exit(0 if found.verified else 1)
