"""The verbs of the command line: each parses its words, calls its stage and prints. `wattflow --help` lists them.

stdout is data, stderr is talk. Exit codes: 0 done, 1 failed while working, 2 refused before anything was sent;
`status` alone also 3 (some points failed), 4 (some wait or run), 5 (Slurm did not answer).

Stages are imported by the verb that needs them: --help is asked for far more often than anything else.
"""

import os
from typing import Annotated

import typer

from wattflow import __version__
from wattflow.cli import machine, results, status, sweeps
from wattflow.cli.printing import talk
from wattflow.errors import WattflowError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure what LLM inference costs in energy on a Slurm cluster, across a grid of choices.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    del version  # its callback has done the work


_VERBS = (  # in the order of --help
    *(sweeps.plan, sweeps.submit, sweeps.run, status.status, sweeps.resume, sweeps.cancel),
    *(status.logs, sweeps.collect),
    *(results.report, results.compare, results.caps, results.cost, results.usage),
    *(results.crosscheck, results.export),
    *(machine.restore, machine.measure),
    *(results.bundle, results.verify),
    *(machine.calibrate, machine.tune, machine.doctor, machine.keys),
)
for _verb in _VERBS:
    # the words behind those of `measure` are its command's own
    app.command(context_settings={"allow_interspersed_args": _verb is not machine.measure})(_verb)


def main() -> None:
    """Run the command line; our own errors become one line on stderr and their exit code."""
    debug = os.environ.get("WATTFLOW_DEBUG") == "1"
    try:
        app()
    except WattflowError as error:
        if debug:
            raise
        talk(f"wattflow: {error}")
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # a disk that is full or read-only, a folder that may not be read
        if debug:
            raise
        talk(f"wattflow: {error}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
