"""Regular files and folders, opened so that what came is looked at by its descriptor and no link is followed.

The hinges of the door, `store.files`, by which everybody else opens files.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import IO

from wattflow.errors import DamagedError, WattflowError

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_folder(path: Path) -> None:
    """Raise DamagedError where a folder of a sweep is a link or no folder; one that is missing is let pass."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise DamagedError(
                f"{path}: {_KINDS.get(stat.S_IFMT(mode), 'a file')} in the place of a folder. wattflow follows no link "
                "inside a sweep; the sweep's own folder may be one."
            )


def open_regular(path: Path, flags: int, kind: type[WattflowError]) -> int:
    """Open a path and look at what came: by the descriptor, since a name may have another file a moment later."""
    try:
        # without O_NONBLOCK opening a FIFO waits for its other end
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV):
            raise kind(not_regular(path)) from error
        raise
    found = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(found):
        os.close(descriptor)
        raise kind(not_regular(path, found))
    return descriptor


def not_regular(path: Path, mode: int | None = None) -> str:
    """Say what stands in a file's place."""
    if mode is None:
        with contextlib.suppress(OSError):
            mode = path.lstat().st_mode
    return f"{path}: {_KINDS.get(stat.S_IFMT(mode or 0), 'something')}, not a regular file."


def read_whole(file: IO[bytes], path: Path, most_bytes: int, kind: type[WattflowError]) -> bytes:
    """Return all bytes of an open file; `kind` of error where they are more than so many."""
    size = os.fstat(file.fileno()).st_size
    data = b"" if size > most_bytes else file.read(most_bytes + 1)
    if size > most_bytes or len(data) > most_bytes:
        raise kind(f"{path}: {max(size, len(data))} bytes; such a file has at most {most_bytes}.")
    return data
