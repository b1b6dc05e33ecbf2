"""Loads that repeat, and what sensors show of them: the truth beside it, for tests of aliasing and of responses."""

from dataclasses import dataclass

import numpy as np

from wattflow.energy import curve
from wattflow.store.sources import Response, lag_ns, longest_spacing_ns, source_of

START_NS = 1_760_000_000_000_000_000


def ns(seconds):
    """Seconds after the start as unix ns."""
    return START_NS + np.rint(np.asarray(seconds) * 1e9).astype(np.int64)


@dataclass(frozen=True)
class Steps:
    """Power that steps: `watts[k]` from `edges_s[k - 1]` to `edges_s[k]`, the first and the last without end."""

    edges_s: np.ndarray
    watts: np.ndarray

    def joules(self, at_s):
        """Joules from the first edge to each instant."""
        at_s = np.asarray(at_s, float)
        known_j = np.append(0.0, np.cumsum(self.watts[1:-1] * np.diff(self.edges_s)))
        inside = np.interp(at_s, self.edges_s, known_j)
        before = np.minimum(at_s - self.edges_s[0], 0) * self.watts[0]
        return inside + before + np.maximum(at_s - self.edges_s[-1], 0) * self.watts[-1]

    def seen(self, response: Response, at_s):
        """What a sensor shows at its stamps, W."""
        end_s = np.asarray(at_s, float) - response.lag_ms / 1e3
        window_s = response.window_ms / 1e3
        if window_s == 0:
            return self.watts[np.searchsorted(self.edges_s, end_s, side="right")]
        if response.shape == "box":
            return (self.joules(end_s) - self.joules(end_s - window_s)) / window_s
        reached = [float(self.watts[0])]
        for level, seconds in zip(self.watts[1:-1], np.diff(self.edges_s), strict=True):
            reached.append(level + (reached[-1] - level) * np.exp(-seconds / window_s))
        at = np.searchsorted(self.edges_s, end_s, side="right")
        since_s = end_s - self.edges_s[np.maximum(at - 1, 0)]
        level = self.watts[at]
        before = np.append(self.watts[0], reached)[at]
        return level + (before - level) * np.exp(-np.maximum(since_s, 0) / window_s)


def wave(period_s, seconds, low_w, high_w, *, duty=0.5, phase_s=0.0):
    """A square wave from some seconds before 0 on."""
    starts = np.arange(-3.0 - phase_s % period_s, seconds + 3.0, period_s)
    edges = np.stack([starts, starts + duty * period_s], axis=1).ravel()
    return Steps(edges, np.append(np.tile([low_w, high_w], len(starts)), low_w))


def sampled(random, load, source, response, seconds, *, poll_s=0.05, stray_s=0.0, noise_w=0.0):
    """The curve by a source: the driver's stamps each period, or polls of a value that is renewed each period."""
    period_s = response.period_ms / 1e3
    phase_s = random.uniform(0, period_s)
    if source == "nvml_buffer":
        at_s = np.arange(-1.0, seconds + 1.0, period_s) + phase_s
        at_s = at_s + random.uniform(0, stray_s, len(at_s))
        watts = load.seen(response, at_s)
        period_ms = response.period_ms
    else:
        at_s = np.arange(-1.0, seconds + 1.0, poll_s)
        at_s = at_s + random.uniform(0, 0.003, len(at_s))
        watts = load.seen(response, np.floor((at_s - phase_s) / period_s) * period_s + phase_s)
        period_ms = poll_s * 1e3
    watts = watts + random.normal(0, 1, len(watts)) * noise_w
    return curve.curve(
        ns(at_s),
        np.maximum(watts, 0),
        longest_ns=longest_spacing_ns(source, period_ms),
        lag_ns=lag_ns(source, period_ms),
        renewal_ns=source_of(source).renewal_ns,
    )
