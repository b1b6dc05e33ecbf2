"""What a search knows: which setting is best, which may be as good, and which runs would decide it.

Runs decide by the statistics of every other comparison (analysis/statistics.py): a setting is `beaten` where the best
is established to take less. A fit decides only what is not worth a run, and says so: a setting is `unlikely` where the
fit gives it less than 1 % to be better by more than the indifference. What is neither is `open`: it gets further runs,
up to the repeats of the grid, and a setting that is open then is a tie.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wattflow.analysis import statistics
from wattflow.analysis.statistics import Ratio, Value
from wattflow.search.propose import Belief, Observation, believe, design_size, propose
from wattflow.search.space import Space

INDIFFERENT = 0.01  # relative: less than so much is worth no run
_UNLIKELY_Z = 2.33  # one side, 1 %
_GAIN = 0.1  # of the indifference, that a setting has to promise to be worth a run


@dataclass(frozen=True)
class Effect:
    """How much one axis changes the goal with all other choices as in the best setting, by the fit."""

    axis: str
    most: float  # relative; the largest difference between two of its values there
    sd: float  # of that

    @property
    def matters(self) -> bool | None:
        """Whether it changes the goal by more than the indifference; null where the fit is too unsure to say."""
        if self.most > max(INDIFFERENT, 2 * self.sd):
            return True
        return False if self.most + 2 * self.sd < 2 * INDIFFERENT else None


@dataclass(frozen=True)
class Verdict:
    """What the runs so far establish. Settings are positions in the space."""

    best: int | None
    beaten: dict[int, Ratio]  # by runs; the ratio is to the best
    ties: dict[int, Ratio]  # no further run can tell them from the best, or their repeats are spent
    open: dict[int, Ratio]  # further runs may decide
    unlikely: int  # settings that ran, of which only the fit says that they are dearer
    unseen: int  # settings that did not run
    hopeful: int  # of those, settings that the fit holds for worth a run
    excluded: int  # settings that ran and failed or broke a side condition
    effects: tuple[Effect, ...]  # of each axis that has two values or more beside the best

    @property
    def is_final(self) -> bool:
        """Whether no further run is worth it: the best and its ties stand, as far as runs and fit can say."""
        return not self.open and not self.hopeful


@dataclass(frozen=True)
class Runs:
    """All that a search knows of its settings: their runs, and how many of each are asked for at most."""

    seen: Sequence[Observation]  # a run each, failed ones too
    values: Mapping[int, Sequence[Value]]  # the goal of those that did not fail
    repeats: int  # runs of one setting at most
    waiting: Sequence[int] = ()  # the setting of each run that is asked and not over
    void: Sequence[int] = ()  # the setting of each run that finished and counts in no figure

    def over(self, setting: int) -> int:
        """Return how many runs of a setting are over."""
        return sum(one.setting == setting for one in self.seen) + self.void.count(setting)

    def asked(self, setting: int) -> int:
        """Return how many runs of a setting are over or waiting."""
        return self.over(setting) + self.waiting.count(setting)

    def closed(self) -> list[int]:
        """Return the settings that no search asks as new: they wait, or all their runs count in no figure."""
        return [*self.waiting, *(one for one in set(self.void) if self.asked(one) >= self.repeats)]


def judge(space: Space, runs: Runs, seed: int) -> Verdict:
    """Return what the runs establish."""
    belief = believe(space, runs.seen, seed)
    ran = {one.setting for one in runs.seen}
    excluded = {one for one in ran if not belief.is_fair(one)}
    unseen = len(space.settings) - len(ran)
    left = unseen - len({*runs.closed()} - ran)
    best = belief.best
    if best is None:
        return Verdict(None, {}, {}, {}, 0, unseen, left, len(excluded), ())
    rivals = [one for one in runs.values if one != best and one not in excluded]
    near = {one for one in rivals if _may_be_better(belief, one, best)}
    near |= {
        *sorted(rivals, key=lambda one: belief.mean[one])[:1]
    }  # runs decide against the next one
    ratios = _against(best, sorted(rivals), runs)
    beaten: dict[int, Ratio] = {}
    ties: dict[int, Ratio] = {}
    undecided: dict[int, Ratio] = {}
    for one, ratio in ratios.items():
        if ratio.established and ratio.ratio > 1:
            beaten[one] = ratio
        elif one in near or ratio.established:  # runs against the fit: it is no loser by the fit
            (undecided if _can_decide(ratio, one, best, runs) else ties)[one] = ratio
    worth = _worth(belief, ran, runs.closed())
    return Verdict(
        best=best,
        beaten=beaten,
        ties=ties,
        open=undecided,
        unlikely=len(rivals) - len(beaten) - len(ties) - len(undecided),
        unseen=unseen,
        hopeful=int(worth.sum()) if len(ran) >= design_size(space) else left,
        excluded=len(excluded),
        effects=tuple(_effects(space, belief, best)),
    )


def next_runs(space: Space, runs: Runs, n: int, seed: int) -> list[int]:
    """Return up to n settings to run next, one for each run; none where the verdict is final or waits for runs."""
    verdict = judge(space, runs, seed)
    left = propose(space, runs.seen, runs.closed(), n, seed)
    chosen = left[: min(n, verdict.hopeful)]
    if verdict.best is None:
        return left
    for one in _undecided_first(verdict):
        if len(chosen) == n:
            break
        if runs.asked(one) + chosen.count(one) < runs.repeats:
            chosen.append(one)
    return chosen


def _undecided_first(verdict: Verdict) -> list[int]:
    """Return the settings whose repeats would decide most, the best among them as every comparison rests on it."""
    if not verdict.open:
        return []
    assert verdict.best is not None
    nearest = sorted(verdict.open, key=lambda one: (abs(math.log(verdict.open[one].ratio)), one))
    return [verdict.best, *nearest] * 2


def _may_be_better(belief: Belief, one: int, best: int) -> bool:
    """Return whether the fit leaves 1 % or more that a setting beats another by more than the indifference."""
    gap = belief.mean[one] - belief.mean[best] + INDIFFERENT
    return bool(gap < _UNLIKELY_Z * math.hypot(belief.sd[one], belief.sd[best]))


def _against(best: int, rivals: Sequence[int], runs: Runs) -> dict[int, Ratio]:
    """Return each rival over the best, as one family of all pairs of settings that have repeats.

    The best was chosen by these very runs, so that each such pair is a comparison that was made.
    """
    ratios = [statistics.ratio(runs.values[one], runs.values[best]) for one in rivals]
    repeated = sum(ratio.p is not None for ratio in ratios)
    made = repeated * (repeated + 1) // 2
    return dict(zip(rivals, statistics.family(ratios, made=made), strict=True))


def _can_decide(ratio: Ratio, one: int, best: int, runs: Runs) -> bool:
    """Return whether further runs of two settings may tell them apart: some are left, and the sensors allow it."""
    spent = all(runs.over(each) >= runs.repeats for each in (one, best))
    blind = ratio.floor is not None and abs(math.log(ratio.ratio)) < math.log1p(ratio.floor) / 2
    alike = (
        ratio.low is not None
        and ratio.low > 1 - INDIFFERENT
        and (ratio.high or 2) < 1 + INDIFFERENT
    )
    return not (spent or blind or alike)


def _worth(belief: Belief, ran: Collection[int], waiting: Collection[int]) -> np.ndarray:
    gains = belief.gains()
    worth = gains > _GAIN * INDIFFERENT
    worth[[*ran, *waiting]] = False
    return worth


def _effects(space: Space, belief: Belief, best: int) -> Iterator[Effect]:
    """Return what each axis changes beside the best, among settings that the fit holds for allowed."""
    settings = np.array(space.settings)
    for k, axis in enumerate(space.axes):
        alike = (np.delete(settings, k, axis=1) == np.delete(settings[best], k)).all(axis=1)
        beside = np.flatnonzero(alike & (belief.allowed > 0.5))
        if len(beside) < 2:
            continue
        means = belief.mean[beside]
        low, high = beside[np.argmin(means)], beside[np.argmax(means)]
        sd = math.hypot(belief.sd[low], belief.sd[high])
        yield Effect(axis.name, float(np.expm1(belief.mean[high] - belief.mean[low])), sd)
