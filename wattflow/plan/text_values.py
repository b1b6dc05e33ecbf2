"""Values of keys that take text, put into quotes where Hydra's grammar would read a number or a truth.

`model.revision=7e12345678` is a revision, `cluster.account=1_000` an account and `sweep=1e5` a name: what is typed for
such a key stays as it is typed.
"""

import re
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from wattflow.config.choices import GROUPS, Exclude
from wattflow.config.keys import kind_of, not_null
from wattflow.config.overrides import split

_TEXTS: tuple[Any, ...] = (str, list[str], list[list[str]], dict[str, str], list[Exclude])
_PART = re.compile(
    r"""'(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | [()\[\]{},] | (?:\\.|[^()\[\]{},'"\\])+ | .""",
    re.VERBOSE | re.DOTALL,
)
_MAY_BE_NUMBER = re.compile(r"[-+]?(\.?\d|inf|nan|true|false)", re.IGNORECASE)


def as_text(override: str) -> str:
    """Return an override whose value is text, if its key takes text; any other one as it is."""
    key, value = split(override)
    if value is None or not _takes_text(key):
        return override
    return f"{key}={_quoted(value)}"


def _takes_text(key: str) -> bool:
    if key in GROUPS:
        return True
    try:
        return not_null(kind_of(key)) in _TEXTS
    except KeyError:
        return False


def _quoted(value: str) -> str:
    """Return a value in Hydra's grammar with quotes around its numbers and truths, those of range() left alone."""
    inside: list[str] = []  # opening brackets, with the function's name before a round one
    out: list[str] = []
    for part in _PART.findall(value):
        if part[0] in "[{(":
            inside.append(out[-1].strip() if out and part == "(" else part)
        elif part[0] in "]})":
            del inside[-1:]
        key, colon, text = part.partition(":") if inside[-1:] == ["{"] else ("", "", part)
        out.append(part if "range" in inside else f"{key}{colon}{_text(text)}")
    return "".join(out)


def _text(word: str) -> str:
    """Return a word in quotes where it would be read as a number or a truth."""
    bare = word.strip()
    if _MAY_BE_NUMBER.match(bare) and isinstance(_read(bare), int | float):
        return word.replace(bare, f"'{bare}'")
    return word


@cache
def _read(word: str) -> Any:
    """Return what Hydra reads; null where it cannot."""
    try:
        return OverridesParser.create().parse_rule(word, "primitive")
    except HydraException:
        return None
