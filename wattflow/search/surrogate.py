"""A Gaussian process over settings: what runs so far say of all settings, with how sure that is.

    ln y = mean + s1 * sum_i k_i(x_i, x_i') / d + s2 * prod_i k_i(x_i, x_i') + noise

The sum takes what each axis does by itself, the product what axes do together. k_i is a Matern 5/2 kernel of the
distance along a numeric axis, and exp(-1/l) between two values of any other (Rasmussen and Williams, Gaussian Processes
for Machine Learning, 2006, chapters 4 and 5). The lengths l and the three variances are the most probable under
log-normal priors, found by drawing and refining: some hundred Cholesky factors of small matrices, without gradients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wattflow.energy.curve import Floats

_DRAWS, _KEPT, _CHILDREN, _STEPS = 64, 5, 10, (0.5, 0.25)
_LENGTH = {True: (-0.3, 0.9), False: (0.4, 0.9)}  # mean and deviation of ln l, numeric or not
_VARIANCES = ((0.0, 1.0), (-1.0, 1.2), (-5.0, 1.5))  # of ln s1, ln s2, ln noise; y has variance 1
_JITTER = 1e-8


@dataclass(frozen=True)
class Posterior:
    """What a fit says of any setting."""

    x: Floats  # settings that ran, runs x axes
    numeric: Sequence[bool]
    parameters: Floats  # ln l of each axis, ln s1, ln s2, ln noise
    center: float
    scale: float
    factor: Floats  # lower Cholesky factor of the runs' covariance
    weights: Floats

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of ln y, without noise, at each row of x."""
        across = _kernel(_distances(x, self.x, self.numeric), self.parameters[None])[0]
        inner = np.linalg.solve(self.factor, across.T)
        total = float(np.exp(self.parameters[-3]) + np.exp(self.parameters[-2]))
        variance = np.maximum(total - (inner**2).sum(axis=0), 1e-12)
        return self.center + self.scale * (across @ self.weights), self.scale * np.sqrt(variance)

    def with_expected(self, x: Floats) -> "Posterior":
        """Return the fit with one more run, at x, that came out as is expected."""
        both = np.vstack([self.x, x])
        covariance = _covariance(_distances(both, both, self.numeric), self.parameters[None])[0]
        factor = np.linalg.cholesky(covariance)
        return replace(self, x=both, factor=factor, weights=np.append(self.weights, 0.0))

    @property
    def noise(self) -> float:
        """The standard deviation of one run's ln y."""
        return self.scale * float(np.exp(self.parameters[-1] / 2))

    def lengths(self) -> Floats:
        """Return the length of each axis: one much longer than 1 changes nothing."""
        return np.exp(self.parameters[:-3])


def fit(x: Floats, y: Floats, numeric: Sequence[bool], seed: int) -> Posterior:
    """Fit runs at the rows of x with values y, which may repeat rows; deterministic for a seed."""
    rng = np.random.default_rng(seed)
    center, scale = float(y.mean()), float(y.std()) or 1.0
    standard = (y - center) / scale
    distances = _distances(x, x, numeric)
    prior = np.array([*(_LENGTH[one] for one in numeric), *_VARIANCES])
    middle, width = prior[:, 0], prior[:, 1]
    drawn = middle + width * rng.standard_normal((_DRAWS, len(prior)))
    drawn[0] = middle
    scores = _scores(distances, standard, drawn, middle, width)
    for step in _STEPS:
        best = np.argsort(-scores)[:_KEPT]
        moved = drawn[best].repeat(_CHILDREN, axis=0)
        moved = moved + step * width * rng.standard_normal(moved.shape)
        drawn = np.concatenate([drawn[best], moved])
        more = _scores(distances, standard, moved, middle, width)
        scores = np.concatenate([scores[best], more])
    parameters = drawn[int(np.argmax(scores))]
    factor = np.linalg.cholesky(_covariance(distances, parameters[None])[0])
    weights = np.linalg.solve(factor.T, np.linalg.solve(factor, standard))
    return Posterior(x, tuple(numeric), parameters, center, scale, factor, weights)


def _distances(x: Floats, other: Floats, numeric: Sequence[bool]) -> Floats:
    """Return the distances along each axis, axes x rows x rows; 1 between two values that are no numbers."""
    apart = np.abs(x.T[:, :, None] - other.T[:, None, :])
    named = ~np.array(numeric, dtype=bool)
    apart[named] = apart[named] > 0
    return apart


def _kernel(distances: Floats, parameters: Floats) -> Floats:
    """Return the covariance without noise for each row of parameters, sets x rows x rows."""
    axes = len(distances)
    total = np.zeros((len(parameters), *distances.shape[1:]))
    product = np.ones_like(total)
    for k in range(axes):
        scaled = distances[k][None] / np.exp(parameters[:, k])[:, None, None]
        one = _matern(scaled)
        total += one
        product *= one
    s1, s2 = np.exp(parameters[:, -3]), np.exp(parameters[:, -2])
    both: Floats = s1[:, None, None] * total / axes + s2[:, None, None] * product
    return both


def _matern(scaled: Floats) -> Floats:
    root: Floats = math.sqrt(5.0) * scaled
    one: Floats = (1.0 + root + root**2 / 3.0) * np.exp(-root)
    return one


def _covariance(distances: Floats, parameters: Floats) -> Floats:
    noise = np.exp(parameters[:, -1]) + _JITTER
    whole: Floats = _kernel(distances, parameters) + noise[:, None, None] * np.eye(
        len(distances[0])
    )
    return whole


def _scores(distances: Floats, y: Floats, drawn: Floats, middle: Floats, width: Floats) -> Floats:
    """Return the logarithm of each set of parameters' posterior density, up to a constant."""
    factors = np.linalg.cholesky(_covariance(distances, drawn))
    inner = np.linalg.solve(factors, np.broadcast_to(y[:, None], (len(drawn), len(y), 1)))[..., 0]
    determinant = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    likelihood: Floats = -0.5 * (inner**2).sum(axis=1) - determinant
    density: Floats = likelihood - 0.5 * (((drawn - middle) / width) ** 2).sum(axis=1)
    return density
