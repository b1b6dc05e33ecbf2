"""What each key takes, in words for a person who wrote another: its type, an example, the nearest key."""

import difflib
from dataclasses import is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from wattflow.config.checks import allowed
from wattflow.config.choices import GROUPS, Config, Exclude
from wattflow.config.identity import DEFAULTS

_LISTED = "`wattflow keys` lists keys, groups and their choices."
# by type: in words, and a value that serves as an example where the default is null
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "4"),
    float: ("a number", "0.5"),
    bool: ("true or false", "true"),
    str: ("text", "name"),
    list[str]: ("a list of texts", "['first text','second text']"),
    list[list[str]]: ("a list of lists of keys", "[[shards,batch_size]]"),
    list[Exclude]: ("a list of rules", "[{when:{shards:2},reason:too slow}]"),
    dict[str, Any]: ("values by name", "{seed: 1}"),
    dict[str, str]: ("texts by name, set in a file of conf/", "{'name': text}"),
}

# by the end of a number's key
_UNITS = {
    "_min": "minutes",
    "_s": "seconds",
    "_ms": "milliseconds",
    "_w": "watts",
    "_mhz": "MHz",
    "_gib": "GiB",
    "mem_gb_per_node": "GB",
}


@cache
def _hints(part: type) -> dict[str, Any]:
    return get_type_hints(part)


def kind_of(key: str) -> Any:
    """Return the type of a dotted key, of a part of the choices too; KeyError where there is no such key."""
    kind: Any = Config
    for part in key.split("."):
        kind = not_null(kind)
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif is_dataclass(kind) and isinstance(kind, type):
            kind = _hints(kind)[part]
        else:
            raise KeyError(key)
    return kind


def not_null(kind: Any) -> Any:
    """Return the type of those of a key's values that are not null."""
    kinds = [one for one in get_args(kind) if one is not NoneType]
    return kinds[0] if NoneType in get_args(kind) else kind


def is_nullable(key: str) -> bool:
    """Whether a key may be null."""
    return NoneType in get_args(kind_of(key))


def from_text(key: str, text: str) -> Any:
    """Return a text as a value of the key's type; ValueError where it is none, KeyError where there is no such key."""
    kind = not_null(kind_of(key))
    if text == "null" and is_nullable(key):
        return None
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text) if kind in (int, float) else text


def nearest(name: str, names: list[str]) -> str | None:
    """Return the name that a misspelt one was probably meant for, or null."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    if found:
        return found[0]
    by_end = {one.rpartition(".")[2]: one for one in reversed(names)}
    end = name.rpartition(".")[2]
    begun = [one for one in by_end if len(one) > 2 and end.startswith(one)]
    found = begun or difflib.get_close_matches(
        end, by_end, n=1, cutoff=0.65 if len(end) > 2 else 1.0
    )
    found = found or [one for one in by_end if len(end) > 2 and one.startswith(end)]
    return by_end[found[0]] if found else None


def no_such_key(key: str) -> str:
    """Return the message for a key that there is not."""
    meant = nearest(key, [*DEFAULTS, *GROUPS])
    return f"no such key.{f' Did you mean {meant}?' if meant else ''} {_LISTED}"


def wrong_type(key: str) -> str:
    """Return what a key takes, for a value of another type: the type in words and an example."""
    kind = not_null(kind_of(key))
    if is_dataclass(kind):
        inner = ", ".join(f"{key}.{name}" for name in _hints(kind))  # type: ignore[arg-type]
        return f"{key} has keys of its own: {inner}."
    words, example = _WORDS[kind]
    if kind in (int, float):
        words += next((f" of {unit}" for end, unit in _UNITS.items() if key.endswith(end)), "")
    if allowed(key):
        words = f"one of {', '.join(allowed(key))}"
    elif is_nullable(key):
        words += ", or null"
    default = DEFAULTS.get(key)
    if kind in (int, float, bool, str) and default not in (None, "???"):
        example = str(default).lower() if kind is bool else str(default)
    if key.startswith("cluster.sbatch_options."):
        words += f", and '' for a bare --{key.rpartition('.')[2]}"
    several = ""
    if kind in (int, float) and key.split(".", maxsplit=1)[0] not in ("sweep", "cluster", "power"):
        several = f", and {key}=1,2 for two points"
    return f"takes {words}, such as {key}={example}{several}."
