"""What a shell completes: sweeps by name or path, keys, and the values that a key or a group can have.

bash takes `=` for a word of its own, so that of `model=lla` it asks for `lla` after `model` and `=`; zsh and fish ask
for the whole. Nothing here may fail: a shell would print the traceback into the line that is being typed.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from wattflow.config.checks import allowed
from wattflow.config.choices import GROUPS
from wattflow.config.identity import DEFAULTS
from wattflow.errors import WattflowError

_SWEEPS = Path("sweeps")


def sweeps(incomplete: str) -> list[str]:
    """Return sweeps below ./sweeps by name, or the folders that a path may go on with."""
    with contextlib.suppress(OSError):
        if "/" not in incomplete:
            return sorted(
                path.parent.name for path in _SWEEPS.glob(f"{_literal(incomplete)}*/grid.parquet")
            )
        folders = Path().glob(f"{_literal(incomplete)}*/")
        if incomplete.startswith("/"):
            folders = Path("/").glob(f"{_literal(incomplete[1:])}*/")
        return sorted(f"{folder}/" for folder in folders if folder.is_dir())
    return []


def _literal(text: str) -> str:
    """Return a text in which no pattern is: brackets around what glob would read."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def overrides(incomplete: str) -> list[str]:
    """Return keys with `=`, or the values of a key, those of a list one after another."""
    with contextlib.suppress(WattflowError, OSError, ValueError):
        key = _key_before()
        if key is not None:
            return list(_values(key, incomplete))
        key, equals, value = incomplete.partition("=")
        if equals:
            return [f"{key}={found}" for found in _values(key, value)]
        names = [*GROUPS, *(name for name in DEFAULTS if name not in GROUPS)]
        return [f"{name}=" for name in names if name.startswith(incomplete)]
    return []


def _key_before() -> str | None:
    """Return the key of which bash asks for a value: the word before `=`, before the one that is typed."""
    words = shlex.split(os.environ.get("COMP_WORDS", ""))
    at = os.environ.get("COMP_CWORD", "")
    before = words[: int(at)] if at.isdecimal() else []
    return before[-2] if len(before) > 1 and before[-1] == "=" else None


def _values(key: str, typed: str) -> Iterator[str]:
    """Yield what a key can have, after the values of a list that stand there already."""
    done, comma, begun = typed.rpartition(",")
    for value in _choices(key):
        if value.startswith(begun) and value not in done.split(","):
            yield f"{done}{comma}{value}"


def _choices(key: str) -> list[str]:
    if key in GROUPS:
        from wattflow.plan.hydra import group_files  # noqa: PLC0415 (0.3 s, which keys need not wait for)

        return group_files(key)
    if isinstance(DEFAULTS.get(key), bool):
        return ["true", "false"]
    return list(allowed(key))
