"""Find and remove files below a folder by descriptors of the folders on the way, so that no link is ever followed."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from wattflow.errors import DamagedError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
Parts = tuple[str, ...]  # a path below the folder


@dataclass(frozen=True)
class File:
    """A regular file below a folder."""

    parts: Parts
    size_bytes: int  # that its removal frees: 0 where the file has another name elsewhere
    changed_s: float  # unix time


def files_below(
    root: Path, parts: Sequence[str], wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[File]:
    """Yield the regular files in a folder below `root` whose names are wanted; none where it is not there.

    DamagedError where the folder or one above it is a link or a file. What is in it and no regular file is passed over.
    """
    with _opened(root, parts) as folder:
        if folder is None:
            return
        for name in _names(folder):
            about = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(about.st_mode) and wanted(name):
                size = about.st_size if about.st_nlink == 1 else 0
                yield File((*parts, name), size, about.st_mtime)


def folders_below(root: Path, parts: Sequence[str]) -> list[str]:
    """Return the names of the folders in a folder below `root`, links not among them."""
    with _opened(root, parts) as folder:
        names = [] if folder is None else _names(folder)
        return [
            name
            for name in names
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        ]


def all_below(root: Path, parts: Sequence[str]) -> Iterator[File]:
    """Yield the regular files in a folder and in all folders below it."""
    yield from files_below(root, parts)
    for name in folders_below(root, parts):
        yield from all_below(root, (*parts, name))


def remove(root: Path, files: Iterable[File], may_go: Callable[[Parts], bool]) -> None:
    """Remove files, then those of their folders that are empty and may go; what is gone already is passed over."""
    emptied: set[Parts] = set()
    for folder, some in groupby(files, key=lambda file: file.parts[:-1]):
        emptied.add(folder)
        with _opened(root, folder) as held:
            for file in some if held is not None else ():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.parts[-1], dir_fd=held)
    for folder in sorted(filter(may_go, emptied), key=len, reverse=True):
        _remove_empty(root, folder)


def _remove_empty(root: Path, parts: Parts) -> None:
    """Remove a folder that is empty; one that is not, or that is gone, stays as it is."""
    with _opened(root, parts[:-1]) as above:
        if above is not None:
            with contextlib.suppress(OSError):
                os.rmdir(parts[-1], dir_fd=above)


def _names(folder: int) -> list[str]:
    return sorted(os.listdir(folder))


@contextlib.contextmanager
def _opened(root: Path, parts: Sequence[str]) -> Iterator[int | None]:
    """Open a folder below `root`, which may itself be a link; null where it is not there."""
    held = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for i, name in enumerate(parts):
            try:
                below = os.open(name, _FOLDER, dir_fd=held)
            except FileNotFoundError:
                yield None
                return
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                raise DamagedError(
                    f"{root.joinpath(*parts[: i + 1])}: a link or a file in the place of a folder."
                ) from error
            os.close(held)
            held = below
        yield held
    finally:
        os.close(held)
