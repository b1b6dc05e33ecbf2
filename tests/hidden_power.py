"""A load and a meter whose power follows a hidden linear law through a sensor's measured answer: a stand-in for a GPU.

Requests come by a Poisson process and share iterations; power is idle + busy + what each token takes, spread over its
iteration, smoothed and delayed by the sensor, sampled each 20 ms with noise.
"""

import numpy as np
import pyarrow as pa

from wattflow.analysis.attribution import (
    Measured,
    attribute,
    blocks_of,
    edges_ns,
    events,
)
from wattflow.analysis.power_model import delays_s, fit, overlaps
from wattflow.energy import curve
from wattflow.store.schema import ITERATION, REQUEST

LAW = np.array(
    [90.0, 60.0, 0.02, 0.0, 0.6, 0.0004]
)  # idle W, busy W, J a token of each kind, J a position
S = 10**9
BASE_NS = 1_700_000_000 * S


class Simulated:
    """A run of so many seconds; `without` leaves out a class of requests, the rest as they were."""

    def __init__(
        self, seed, *, seconds, response, rate_per_s=3.0, noise_w=3.0, without=(), law=LAW
    ):
        self.rng = np.random.default_rng(seed)
        count = round(rate_per_s * seconds)
        gaps = self.rng.exponential(1 / rate_per_s, count)
        self.due = np.cumsum(gaps)
        self.tokens_in = self.rng.integers(20, 1500, count)
        self.tokens_out = self.rng.integers(5, 120, count)
        self.present = [k for k in range(count) if k not in set(without)]
        self.response, self.law, self.noise_w = response, law, noise_w
        self._schedule()
        self._metered()

    def _schedule(self):
        """Iterations that last 10 ms and 2 ms a sequence, in which up to 64 run; a prompt is read in one."""
        now, waiting, running = 0.0, list(self.present), []
        starts, ends, read, made = [], [], {}, {k: [] for k in self.present}
        while waiting or running:
            while waiting and self.due[waiting[0]] <= now and len(running) < 64:
                running.append(waiting.pop(0))
            if not running:
                now = self.due[waiting[0]]
                continue
            step = len(starts)
            fresh = sum(self.tokens_in[k] for k in running if k not in read)
            length = 0.01 + 0.0005 * len(running) + 2e-5 * fresh
            for k in running:
                read.setdefault(k, step)
                made[k].append(step)
            starts.append(now)
            now += length
            ends.append(now)
            running = [k for k in running if len(made[k]) < self.tokens_out[k]]
        self.start_s, self.end_s = np.array(starts), np.array(ends)
        rows = [
            dict.fromkeys(ITERATION.names, 0)
            | {
                "node": "n",
                "iteration": i,
                "start_ns": BASE_NS + round(a * S),
                "end_ns": BASE_NS + round(b * S),
            }
            for i, (a, b) in enumerate(zip(starts, ends, strict=True))
        ]
        self.iterations = pa.Table.from_pylist(rows, schema=ITERATION)
        self.requests = pa.Table.from_pylist(
            [
                dict.fromkeys(REQUEST.names)
                | {
                    "prompt": k,
                    "batch": 0,
                    "tokens_in": int(self.tokens_in[k]),
                    "stop_reason": "length",
                }
                | {"tokens_kept": len(made[k]), "cached_tokens": 0, "token_steps": made[k]}
                | {"prefill_steps": [read[k]], "prefill_tokens": [int(self.tokens_in[k])]}
                for k in self.present
            ],
            schema=REQUEST,
        )

    def _metered(self):
        """Samples each 20 ms of the true power through the sensor's answer, and the true joules."""
        did = events(self.requests, self.end_s - self.start_s)
        per_step = did.per_step(len(self.start_s)) @ self.law[1:]
        # joules from the start to each iteration's end, idle apart
        at = np.ravel(np.column_stack([self.start_s, self.end_s]))
        total = np.cumsum(per_step)
        joules = np.ravel(np.column_stack([total - per_step, total]))

        def up_to(time_s):
            return np.interp(time_s, at, joules, left=0.0) + self.law[0] * time_s

        self.up_to = up_to
        sampled = np.arange(-1.0, self.end_s[-1] + 3.0, 0.02)
        watts = self.shown_w(sampled)
        # the meter's noise is another one for each run, the load is not
        noise = np.random.default_rng([len(self.present), int(self.due[-1] * 1e6)])
        watts += noise.normal(0, self.noise_w, len(watts))
        stamps = BASE_NS + np.round(sampled * S).astype(np.int64)
        self.power = curve.curve(stamps, watts, lag_ns=0)

    def shown_w(self, time_s):
        """Watts that the sensor shows at some times since the first iteration, without noise."""
        delays = np.concatenate([delays_s(self.response) - 5e-4, delays_s(self.response) + 5e-4])
        at = np.asarray(time_s, float)
        parts = [(self.up_to(at - d + 5e-4) - self.up_to(at - d - 5e-4)) / 1e-3 for d in delays]
        return np.mean(parts, axis=0)

    @property
    def true_j(self):
        """All joules from the first iteration to the last one's end."""
        return float(self.up_to(self.end_s[-1]) - self.up_to(self.start_s[0]))

    def until(self, seconds):
        """Measured joules of the first so many seconds, and their standard uncertainty."""
        found = curve.between(self.power, [BASE_NS], [BASE_NS + round(seconds * S)])
        return float(found.energy_j[0]), float(found.u_j[0])

    def measured(self, idle_s=5.0):
        """The meter's joules of blocks, and of an idle phase."""
        self.ends = blocks_of(self.iterations)
        edges = edges_ns(self.iterations, self.ends)
        block_j = curve.between(self.power, edges[:-1], edges[1:]).energy_j
        return Measured(block_j[None, :], self.response, (self.law[0] * idle_s, idle_s))

    def attributed(self):
        measured = self.measured()
        return attribute(self.requests, self.iterations, self.ends, measured, None)

    def fitted(self, *, filtered=True):
        """The model alone; without the idle phase, whose joules here have no noise."""
        measured = self.measured()
        edges_s = (edges_ns(self.iterations, self.ends) - BASE_NS) / S
        did = events(self.requests, self.end_s - self.start_s)
        delays = delays_s(self.response) if filtered else np.zeros(1)
        falls = overlaps(self.start_s, self.end_s, edges_s, delays)
        terms = np.column_stack(
            [np.diff(edges_s), falls.of_blocks(did.per_step(len(self.start_s)))]
        )
        return fit(terms, measured.block_j)
