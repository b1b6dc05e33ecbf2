"""Write the tables of docs/results.md from the columns and reason codes that the package declares.

    python docs/make_results.py

Each table stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; the text around it is written by hand.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from wattflow.store.columns import CHOICE_KEYS, POINT, REASONS
from wattflow.store.schema import columns_of

PAGE = Path(__file__).with_name("results.md")
_TABLE = re.compile(r"<!-- (\w+): begin -->\n.*?<!-- \1: end -->", re.DOTALL)


def filled(page: str) -> str:
    """Return a page with each of its tables made anew."""
    return _TABLE.sub(
        lambda match: f"<!-- {match[1]}: begin -->\n{_table(match[1])}\n<!-- {match[1]}: end -->",
        page,
    )


def _table(name: str) -> str:
    if name == "choices":
        types = {field.name: field.type for field in POINT}
        rows = [(column, types[column], f"`{key}`") for column, key in CHOICE_KEYS.items()]
        return _lines(("column", "type", "choice"), rows)
    if name == "reasons":
        effects = {True: "withheld", False: "remark"}
        codes = [
            (code, effects[reason.withheld], reason.meaning) for code, reason in REASONS.items()
        ]
        return _lines(("code", "row", "meaning"), codes)
    columns = columns_of(name)
    if not any(column.boundary for column in columns):
        plain = [(column.name, column.type, column.unit, column.meaning) for column in columns]
        return _lines(("column", "type", "unit", "meaning"), plain)
    return _lines(
        ("column", "type", "unit", "boundary", "meaning"), (column[1:] for column in columns)
    )


def _lines(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    return "\n".join(
        f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)
    )


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
