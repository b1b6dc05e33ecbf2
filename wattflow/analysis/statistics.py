"""Which of two settings costs less: means and ratios that keep boards and repeats apart.

A board's sensor is off by a gain of its own, some 5 %, the same in each repeat. So a ratio of two settings holds where
both ran on the same boards, whose gain drops out; between different boards nothing under 10 % is claimed.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattflow.analysis.cost import Spent, break_even_host_w
from wattflow.energy import curve

# of a sensor's gain that lies anywhere within 5 % (arXiv 2312.02741)
BOARD_SD = 0.05 / math.sqrt(3)
LEAST_BETWEEN_BOARDS = 0.10
# Student's t, 97.5 %, for 1 to 30 degrees of freedom
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

Boards = tuple[str, ...]
Run = tuple[float, float, Boards]  # J and s for the same work, and the boards it ran on


@dataclass(frozen=True)
class Value:
    """One repeat of a setting: a positive number, its standard uncertainty by sampling, and the boards it ran on."""

    value: float
    u: float
    boards: Boards


@dataclass(frozen=True)
class Mean:
    """The mean of a setting's repeats, with its 95 % interval; null where there is one repeat only."""

    n: int
    boards: int  # distinct sets of boards
    mean: float
    sd_within: float | None  # between repeats on the same boards
    # between boards, what repeats would explain taken off; null with one set of boards
    sd_between: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ratio:
    """One setting over another, with its 95 % interval, and whether that is a difference."""

    ratio: float
    low: float | None
    high: float | None
    how: str  # paired, one board, or between boards
    pairs: int  # sets of boards that ran both
    established: bool
    why_not: str | None


@dataclass(frozen=True)
class BreakEven:
    """The extra host watts at which two settings cost the same, with its 95 % interval; null where there is none."""

    host_w: float | None
    low_w: float | None
    high_w: float | None
    why_not: str | None


NO_BREAK_EVEN = BreakEven(None, None, None, None)  # of a reference against itself


def student_t(freedom: float) -> float:
    """Return the factor of a two-sided 95 % interval for so many degrees of freedom, at least 1."""
    whole = max(1, math.floor(freedom))
    return _T[whole - 1] if whole <= len(_T) else 1.960 + 2.42 / whole


def mean(values: Sequence[Value]) -> Mean:
    """Return the mean over boards of the means over repeats, so that no board counts for more.

    With several sets of boards they are a random effect and the interval is that of their means; with one it is that of
    the repeats, and holds for those boards. The deviation between boards is by the method of moments of a one-way
    analysis of variance (Searle, Casella, McCulloch, Variance Components, 1992, chapter 3), not below 0.
    """
    groups = _by_boards(values)
    means = np.array([np.mean(group) for group in groups.values()])
    n, k = len(values), len(groups)
    squares = sum(float(np.sum((np.array(g) - np.mean(g)) ** 2)) for g in groups.values())
    within = math.sqrt(squares / (n - k)) if n > k else None
    between = None
    half = None
    if k > 1:
        repeats = (n - sum(len(g) ** 2 for g in groups.values()) / n) / (k - 1)
        grand = sum(len(g) * float(np.mean(g)) for g in groups.values()) / n
        spread = sum(len(g) * (float(np.mean(g)) - grand) ** 2 for g in groups.values()) / (k - 1)
        between = math.sqrt(max(0.0, (spread - (within or 0.0) ** 2) / repeats))
        half = student_t(k - 1) * float(means.std(ddof=1)) / math.sqrt(k)
    elif within is not None:
        half = student_t(n - 1) * within / math.sqrt(n)
    middle = float(means.mean())
    return Mean(
        n=n,
        boards=k,
        mean=middle,
        sd_within=within,
        sd_between=between,
        low=None if half is None else middle - half,
        high=None if half is None else middle + half,
    )


def ratio(values: Sequence[Value], reference: Sequence[Value]) -> Ratio:
    """Return one setting's mean over another's; computed on logarithms, so that it reads the same the other way round.

    Where two or more sets of boards ran both, by the differences within each; where one did, by its repeats (Welch's
    interval); else between boards, whose gains then are part of the uncertainty.
    """
    ours, theirs = _by_boards(values), _by_boards(reference)
    both = sorted(set(ours) & set(theirs))
    if len(both) > 1:
        logs = np.array([_mean_log(ours[b]) - _mean_log(theirs[b]) for b in both])
        half = student_t(len(both) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(both))
        return _judged(float(logs.mean()), half, "paired", len(both))
    if len(both) == 1:
        return _judged(*_welch(ours[both[0]], theirs[both[0]]), "one board", 1)
    middle = float(
        np.mean([_mean_log(g) for g in ours.values()])
        - np.mean([_mean_log(g) for g in theirs.values()])
    )
    variance = sum(_variance_between(groups) for groups in (ours, theirs))
    freedom = max(1, min(len(ours), len(theirs)) - 1)
    known = len(ours) > 1 and len(theirs) > 1
    factor = student_t(freedom) if known else student_t(1000)
    return _judged(middle, factor * math.sqrt(variance), "between boards", 0)


def break_even(settings: Sequence[Run], reference: Sequence[Run]) -> BreakEven:
    """Return the extra host watts at which two settings cost the same, with its 95 % interval by Fieller's theorem.

    Over the boards that ran both, where there are two or more; over the repeats, where there is one; between boards,
    whose gains would be part of it, there is no interval. Fieller (1954): all h at which E_A + h t_A, E_B + h t_B are
    no established difference; where even an endless h is among them, there is none either.
    """
    ours, theirs = _runs_by_boards(settings), _runs_by_boards(reference)
    both = sorted(set(ours) & set(theirs))
    if len(both) > 1:
        steps = np.array([ours[b].mean(axis=0) - theirs[b].mean(axis=0) for b in both])
        less, spread, freedom = steps.mean(axis=0), np.cov(steps.T) / len(both), len(both) - 1
    else:
        arms = [[of[b] for b in both or of] for of in (ours, theirs)]
        means = [np.mean([group.mean(axis=0) for group in arm], axis=0) for arm in arms]
        less, spread, freedom = means[0] - means[1], None, 0
        if both and min(len(arm[0]) for arm in arms) > 1:
            spread = np.sum([np.cov(arm[0].T) / len(arm[0]) for arm in arms], axis=0)
            freedom = min(len(arm[0]) for arm in arms) - 1
    host_w, why_not = break_even_host_w(Spent(*less), Spent(0.0, 0.0))
    if host_w is None or spread is None:
        return BreakEven(host_w, None, None, why_not)
    return BreakEven(host_w, *_fieller(less, np.asarray(spread), student_t(freedom)), why_not)


def _runs_by_boards(runs: Sequence[Run]) -> dict[Boards, curve.Floats]:
    groups: dict[Boards, list[tuple[float, float]]] = defaultdict(list)
    for energy_j, time_s, boards in runs:
        groups[boards].append((energy_j, time_s))
    return {boards: np.array(pairs) for boards, pairs in groups.items()}


def _fieller(
    less: curve.Floats, spread: curve.Floats, factor: float
) -> tuple[float | None, float | None]:
    """Return the h between which J + h s, of those means and that covariance, is no established difference from 0."""
    squares = np.outer(less, less) - factor**2 * spread
    a, b, c = squares[1, 1], 2 * squares[0, 1], squares[0, 0]
    if a <= 0:
        return None, None
    half = math.sqrt(max(0.0, b * b - 4 * a * c))
    return float((-b - half) / (2 * a)), float((-b + half) / (2 * a))


def _by_boards(values: Sequence[Value]) -> dict[Boards, list[float]]:
    groups: dict[Boards, list[float]] = defaultdict(list)
    for value in values:
        groups[value.boards].append(value.value)
    return groups


def _mean_log(values: Sequence[float]) -> float:
    return math.log(float(np.mean(values)))


def _welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float | None]:
    """Return the difference of two means' logarithms, and half its interval; null where one has a single repeat."""
    middle = _mean_log(ours) - _mean_log(theirs)
    if min(len(ours), len(theirs)) < 2:
        return middle, None
    parts = [float(np.var(v, ddof=1)) / len(v) / float(np.mean(v)) ** 2 for v in (ours, theirs)]
    if sum(parts) == 0:
        return middle, 0.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(v) - 1) for part, v in zip(parts, (ours, theirs), strict=True)
    )
    return middle, student_t(freedom) * math.sqrt(sum(parts))


def _variance_between(groups: dict[Boards, list[float]]) -> float:
    """Return the variance of a setting's mean logarithm over boards; with one set of them, that of their gains."""
    logs = np.array([_mean_log(group) for group in groups.values()])
    if len(logs) > 1:
        return float(logs.var(ddof=1)) / len(logs)
    (boards,) = groups
    return BOARD_SD**2 / max(1, len(boards))


def _judged(middle: float, half: float | None, how: str, pairs: int) -> Ratio:
    over = math.exp(middle)
    if half is None:
        return Ratio(over, None, None, how, pairs, established=False, why_not="one repeat each")
    low, high = math.exp(middle - half), math.exp(middle + half)
    why_not = None
    if low <= 1 <= high:
        why_not = "the interval holds 1"
    elif pairs == 0 and abs(over - 1) < LEAST_BETWEEN_BOARDS:
        why_not = "boards differ by about 5 %, and no board ran both"
    return Ratio(over, low, high, how, pairs, established=why_not is None, why_not=why_not)
