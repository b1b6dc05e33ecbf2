"""What a person says of a sweep: tags to find it by, and notes with their time. They change nothing that is measured.

sweeps/<name>/notes.json
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from wattflow.errors import DamagedError, RefusedError
from wattflow.store.files import check_name, read_json, write_json
from wattflow.store.layout import SweepDir, notes_path

MOST_CHARACTERS = 500  # of a note, which is a line of a list


@dataclass(frozen=True)
class Notes:
    """Tags in order of their names, and notes, the oldest first."""

    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check(tags: Sequence[str], note: str) -> None:
    """Raise RefusedError for a tag that is no name, or a note that is no line."""
    for tag in tags:
        check_name(tag, "--tag")
    if len(note) > MOST_CHARACTERS or not note.isprintable():
        raise RefusedError(f"--note: one line of at most {MOST_CHARACTERS} characters.")


def read(sweep: SweepDir) -> Notes:
    """Return what was said of a sweep; nothing where nothing was. DamagedError where the file is none of ours."""
    try:
        found = read_json(notes_path(sweep))
    except FileNotFoundError:
        return Notes()
    try:
        texts = [*found["tags"], *(line["note"] for line in found["notes"])]
    except (LookupError, TypeError) as error:
        raise DamagedError(f"{notes_path(sweep)}: no notes of a sweep ({error}).") from error
    if not all(isinstance(text, str) for text in texts):
        raise DamagedError(f"{notes_path(sweep)}: no notes of a sweep (one is no text).")
    tags = len(found["tags"])
    return Notes(tuple(texts[:tags]), tuple(texts[tags:]))


def add(sweep: SweepDir, tags: Sequence[str], note: str) -> None:
    """Add tags and a note, where there is one, to a sweep's."""
    check(tags, note)
    there = read(sweep)
    lines = [] if there == Notes() else read_json(notes_path(sweep))["notes"]
    if note:
        lines.append({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "note": note})
    write_json(notes_path(sweep), {"tags": sorted({*there.tags, *tags}), "notes": lines})
