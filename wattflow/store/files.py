"""Read and write files so that no half-written one is ever seen."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from wattflow.errors import DamagedError, RefusedError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str) -> str:
    """The name itself, if it can be one path component; RefusedError otherwise."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise RefusedError(
            f"{what} {name!r}: use letters, digits, '.', '_' and '-' (at most 100, no '..', a letter or digit first)."
        )
    return name


def own_files(folder: Path, pattern: str) -> list[Path]:
    """Return a folder's files of a pattern by name, without hidden ones: those a file manager or an editor left."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """Open a file under another name; fsync and rename it in the end: a reader sees the old file or the new one, whole.

    Where the body raises, nothing is left of the new one.
    """
    # a pid is not unique where containers share a disk, and a name that can be guessed can be planted
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file in the manner of `replacing`."""
    with replacing(path, mode) as file:
        file.write(data)


def write_json(path: Path, value: object, mode: int = 0o600) -> None:
    """Write a JSON document atomically, keys in the order given."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), mode)


def read_json(path: Path) -> Any:
    """The JSON document at path; DamagedError names the file and the fault."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: not a JSON document ({error}).") from error
