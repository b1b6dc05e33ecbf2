"""Arithmetic on values of which some are unknown: an unknown part makes the whole unknown."""

from collections.abc import Iterable
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


def agreed(values: Iterable[Any]) -> Any:
    """Return the value that all share; null where they differ or there is none."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def joined_names(names: Any) -> str | None:
    """The distinct names, joined; null where there are none."""
    return " + ".join(sorted({name for name in names if name})) or None


def quotient(value: float | None, by: float | None) -> float | None:
    """The ratio value / by; null where either is missing or the denominator is 0."""
    return value / by if value is not None and by else None


def complete_sum(parts: list[float | None]) -> float | None:
    """The sum, or null where a part is missing."""
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def quadrature(us: list[float | None]) -> float | None:
    """Of independent parts, or null where one is missing."""
    squares = complete_sum([None if u is None else u**2 for u in us])
    return None if squares is None else squares**0.5


def known_sum(values: Iterable[Number | None]) -> Number | None:
    """The sum of what is known; null where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
