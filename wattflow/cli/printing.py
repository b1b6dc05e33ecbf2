"""How the command line prints: data on stdout, as a table or as JSON; talk on stderr."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def talk(text: str) -> None:
    """Print a line for a person."""
    print(text, file=sys.stderr)


def print_table(
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


def print_json(value: object) -> None:
    """Print a value as JSON; what JSON does not know, such as a path, as text."""
    print(json.dumps(value, indent=1, default=str))


def shown(path: Any) -> str:
    """A path as a person would type it from here."""
    return os.path.relpath(path) if path.is_relative_to(os.getcwd()) else str(path)  # noqa: PTH109
