"""The verb `measure`: what any command costs."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from wattflow import process
from wattflow.cli.printing import shown, talk
from wattflow.errors import RefusedError
from wattflow.measure import command as measuring
from wattflow.measure import request


def measure(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD...", help="The command and its words.")
    ] = None,
    *,
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
    pid: Annotated[
        str | None,
        typer.Option("--pid", metavar="PID", help="A process of yours that runs already."),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="ID", help="A Slurm job of yours that runs on this node."),
    ] = None,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="TIME", help="Watch it so long, such as 60s; else to its end."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="power.KEY=VALUE", help="A setting of the meter."),
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(
            "--serve", metavar="'CMD'", help="A server with OpenAI's API, to be driven by --load."
        ),
    ] = None,
    load: Annotated[
        Path | None, typer.Option("--load", metavar="LOAD.yaml", help="The requests of --serve.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="KEY=VALUE", help="A word on --serve, kept in its command."
        ),
    ] = None,
) -> None:
    """Run any command and measure the energy that it takes.

    The command keeps its output and its exit code. --pid and --job measure what runs already.
    """
    command = command or []
    if serve is not None or load is not None or label:
        command = _driven(serve, load, label or [], command)
    asked = request.Request(
        command=command,
        out=None if out is None else Path(out),
        power=measuring.power_settings(settings or []),
        tokens_json=tokens_json,
        tokens_key=tokens_key,
        watched=_watched(pid, job, for_),
    )
    outcome = measuring.measure(asked, lambda text: talk(f"wattflow: {text}"))
    for line in outcome.lines:
        talk(f"wattflow: {line}")
    if outcome.complete:
        talk(f"wattflow: `wattflow report {shown(outcome.folder)}` draws it.")
    sys.stderr.flush()
    os._exit(outcome.exit_code)  # the caller waits, and taking pyarrow down takes 0.1 s


def _driven(
    serve: str | None, load: Path | None, labels: list[str], command: list[str]
) -> list[str]:
    """Return the command that starts a server and drives a load through it; RefusedError where a part is missing."""
    if command:
        raise RefusedError(f"--serve has its command in quotes, and {command[0]!r} is one more.")
    if serve is None or load is None:
        raise RefusedError(
            "--serve 'CMD' and --load LOAD.yaml go together, and --label is a word on them."
        )
    wrong = [one for one in labels if "=" not in one]
    if wrong:
        raise RefusedError(f"--label {wrong[0]}: not KEY=VALUE.")
    from wattflow.measure import driver  # noqa: PLC0415 (a command does not wait for it)

    try:
        words = shlex.split(serve)
    except ValueError as error:
        raise RefusedError(
            f"--serve {serve}: {error}. It is read as words, by no shell."
        ) from error
    if not words:
        raise RefusedError("--serve: which command?")
    measuring.check_command(words)
    driver.read_load(load)  # what is wrong with it is said before anything starts
    return process.python("-m", "wattflow.measure.driver", str(load), *labels, "--", *words)


def _watched(pid: str | None, job: str | None, for_: str | None) -> request.Watched | None:
    """Return what is to be watched; null for a command, RefusedError for words that do not go together."""
    if pid is not None and job is not None:
        raise RefusedError("--pid and --job: name one of them.")
    for_s = None if for_ is None else request.seconds(for_)
    if pid is not None:
        return request.Watched("pid", pid, for_s)
    if job is not None:
        return request.Watched("job", job, for_s)
    if for_ is not None:
        raise RefusedError("--for: of --pid or --job; a command is measured until it ends.")
    return None
