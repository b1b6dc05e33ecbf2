"""Arithmetic on values of which some are unknown: an unknown part makes the whole unknown."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)
T = TypeVar("T")


def agreed(values: Iterable[Any]) -> Any:
    """Return the value that all share; null where they differ or there is none."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def joined_names(names: Iterable[str | None]) -> str | None:
    """Return the distinct names in order, joined by ` + `; null where there are none."""
    return " + ".join(sorted({name for name in names if name})) or None


def quotient(value: float | None, by: float | None) -> float | None:
    """Return the ratio value / by; null where either is unknown or the denominator is 0."""
    return value / by if value is not None and by else None


def complete(of: Callable[[list[T]], T], values: Iterable[T | None]) -> T | None:
    """Return a function's value of all values, such as their maximum; null where one is unknown, or there are none."""
    given = list(values)
    known = [value for value in given if value is not None]
    return of(known) if known and len(known) == len(given) else None


def complete_sum(parts: Iterable[float | None]) -> float | None:
    """Return the sum; null where a part is unknown, or there are none."""
    return complete(sum, parts)


def quadrature(us: Iterable[float | None]) -> float | None:
    """Return the uncertainty of a sum of independent parts; null where one is unknown."""
    squares = complete_sum(None if u is None else u**2 for u in us)
    return None if squares is None else squares**0.5


def known_sum(values: Iterable[Number | None]) -> Number | None:
    """Return the sum of what is known; null where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def plus_minus(expanded: float | None) -> str:
    """Return an expanded uncertainty as it stands behind its number, two digits of it; empty where unknown."""
    if expanded is None:
        return ""
    return f" ± {expanded:.0f}" if expanded >= 100 else f" ± {expanded:#.2g}".rstrip(".")
