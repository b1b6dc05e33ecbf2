"""The verb `measure`: what any command costs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from wattflow.cli.printing import shown, talk
from wattflow.measure import command as measuring
from wattflow.measure import request


def measure(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD...", help="The command and its words.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Where it goes; by default below ./sweeps."),
    ] = None,
    tokens_json: Annotated[
        str | None,
        typer.Option(
            "--tokens-json",
            metavar="FILE",
            help="JSON or JSON lines that the command writes; - for its own output.",
        ),
    ] = None,
    tokens_key: Annotated[
        str | None,
        typer.Option("--tokens-key", metavar="KEY", help="Where the output tokens stand in it."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="power.KEY=VALUE", help="A setting of the meter."),
    ] = None,
) -> None:
    """Run any command and measure the energy that it takes.

    The command keeps its output and its exit code.
    """
    job = request.Request(
        command=command or [],
        out=None if out is None else Path(out),
        power=measuring.power_settings(settings or []),
        tokens_json=tokens_json,
        tokens_key=tokens_key,
    )
    outcome = measuring.measure(job, lambda text: talk(f"wattflow: {text}"))
    for line in outcome.lines:
        talk(f"wattflow: {line}")
    if outcome.complete:
        talk(f"wattflow: `wattflow report {shown(outcome.folder)}` draws it.")
    sys.stderr.flush()
    os._exit(outcome.exit_code)  # the caller waits, and taking pyarrow down takes 0.1 s
