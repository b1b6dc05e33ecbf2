"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from wattflow.cli import completion
from wattflow.errors import RefusedError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE,...]...",
        help="Choices in Hydra's grammar: grid=NAME model=a,b shards=1,2 batch_size=range(8,65,8).",
        autocompletion=completion.overrides,
    ),
]

Multirun = Annotated[
    bool,
    typer.Option("-m", "--multirun", help="Expand lists of values (submit and plan always do)."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

SweepArgument = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP",
        help="A sweep's directory, or its name below ./sweeps.",
        autocompletion=completion.sweeps,
    ),
]

SweepArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="SWEEP...",
        help="Sweeps; a quoted pattern works too.",
        autocompletion=completion.sweeps,
    ),
]

Wait = Annotated[bool, typer.Option("--wait", help="Follow until every point has ended.")]

DryRun = Annotated[
    bool, typer.Option("-n", "--dry-run", help="Say what would be done; change nothing.")
]


Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="ID", help="Only this point; may be given again."),
]


States = Annotated[
    list[str] | None, typer.Option("--state", help="Only points in this state; may be given again.")
]


Filters = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE,...]...",
        help="Only points with these choices: batch_size=8,16 model=tiny.",
        autocompletion=completion.overrides,
    ),
]

Along = Annotated[
    str,
    typer.Option(
        "--with",
        metavar="COLUMN,...",
        help="Choices that may move along with the compared one, and count as one with it.",
    ),
]


def check_folder_of(option: str, path: Path) -> None:
    """Raise RefusedError where a file's folder is none, before the work whose result it is to hold."""
    if not path.parent.is_dir():
        raise RefusedError(f"{option} {path}: {path.parent} is no folder. Make it first.")
