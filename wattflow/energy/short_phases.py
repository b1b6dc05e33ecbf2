"""Joules of short phases: what a sensor smears over their edges is put back, by how it answers a step.

A sample is a mean of the power before its stamp, so that one after a prefill still holds some of it:

    power    ____|#####|______|#####|____        # prefill
    sensor   _____.-##-.._____.-##-..____        shown later, and less steep

As the phases' edges and the sensor's answer are known, each sample is a known mixture: its weights are the shares of
the phases in the time that it averages. Over many samples least squares gives the power of each phase. A phase counts
as several parts, as it may not draw alike from its beginning to its end. What all phases draw together is what was
integrated over the window.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wattflow.energy.curve import Curve, Floats, Ints, Joules, between, summed
from wattflow.store.sources import SECOND_NS, Response

LEAST_MOVED = 1e-3  # of a phase's joules: what is less is not put back
LEAST_BATCHES = 6  # or their scatter is not known
MOST_SAMPLES = 6000  # that are solved for: of a longer window, so many in its middle
_LONG = 4.0  # reaches of the answer: a longer phase has edges of its own
_NOISE = 0.004  # of the samples' range: no sensor is more still

Edges = Mapping[str, tuple[Ints, Ints]]  # starts and ends of each phase, ns


def corrected(
    power: Curve,
    response: Response,
    edges: Edges,
    window: tuple[int, int],
    found: Mapping[str, Joules],
) -> dict[str, Joules]:
    """Return the joules of the phases that fill a window; they add up to `found["window"]`.

    `found` has what was integrated in the window and in each phase. That is returned where the sensor's answer is not
    known, moves less than 0.1 % of each phase, or is shown by fewer than six batches.
    """
    phases = {name: found[name] for name in edges}
    if response.lag_u_ms is None or not _is_worth_it(response, edges, found):
        return phases
    excerpt, length = _excerpt(power, edges, window)
    if length == window:
        return _solved(power, response, edges, window, found) or phases
    spans = {name: pair for name, pair in excerpt.items() if len(pair[0])}
    inner = {name: summed(between(power, *pair)) for name, pair in spans.items()}
    whole = summed(between(power, [length[0]], [length[1]]))
    hidden_j = found["window"].aliasing_u_j * whole.seconds / found["window"].seconds
    u_j = None if whole.u_j is None else float(np.hypot(whole.u_j, hidden_j))
    inner["window"] = replace(whole, u_j=u_j)
    solved = _solved(power, response, spans, length, inner)
    if solved is None:
        return phases
    return phases | _extended(phases, inner, solved)


def _is_worth_it(response: Response, edges: Edges, found: Mapping[str, Joules]) -> bool:
    """Return whether all joules are known, and lateness may move more than 0.1 % of those of a phase."""
    whole = found["window"]
    known = [whole, *(found[name] for name in edges)]
    if not whole.seconds or any(one.energy_j is None or one.missing_u_j > 0 for one in known):
        return False
    late_j = (whole.energy_j or 0.0) / whole.seconds * _reach_s(response)
    return any(
        len(starts) * late_j > LEAST_MOVED * (found[name].energy_j or 0.0) and found[name].seconds
        for name, (starts, _) in edges.items()
    )


def _reach_s(response: Response) -> float:
    """Return how long before a sample's stamp power still counts in it."""
    constants = 3 if response.shape == "exponential" else 1
    return (response.lag_ms + constants * response.window_ms) / 1e3


def _batches(edges: Edges) -> Ints:
    """Return when each batch begins: with each span of the phase that comes least often."""
    counted = [starts for starts, ends in edges.values() if (ends - starts).sum() > 0]
    return np.sort(min(counted, key=len))


def _excerpt(power: Curve, edges: Edges, window: tuple[int, int]) -> tuple[Edges, tuple[int, int]]:
    """Return the edges and the window of whole batches in the middle, twelve or those of few enough samples, or all."""
    first, last = np.searchsorted(power.time_ns, window)
    if last - first <= MOST_SAMPLES:
        return edges, window
    starts, middle = _batches(edges), (first + last) // 2
    near = power.time_ns[[middle - MOST_SAMPLES // 2, middle, middle + MOST_SAMPLES // 2]]
    left, here, right = (int(at) for at in np.searchsorted(starts, near))
    left, right = min(left, max(here - LEAST_BATCHES, 0)), max(right, here + LEAST_BATCHES)
    inner = starts[left : right + 1]
    if len(inner) <= LEAST_BATCHES:
        return edges, window
    length = int(inner[0]), int(inner[-1])
    inside = {
        name: (pair[0][of := (pair[0] >= length[0]) & (pair[1] <= length[1])], pair[1][of])
        for name, pair in edges.items()
    }
    return inside, length


def _extended(
    phases: Mapping[str, Joules],
    inner: Mapping[str, Joules],
    solved: Mapping[str, Joules],
) -> dict[str, Joules]:
    """Return the joules of phases with what was moved in an excerpt, by how much longer each is in all."""
    moved = {}
    for name, one in solved.items():
        times = phases[name].seconds / inner[name].seconds if inner[name].seconds else 0.0
        move_j = times * ((one.energy_j or 0.0) - (inner[name].energy_j or 0.0))
        moved[name] = times, max(move_j, -(phases[name].energy_j or 0.0))
    longest = max(moved, key=lambda name: phases[name].seconds)
    left_j = sum(move for _, move in moved.values())
    found = {}
    for name, (times, move_j) in moved.items():
        whole, part = phases[name], solved[name]
        own_j2 = (whole.u_j or 0.0) ** 2 - whole.edges_u_j**2 - whole.response_u_j**2
        scatter_j2 = (part.u_j or 0.0) ** 2 - part.response_u_j**2
        response_j = part.response_u_j * times
        found[name] = replace(
            whole,
            energy_j=(whole.energy_j or 0.0) + move_j - (left_j if name == longest else 0.0),
            u_j=float(np.sqrt(max(own_j2, 0.0) + max(scatter_j2, 0.0) * times + response_j**2)),
            response_u_j=response_j,
        )
    return found


def _solved(
    power: Curve,
    response: Response,
    edges: Edges,
    window: tuple[int, int],
    found: Mapping[str, Joules],
) -> dict[str, Joules] | None:
    """Return the joules of each phase in a window, or null where too few samples or batches show them.

    Their uncertainty: how batches scatter about the fit; how much the sensor's lag, its window, and phases taken as
    even move the result; and that of the window's own joules.
    """
    whole = found["window"]
    samples = _Samples.of(power, response, edges, window)
    first = samples.fit(response, halves=True)
    if first is None or whole.energy_j is None or whole.u_j is None:
        return None
    joules, scatter = first
    doubt = np.zeros_like(scatter)
    for other, halves in (
        (replace(response, lag_ms=response.lag_ms + (response.lag_u_ms or 0.0)), True),
        (replace(response, window_ms=response.window_ms + (response.window_u_ms or 0.0)), True),
        (response, False),
    ):
        again = samples.fit(other, halves=halves)
        if again is not None:
            doubt += np.outer(again[0] - joules, again[0] - joules)
    covariance = scatter + doubt
    # as far as the fit may be off, what the window has more is shared out by that; the rest evenly, by joules
    gain = covariance.sum(axis=1) / (covariance.sum() + whole.u_j**2)
    kept = np.eye(len(gain)) - np.outer(gain, np.ones(len(gain)))
    joules = np.maximum(joules + gain * (whole.energy_j - joules.sum()), 0.0)
    even = joules / joules.sum()
    joules = even * whole.energy_j
    response_j2 = np.maximum(np.diag(kept @ doubt @ kept.T), 0.0)
    u_j2 = np.maximum(np.diag(kept @ covariance), 0.0) + (even * whole.u_j) ** 2
    return {
        name: replace(
            found[name],
            energy_j=float(joules[k]),
            u_j=float(np.sqrt(u_j2[k])),
            response_u_j=float(np.sqrt(response_j2[k])),
        )
        for k, name in enumerate(edges)
    }


@dataclass(frozen=True)
class _Part:
    """One phase, or a part of it, as the time that has passed in it; without a name what is outside of the window."""

    phase: str
    at_s: Floats
    passed_s: Floats

    @classmethod
    def of(cls, phase: str, from_s: Floats, to_s: Floats) -> "_Part":
        """Return the part that lies between some instants."""
        order = np.argsort(from_s, kind="stable")
        from_s, to_s = from_s[order], to_s[order]
        steps = np.stack([np.zeros(len(from_s)), to_s - from_s], axis=1).ravel()
        return cls(phase, np.stack([from_s, to_s], axis=1).ravel(), np.cumsum(steps))

    def until(self, at_s: Floats) -> Floats:
        """Return the seconds of the part before each instant."""
        return np.interp(at_s, self.at_s, self.passed_s)

    def smoothed(self, at_s: Floats, constant_s: float) -> Floats:
        """Return the share of the part at each instant, smoothed exponentially with a time constant."""
        left = np.exp(-np.diff(self.at_s) / constant_s).tolist()
        reached, share = [0.0], 0.0
        for k, kept in enumerate(left):  # it is on between an even edge and an odd one
            share = share * kept + (1 - kept) * (k % 2 == 0)
            reached.append(share)
        edge = np.searchsorted(self.at_s, at_s, side="right") - 1
        before, edge = edge < 0, np.maximum(edge, 0)
        left_of = np.exp(-np.maximum(at_s - self.at_s[edge], 0.0) / constant_s)
        on = edge % 2 == 0
        return np.where(before, 0.0, on + (np.array(reached)[edge] - on) * left_of)


@dataclass(frozen=True)
class _Samples:
    """The samples in and beside a window, s since its start and W, and the batch of each."""

    edges: Edges
    window: tuple[int, int]
    at_s: Floats
    watts: Floats
    batch: npt.NDArray[np.intp]

    @classmethod
    def of(
        cls, power: Curve, response: Response, edges: Edges, window: tuple[int, int]
    ) -> "_Samples":
        """Return the samples that hold power of a window."""
        start, reach_ns = window[0], round(_reach_s(response) * SECOND_NS)
        first, last = np.searchsorted(power.time_ns, [start - reach_ns, window[1] + reach_ns])
        stamps = power.time_ns[first:last]
        batch = np.searchsorted(_batches(edges), stamps, side="right")
        return cls(edges, window, (stamps - start) / SECOND_NS, power.power_w[first:last], batch)

    def fit(self, response: Response, *, halves: bool) -> tuple[Floats, Floats] | None:
        """Return the joules of each phase and their covariance; `halves` lets each part rise or fall."""
        parts = self._parts(_reach_s(response), halves=halves)
        if len(np.unique(self.batch)) < LEAST_BATCHES or len(self.watts) <= 2 * len(parts):
            return None
        watts, covariance = _least_squares(self._weights(parts, response), self.watts, self.batch)
        seconds = np.array(
            [[part.passed_s[-1] * (part.phase == name) for part in parts] for name in self.edges]
        )
        return seconds @ watts, seconds @ covariance @ seconds.T

    def _parts(self, reach_s: float, *, halves: bool) -> list[_Part]:
        start, end = self.window
        parts = []
        for phase, (starts, ends) in self.edges.items():
            from_s, to_s = (starts - start) / SECOND_NS, (ends - start) / SECOND_NS
            bounds = [from_s, to_s]
            if len(from_s) and float(np.median(to_s - from_s)) > _LONG * reach_s:
                into_s = np.minimum(from_s + reach_s, to_s)
                bounds = [from_s, into_s, np.maximum(to_s - reach_s, into_s), to_s]
            if halves:
                middles = [(a + b) / 2 for a, b in itertools.pairwise(bounds)]
                pairs = zip(bounds, middles, strict=False)
                bounds = [*itertools.chain.from_iterable(pairs), to_s]
            for one, other in itertools.pairwise(bounds):
                if (other - one).sum() > 0:
                    parts.append(_Part.of(phase, one, other))
        length_s, beside_s = (end - start) / SECOND_NS, 10.0
        before = _Part.of("", np.array([-beside_s]), np.array([0.0]))
        after = _Part.of("", np.array([length_s]), np.array([length_s + beside_s]))
        return [*parts, before, after]

    def _weights(self, parts: list[_Part], response: Response) -> Floats:
        """Return the share of each part in what each sample averages: a row a sample, a column a part."""
        window_s = max(response.window_ms / 1e3, 1e-6)
        end_s = self.at_s - response.lag_ms / 1e3
        if response.shape == "exponential":
            return np.stack([part.smoothed(end_s, window_s) for part in parts], axis=1)
        passed = [part.until(end_s) - part.until(end_s - window_s) for part in parts]
        return np.stack(passed, axis=1) / window_s


def _least_squares(
    weights: Floats, watts: Floats, batch: npt.NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """Return the watts of each part, and their covariance by how batches scatter about the fit.

    A part that no sample shows may draw anything in the samples' range: so wide is what is assumed of all beforehand.
    """
    middle, range_w = float(watts.mean()), max(float(np.ptp(watts)), 1.0)
    about = watts - middle
    assumed = np.eye(weights.shape[1]) / range_w**2
    gram, seen = weights.T @ weights, weights.T @ about
    noise_w2 = (range_w * 0.05) ** 2
    for _ in range(3):
        inverse = np.linalg.inv(gram / noise_w2 + assumed)
        fitted = inverse @ seen / noise_w2
        left = about - weights @ fitted
        noise_w2 = max(float(np.mean(left**2)), (_NOISE * range_w) ** 2)
    scores = weights * left[:, None] / noise_w2
    _, number = np.unique(batch, return_inverse=True)
    of_batch = np.zeros((int(number.max()) + 1, weights.shape[1]))
    np.add.at(of_batch, number, scores)
    n = len(of_batch)
    few = (1 + 1.3 / (n - 1)) ** 2  # Student's t over the normal distribution's 2
    core = of_batch.T @ of_batch * few * n / (n - 1) + assumed
    return middle + fitted, inverse @ core @ inverse
