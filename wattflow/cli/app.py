"""The command line: its verbs in groups, each imported when it is called.

stdout is data, stderr is for people. Exit codes: 0 done, 1 failed while working, 2 refused before anything was sent;
`status` alone also 3 (some points failed), 4 (some wait or run), 5 (Slurm did not answer).
"""

import importlib
import io
import logging
import os
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from wattflow import __version__
from wattflow.cli.printing import Talker, print_text, talk
from wattflow.errors import RefusedError, WattflowError
from wattflow.store.faults import in_words


@dataclass(frozen=True)
class Verb:
    """A verb: the module in cli/ that has a function of its name, its group in --help, and its line there."""

    name: str
    module: str
    group: str
    help: str  # the first line of the function's docstring

    @property
    def function(self) -> str:
        """The function's name."""
        return self.name.replace("-", "_")


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "keys",
            "sweeps",
            "Sweep",
            "List what can be chosen: all keys with their defaults, or one group.",
        ),
        Verb(
            "plan",
            "sweeps",
            "Sweep",
            "Preview a submit: points, job shapes, GPU-hours. Writes nothing.",
        ),
        Verb(
            "submit", "sweeps", "Sweep", "Send a sweep to Slurm, or run it here with cluster=local."
        ),
        Verb(
            "run", "local", "Sweep", "Run points here, one after another, as a Hydra application."
        ),
        Verb(
            "optimize",
            "optimize",
            "Sweep",
            "Search a grid for the setting that costs least, in as few runs as decide it.",
        ),
        Verb(
            "predict",
            "predict",
            "Sweep",
            "Predict time and energy of points never run, or check predictions that were frozen.",
        ),
        Verb(
            "status",
            "status",
            "Sweep",
            "Show each point's state, why some failed, and what to do next.",
        ),
        Verb(
            "paper",
            "paper",
            "Sweep",
            "Run arXiv 2310.03003 as a preset: list its figures, send its grids, draw them.",
        ),
        Verb("logs", "status", "Sweep", "Print the logs of a point's newest attempt."),
        Verb(
            "list",
            "list_sweeps",
            "Sweep",
            "List all sweeps below a folder: state, points, what varies, kWh, when.",
        ),
        Verb(
            "resume", "sweeps", "Sweep", "Send the points again that were tried and did not finish."
        ),
        Verb("cancel", "sweeps", "Sweep", "End a sweep's jobs, waiting and running."),
        Verb(
            "collect",
            "local",
            "Sweep",
            "Merge power traces and timings into tables, as often as you like.",
        ),
        Verb(
            "prune",
            "prune",
            "Sweep",
            "Remove files that collected results no longer need; a dry run unless --apply.",
        ),
        Verb(
            "report",
            "results",
            "Results",
            "Write an HTML report that opens offline, and print its path.",
        ),
        Verb(
            "compare",
            "compare",
            "Results",
            "Compare the values of one choice, or two sweeps: means, intervals, ratios.",
        ),
        Verb(
            "crossover",
            "crossover",
            "Results",
            "Show where one setting stops being dearer than another.",
        ),
        Verb(
            "caps",
            "results",
            "Results",
            "Show what power caps change in time, energy and token rate.",
        ),
        Verb(
            "quality",
            "quality",
            "Results",
            "Show how many answers are right, and the joules of each right one.",
        ),
        Verb(
            "explain",
            "doubt",
            "Results",
            "Show what the uncertainty of one point's energy is made of.",
        ),
        Verb(
            "resolve",
            "doubt",
            "Results",
            "Show the smallest difference that a comparison can establish.",
        ),
        Verb("cost", "results", "Results", "Show GPU-hours, kWh, price and carbon of a sweep."),
        Verb(
            "usage",
            "results",
            "Results",
            "Show the kWh of many sweeps, and what part was overhead.",
        ),
        Verb(
            "crosscheck",
            "results",
            "Results",
            "Compare a sweep's joules with the site's own meters.",
        ),
        Verb(
            "pareto",
            "pareto",
            "Results",
            "Show the settings that no other beats in energy and throughput both.",
        ),
        Verb(
            "price",
            "price",
            "Results",
            "Show what a token of each kind costs in joules, by a model of each load.",
        ),
        Verb("query", "query", "Results", "Ask SQL of the results of one or more sweeps."),
        Verb(
            "export",
            "results",
            "Results",
            "Write results as JSON and OpenMetrics for other programs.",
        ),
        Verb(
            "doctor",
            "doctor",
            "This machine",
            "Show what this machine can measure, and what is missing.",
        ),
        Verb(
            "init-site",
            "site",
            "This machine",
            "Write a first profile of this cluster for you to check.",
        ),
        Verb(
            "measure",
            "measure",
            "This machine",
            "Run any command and measure the energy that it takes.",
        ),
        Verb(
            "calibrate",
            "machine",
            "This machine",
            "Measure the power sensors of this machine's GPUs.",
        ),
        Verb(
            "tune",
            "machine",
            "This machine",
            "Find the fast engine's best kernels for a model on this GPU.",
        ),
        Verb(
            "restore",
            "machine",
            "This machine",
            "Put back power limits and clocks that a killed job left behind.",
        ),
        Verb(
            "appendix",
            "results",
            "Publish",
            "Print an artifact description: hardware, software, commands, hashes.",
        ),
        Verb(
            "bundle",
            "publish",
            "Publish",
            "Pack a sweep into one file, pseudonymised, for others to verify.",
        ),
        Verb(
            "verify", "publish", "Publish", "Recompute every published figure from the raw traces."
        ),
    )
}


class Verbs(TyperGroup):
    """The group of all verbs; --help shows them without importing their modules."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the verbs, in the order in which one needs them."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb as a command; while --help is written, a stand-in with its line alone."""
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        if ctx.meta.get(_HELP):
            return TyperCommand(verb.name, help=verb.help, rich_help_panel=verb.group)
        return command(verb)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb and what follows it; RefusedError with the nearest one for a name that is none."""
        if not args[0].startswith("-") and args[0] not in VERBS:
            near = get_close_matches(args[0], VERBS, n=1)
            nearest = f" Did you mean `wattflow {near[0]}`?" if near else ""
            raise RefusedError(f"{args[0]}: no such verb.{nearest} `wattflow --help` lists them.")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page of the whole command line."""
        ctx.meta[_HELP] = True
        super().format_help(ctx, formatter)


_HELP = "wattflow.help"


def command(verb: Verb) -> Any:
    """The command of a verb, from the function of its name."""
    function = getattr(importlib.import_module(f"wattflow.cli.{verb.module}"), verb.function)
    one = typer.Typer(add_completion=False, context_settings=_SETTINGS)
    # what stands behind `measure` belongs to the command that it runs
    one.command(verb.name, context_settings={"allow_interspersed_args": verb.name != "measure"})(
        function
    )
    return typer.main.get_command(one)


_SETTINGS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
    help="Measure what LLM inference costs in energy on a Slurm cluster, and find the setting that costs least.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print_text(__version__)
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


def main() -> None:
    """Run the command line; our own errors become one line on stderr and their exit code."""
    debug = os.environ.get("WATTFLOW_DEBUG") == "1"
    logging.lastResort = Talker(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter that the locale lacks is `?`
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
        talk(f"wattflow: {in_words(error)}")
        raise SystemExit(1) from None
    except (
        UnicodeEncodeError
    ) as error:  # a path, or a word of the command, that had to go into a file
        if debug:
            raise
        talk(
            f"wattflow: {error.object}: has bytes that are no text, which no file of results can hold. Rename it."
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
