"""Which of two settings costs less: means and ratios that keep boards and repeats apart.

A board's sensor is off by a gain and an offset of its own, the same in each repeat (energy/boards.py). The offset's
share falls with watts, so that a ratio of settings which differ in watts is doubtful even on one board, however many
repeats it has; between different boards both count, and nothing under 10 % is claimed. One run a side shows nothing.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wattflow.analysis.cost import Spent, break_even_host_w
from wattflow.analysis.intervals import Doubt, Part, holm, student_t, welch
from wattflow.analysis.means import of_mean
from wattflow.energy import curve
from wattflow.energy.boards import METERED
from wattflow.nullable import complete_sum

LEAST_BETWEEN_BOARDS = 0.10
# What repeats need not show (docs/uncertainty.md): how far a board may drift from the first half of a comparison's runs
# to the second, and the deviation between jobs
DRIFT = 0.01
SESSION_SD = 0.01
ONE_RUN = "one run a side shows no difference"

Boards = tuple[str, ...]
Run = tuple[float, float, Boards]  # J and s for the same work, and the boards it ran on


@dataclass(frozen=True)
class Value:
    """One repeat of a setting: a positive number, its standard uncertainty by sampling, and the boards it ran on."""

    value: float
    u: float
    boards: Boards
    # mean power of each board; null where no power sensor made the value, infinite where its offset drops out
    watts: float | None = None
    started: float | None = None  # when, s
    session: str | None = None  # the job that ran it
    expanded_u: float | None = (
        None  # by sampling and the boards' sensors (k = 2), where they are known
    )


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
    expanded_u: float | None = (
        None  # k = 2: scatter, sampling and the boards' sensors; null where one is unknown
    )


@dataclass(frozen=True)
class Ratio:
    """One setting over another, with its 95 % interval, null where that is endless, and whether it is a difference."""

    ratio: float
    low: float | None
    high: float | None
    how: str  # paired, one board, or between boards
    pairs: int  # sets of boards that ran both
    established: bool
    why_not: str | None
    rests_on: str = ""  # repeats, boards, order: what the verdict takes for granted
    p: float | None = None  # the least at which the interval leaves out 1; null without an interval
    family: int = 1  # comparisons that were made together
    floor: float | None = (
        None  # half of the interval, relative, that the boards' sensors alone make
    )


@dataclass(frozen=True)
class BreakEven:
    """The extra host watts at which two settings cost the same, with its 95 % interval; null where there is none."""

    host_w: float | None
    low_w: float | None
    high_w: float | None
    why_not: str | None


NO_BREAK_EVEN = BreakEven(None, None, None, None)  # of a reference against itself


def mean(values: Sequence[Value]) -> Mean:
    """Return the mean over boards of the means over repeats, so that no board counts for more.

    With several sets of boards they are a random effect and the interval is that of their means; with one it is that of
    the repeats, and holds for those boards. The deviation between boards is by the method of moments of a one-way
    analysis of variance (Searle, Casella, McCulloch, Variance Components, 1992, chapter 3), not below 0.
    """
    groups = {boards: [one.value for one in of] for boards, of in _by_boards(values).items()}
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
    shared = complete_sum(one.expanded_u for one in values)
    scatter = float(np.std([one.value for one in values], ddof=1)) if n > 1 else None
    return Mean(
        n=n,
        boards=k,
        mean=middle,
        sd_within=within,
        sd_between=between,
        low=None if half is None else middle - half,
        high=None if half is None else middle + half,
        expanded_u=None if shared is None else of_mean(shared / n, scatter, n),
    )


def ratio(values: Sequence[Value], reference: Sequence[Value]) -> Ratio:
    """Return one setting's mean over another's; computed on logarithms, so that it reads the same the other way round.

    Where two or more sets of boards ran both, by the differences within each; where one did, by its repeats; else
    between boards. The boards' sensors and the uncertainty by sampling, which repeats may share, are in each interval.
    """
    ours, theirs = _by_boards(values), _by_boards(reference)
    both = sorted(set(ours) & set(theirs))
    if len(both) > 1:
        how, middle, parts, boards, least = _paired([(ours[b], theirs[b]) for b in both])
    elif both:
        how, middle, parts, boards, least = _one_board(ours[both[0]], theirs[both[0]])
    else:
        how, middle, parts, boards, least = _between(ours, theirs)
    rests_on = _rests_on(values, reference, how)
    if parts is None:
        over = math.exp(middle)
        return Ratio(over, None, None, how, len(both), False, ONE_RUN, rests_on)
    arms = (values, reference)
    beside = [*(_sampling(arm) for arm in arms), Part(_session_variance(arms), math.inf)]
    parts = (*parts, *(one for one in beside if one.variance))
    doubt = Doubt(parts, boards, least, DRIFT * _apart_in_time(arms))
    return _judged(middle, doubt, how, len(both), rests_on)


def family(ratios: Sequence[Ratio], made: int = 0) -> list[Ratio]:
    """Return ratios that were made together, corrected by Holm: at most 5 % for one or more false differences.

    `made`: how many there are with those that are not among them, where somebody chose these by what was measured.
    """
    made = max(made, sum(one.p is not None for one in ratios))
    held = holm([one.p for one in ratios], made)
    found = []
    for one, holds in zip(ratios, held, strict=True):
        why_not = one.why_not
        if one.established and not holds:
            why_not = f"one of {made} comparisons may come this far by chance (Holm)"
        found.append(replace(one, established=why_not is None, why_not=why_not, family=made))
    return found


def break_even(settings: Sequence[Run], reference: Sequence[Run]) -> BreakEven:
    """Return the extra host watts at which two settings cost the same, with its 95 % interval by Fieller's theorem.

    Over the boards that ran both, where there are two or more; over the repeats, where there is one; between boards
    there is no interval. Fieller (1954): all h at which E_A + h t_A, E_B + h t_B are no established difference; where
    even an endless h is among them, there is none either. Gain and offset of the boards are in it: of one set beside
    its repeats, of several no less than what they make alone.
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
    low_w, high_w = _fieller(less, np.asarray(spread), student_t(freedom))
    if low_w is None or high_w is None:
        return BreakEven(host_w, None, None, why_not)
    sensors_w, common_w = _sensors_w(host_w, both)
    own_w = sensors_w if len(both) == 1 else common_w
    return BreakEven(
        host_w,
        host_w - max(math.hypot(host_w - low_w, own_w), sensors_w),
        host_w + max(math.hypot(high_w - host_w, own_w), sensors_w),
        why_not,
    )


def _sensors_w(host_w: float, sets: Sequence[Boards]) -> tuple[float, float]:
    """Return half the interval of a break-even by its boards' sensors, and the part that all boards share.

    What is read is (1 + gain) h - offset. The offsets of a job's boards add up; several jobs are so many more draws.
    """
    sizes = [max(1, len(boards)) for boards in sets]
    factor, size = student_t(METERED.freedom), float(np.mean(sizes))
    return (
        factor * METERED.u(host_w, -size, float(sum(sizes))),
        factor * METERED.u(host_w, -size, math.inf),
    )


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


def _by_boards(values: Sequence[Value]) -> dict[Boards, list[Value]]:
    groups: dict[Boards, list[Value]] = defaultdict(list)
    for value in values:
        groups[value.boards].append(value)
    return groups


def _mean_log(values: Sequence[Value]) -> float:
    return math.log(float(np.mean([one.value for one in values])))


def _scatter(values: Sequence[Value]) -> Part:
    """Return the variance of the mean's logarithm over two or more repeats."""
    numbers = [one.value for one in values]
    relative = float(np.var(numbers, ddof=1)) / float(np.mean(numbers)) ** 2
    return Part(relative / len(numbers), len(numbers) - 1)


def _sampling(values: Sequence[Value]) -> Part:
    """Return the variance by sampling of a mean's logarithm, which repeats of one load may share."""
    return Part(float(np.mean([one.u / one.value for one in values])) ** 2, math.inf)


_Arms = tuple[Sequence[Value], Sequence[Value]]


def _apart_in_time(arms: _Arms) -> float:
    """Return how far apart two settings ran in the mean, over the time from the first run to the last.

    A drift shifts their ratio by this share of it: 0 for runs in a balanced order, 1 where all of one setting came
    first. Sets of boards that ran both have a time each.
    """
    of_boards = [_by_boards(arm) for arm in arms]
    both = sorted(set(of_boards[0]) & set(of_boards[1]))
    pairs: list[_Arms] = [(of_boards[0][b], of_boards[1][b]) for b in both] or [arms]
    return min(1.0, 2 * abs(float(np.mean([_apart(ours, theirs) for ours, theirs in pairs]))))


def _apart(ours: Sequence[Value], theirs: Sequence[Value]) -> float:
    starts = [[one.started for one in arm if one.started is not None] for arm in (ours, theirs)]
    if not all(starts):
        return 0.0
    every = [*starts[0], *starts[1]]
    whole = max(every) - min(every)
    return float(np.mean(starts[0]) - np.mean(starts[1])) / whole if whole > 0 else 0.0


def _session_variance(arms: _Arms) -> float:
    """Return the variance of ln of a ratio by jobs that differ, as far as repeats do not show it.

    Each job that ran a larger share of one setting's repeats than of the other's counts with the difference. Where each
    repeat is a job of its own their scatter has it.
    """
    jobs = [[one.session for one in arm if one.session is not None] for arm in arms]
    if not all(jobs) or all(len(set(of)) == len(of) > 1 for of in jobs):
        return 0.0
    shares = [{job: of.count(job) / len(of) for job in of} for of in jobs]
    return SESSION_SD**2 * sum(
        (shares[0].get(job, 0.0) - shares[1].get(job, 0.0)) ** 2 for job in {*jobs[0], *jobs[1]}
    )


def _watts(values: Sequence[Value]) -> float | None:
    """Return the mean power of each board over some repeats; null where no power sensor made them."""
    known = [one.watts for one in values if one.watts is not None]
    return float(np.mean(known)) if known else None


_Half = Callable[[float], float]
_Found = tuple[
    str, float, tuple[Part, ...] | None, _Half, _Half
]  # how, ln ratio, scatter, boards, least


def _offsets(ours: Sequence[Value], theirs: Sequence[Value], boards: float) -> _Half:
    """Return what the offsets of so many boards make of a ratio on them, by the factor of its interval."""
    watts, other_w = _watts(ours), _watts(theirs)
    if watts is None or other_w is None:
        return lambda _: 0.0
    return lambda factor: METERED.ratio_half(watts, other_w, factor, boards)


def _one_board(ours: Sequence[Value], theirs: Sequence[Value]) -> _Found:
    """Return the ratio of two settings on one set of boards: their repeats, and the boards' offsets."""
    middle = _mean_log(ours) - _mean_log(theirs)
    offsets = _offsets(ours, theirs, max(1, len(ours[0].boards)))
    parts = None
    if min(len(ours), len(theirs)) > 1:
        parts = welch(_scatter(ours), _scatter(theirs))
    return "one board", middle, parts, offsets, offsets


def _paired(pairs: Sequence[tuple[Sequence[Value], Sequence[Value]]]) -> _Found:
    """Return the ratio over sets of boards that ran both.

    Offsets of their own scatter from set to set, and are seen there; the mean offset of all boards is not.
    """
    logs = np.array([_mean_log(ours) - _mean_log(theirs) for ours, theirs in pairs])
    ours, theirs = ([one for pair in pairs for one in pair[side]] for side in (0, 1))
    part = Part(float(logs.var(ddof=1)) / len(logs), len(logs) - 1)
    boards = sum(max(1, len(of[0].boards)) for of, _ in pairs)
    common = _offsets(ours, theirs, math.inf)
    return "paired", float(logs.mean()), (part,), common, _offsets(ours, theirs, boards)


def _between(ours: dict[Boards, list[Value]], theirs: dict[Boards, list[Value]]) -> _Found:
    """Return the ratio of settings on different boards.

    Of several boards the means' scatter holds gains, offsets and repeats; of one the repeats' scatter stands beside
    what gain and offset of such a board are. No interval is narrower than gains and offsets make it.
    """
    middle = float(
        np.mean([_mean_log(g) for g in ours.values()])
        - np.mean([_mean_log(g) for g in theirs.values()])
    )
    scatter: list[Part] = []
    alone = least = 0.0
    for groups in (ours, theirs):
        values = [one for group in groups.values() for one in group]
        watts = _watts(values)
        boards = sum(max(1, len(names)) for names in groups)
        u = 0.0 if watts is None else METERED.relative_u(watts, boards)
        least += u**2
        if len(groups) > 1:
            logs = np.array([_mean_log(group) for group in groups.values()])
            scatter.append(Part(float(logs.var(ddof=1)) / len(logs), len(logs) - 1))
        elif len(values) > 1:
            alone += u**2
            scatter.append(_scatter(values))
    parts = welch(*scatter) if len(scatter) == 2 else None
    return (
        "between boards",
        middle,
        parts,
        lambda factor: factor * math.sqrt(alone),
        lambda factor: factor * math.sqrt(least),
    )


def _judged(middle: float, doubt: Doubt, how: str, pairs: int, rests_on: str) -> Ratio:
    over, half = math.exp(middle), doubt.half()
    floor = doubt.least(student_t(METERED.freedom))
    endless = half > 100  # what was read may be nothing but offset
    why_not = None
    if half >= abs(middle):
        why_not = "the interval holds 1"
        if floor >= abs(middle):
            why_not = "within what the sensors of such boards may be off"
    elif pairs == 0 and abs(over - 1) < LEAST_BETWEEN_BOARDS:
        why_not = "under 10 %, and no board ran both"
    return Ratio(
        ratio=over,
        low=None if endless else math.exp(middle - half),
        high=None if endless else math.exp(middle + half),
        how=how,
        pairs=pairs,
        established=why_not is None,
        why_not=why_not,
        rests_on=rests_on,
        p=1.0 if half >= abs(middle) else doubt.p(middle),
        floor=None if endless else math.exp(floor) - 1,
    )


def _rests_on(values: Sequence[Value], reference: Sequence[Value], how: str) -> str:
    """Return what a comparison takes for granted: how many runs, whose sensors, how much else moved at most."""
    arms = (values, reference)
    where = "different boards" if how == "between boards" else "the same boards"
    said = [f"{len(values)} and {len(reference)} runs on {where}"]
    if all(_watts(arm) is not None for arm in arms):
        said.append(f"sensors as of {METERED.n} metered boards")
    if (apart := _apart_in_time(arms)) > 0:
        first = ", as all runs of one setting came first" if _one_came_first(arms) else ""
        most, between = 100 * DRIFT, 100 * DRIFT * apart
        said.append(f"a drift of {most:g} % at most, {between:.2g} % between the settings{first}")
    if _session_variance(arms):
        said.append(f"jobs that differ by {100 * SESSION_SD:g} % (sd)")
    return "; ".join(said)


def _one_came_first(arms: _Arms) -> bool:
    starts = [[one.started for one in arm if one.started is not None] for arm in arms]
    return max(starts[0]) < min(starts[1]) or max(starts[1]) < min(starts[0])
