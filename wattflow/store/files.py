"""The one door to files: read and write them so that no half-written one is seen and no planted one is followed.

A sweep may come from somebody else's tar or lie where others write. So its files are opened as what they should be: a
regular file, no link, of a size that a file of its kind can have. What was named on the command line may be a link.
tests/test_store_files.py holds that no other module opens files by itself.
"""

import contextlib
import errno
import fnmatch
import grp
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from wattflow import process
from wattflow.errors import DamagedError, RefusedError
from wattflow.store import packed
from wattflow.store.regular import check_folder, not_regular, open_regular, read_whole

MOST_BYTES = 2**28  # of a file that is read whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_OLD_S = 24 * 3600.0  # a writer that lives has touched its temporary file since
# folders of a sweep: the sweep's own folder may be a link to another disk, these may not
_FOLDERS = {"points", "submitit", "results", "traces", "timings", "logs", "pruned"}


def check_name(name: str, what: str) -> str:
    """The name itself, if it can be one path component; RefusedError otherwise."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise RefusedError(
            f"{what} {name!r}: use letters, digits, '.', '_' and '-' (at most 100, no '..', a letter or digit first)."
        )
    return name


def expanded(path: str | Path) -> Path:
    """Return a path with its `~` replaced; as it stands where this machine does not know the caller's home.

    RefusedError for the home of a user that there is none of, which would become a folder of that name.
    """
    whole = os.path.expanduser(path)  # noqa: PTH111 (Path's raises for a user without a home)
    if re.match(r"~[^/]", whole):
        raise RefusedError(f"{path}: this machine knows no such user. Write the folder in full.")
    return Path(whole)


def own_files(folder: Path, pattern: str) -> list[Path]:
    """Return a folder's files of a pattern by name, packed ones too; no hidden ones, which a file manager left."""
    alone = [path for path in folder.glob(pattern) if not path.name.startswith(".")]
    names = fnmatch.filter(
        packed.names(folder), pattern
    )  # after those alone: a file is packed before it goes
    return sorted({*alone, *(folder / name for name in names)})


# --- reading --------------------------------------------------------------------------------------


def open_own(path: Path) -> BufferedReader:
    """Open a file of a sweep's, alone or packed; DamagedError at once for a link, a FIFO, or else no regular file.

    So is a file in a folder of the sweep that is a link. FileNotFoundError and PermissionError are passed on.
    """
    if path.parent.name in _FOLDERS:
        check_folder(path.parent)
    try:
        return os.fdopen(open_regular(path, os.O_RDONLY | os.O_NOFOLLOW, DamagedError), "rb")
    except FileNotFoundError:
        if (member := packed.find(path)) is None:
            raise
        return member.open()


def has_own(path: Path) -> bool:
    """Return whether a sweep has a file, alone or packed."""
    return path.is_file() or packed.find(path) is not None


def changed_ns(path: Path) -> int:
    """Return when a file of a sweep's was last written, unix ns, alone or before it was packed; FileNotFoundError."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        if (member := packed.find(path)) is None:
            raise
        return member.changed_ns


def open_given(path: Path) -> BufferedReader:
    """Open a file that somebody named, through links too; RefusedError for what is no regular file."""
    return os.fdopen(open_regular(path, os.O_RDONLY, RefusedError), "rb")


def read_own(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a file of a sweep's whole, in the manner of `open_own`; DamagedError for one of more bytes."""
    with open_own(path) as file:
        return read_whole(file, path, most_bytes, DamagedError)


def read_given(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a file that somebody named whole, in the manner of `open_given`; RefusedError for one of more bytes."""
    with open_given(path) as file:
        return read_whole(file, path, most_bytes, RefusedError)


def read_end(path: Path, most_bytes: int) -> tuple[bytes, bool]:
    """Read so many bytes at most of a sweep's file from its end, as `open_own` opens it; and whether it has more."""
    with open_own(path) as file:
        start = max(0, os.fstat(file.fileno()).st_size - most_bytes)
        file.seek(start)
        return file.read(most_bytes), start > 0


def read_json(path: Path) -> Any:
    """The JSON document at path; DamagedError names the file and the fault."""
    try:
        return json.loads(read_own(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{path}: not a JSON document ({error}).") from error


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o600, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a file under another name; fsync and rename it in the end: a reader sees the old file or the new one, whole.

    Where the body raises, nothing is left of the new one. Without `durable` there is no fsync.
    """
    # a pid is not unique where containers share a disk, and a name that can be guessed can be planted
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with create(temporary, mode) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None  # a full disk's error names no file
        raise


def create(path: Path, mode: int = 0o600, *, buffered: bool = True) -> IO[bytes]:
    """Open a new file for writing; FileExistsError where there is one, be it a link to nothing."""
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    os.fchmod(descriptor, mode)  # whatever the umask
    return os.fdopen(descriptor, "wb", buffering=-1 if buffered else 0)


def open_append(path: Path) -> IO[bytes]:
    """Open a file of ours to add to its end, a new one with mode 0600; DamagedError for a link or no regular file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(open_regular(path, flags, DamagedError), "ab")


def write_atomic(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Replace a file in the manner of `replacing`."""
    with replacing(path, mode, durable=durable) as file:
        file.write(data)


def write_json(path: Path, value: object, mode: int = 0o600) -> None:
    """Write a JSON document atomically, keys in the order given."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), mode)


def is_temporary(name: str) -> bool:
    """Return whether a name is one that `replacing` gives a file until it is whole."""
    return _TEMPORARY.fullmatch(name) is not None


def clear_temporaries(folder: Path) -> None:
    """Remove what writers that were killed a day ago or earlier left of `replacing` in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_temporary(entry.name) and entry.is_file(follow_symlinks=False):
                about = entry.stat(follow_symlinks=False)
                if about.st_uid == os.geteuid() and time.time() - about.st_mtime > _OLD_S:
                    (folder / entry.name).unlink(missing_ok=True)


# --- folders and rights ---------------------------------------------------------------------------


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Make a folder, unless it is there; those above it that are missing are no wider than 0755, whatever the umask.

    DamagedError for a link or a file in its place.
    """
    for folder in reversed([one for one in path.parents if not one.exists()]):
        folder.mkdir(mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
    check_folder(path)


def set_mode(folder: Path, mode: int) -> None:
    """Set the mode of a folder by its descriptor: the sweep's own may be a link, and is then its target."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Have the disk keep the names of a folder's files through a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_to_group(folder: Path, folder_mode: int = 0o750, file_mode: int = 0o640) -> None:
    """Set the modes of a folder and of all in it by their descriptors; DamagedError for what is not its owner's alone.

    So a link, or a second name of a file elsewhere, never hands its target to the group.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(descriptor).st_uid
        for path, held in _walk(folder, descriptor):
            about = os.fstat(held)
            is_folder = stat.S_ISDIR(about.st_mode)
            if about.st_uid != owner or not (
                is_folder or (stat.S_ISREG(about.st_mode) and about.st_nlink == 1)
            ):
                raise DamagedError(
                    f"{path}: another user's, a second name of a file, or no regular file. It was not opened to the "
                    "group, nor what follows it; take it out of results/ and run `wattflow collect` again."
                )
            os.fchmod(held, folder_mode if is_folder else file_mode)
    finally:
        os.close(descriptor)


def _walk(folder: Path, descriptor: int) -> Iterator[tuple[Path, int]]:
    """Yield a folder and all below it, each with an open descriptor; DamagedError for a link."""
    yield folder, descriptor
    for name in sorted(os.listdir(descriptor)):
        path = folder / name
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            held = os.open(name, flags, dir_fd=descriptor)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise DamagedError(not_regular(path)) from error
            raise
        try:
            if stat.S_ISDIR(os.fstat(held).st_mode):
                yield from _walk(path, held)
            else:
                yield path, held
        finally:
            os.close(held)


def check_safe(path: Path) -> None:
    """Raise RefusedError unless a folder and all above it are the caller's or root's, and nobody else may write there.

    Where others may write, the sticky bit has to keep each to their own files. Who may write to a folder above can put
    another in a sweep's place, and what it holds would run as the caller: sshd's StrictModes asks for the same.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 (links stay, as each of them is looked at)
    real = path.resolve()
    for folder in dict.fromkeys([path, *path.parents, real, *real.parents]):
        about = folder.lstat()
        sticky = bool(about.st_mode & stat.S_ISVTX) and folder not in (path, real)
        link = stat.S_ISLNK(about.st_mode)
        if about.st_uid not in trusted() and not sticky:
            raise RefusedError(
                f"{folder}: belongs to {process.user_name(about.st_uid)}, who could put another sweep in the place of "
                f"{path}. {_CHOOSE}"
            )
        if not (link or sticky) and others_write(about):
            raise RefusedError(
                f"{folder}: others may write to it (mode {stat.filemode(about.st_mode)}), and could put another sweep "
                f"in the place of {path}. `chmod +t {folder}` keeps each to their own files, `chmod go-w` keeps others "
                f"out. {_CHOOSE}"
            )


_CHOOSE = "Or choose a folder of your own with sweeps_dir=DIR."


def others_write(about: os.stat_result) -> bool:
    """Whether others than the owner may write; a group of the caller's own, with nobody else in it, is no other."""
    if about.st_mode & stat.S_IWOTH:
        return True
    if not about.st_mode & stat.S_IWGRP or about.st_gid == 0:
        return False
    name = process.user_name()
    try:
        group = grp.getgrgid(about.st_gid)
    except KeyError:
        return True
    return group.gr_name != name or not set(group.gr_mem) <= {name}


def trusted() -> set[int]:
    """The caller and root; in a container without root's uid, also the uid by which all outside it are shown.

    There no user differs from another, and `submit` looked from outside.
    """
    trusted = {0, os.geteuid()}
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/self/uid_map").read_text("ascii").splitlines()
        outside = [int(line.split()[1]) for line in lines]
        if outside and 0 not in outside:
            trusted.add(int(Path("/proc/sys/kernel/overflowuid").read_text("ascii")))
    return trusted
