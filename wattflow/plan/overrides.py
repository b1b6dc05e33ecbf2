"""Overrides by Hydra's grammar, checked one by one: whatever is wrong is said of its key, group or value.

Hydra, which composes them afterwards, would say it of the whole, and not which type a key takes.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wattflow.config.checks import check_value
from wattflow.config.choices import GROUPS, Config, RopeScaling
from wattflow.config.keys import kind_of, nearest, no_such_key, wrong_type
from wattflow.config.overrides import split
from wattflow.errors import RefusedError
from wattflow.plan.hydra import group_files, parser
from wattflow.plan.messages import group_file, no_such_file
from wattflow.plan.text_values import as_text

# What no submitted value may hold: it could be evaluated by OmegaConf or Hydra, or by a shell further on.
_REFUSED = ("_target_", "`", ";", "\n", "\r", "\0")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
MOST_POINTS = 100_000


def refuse_unsafe(overrides: Sequence[str]) -> None:
    """Raise RefusedError for an override that could be evaluated or leave the sweep's directory."""
    for override in overrides:
        refuse_interpolation(override)
        for mark in _REFUSED:
            if mark in override:
                raise RefusedError(
                    f"{override!r}: {mark!r} is refused in submitted values. "
                    "Lines of shell belong in a config file of your own."
                )
        key, value = split(override)
        if value is not None and "../" in value and not key.endswith(("path", "dir")):
            raise RefusedError(f"{override!r}: '../' is refused in names.")


def refuse_interpolation(override: str) -> None:
    """Raise RefusedError for an interpolation, however it is escaped: a secret would be kept in the sweep's files."""
    if "${" in override.replace("\\", ""):
        raise RefusedError(
            f"{override!r}: interpolations are not resolved, since what they stand for would be kept in the sweep's "
            "files. Write the value itself."
        )


def rewritten(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with `sweep=NAME` as `sweep.name=NAME`, and without -m."""
    return [
        re.sub(r"^sweep=", "sweep.name=", override.removeprefix("-m").strip())
        for override in overrides
        if override != "-m"
    ]


def parse(overrides: Sequence[str], values: "TypedValues") -> list[Override]:
    """Parse overrides; RefusedError for one that cannot be read, and for a key, a choice or a value that is none."""
    parsed = [_parse(override) for override in overrides]
    for override in parsed:
        if is_group(override):
            _check_group(override)
            continue
        _check_key(override)
        if not override.is_sweep_override():
            values.value(override.key_or_group, str(split(str(override.input_line))[1]))
    return parsed


def _parse(override: str) -> Override:
    try:
        return parser().parse_overrides(overrides=[as_text(override)])[0]
    except HydraException as error:
        raise RefusedError(f"{override}: {_unreadable(override)}") from error


def is_list(override: str) -> bool:
    """Whether an override gives several values; one that cannot be read gives none."""
    try:
        return bool(_parse(override).is_sweep_override())
    except RefusedError:
        return False


def _unreadable(override: str) -> str:
    """Return why Hydra's grammar cannot read an override."""
    key, value = split(override)
    bare = key.lstrip("+~")
    if value is None:
        return "no KEY=VALUE, such as shards=1 or model=tiny,llama-7b."
    if not _KEY.fullmatch(bare.partition("@")[0]):
        return no_such_key(bare)
    if any(value.count(mark) != value.count(end) for mark, end in ("()", "[]", "{}")):
        return "a bracket is not closed."
    if re.search(r"^\s*,|,\s*,|,\s*$", value):
        return "a value is missing beside a comma."
    return (
        "the value cannot be read. Quote it twice, for wattflow and for the shell, where it holds other characters "
        f"than letters, digits and -_./:%+@*?$: '{key}=\"{value}\"'."
    )


def is_group(override: Override) -> bool:
    """Whether an override chooses a file of a config group."""
    # Hydra's loader, asked here, knows the first of conf_dirs() only
    return override.key_or_group in GROUPS


def _check_key(override: Override) -> None:
    """Raise RefusedError for a key that cannot be set."""
    line, key = override.input_line, override.key_or_group
    if override.is_delete() or override.is_add():
        raise RefusedError(f"{line}: keys can be set, not added or removed.")
    if key.startswith("hydra"):
        raise RefusedError(
            f"{line}: wattflow sets Hydra's own keys. "
            "Name the sweep with sweep=NAME and its folder with sweeps_dir=DIR."
        )
    try:
        kind_of(key)
    except KeyError:
        raise RefusedError(f"{line}: {no_such_key(key)}") from None


def _check_group(override: Override) -> None:
    """Raise RefusedError for a choice of a group that has no file."""
    line, group = override.input_line, override.key_or_group
    if override.is_delete() or override.is_add() or override.package is not None:
        raise RefusedError(f"{line}: groups can be chosen, as {group}=NAME, not added or removed.")
    value = override.value()
    names = listed(override) if override.is_sweep_override() else [value]
    for name in names:
        if name is None and group == "grid":
            continue
        if not isinstance(name, str):
            raise RefusedError(
                f"{line}: takes the name of a file in conf/{group}/, or several: "
                f"{group}={','.join(group_files(group)[:2])}."
            )
        if group_file(f"{group}/{name}") is None:
            known = group_files(group)
            instead = _path_instead(group, name)
            if not instead and (meant := nearest(name, known)):
                instead = f" Did you mean {meant}?"
            raise RefusedError(
                f"{group}={name}: {no_such_file(f'{group}/{name}')}{instead} There are {', '.join(known)}."
            )


def _path_instead(group: str, name: str) -> str:
    """Return how a file or folder of one's own is named, where one was given for a group's file; else nothing."""
    if group not in ("model", "dataset") or not name.startswith(("/", "./", "~")):
        return ""
    return f" A path of your own is {group}.path={name}."


def listed(override: Override) -> list[str]:
    """Return the values that a list, range or glob stands for, as they are typed."""
    value: Any = override.value()
    if isinstance(value, Glob):  # Hydra would look in the first of conf_dirs() only
        return value.filter(group_files(override.key_or_group))
    values = list(itertools.islice(override.sweep_string_iterator(), MOST_POINTS + 1))
    check_size(len(values))
    return values


def check_size(points: int) -> None:
    """Raise RefusedError for more points than memory and a person can keep."""
    if points > MOST_POINTS:
        raise RefusedError(
            f"{points} points or more: a sweep has at most {MOST_POINTS:,}. Split it into several, or look for a "
            "range or sweep.repeats that is too long."
        )


class TypedValues:
    """Converts values to the types of their keys, each distinct one once."""

    def __init__(self) -> None:
        self._parser = parser()  # 0.5 ms to make
        typed = Config()
        typed.model.rope_scaling = RopeScaling()  # so that what stands in it has types
        self._typed = OmegaConf.structured(typed)
        self._known: dict[tuple[str, str], Any] = {}

    def value(self, key: str, text: str) -> Any:
        """Return the value; RefusedError where it is of another type, or none that is allowed."""
        if (key, text) not in self._known:
            override = self._parser.parse_overrides(overrides=[f"{key}={text}"])[0]
            try:
                OmegaConf.update(self._typed, key, override.value(), force_add=False)
                found = OmegaConf.select(self._typed, key)
                found = OmegaConf.to_object(found) if OmegaConf.is_config(found) else found
            except (OmegaConfBaseException, AssertionError, TypeError, ValueError) as error:
                raise RefusedError(f"{key}={text}: {wrong_type(key)}") from error
            check_value(key, found)
            self._known[key, text] = found
        return self._known[key, text]
