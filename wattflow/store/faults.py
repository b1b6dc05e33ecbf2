"""What an error of the system means for a person: whose a file is and what to ask for, which disk is full."""

import errno
import os
import shutil
from pathlib import Path

from wattflow.process import user_name

_FULL_BYTES = 2**20  # with less a record may not be written


def in_words(error: OSError) -> str:
    """Return an error of the system in words, with what to do next where that is known."""
    place = None if error.filename is None else Path(os.fsdecode(error.filename)).absolute()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        which = "your quota" if error.errno == errno.EDQUOT else "the disk"
        where = "" if place is None else f"{place}: "
        return (
            f"{where}not written, as {which} is full ({error.strerror}). Make room there, then run the same command "
            "again."
        )
    if error.errno in (errno.EACCES, errno.EPERM) and place is not None:
        return denied(place)
    if error.errno == errno.EROFS and place is not None:
        return f"{place}: not written, as that disk is read-only ({error.strerror})."
    return str(error)


def denied(path: Path) -> str:
    """Return whose a file is that the caller may not read or write, or the folder on the way to it, and what to ask."""
    barred = path
    for folder in reversed(path.parents):
        if not os.access(folder, os.X_OK):
            barred = folder
            break
    else:
        if not os.path.lexists(path):  # to be made
            barred = path.parent
    try:
        owner = user_name(barred.stat().st_uid)
    except OSError:
        owner = "another user"
    on_the_way = "" if barred == path else f", as {barred} is closed to you"
    if owner == user_name():
        return f"{path}: Permission denied{on_the_way}. It is your own: see its mode with `ls -ld {barred}`."
    said = f"{path}: Permission denied{on_the_way}: it belongs to {owner}."
    for sweep in (path, *path.parents):
        if os.access(sweep / "results" / "points.parquet", os.R_OK):
            return (
                f"{said} results/ alone is open to you: `compare`, `cost`, `usage`, `export --out DIR` and "
                f"results/report.html need no more. For all else ask {owner} for a bundle (`wattflow bundle`)."
            )
    return (
        f"{said} To read a sweep of theirs, ask {owner} for cluster.group_readable=true and `wattflow collect`, which "
        "open results/ to the group, or for a bundle (`wattflow bundle`)."
    )


def full_disk(path: Path) -> str | None:
    """Return that the disk of a path is full, in words; null where it is not, or cannot be asked."""
    try:
        free = shutil.disk_usage(path).free
    except OSError:
        return None
    return f"the disk of {path} is full" if free < _FULL_BYTES else None
