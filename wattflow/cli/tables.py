"""Lay out tables for a terminal: within its width, without breaking a number.

A table that fits stands as it is. Else its texts are wrapped at blanks and marks, down to some letters a column; and
where that is too narrow yet, each row stands as a list of its columns, one below the other.
"""

import re
from collections.abc import Collection, Sequence

from rich.cells import cell_len, chop_cells

# blanks between two columns, and letters to which a column of text is wrapped at most: the first pair that fits
_TRIES = ((2, 20), (1, 20), (1, 12))
_LONG = 24  # letters that stand together without a mark; more are cut
# behind a mark that joins words, unless it joins the digits of a number, a time or an id
_MARKS = re.compile(r"(?<==)|(?<=[^\deE=][/,:-])|(?<=\S[/,:-])(?=[^\d\s])")

Cells = Sequence[Sequence[str]]  # rows of cells, the headings first


def lines(cells: Cells, numbers: Collection[int], width: int) -> tuple[list[str], list[str]]:
    """Return the lines of a table's headings and of its rows, each of at most `width` letters.

    Columns in `numbers` are right-aligned. Where each row stands as a list there are no lines of headings.
    """
    for gap, narrow in _TRIES:
        widths = _widths(cells, numbers, width - gap * (len(cells[0]) - 1), narrow)
        if widths is not None:
            head, *rows = (_row(row, widths, numbers, gap) for row in cells)
            return head, [line for row in rows for line in row]
    return [], _listed(cells, width)


def _widths(cells: Cells, numbers: Collection[int], room: int, narrow: int) -> list[int] | None:
    """Return the width of each column, long texts wrapped as far as needed; null where that does not suffice."""
    columns = list(zip(*cells, strict=True))
    whole = [max(map(cell_len, column)) for column in columns]
    least = [
        _least(column, _LONG) if at in numbers else _least(column, narrow, words=column)
        for at, column in enumerate(columns)
    ]
    if sum(least) > room:
        return None
    level = next(n for n in range(room, -1, -1) if sum(_between(least, n, whole)) <= room)
    return _between(least, level, whole)


def _between(least: Sequence[int], level: int, whole: Sequence[int]) -> list[int]:
    return [min(max(low, level), high) for low, high in zip(least, whole, strict=True)]


def _least(column: Sequence[str], enough: int, words: Sequence[str] = ()) -> int:
    """Return the least width of a column: of its heading's words, of cells up to `enough`, of the words of others."""
    heading, *texts = column
    parts = [heading, *words, *(text for text in texts if cell_len(text) > enough)]
    least = max((cell_len(part.rstrip()) for text in parts for part in _parts(text)), default=1)
    return max(least, min(enough, max(map(cell_len, texts), default=1)))


def _parts(text: str) -> list[str]:
    """Return the parts of a text between which a line may end, blanks at their ends."""
    words = re.findall(r"\S+\s*|\s+", text)
    parts = [part for word in words for part in _MARKS.split(word) if part]
    return [piece for part in parts for piece in _cut(part)]


def _cut(part: str) -> list[str]:
    """Return a part in pieces that are not too long, cut behind underscores where it has them."""
    if cell_len(part) <= _LONG:
        return [part]
    pieces = re.split(r"(?<=[^\d]_)", part)
    return [one for piece in pieces for one in chop_cells(piece, _LONG)]


def wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines of at most `width` letters, or of one part where that is longer."""
    found = [""]
    for part in _parts(text):
        if found[-1] and cell_len(found[-1]) + cell_len(part.rstrip()) > width:
            found.append("")
        found[-1] += part
    return [line.rstrip() for line in found]


def _row(
    row: Sequence[str], widths: Sequence[int], numbers: Collection[int], gap: int
) -> list[str]:
    """Return the lines of a row of a table."""
    columns = [wrapped(text, width) for text, width in zip(row, widths, strict=True)]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    found = []
    for texts in zip(*padded, strict=True):
        aligned = [
            _padding(text, width) + text if at in numbers else text + _padding(text, width)
            for at, (text, width) in enumerate(zip(texts, widths, strict=True))
        ]
        found.append((" " * gap).join(aligned).rstrip())
    return found


def _padding(text: str, width: int) -> str:
    return " " * (width - cell_len(text))


def _listed(cells: Cells, width: int) -> list[str]:
    """Return each row as lines of heading and cell, parted by empty ones."""
    headings, *rows = cells
    left = min(max(map(cell_len, headings)), width // 2)
    found: list[str] = []
    for row in rows:
        found += [""] * bool(found)
        for heading, text in zip(headings, row, strict=True):
            found += _row([heading, text], [left, width - left - 2], (), 2)
    return found
