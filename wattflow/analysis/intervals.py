"""How far a ratio may be off: Student's t at any level, doubts of several origins together, and families of ratios."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from wattflow.energy.boards import METERED

LEVEL = 0.95
_LEAST_P = 1e-9  # smaller ones count as this one
_STEPS = 40  # of ln p
_MOST_FREEDOM = 1000  # from here on it is the normal distribution's to 0.1 %


@cache
def student_t(freedom: float, level: float = LEVEL) -> float:
    """Return the factor of a two-sided interval for so many degrees of freedom, at least 1, rounded down.

    It has three decimals, as tables print it.
    """
    whole = max(1, math.floor(min(freedom, _MOST_FREEDOM)))
    low, high = 0.0, 1.0
    while _inside(high, whole) < level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, whole) < level else (low, middle)
    return round(high, 3)


def _inside(t: float, freedom: int) -> float:
    """Return the probability of [-t, t] (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = total = (cosine if odd else 1.0) if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


@dataclass(frozen=True)
class Part:
    """A variance that is known with so many degrees of freedom."""

    variance: float
    freedom: float


def _none(factor: float) -> float:  # noqa: ARG001 (one of a kind of functions)
    return 0.0


@dataclass(frozen=True)
class Doubt:
    """What ln of a ratio may be off by: parts that scatter here, and the boards' sensors.

    Half of an interval is the root of the sum of squared halves of its parts, each by its own t. It holds the truth at
    least as often as its level says, whatever the variances are (Banerjee, Sankhya 22, 1960).
    """

    parts: tuple[Part, ...]
    boards: Callable[[float], float] = _none  # the sensors' share at so many standard uncertainties
    least: Callable[[float], float] = _none  # and what boards alone make of it: no half is less
    bias: float = 0.0  # added as it is: it may be off by so much each time, in one direction

    def half(self, level: float = LEVEL) -> float:
        """Return half of the interval of ln of the ratio at a level."""
        factor = student_t(METERED.freedom, level)
        squares = sum(student_t(one.freedom, level) ** 2 * one.variance for one in self.parts)
        return max(math.sqrt(squares + self.boards(factor) ** 2), self.least(factor)) + self.bias

    def p(self, middle: float) -> float:
        """Return the smallest probability at which the interval around `middle` still leaves out 0, rounded up."""
        if not self.half(1 - _LEAST_P) >= abs(middle):
            return _LEAST_P
        low, high = 0, _STEPS * 9  # ln p in steps: the interval holds 0 at `high`, or p is 1
        while high - low > 1:
            step = (low + high) // 2
            if self.half(1 - 10 ** (-step / _STEPS)) < abs(middle):
                low = step
            else:
                high = step
        return float(10 ** (-low / _STEPS))


def welch(ours: Part, theirs: Part) -> tuple[Part, ...]:
    """Return the doubt of a difference of two means, whose variances are known with n - 1 degrees each.

    One part with Welch's degrees where both have three repeats or more and deviations are alike, within a factor of
    two; else two parts, each with its own: Welch's 95 % are 90 % at 2 against 5 repeats and five times the deviation.
    """
    total = ours.variance + theirs.variance
    if total == 0:
        return ()
    each = [one.variance * (one.freedom + 1) for one in (ours, theirs)]
    if min(ours.freedom, theirs.freedom) < 2 or max(each) > 4 * min(each):
        return ours, theirs
    squares = sum(one.variance**2 / one.freedom for one in (ours, theirs))
    return (Part(total, total**2 / squares),)


def holm(p: Sequence[float | None], made: int = 0, alpha: float = 1 - LEVEL) -> list[bool]:
    """Return which of a family of comparisons hold, at most `alpha` for one or more false ones; null is none of it.

    The least p has to be below alpha / m, the next below alpha / (m - 1) ... and the first that is not
    ends it, whatever they share (Holm, Scandinavian Journal of Statistics 6, 1979). `made`: m, where the family has
    further members, which could only have come between these.
    """
    order = sorted((value, at) for at, value in enumerate(p) if value is not None)
    held = [False] * len(p)
    for rank, (value, at) in enumerate(order):
        if value > alpha / (max(made, len(order)) - rank):
            break
        held[at] = True
    return held
