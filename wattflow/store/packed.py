"""Files of attempts that lie packed: `packed/<name>.zip` has those of many attempts, as sites cap files.

    packed/0f3a....zip      <point_id>/attempt-<n>/record.json, .../traces/<node>-<gpu>.parquet, ...

An archive is complete and has its name before a file that is in it goes, and a file that lies alone is what is read. So
whoever looks for files first, for packed ones then, finds each at any moment of a packing, and however it ended.

Members are stored, not compressed, each a range of the archive's bytes. They are never unpacked: a member is read by a
name that we make, so that a strange one in an archive leads nowhere, and it is refused all the same.
"""

import contextlib
import os
import re
import tempfile
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from wattflow.errors import DamagedError
from wattflow.store.regular import check_folder, open_regular

FOLDER = "packed"
MOST_BYTES = 2**28  # of a member
_MOST_MEMBERS = 200_000  # of an archive
_ARCHIVE = re.compile(r"[0-9a-f]{12}\.zip")
_NAME = re.compile(r"([0-9a-f]{12})/attempt-([1-9][0-9]{0,5})/((?:\w+/)?[^/\\.\0][^/\\\0]*)")
_NANOSECONDS = re.compile(rb"\d{1,19}")
_HEADER_BYTES = 30  # before a member's name and extra field
_SETTLED_NS = 2_000_000_000  # a folder that changed so long before it was listed has not changed since, by its stamp

_NO_MEMFD = not hasattr(os, "memfd_create")  # no Linux

Key = tuple[str, int]  # of an attempt
Identity = tuple[int, int, int]


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    archive: Path
    identity: Identity  # of the archive, as it was listed
    name: str
    header: int  # where it begins
    size_bytes: int
    crc: int
    changed_ns: int  # of the file, before it was packed

    def read(self) -> bytes:
        """Return its bytes; DamagedError where they are not those that were packed."""
        # by positions, as a descriptor may be shared with a process that was forked meanwhile
        held = _open(self.archive)
        try:
            head = os.pread(held, _HEADER_BYTES, self.header)
            lengths = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
            data = os.pread(held, self.size_bytes, self.header + _HEADER_BYTES + sum(lengths))
            changed = _identity_of(os.fstat(held)) != self.identity
        finally:
            os.close(held)
        if len(data) != self.size_bytes or zlib.crc32(data) != self.crc:
            if changed:  # replaced since it was listed
                raise DamagedError(f"{self.archive}: it was replaced while it was read; try again.")
            raise DamagedError(f"{self.archive}: {self.name} in it is damaged.")
        return data

    def open(self) -> BufferedReader:
        """Return its bytes as a file of their own, in memory."""
        data = self.read()
        with (
            tempfile.TemporaryFile() if _NO_MEMFD else os.fdopen(os.memfd_create(""), "w+b") as file
        ):
            file.write(data)
            file.flush()
            held = os.dup(file.fileno())
        os.lseek(held, 0, os.SEEK_SET)
        return os.fdopen(held, "rb")


@dataclass(frozen=True)
class _Index:
    """What the archives of a sweep have."""

    stamp_ns: int  # of their folder
    listed_ns: int
    archives: Mapping[str, tuple[Identity, list[Member]]]
    members: Mapping[Key, Mapping[str, Member]]  # by what follows the attempt's folder
    numbers: Mapping[str, list[int]]  # of attempts, by point


_EMPTY = _Index(0, 0, {}, {}, {})
_known: dict[str, _Index] = {}


def find(path: Path) -> Member | None:
    """Return the member that was the file of an attempt at a path; null where none was."""
    found = _within(path.parts)
    if found is None:
        return None
    sweep, key, name = found
    return _index(sweep).members.get(key, {}).get(name)


def names(folder: Path) -> list[str]:
    """Return the names of the packed files of a folder of an attempt's."""
    found = _within((*folder.parts, "x"))
    if found is None:
        return []
    sweep, key, name = found
    prefix = name[: -len("x")]
    files = _index(sweep).members.get(key, {})
    return [
        file[len(prefix) :]
        for file in files
        if file.startswith(prefix) and "/" not in file[len(prefix) :]
    ]


def attempts(sweep: Path, point_id: str) -> list[int]:
    """Return the numbers of a point's packed attempts."""
    return _index(sweep).numbers.get(point_id, [])


def points(sweep: Path) -> list[str]:
    """Return the points that have packed attempts."""
    return list(_index(sweep).numbers)


def members(sweep: Path, key: Key) -> list[Member]:
    """Return the packed files of an attempt."""
    return list(_index(sweep).members.get(key, {}).values())


def archives(sweep: Path) -> dict[Path, list[Member]]:
    """Return the archives of a sweep with their members; two that were packed at once may have one in common."""
    listed = _index(sweep).archives
    return {sweep / FOLDER / name: found for name, (_, found) in listed.items()}


def of_archive(path: Path) -> list[Member]:
    """Return the members of an archive; DamagedError for what is none of ours."""
    held = _open(path)
    try:
        return _listed(path, held)
    finally:
        os.close(held)


def _within(parts: tuple[str, ...]) -> tuple[Path, Key, str] | None:
    """Return the sweep, the attempt and the name in it of the file that a path's parts lead to; null for no such."""
    for depth in (1, 2):
        if len(parts) > depth + 3 and parts[-depth - 3] == "points":
            match = _NAME.fullmatch("/".join(parts[-depth - 2 :]))
            if match is not None:
                return Path(*parts[: -depth - 3]), (match[1], int(match[2])), match[3]
    return None


def _index(sweep: Path) -> _Index:
    """Return what the archives of a sweep have, listed anew where their folder has changed."""
    folder = sweep / FOLDER
    try:
        # opened, not looked at: so a shared file system is asked, too, whether it has changed
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return _EMPTY
    except OSError:
        check_folder(folder)
        raise
    try:
        known = _known.get(str(folder), _EMPTY)
        stamp_ns = os.fstat(held).st_mtime_ns
        if known.stamp_ns == stamp_ns and known.listed_ns - stamp_ns > _SETTLED_NS:
            return known
        listed_ns = time.time_ns()
        archives = {
            name: _archive(folder / name, held, known.archives.get(name))
            for name in sorted(os.listdir(held))  # noqa: PTH208 (by its descriptor)
            if _ARCHIVE.fullmatch(name)
        }
    finally:
        os.close(held)
    same = archives.keys() == known.archives.keys() and all(
        archives[name][0] == known.archives[name][0] for name in archives
    )
    by_key, numbers = (known.members, known.numbers) if same else _merged(archives)
    _known[str(folder)] = _Index(stamp_ns, listed_ns, archives, by_key, numbers)
    return _known[str(folder)]


def _archive(
    path: Path, folder: int, known: tuple[Identity, list[Member]] | None
) -> tuple[Identity, list[Member]]:
    """Return the identity and the members of an archive, those that are known where it is the same."""
    if known is not None:
        about = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        if known[0] == _identity_of(about):
            return known
    held = _open(path)
    try:
        return _identity_of(os.fstat(held)), _listed(path, held)
    finally:
        os.close(held)


def _merged(
    archives: Mapping[str, tuple[Identity, list[Member]]],
) -> tuple[dict[Key, dict[str, Member]], dict[str, list[int]]]:
    """Return the members of all archives by attempt, and the numbers of attempts by point."""
    by_key: dict[Key, dict[str, Member]] = {}
    numbers: dict[str, list[int]] = {}
    for _, listed in archives.values():
        for member in listed:
            point_id, attempt, name = member.name.split("/", 2)
            key = point_id, int(attempt.removeprefix("attempt-"))
            if key not in by_key:
                numbers.setdefault(point_id, []).append(key[1])
            by_key.setdefault(key, {})[name] = member
    for found in numbers.values():
        found.sort()
    return by_key, numbers


def _open(path: Path) -> int:
    check_folder(path.parent)
    return open_regular(path, os.O_RDONLY | os.O_NOFOLLOW, DamagedError)


def _identity_of(about: os.stat_result) -> Identity:
    return about.st_ino, about.st_size, about.st_mtime_ns


def _listed(path: Path, held: int) -> list[Member]:
    """Return the members of an open archive; DamagedError for what is none of ours."""
    identity = _identity_of(os.fstat(held))
    try:
        with os.fdopen(os.dup(held), "rb") as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DamagedError(f"{path}: not a whole archive ({error}). {_MEND}") from error
    if len(infos) > _MOST_MEMBERS or len({info.filename for info in infos}) < len(infos):
        raise DamagedError(f"{path}: too many members, or two of one name. {_MEND}")
    for info in infos:
        if (
            not is_packable(info.filename)
            or info.compress_type != zipfile.ZIP_STORED
            or info.flag_bits & 1  # encrypted
            or info.compress_size != info.file_size
            or info.file_size > MOST_BYTES
            or not 0 <= info.header_offset <= identity[1] - info.file_size
        ):
            raise DamagedError(f"{path}: its member {info.filename!r} is none of ours. {_MEND}")
    if sum(info.file_size for info in infos) > identity[1]:
        raise DamagedError(f"{path}: its members overlap: they are larger than the file. {_MEND}")
    return [
        Member(
            path,
            identity,
            info.filename,
            info.header_offset,
            info.file_size,
            info.CRC,
            _changed_ns(info),
        )
        for info in infos
    ]


_MEND = "Put a whole copy back in its place; without it (moved out of packed/) the points in it count as never tried."


def _changed_ns(info: zipfile.ZipInfo) -> int:
    """Return when the file was written, to the nanosecond, by its comment; else by the archive's own stamp."""
    if _NANOSECONDS.fullmatch(info.comment):
        return int(info.comment)
    with contextlib.suppress(ValueError, OverflowError):
        return int(time.mktime((*info.date_time, 0, 0, -1))) * 10**9
    return 0


def is_packable(name: str) -> bool:
    """Return whether a file of an attempt, by its name from the point's on, can be a member."""
    return _NAME.fullmatch(name) is not None and name.isprintable()
