"""Whether an answer is right, by the #### rule of GSM8K: the number after the first #### of a text, exactly.

The number is read as GSM8K's own code does, `#### (-?[0-9.,]+)`; commas, a dollar sign and a last full stop are not
part of it. Nothing is rounded and no unit is taken off: `18.0` is not `18`.
"""

import re

_RESULT = re.compile(r"####\s*\$?(-?[0-9][0-9.,]*)")


def result_of(text: str) -> str | None:
    """Return the result that a text states; null where it states none by the rule."""
    found = _RESULT.search(text)
    return None if found is None else _plain(found[1])


def is_correct(text: str, reference: str) -> bool:
    """Whether a text states the reference result; one that states none is wrong."""
    return result_of(text) == _plain(reference)


def _plain(number: str) -> str:
    return number.strip().replace(",", "").removeprefix("$").removesuffix(".")
