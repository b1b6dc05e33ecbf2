"""A linear model of power under load, fitted to the joules of blocks of time: what a second and a token take.

    joules of a block = idle W x seconds + busy W x seconds in iterations + J a token x tokens ...

An iteration takes 4 to 20 ms, a sensor's time constant is 14 ms and its samples are 20 ms apart: joules of one
iteration cannot be seen. Those of a second can, and seconds differ in what they worked on. The amounts of a block are
spread over time as the sensor spreads power, so that a model is not fitted to the wrong second. This is a model: what
it says of a token rests on its being linear, which `held_out` and an experiment that takes requests away can doubt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattflow.analysis.intervals import student_t
from wattflow.store.sources import Response

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

VERSION = "linear-1"  # of model and regressors; raised when either changes
IDLE = "idle"
# what a block has of each, in this order; the seconds of an iteration are shared by its requests
AMOUNTS = ("busy", "prefill", "cached", "decode", "context")
TERMS = (IDLE, *AMOUNTS)  # seconds; seconds; tokens; tokens; tokens; positions read
_DELAYS = 16
_LEAST_SPREAD = 1e-3  # smallest singular value over the largest, of columns of length 1; below, terms cannot be parted


@dataclass(frozen=True)
class PowerModel:
    """Coefficients of the terms, and what is known of them; arrays of 6, J per unit. A term left out has 0 and NaN."""

    joules: Floats
    covariance: Floats  # 6 x 6, by squares of residuals of blocks; 0 for terms left out
    half_width: Floats  # of the 95 % interval
    blocks: int
    held_out: float  # root mean square of residuals of blocks that the fit did not see, over the mean block
    dropped: tuple[str, ...]  # terms that these blocks cannot tell apart, or that came out below 0


def delays_s(response: Response) -> Floats:
    """Return delays, s, between power and its reading: equally likely ones of a sensor's answer."""
    at = (np.arange(_DELAYS) + 0.5) / _DELAYS
    spread = -np.log1p(-at) if response.shape == "exponential" else at
    found: Floats = (response.lag_ms + response.window_ms * spread) / 1e3
    return found


@dataclass(frozen=True)
class Overlaps:
    """How iterations fall into blocks, as a sensor sees them: share `share[i]` of iteration `step[i]` in `block[i]`."""

    step: Ints
    block: Ints
    share: Floats
    steps: int
    blocks: int

    def of_blocks(self, amounts: Floats) -> Floats:
        """Return what each block has of the iterations' amounts, blocks x columns."""
        return np.stack(
            [
                np.bincount(self.block, self.share * column[self.step], self.blocks)
                for column in amounts.T
            ],
            axis=1,
        )

    def of_steps(self, values: Floats) -> Floats:
        """Return for each iteration the mean of its blocks' values, times the share of it that lies in any."""
        sums = np.bincount(self.step, self.share * values[self.block], self.steps)
        return np.asarray(sums, np.float64)


def overlaps(start_s: Floats, end_s: Floats, edges_s: Floats, delays: Floats) -> Overlaps:
    """Return how iterations fall into the blocks between rising edges, each delayed as a sensor delays power."""
    keys, shares = [], []
    blocks = len(edges_s) - 1
    steps = np.arange(len(start_s))
    for delay in delays:
        start, end = start_s + delay, end_s + delay
        length = np.maximum(end - start, 1e-12)
        first = np.searchsorted(edges_s, start, side="right") - 1
        last = np.searchsorted(edges_s, end, side="left") - 1
        for more in range(int((last - first).max(initial=-1)) + 1):
            at = first + more
            here = (at <= last) & (at >= 0) & (at < blocks)
            block = at[here]
            inside = np.minimum(end[here], edges_s[block + 1]) - np.maximum(
                start[here], edges_s[block]
            )
            keys.append(steps[here] * blocks + block)
            shares.append(np.maximum(inside, 0.0) / length[here] / len(delays))
    unique, at = np.unique(np.concatenate([*keys, np.zeros(0, np.int64)]), return_inverse=True)
    share = np.asarray(
        np.bincount(at, np.concatenate([*shares, np.zeros(0)]), len(unique)), np.float64
    )
    return Overlaps(unique // blocks, unique % blocks, share, len(start_s), blocks)


def cut(end_s: Floats, start_s: float, least_s: float) -> Floats:
    """Return edges of blocks of `least_s` at least, each at the end of an iteration; the last block may be longer."""
    edges, at = [start_s], 0
    while True:
        at = int(np.searchsorted(end_s, edges[-1] + least_s))
        if at >= len(end_s):
            break
        edges.append(float(end_s[at]))
    if len(edges) == 1 or end_s[-1] - edges[-1] > least_s / 2:
        edges.append(float(end_s[-1]))
    else:
        edges[-1] = float(end_s[-1])
    return np.array(edges)


def fit(terms: Floats, joules: Floats) -> PowerModel | None:
    """Return the model of blocks x 6 terms and their joules; null where there are too few blocks for any.

    Least squares, each block over its length, so that long ones do not rule. A term that the others make up, and the
    most negative coefficient one after another, is left out: no token gives energy back.
    """
    lengths = np.maximum(terms[:, 0], 1e-9)
    x, y = terms / lengths[:, None], joules / lengths
    kept = [k for k in range(len(TERMS)) if np.any(x[:, k] != 0)]
    while kept:
        if len(y) < len(kept) + 2:
            return None
        if (twin := _made_up(x[:, kept])) is not None:
            kept.pop(twin)
            continue
        solved = np.asarray(np.linalg.lstsq(x[:, kept], y, rcond=None)[0], np.float64)
        if np.all(solved >= 0):
            return _model(x, y, kept, solved)
        kept.pop(int(np.argmin(solved * np.sqrt((x[:, kept] ** 2).mean(axis=0)))))
    return None


def _made_up(x: Floats) -> int | None:
    """Return the last column that the others make up but for little; null where each is known by itself."""
    unit = x / np.linalg.norm(x, axis=0)
    _, singular, right = np.linalg.svd(unit, full_matrices=False)
    if len(singular) < x.shape[1]:
        return int(x.shape[1]) - 1
    if singular[-1] > _LEAST_SPREAD * singular[0]:
        return None
    involved = np.flatnonzero(np.abs(right[-1]) > 0.1)
    return int(involved[-1])


def _model(x: Floats, y: Floats, kept: Sequence[int], solved: Floats) -> PowerModel:
    own = x[:, kept]
    inverse = np.linalg.pinv(own.T @ own)
    leverage = np.minimum(np.einsum("bi,ij,bj->b", own, inverse, own), 0.99)
    left_out = (y - own @ solved) / (1 - leverage)  # the residual of a block by the fit without it
    meat = own * left_out[:, None]
    covariance = inverse @ (meat.T @ meat) @ inverse
    joules, whole = np.zeros(len(TERMS)), np.zeros((len(TERMS), len(TERMS)))
    half = np.full(len(TERMS), np.nan)
    joules[kept] = solved
    whole[np.ix_(kept, kept)] = covariance
    half[kept] = student_t(len(y) - len(kept)) * np.sqrt(np.diag(covariance))
    return PowerModel(
        joules=joules,
        covariance=whole,
        half_width=half,
        blocks=len(y),
        held_out=float(np.sqrt((left_out**2).mean()) / max(float(y.mean()), 1e-12)),
        dropped=tuple(term for k, term in enumerate(TERMS) if k not in kept),
    )
