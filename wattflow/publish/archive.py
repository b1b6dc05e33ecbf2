"""A bundle's container: a zip whose members are stored as they are, the same bytes for the same files.

`sha256sums` in it is what `sha256sum -c` reads. Since nothing is compressed by the zip, a file unpacks to no more than
its own size; whatever is not as `pack` writes it is refused before anything is unpacked. What file managers leave
behind where they look is no bundle's: it is named, and neither unpacked nor read.
"""

import hashlib
import re
import stat
import zipfile
from pathlib import Path

from wattflow.errors import RefusedError
from wattflow.store.files import create, open_given, read_own, replacing, write_atomic

SUMS = "sha256sums"
MOST_MEMBERS = 200_000
MOST_BYTES = 4 * 2**30

_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,199}/){0,6}[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
# what Finder, Windows Explorer, KDE, NFS and NAS boxes leave, by any part of a path
_LEFT_BEHIND = re.compile(
    r"\.DS_Store|\._.*|\.localized|\.AppleDouble|\.apdisk|\.Spotlight-V100|\.fseventsd|\.Trash(?:es|-\d+)?"
    r"|\.TemporaryItems|\.DocumentRevisions-V100|__MACOSX|Icon\r|(?:eh)?thumbs(?:_vista)?\.db|desktop\.ini"
    r"|\$RECYCLE\.BIN|System Volume Information|\.directory|\.nfs[0-9a-f]+|@eaDir|\.stfolder",
    re.IGNORECASE,
)
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")
_CHUNK = 2**20
# the earliest time that a zip can hold: when a bundle is packed is no part of it
_EARLIEST = (1980, 1, 1, 0, 0, 0)


def files(folder: Path) -> list[str]:
    """Return the files below a folder by their names in a bundle, sorted; RefusedError for a link among them."""
    found = list(folder.rglob("*"))
    for path in found:
        if path.is_symlink():
            raise RefusedError(f"{path.relative_to(folder)}: a link: no bundle has that.")
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def left_behind(name: str) -> bool:
    """Return whether a name in a bundle, or a folder above it, is what a file manager calls its own files."""
    return any(map(_LEFT_BEHIND.fullmatch, name.split("/")))


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with open_given(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write `sha256sums` over all other files below a folder."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in files(folder) if name != SUMS]
    write_atomic(folder / SUMS, "".join(lines).encode())


def read_sums(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file by `sha256sums`; RefusedError where that is missing or of another form."""
    try:
        lines = read_own(folder / SUMS).decode().splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        raise RefusedError(f"no {SUMS} in it, so it is no bundle.") from None
    matches = [_SUM.fullmatch(line) for line in lines]
    if None in matches:
        raise RefusedError(f"{SUMS} in it is not what sha256sum writes.")
    return {match[2]: match[1] for match in matches if match}


def wrong_sums(folder: Path, sums: dict[str, str]) -> list[str]:
    """Return a line for each file that is missing, additional, or not what its hash says."""
    there = {name for name in files(folder) if name in sums or not left_behind(name)} - {SUMS}
    wrong = [f"{name}: not there" for name in sorted(set(sums) - there)]
    wrong += [f"{name}: not in {SUMS}" for name in sorted(there - set(sums))]
    changed = [name for name in sorted(there & set(sums)) if sha256(folder / name) != sums[name]]
    return wrong + [
        f"{name}: changed since it was packed{_line_ends(folder / name, sums[name])}"
        for name in changed
    ]


def _line_ends(path: Path, expected: str) -> str:
    """Return words for a file of text whose line ends alone were changed, as a transfer as text does."""
    if path.suffix == ".parquet":
        return ""
    data = read_own(path).replace(b"\r\n", b"\n")
    return ": its line ends alone" if hashlib.sha256(data).hexdigest() == expected else ""


def inside(folder: Path, marker: str) -> Path:
    """Return where a bundle's files lie: the folder, or the only one in it where that has the marker."""
    if (folder / marker).is_file() or not folder.is_dir():
        return folder
    below = [path for path in folder.iterdir() if not left_behind(path.name)]
    return below[0] if len(below) == 1 and (below[0] / marker).is_file() else folder


def pack(folder: Path, path: Path) -> None:
    """Write all files below a folder as one zip under another name, fsync, rename; the mode is 0600.

    RefusedError for more than `unpack` takes.
    """
    names = files(folder)
    total = sum((folder / name).stat().st_size for name in names)
    if len(names) > MOST_MEMBERS or total > MOST_BYTES - 2**26:  # less the zip's own lists
        raise RefusedError(
            f"{path}: {len(names)} files, {total} bytes; a bundle has at most {MOST_MEMBERS} and {MOST_BYTES}. Bundle "
            "sweeps of fewer points."
        )
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        for name in names:
            about = zipfile.ZipInfo(name, _EARLIEST)
            about.external_attr = (stat.S_IFREG | 0o644) << 16
            packed.writestr(about, read_own(folder / name, MOST_BYTES))


def unpack(path: Path, folder: Path) -> list[str]:
    """Write a bundle's files below an empty folder, and return the members that a file manager left in it.

    RefusedError, nothing written, for what `pack` never makes.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            members = packed.infolist()
            left = [about.filename for about in members if left_behind(about.filename.rstrip("/"))]
            # an entry for the folder of others, which other packers make, says nothing
            folders = {f"{above}/" for about in members for above in Path(about.filename).parents}
            own = [
                about
                for about in members
                if about.filename not in left
                and not (about.is_dir() and (about.filename in folders or about.file_size == 0))
            ]
            _check(own, path)
            for about in own:
                _write(packed, about, folder / about.filename)
            return left
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}: not a bundle ({error}).") from error


def _check(members: list[zipfile.ZipInfo], path: Path) -> None:
    size = path.stat().st_size
    if size > MOST_BYTES or len(members) > MOST_MEMBERS:
        raise RefusedError(
            f"{path}: {len(members)} members, {size} bytes; a bundle has at most {MOST_MEMBERS} and {MOST_BYTES}."
        )
    names = [about.filename for about in members]
    for about in members:
        name = about.filename
        if not _NAME.fullmatch(name) or ".." in name:
            raise RefusedError(f"{path}: a member's name is {name[:200]!a}: no bundle has that.")
        kind = stat.S_IFMT(about.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or about.flag_bits & 1:
            raise RefusedError(
                f"{path}: {name} is a link, a folder or encrypted: no bundle has that."
            )
        if about.compress_type != zipfile.ZIP_STORED or about.compress_size != about.file_size:
            raise RefusedError(
                f"{path}: {name} is compressed, which `wattflow bundle` never does. To check files that were packed "
                "anew, unpack them and name the folder."
            )
    if len(set(names)) < len(names):
        raise RefusedError(f"{path}: two members have one name.")
    parents = {parent.as_posix() for name in names for parent in Path(name).parents}
    if parents & set(names):
        raise RefusedError(f"{path}: a member is a file and a folder at once.")
    if sum(about.file_size for about in members) > size:
        raise RefusedError(f"{path}: its members overlap: together they are larger than the file.")


def _write(packed: zipfile.ZipFile, about: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with create(path) as file, packed.open(about) as member:
        while chunk := member.read(_CHUNK):
            file.write(chunk)
