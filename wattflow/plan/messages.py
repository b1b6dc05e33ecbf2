"""Errors of Hydra and OmegaConf as one line that says which key, in which file, and what it takes."""

import re
from collections.abc import Callable
from pathlib import Path

from wattflow.config.keys import kind_of, no_such_key, wrong_type
from wattflow.plan.conf import conf_dirs, searched_dirs


def group_file(name: str) -> Path | None:
    """Return the file of a config such as `cluster/local`, in the first folder that has it."""
    return next((path for f in conf_dirs() if (path := f / f"{name}.yaml").is_file()), None)


def no_such_file(name: str) -> str:
    """Return the message for a config that lies in none of the folders."""
    looked = [str(folder / f"{name}.yaml") for folder in searched_dirs()]
    return f"no such file: looked for {', '.join(looked[:-1])} and {looked[-1]}."


def in_one_line(error: BaseException) -> str:
    """Return an error's message for a person; one that is not known keeps the words that it has."""
    text = str(error).partition("Config search path:")[0]
    place = re.match(r"In '([^']+)'", text)
    file = group_file(place[1]) if place and place[1] != "config" else None
    at = f"{file}: " if file else ""
    missing = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if missing:
        return f"{at}a list of defaults names {missing[1]}, {no_such_file(missing[1])}"
    key = re.search(r"full_key: (\S+)", text)
    for pattern, message in _KNOWN:
        found = re.search(pattern, text)
        if found:
            return at + message(key[1] if key else found[1], found)
    return f"{at}{key[1]}: {_plain(text)}" if key else at + _plain(text)


def _of_unknown_key(key: str, _: re.Match[str]) -> str:
    if key == "grid":
        return "the file of a grid begins with the line `# @package _global_`."
    return f"{key}: {no_such_key(key)}"


def _takes(key: str) -> str:
    try:
        kind_of(key)
    except KeyError:  # an element of a list
        return f"{key.partition('[')[0]} takes other values. docs/commands.md has its type."
    return wrong_type(key)


# What they say, and what stands there for a person: each pattern's group is a value, or the key where none stands in
# the lines below.
_KNOWN: list[tuple[str, Callable[[str, re.Match[str]], str]]] = [
    (r"Value '(.*)' of type", lambda key, found: f"{key}={found[1]}: {_takes(key)}"),
    (r"is not Optional|Incompatible value 'None'", lambda key, _: f"{key}=null: {_takes(key)}"),
    (r"Key '(.*)' (?:is )?not in", _of_unknown_key),
    (
        r"Missing mandatory value: (\S+)",
        lambda key, _: (
            f"{key}: has no value: the file that was chosen in conf/{key.partition('.')[0]}/ is empty, or does not "
            "set it."
        ),
    ),
    (  # an override of a key that is known, or it would have been refused before
        r"Could not override '([^']+)'",
        lambda key, _: (
            f"{key}: can be set in a file of conf/ only, below {key.rpartition('.')[0]}."
        ),
    ),
]


def _plain(text: str) -> str:
    """Return a message without OmegaConf's lines on where in its tree it was."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    known = ("full_key", "reference_type", "object_type", "Set the env")
    kept = " ".join(line for line in lines if not line.startswith(known))
    kept = re.sub(
        r"^In '[^']+': (?:\w+ raised while composing config:)?|^\w+ raised while resolving interpolation:",
        "",
        kept,
    )
    return kept.strip().rstrip(".") + "."
