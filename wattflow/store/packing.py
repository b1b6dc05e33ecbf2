"""Put the files of settled points into archives, which all readers see through: `store.packed` says what one is.

    settled points' attempts -> archive under another name, fsync, rename -> looked at -> its files removed

Killed at any moment, it leaves each file alone, packed, or both; packed once more, what is in both goes.
"""

import contextlib
import hashlib
import time
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from wattflow.errors import DamagedError, WattflowError
from wattflow.store import packed
from wattflow.store.files import fsync_folder, make_folder, read_own, replacing
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.removal import File, Parts, all_below, remove

_POINTS = 200  # of an archive at most: so many bytes lie twice for a moment
_STAMP = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    attempts: int
    files: int  # that lay alone before
    archives: int


def pack(sweep: SweepDir, point_ids: Iterable[str]) -> Packed:
    """Pack all attempts of those points that have finished; a point that has not stays as it is.

    So does an attempt with a file that is none of ours, that is too large for an archive, or that is another than the
    one which was packed.
    """
    attempts = files = archives = 0
    finished = [p for p in dict.fromkeys(point_ids) if sweep.is_finished(p)]
    for start in range(0, len(finished), _POINTS):
        there = [one for p in finished[start : start + _POINTS] for one in sweep.attempts(p)]
        loose = [(one, own) for one in there if (own := _to_pack(sweep, one))]
        if new := [file for one, own in loose if not _members(sweep, one) for file in own]:
            _write(sweep, new)
            archives += 1
        remove(sweep.path, [file for _, own in loose for file in own], lambda _: True)
        _remove_folders([one for one in there if _members(sweep, one)])
        attempts += len(loose)
        files += sum(len(own) for _, own in loose)
    return Packed(attempts, files, archives)


def _to_pack(sweep: SweepDir, attempt: AttemptDir) -> list[File]:
    """Return the files of an attempt that are to leave its folder; none where it has other files than were packed."""
    files = loose_files(sweep, attempt)
    return [] if files and _differs(sweep, attempt, files) else files


def pack_or_say(sweep: SweepDir, point_ids: Iterable[str]) -> None:
    """Pack points that have finished; what stands in the way is printed, and costs nothing but files."""
    try:
        pack(sweep, point_ids)
    except (OSError, WattflowError) as error:
        print(f"files of finished points stay as they are, not packed: {error}", flush=True)


def loose_files(sweep: SweepDir, attempt: AttemptDir) -> list[File]:
    """Return the files of a closed attempt that lie alone; none where they cannot be packed."""
    parts = attempt.path.relative_to(sweep.path).parts
    files = sorted(all_below(sweep.path, parts), key=lambda file: file.parts)
    names = [_name(file.parts) for file in files]
    heartbeat = f"{_name(parts)}/heartbeat.json"
    whole = all(packed.is_packable(name) and name != heartbeat for name in names)
    if not whole or not _is_closed(attempt):
        return []
    large = any(
        sweep.path.joinpath(*file.parts).stat().st_size > packed.MOST_BYTES for file in files
    )
    return [] if large else files


def _is_closed(attempt: AttemptDir) -> bool:
    with contextlib.suppress(DamagedError):
        record = attempt.read_record()
        return record is not None and record["status"] != "running"
    return False


def _members(sweep: SweepDir, attempt: AttemptDir) -> dict[str, packed.Member]:
    found = packed.members(sweep.path, (attempt.point_id, attempt.number))
    return {member.name: member for member in found}


def _differs(sweep: SweepDir, attempt: AttemptDir, files: Sequence[File]) -> bool:
    """Return whether an attempt is packed, as one was whose packing was cut short, and has other files since."""
    there = _members(sweep, attempt)
    return bool(there) and not all(
        (member := there.get(_name(file.parts))) is not None
        and member.read() == read_own(sweep.path.joinpath(*file.parts))
        for file in files
    )


def _write(sweep: SweepDir, files: Sequence[File]) -> None:
    """Write an archive of files, and look at it."""
    folder = sweep.path / packed.FOLDER
    make_folder(folder)
    fsync_folder(sweep.path)  # which names it
    path = folder / _archive_name(files)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for one in files:
            source = sweep.path.joinpath(*one.parts)
            about = source.stat()
            _add(archive, _name(one.parts), read_own(source), about.st_mtime_ns)
    fsync_folder(folder)
    listed = {member.name: member.size_bytes for member in packed.of_archive(path)}
    if len(listed) != len(files):
        raise DamagedError(f"{path}: it has {len(listed)} of {len(files)} files.")


def _archive_name(files: Sequence[File]) -> str:
    """Return a name that two who pack the same files at once both choose."""
    about = [(_name(one.parts), one.size_bytes, one.changed_s) for one in files]
    return f"{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.zip"


def _add(archive: zipfile.ZipFile, name: str, data: bytes, changed_ns: int) -> None:
    info = zipfile.ZipInfo(name, _STAMP)
    with contextlib.suppress(ValueError, OverflowError):
        info.date_time = time.localtime(changed_ns // 10**9)[:6]
    info.external_attr = 0o600 << 16
    info.comment = str(changed_ns).encode()
    archive.writestr(info, data)


def _name(parts: Parts) -> str:
    return "/".join(parts[1:])  # without points/


def _remove_folders(attempts: Sequence[AttemptDir]) -> None:
    """Remove the folders of packed attempts that are empty, and those of their points."""
    for attempt in attempts:
        with contextlib.suppress(OSError):
            for name in ("timings", "traces", "logs"):
                with contextlib.suppress(FileNotFoundError):
                    (attempt.path / name).rmdir()
            attempt.path.rmdir()
    for folder in {attempt.path.parent for attempt in attempts}:
        with contextlib.suppress(OSError):
            folder.rmdir()


# --- pruning --------------------------------------------------------------------------------------


def packed_files(sweep: SweepDir, attempt: AttemptDir) -> Iterator[File]:
    """Yield the packed files of an attempt, by the paths that they had."""
    for member in packed.members(sweep.path, (attempt.point_id, attempt.number)):
        parts = ("points", *member.name.split("/"))
        yield File(parts, member.size_bytes, member.changed_ns / 1e9)


def drop(sweep: SweepDir, files: Collection[Parts]) -> None:
    """Write the archives anew that have some of these files, without them; one that is then empty goes."""
    gone = {_name(parts) for parts in files if parts[0] == "points"}
    for path, there in packed.archives(sweep.path).items():
        kept = [member for member in there if member.name not in gone]
        if len(kept) == len(there):
            continue
        if not kept:
            path.unlink()
            continue
        with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            for member in kept:
                _add(archive, member.name, member.read(), member.changed_ns)
