"""Arithmetic on values of which some are unknown: an unknown part makes the whole unknown; and how such values read."""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

COVERAGE = 2  # factor of an expanded uncertainty, about 95 %
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


def expanded(u: float | None) -> float | None:
    """Return the expanded uncertainty (k = 2) of a standard one."""
    return None if u is None else COVERAGE * u


def known_sum(values: Iterable[Number | None]) -> Number | None:
    """Return the sum of what is known; null where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def number(value: float | None, mark: str = "") -> str:
    """Return a number as a person reads it: three digits, or all before the point; `-` for null.

    `mark` goes before it: `~` where it was simulated.
    """
    if value is None:
        return "-"
    if abs(value) >= 99.95:
        return f"{mark}{value:,.0f}"
    return f"{mark}{value:#.3g}" if value else f"{mark}0"


NO_DOUBT = (
    "without ± no uncertainty is known: nobody states the gain of the sensor, or a part is unknown"
)


def is_undoubted(value: float | None, expanded: float | None) -> bool:
    """Return whether a value is known that has an uncertainty, and nobody knows which."""
    return bool(value) and expanded is None


def with_doubt(value: float | None, expanded: float | None, unit: str = "", mark: str = "") -> str:
    """Return a value with its expanded uncertainty (k = 2): `0.0686 ± 0.0027 J/token`; `-` for null.

    The uncertainty has two digits, and the value ends where it does (JCGM 100:2008, 7.2.6). A value whose uncertainty
    is unknown has three digits. This is the one door by which joules, watts and what follows from them are printed.
    """
    unit = f" {unit}" if unit and value is not None else ""
    if value is None or expanded is None or not 0 < expanded < math.inf:
        return f"{number(value, mark)}{unit}"
    decimals = 1 - math.floor(math.log10(expanded))
    if round(expanded, decimals) >= 10.0 ** (2 - decimals):  # 0.0996 is 0.10
        decimals -= 1
    places = max(decimals, 0)
    return f"{mark}{round(value, decimals):,.{places}f} ± {round(expanded, decimals):,.{places}f}{unit}"
