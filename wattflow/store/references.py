"""Gain and offset of single boards, as a meter of one's own found them: a file a board in the user's own folder.

    $XDG_DATA_HOME/wattflow/references/<uuid>.json        written by `wattflow calibrate --reference`

A sidecar copies a board's into the attempt's record, so that results rest on what is in their own folder.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, cast

from wattflow.errors import DamagedError, RefusedError
from wattflow.store.files import expanded, read_json, write_json
from wattflow.store.schema import Reference

_NUMBERS = {
    "gain": (-0.5, 0.5),
    "offset_w": (-100.0, 100.0),
    "gain_u": (0.0, 0.5),
    "offset_u_w": (0.0, 100.0),
    "correlation": (-1.0, 1.0),
}


def folder() -> Path:
    """Return where references lie: below $XDG_DATA_HOME, else ~/.local/share."""
    return expanded(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "wattflow" / "references"


def path_of(uuid: str) -> Path:
    """Return the file of one board; RefusedError where the name is none of a board."""
    if not re.fullmatch(r"GPU-[0-9A-Za-z-]{1,64}", uuid):
        raise RefusedError(f"{uuid!a}: not a GPU's UUID.")
    return folder() / f"{uuid}.json"


def find(uuid: str) -> Reference | None:
    """Return what a meter found of a board; null where nobody measured it. DamagedError for a file that is none."""
    try:
        found = read_json(path_of(uuid))
    except (FileNotFoundError, RefusedError):
        return None
    return checked(found, str(path_of(uuid)))


def keep(uuid: str, reference: Reference) -> Path:
    """Write what a meter found of a board, in place of an older one; return the file."""
    path = path_of(uuid)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(path, checked(reference, uuid))
    return path


def checked(found: Any, where: str) -> Reference:
    """Return a reference whose numbers can be true; DamagedError for any other."""
    if not isinstance(found, dict):
        raise DamagedError(f"{where}: no reference of a board.")
    for name, (least, most) in _NUMBERS.items():
        value = found.get(name)
        if (
            not isinstance(value, int | float)
            or not math.isfinite(value)
            or not least <= value <= most
        ):
            raise DamagedError(
                f"{where}: {name} {value!a} is none of a board ({least:g} to {most:g})."
            )
    if not isinstance(found.get("made"), str) or len(found["made"]) > 40:
        raise DamagedError(f"{where}: no date.")
    return cast(Reference, {name: found[name] for name in (*_NUMBERS, "made")})
