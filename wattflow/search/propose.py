"""Which settings to run next: values in, settings out, so that it can be proven without a cluster.

    a design that fills the space -> runs -> fit -> the settings of most expected improvement -> runs -> fit ...

The goal's logarithm, and that of each side condition over its limit, are fitted by a Gaussian process each; where runs
failed, so is whether a setting runs at all. A setting is worth its expected improvement on the best so far (Jones,
Schonlau, Welch, J. Global Optimization 13, 1998) times the probability that it runs and keeps the conditions (Gardner
and others, ICML 2014). Several at once: each in turn is taken to come out as is expected (the kriging believer of
Ginsbourger and others, 2010).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from wattflow.energy.curve import Floats
from wattflow.search.space import Space
from wattflow.search.surrogate import Posterior, fit

_ERF = np.vectorize(math.erf, otypes=[float])
_SURE = 0.5  # a setting whose conditions the fit holds for more likely than not may be the best


@dataclass(frozen=True)
class Observation:
    """One run of a setting: the goal, and each side condition's figure over its limit; null where it failed."""

    setting: int
    goal: float | None
    over_limit: tuple[float, ...] = ()  # 0.8: 20 % below; each is to be below 1


@dataclass(frozen=True)
class Belief:
    """What all runs so far say of every setting of a space."""

    mean: Floats  # ln of the goal
    sd: Floats
    allowed: Floats  # the probability that a setting runs and keeps the conditions
    goal: Posterior | None
    ran: tuple[int, ...]  # settings that have a run with a goal

    @property
    def best(self) -> int | None:
        """The setting that ran with the least expected goal, of those that are likely allowed; null without one."""
        fair = [one for one in self.ran if self.is_fair(one)]
        return min(fair, key=lambda one: (self.mean[one], one)) if fair else None

    def is_fair(self, setting: int) -> bool:
        """Return whether a setting more likely than not runs and keeps the conditions."""
        return bool(self.allowed[setting] > _SURE)

    def gains(self) -> Floats:
        """Return each setting's expected improvement on the best, relative, times its chance to be allowed."""
        if self.best is None:  # none is allowed yet: the likeliest, of like ones the cheapest
            likely: Floats = self.allowed * np.exp(self.mean.min() - self.mean)
            return likely
        better = self.mean[self.best] - self.mean
        z = better / self.sd
        density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        gains: Floats = self.allowed * (better * _normal(z) + self.sd * density)
        return gains


def _normal(z: Floats) -> Floats:
    """Return the standard normal distribution's cumulative probability."""
    share: Floats = 0.5 * (1.0 + _ERF(z / math.sqrt(2.0)))
    return share


def believe(space: Space, seen: Sequence[Observation], seed: int) -> Belief:
    """Return what runs say of every setting; without one that ran, nothing but that some failed."""
    x = space.coordinates
    at = [one for one in seen if one.goal is not None]
    goals = np.array([one.goal for one in seen if one.goal is not None])
    allowed = np.ones(len(x))
    if any(one.goal is None for one in seen):
        rows = np.array([one.setting for one in seen])
        ran = np.array([-1.0 if one.goal is None else 1.0 for one in seen])
        if at:
            mean, sd = fit(x[rows], ran, space.numeric, seed).predict(x)
            allowed = _normal(mean / np.maximum(sd, 0.2))
        allowed[list({*rows.tolist()} - {one.setting for one in at})] = 0.0
    if not at:
        return Belief(np.zeros(len(x)), np.ones(len(x)), allowed, None, ())
    rows = np.array([one.setting for one in at])
    for k in range(len(at[0].over_limit)):
        over = np.log(np.array([one.over_limit[k] for one in at]))
        mean, sd = fit(x[rows], over, space.numeric, seed).predict(x)
        allowed = allowed * _normal(-mean / sd)
        for one in set(rows.tolist()):  # no fit outweighs what a setting's own runs show
            allowed[one] *= over[rows == one].mean() < 0
    goal = fit(x[rows], np.log(goals), space.numeric, seed)
    mean, sd = goal.predict(x)
    return Belief(mean, sd, allowed, goal, tuple(sorted(set(rows.tolist()))))


def design(space: Space, n: int, seed: int, taken: Collection[int] = ()) -> list[int]:
    """Return n settings that lie far from each other and from those taken: each the farthest from all before it."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(space.settings))
    chosen: list[int] = []
    apart = np.full(len(order), np.inf)

    for one in taken:
        apart = np.minimum(apart, _distance(space, one))
    apart[list(taken)] = -np.inf
    while len(chosen) < min(n, len(order) - len(taken)):
        farthest = int(order[np.argmax(apart[order])])
        chosen.append(farthest)
        apart = np.minimum(apart, _distance(space, farthest))
        apart[[*chosen, *taken]] = -np.inf
    return chosen


def _distance(space: Space, setting: int) -> Floats:
    """Return how far each setting lies from one; two values that are no numbers are 1 apart."""
    steps = np.abs(space.coordinates - space.coordinates[setting])
    named = ~np.array(space.numeric, dtype=bool)
    steps[:, named] = steps[:, named] > 0
    apart: Floats = np.sqrt((steps**2).sum(axis=1))
    return apart


def design_size(space: Space) -> int:
    """Return how many settings are run before a fit is asked: two an axis and two, a tenth of all at most."""
    return max(4, min(2 * len(space.axes) + 2, len(space.settings) // 10))


def propose(
    space: Space, seen: Sequence[Observation], waiting: Collection[int], n: int, seed: int
) -> list[int]:
    """Return up to n settings that have no run yet and none waiting, the most promising first."""
    asked = {*(one.setting for one in seen), *waiting}
    first = design_size(space) - len(asked)
    chosen = design(space, min(n, first), seed, sorted(asked)) if first > 0 else []
    if len(chosen) == n or len(asked) + len(chosen) == len(space.settings):
        return chosen
    if not any(one.goal is not None for one in seen):
        return [*chosen, *design(space, n - len(chosen), seed, sorted({*asked, *chosen}))]
    return [*chosen, *_promising(space, seen, [*waiting, *chosen], n - len(chosen), seed)]


def _promising(
    space: Space, seen: Sequence[Observation], waiting: Sequence[int], n: int, seed: int
) -> list[int]:
    belief = believe(space, seen, seed)
    assert belief.goal is not None
    asked = {*(one.setting for one in seen), *waiting}
    for one in waiting:
        belief = _supposing(space, belief, one)
    chosen: list[int] = []
    while len(chosen) < n and len(asked) < len(space.settings):
        gains = belief.gains()
        gains[list(asked)] = -np.inf
        one = int(np.argmax(gains))
        chosen.append(one)
        asked.add(one)
        belief = _supposing(space, belief, one)
    return chosen


def _supposing(space: Space, belief: Belief, setting: int) -> Belief:
    """Return the belief where a run of a setting comes out as is expected: the means stay, it is less unsure."""
    assert belief.goal is not None
    goal = belief.goal.with_expected(space.coordinates[setting])
    _, sd = goal.predict(space.coordinates)
    return Belief(belief.mean, sd, belief.allowed, goal, belief.ran)
