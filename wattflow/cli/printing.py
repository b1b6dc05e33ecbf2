"""How the command line prints: data on stdout, as a table or as JSON; talk on stderr.

All that any verb prints goes through here, since most of it was written by others: nothing of it moves the cursor,
reaches the clipboard, turns the direction of text or is taken for markup.
"""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from wattflow.errors import printable

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def talk(text: str) -> None:
    """Print a line for a person."""
    print(_lines(text), file=sys.stderr)


class Talker(logging.Handler):
    """Prints what modules log, in the manner of `talk`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message."""
        talk(f"wattflow: {record.getMessage()}")


def print_text(text: object, *, end: str = "\n", flush: bool = False) -> None:
    """Print a text on stdout, of one or more lines."""
    print(_lines(str(text)), end=end, flush=flush)


def cell(value: object) -> str:
    """Return a value as one line: `-` for null, a blank for each newline and tab."""
    return (
        "-" if value is None else printable(re.sub(r"[\t\r\n]+", " ", _COLOUR.sub("", str(value))))
    )


def _lines(text: str) -> str:
    """Return lines without their colours; a lone carriage return, by which progress bars draw anew, ends one too."""
    return printable(re.sub(r"\r+\n?", "\n", _COLOUR.sub("", text)), "\n\t")


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()
) -> None:
    """Print a table: within a terminal's width, tab-separated into a pipe. Columns in `numbers` are right-aligned."""
    cells = [[cell(value) for value in row] for row in [headings, *rows]]
    if not sys.stdout.isatty():
        for row in cells:
            print("\t".join(row))
        return
    from wattflow.cli import tables  # noqa: PLC0415 - rich, for a terminal alone

    head, lines = tables.lines(cells, numbers, shutil.get_terminal_size().columns)
    for line in head:
        print(f"\x1b[1m{line}\x1b[0m" if os.environ.get("TERM") != "dumb" else line)
    for line in lines:
        print(line)


def print_json(value: object) -> None:
    """Print a value as JSON; what JSON does not know, such as a path, as text."""
    print(json.dumps(value, indent=1, default=str))


def shown(path: Any) -> str:
    """A path as a person would type it from here."""
    return os.path.relpath(path) if path.is_relative_to(os.getcwd()) else str(path)  # noqa: PTH109
