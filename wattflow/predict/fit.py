"""Coefficients of the form by least squares of relative errors, what they miss held-out, and how sure predictions are.

Coefficients are not negative (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23): no work gives time
or energy back. Held-out errors leave out whole configurations, all repeats of one at once, and fit the rest anew.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from wattflow.analysis.intervals import student_t
from wattflow.energy.curve import Floats
from wattflow.errors import RefusedError
from wattflow.predict.form import Terms

LEAST_SETTINGS = 4  # fewer leave nothing to hold out


@dataclass(frozen=True)
class Run:
    """One measured run: its terms, its seconds and joules, its configuration and its model."""

    terms: Terms
    seconds: float
    joules: float
    setting: Hashable
    model: str


@dataclass(frozen=True)
class Line:
    """Non-negative coefficients of terms, and the relative scatter of what they leave."""

    coefficients: tuple[float, ...]
    sd: float  # of ln(measured / predicted), held out by configuration
    freedom: int
    inverse: tuple[
        tuple[float, ...], ...
    ]  # of the relative terms' squares, for the terms that are used

    def value(self, terms: Sequence[float]) -> float:
        """Return what the terms add up to."""
        return float(np.dot(self.coefficients, terms))

    def half(self, terms: Sequence[float]) -> float:
        """Return half of the 95 % interval of one further run's logarithm: wider the farther from what was fitted."""
        value = self.value(terms)
        used = [term / value for term, a in zip(terms, self.coefficients, strict=True) if a > 0]
        leverage = float(np.array(used) @ np.array(self.inverse) @ np.array(used))
        return student_t(self.freedom) * self.sd * math.sqrt(1 + leverage)


@dataclass(frozen=True)
class Estimate:
    """A predicted number with its 95 % interval; null for a scenario, which has none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Prediction:
    """What a point will take, as predicted and never measured."""

    seconds: Estimate
    joules: Estimate
    energy_per_token_j: Estimate


@dataclass(frozen=True)
class Fit:
    """Both lines, fitted to the same runs."""

    time: Line
    energy: Line

    def predict(self, terms: Terms, *, scenario: bool = False) -> Prediction:
        """Return what a point of these terms will take; a scenario is given without an interval."""
        seconds = self.time.value(terms.of_time())
        of_energy = terms.of_energy(seconds)
        joules = self.energy.value(of_energy)
        halves: tuple[float | None, float | None] = (None, None)
        if not scenario:
            halves = (self.time.half(terms.of_time()), self.energy.half(of_energy))
        energy = _estimate(joules, halves[1])
        a_token = [None if v is None else v / terms.tokens for v in vars(energy).values()]
        assert a_token[0] is not None
        return Prediction(_estimate(seconds, halves[0]), energy, Estimate(a_token[0], *a_token[1:]))


def _estimate(value: float, half: float | None) -> Estimate:
    if half is None:
        return Estimate(value, None, None)
    return Estimate(value, value * math.exp(-half), value * math.exp(half))


@dataclass(frozen=True)
class HeldOut:
    """How far predictions of what was left out were off, relative; `first` of settings that came out cheapest."""

    settings: int
    time_mape: float
    energy_mape: float
    worst_energy: float


def fit(runs: Sequence[Run]) -> Fit:
    """Return the fit of runs; RefusedError for fewer configurations than leave something to hold out."""
    settings = {run.setting for run in runs}
    if len(settings) < LEAST_SETTINGS:
        raise RefusedError(
            f"{len(settings)} configurations have finished runs that count; a fit needs {LEAST_SETTINGS} or more."
        )
    time = [run.terms.of_time() for run in runs]
    seconds = np.array([run.seconds for run in runs])
    joules = np.array([run.joules for run in runs])
    names = [run.setting for run in runs]
    time_line = _line(np.array(time), seconds, names)
    # of the fitted seconds, as a prediction has them: what the time misses is in the energy's scatter
    energy = [run.terms.of_energy(time_line.value(run.terms.of_time())) for run in runs]
    return Fit(time_line, _line(np.array(energy), joules, names))


def held_out(runs: Sequence[Run], by: Sequence[Hashable]) -> HeldOut:
    """Return the errors of predictions of each group of runs, by `by`, from a fit of all others.

    RefusedError where the others are too few for one.
    """
    off_s: dict[Hashable, list[float]] = {}
    off_j: dict[Hashable, list[float]] = {}
    for group in dict.fromkeys(by):
        rest = [run for run, name in zip(runs, by, strict=True) if name != group]
        found = fit(rest)
        for run, name in zip(runs, by, strict=True):
            if name == group:
                made = found.predict(run.terms, scenario=True)
                off_s.setdefault(run.setting, []).append(abs(made.seconds.value / run.seconds - 1))
                off_j.setdefault(run.setting, []).append(abs(made.joules.value / run.joules - 1))
    energy = [float(np.mean(of)) for of in off_j.values()]
    times = [float(np.mean(of)) for of in off_s.values()]
    return HeldOut(len(energy), float(np.mean(times)), float(np.mean(energy)), max(energy))


def _line(terms: Floats, measured: Floats, settings: Sequence[Hashable]) -> Line:
    """Fit measured = terms x coefficients by relative errors, each configuration with the same weight in all."""
    counts = {one: settings.count(one) for one in set(settings)}
    weights = np.array([1 / math.sqrt(counts[one]) for one in settings])
    relative = terms / measured[:, None] * weights[:, None]
    coefficients = non_negative(relative, weights)
    used = coefficients > 0
    squares = relative[:, used].T @ relative[:, used]
    inverse = np.linalg.pinv(squares)
    squared = []
    for group in counts:
        rest = np.array([one != group for one in settings])
        left = non_negative(relative[rest], weights[rest])
        off = np.log(measured[~rest] / np.maximum(terms[~rest] @ left, 1e-300))
        # each repeat's own, not that of their mean: the interval is that of one further run
        squared.append(float(np.mean(np.square(np.clip(off, -5, 5)))))
    freedom = max(1, len(counts) - int(used.sum()))
    # held-out residuals are wider than those of one further run by its leverage, which `half` adds again
    sd = math.sqrt(float(np.mean(squared)))
    return Line(tuple(coefficients.tolist()), sd, freedom, tuple(map(tuple, inverse.tolist())))


def non_negative(matrix: Floats, target: Floats) -> Floats:
    """Return x >= 0 of the least |matrix x - target|, by Lawson and Hanson's active sets; columns are scaled first."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    a = matrix / scale
    x = np.zeros(a.shape[1])
    free = np.zeros(a.shape[1], dtype=bool)
    free_before: set[bytes] = set()
    while True:
        gradient = a.T @ (target - a @ x)
        gradient[free | (np.linalg.norm(a, axis=0) == 0)] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= 1e-10 or free.all():
            break
        free[best] = True
        if free.tobytes() in free_before:  # rounding alone moves on from here
            break
        free_before.add(free.tobytes())
        x = _within(a, target, x, free)
    found: Floats = x / scale
    return found


def _within(a: Floats, target: Floats, x: Floats, free: np.ndarray) -> Floats:
    """Move x to the least squares of the free columns, fixing at 0 what would become negative on the way."""
    while free.any():
        goal = np.zeros_like(x)
        goal[free] = np.linalg.lstsq(a[:, free], target, rcond=None)[0]
        below = free & (goal <= 0)
        if not below.any():
            return goal
        steps = x[below] / np.maximum(x[below] - goal[below], 1e-300)
        x = x + min(1.0, float(steps.min())) * (goal - x)
        free &= x > 1e-14
        x = np.where(free, x, 0.0)
    return np.zeros_like(x)
