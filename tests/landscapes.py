"""Twelve synthetic landscapes of energy over grids, whose optimum is known, and what searches need to find it.

    python tests/landscapes.py > docs/measurements/optimize.json      20 seeds of each, some ten minutes

A step of decode takes the longest of reading its bytes and computing its products, plus communication and launches;
watts rise with both and are held by a cap, which slows the products. The numbers are those of no real board.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np

from wattflow.analysis.statistics import Value
from wattflow.search.propose import Observation, believe
from wattflow.search.space import Space
from wattflow.search.verdict import Runs, Verdict, judge, next_runs

NOISE = 0.02  # standard deviation of one run's figures, relative

Choices = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """The figures of a setting without noise; null where it does not fit into memory."""

    energy_j: float | None
    latency_s: float | None = None


@dataclass(frozen=True)
class Landscape:
    """A grid and what each of its settings costs."""

    name: str
    axes: dict[str, tuple[Any, ...]]
    truth: Callable[[Choices], Truth]
    limit_s: float | None = None  # of the latency, where the goal has a side condition

    def settings(self) -> list[Choices]:
        """Return all combinations, the last axis fastest."""
        return [
            dict(zip(self.axes, key, strict=True)) for key in itertools.product(*self.axes.values())
        ]

    def is_allowed(self, truth: Truth) -> bool:
        """Return whether a setting runs and keeps the side condition."""
        if truth.energy_j is None:
            return False
        return self.limit_s is None or (truth.latency_s or 0.0) < self.limit_s

    @cached_property
    def space(self) -> Space:
        """The settings as the search sees them, in the same order."""
        return Space.of(list(self.axes), [tuple(one.values()) for one in self.settings()])

    @cached_property
    def truths(self) -> list[Truth]:
        """The figures of all settings."""
        return [self.truth(one) for one in self.settings()]

    @cached_property
    def regrets(self) -> list[float]:
        """How much more than the optimum each setting costs, relative; infinite where it is not allowed."""
        costs = [t.energy_j if self.is_allowed(t) and t.energy_j else math.inf for t in self.truths]
        return [cost / min(costs) - 1 for cost in costs]

    def observe(self, setting: int, rng: np.random.Generator) -> Observation:
        """Return what one run of a setting shows."""
        truth = self.truths[setting]
        if truth.energy_j is None:
            return Observation(setting, None)
        goal, latency = np.exp(NOISE * rng.standard_normal(2))
        over = () if self.limit_s is None else (float(truth.latency_s * latency / self.limit_s),)
        return Observation(setting, float(truth.energy_j * goal), over)


_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0}
_PEAK = {"fp32": 60.0, "bf16": 700.0, "fp8": 1250.0}  # TFLOP/s
_IDLE_W, _READ_W, _COMPUTE_W = 90.0, 260.0, 420.0  # of a board; at full use of either
_BANDWIDTH, _BILLIONS, _CONTEXT_GB = 3.6, 13.0, 0.35  # TB/s, weights, GB a sequence


def step(
    batch: int,
    *,
    shards: int = 1,
    precision: str = "bf16",
    cap_w: float | None = None,
    clock: float = 1.0,
    overhead_us: float = 900.0,
    efficiency: float = 0.7,
    bubble_us: float = 0.0,
) -> tuple[float, float]:
    """Return seconds and joules of one decode step of a batch on all boards."""
    size = _BYTES[precision]
    read_s = (_BILLIONS * size + batch * _CONTEXT_GB * size / 2) / 1e3 / _BANDWIDTH / shards
    products_s = 2 * _BILLIONS * batch / 1e3 / _PEAK[precision] / efficiency / shards / clock
    wait_s = 1e-6 * (
        overhead_us + bubble_us + (60.0 * math.log2(shards) * 40 / 4 if shards > 1 else 0.0)
    )
    busy_s = max(read_s, products_s) + 0.25 * min(read_s, products_s)
    watts = _READ_W * read_s / busy_s + _COMPUTE_W * clock**2.4 * products_s / busy_s
    if cap_w is not None and _IDLE_W + watts > cap_w:
        room = max(cap_w - _IDLE_W, 20.0)
        slower = (watts / room) ** 0.55
        busy_s, watts = busy_s * slower, room
    whole_s = busy_s + wait_s
    return whole_s, shards * (_IDLE_W * whole_s + watts * busy_s)


def _token(batch: int, **choices: Any) -> Truth:
    seconds, joules = step(batch, **choices)
    return Truth(joules / batch, seconds)


def _memory_bound(c: Choices) -> Truth:
    return _token(c["batch_size"], shards=c["shards"], precision=c["precision"])


def _cap_binds(c: Choices) -> Truth:
    return _token(c["batch_size"], cap_w=c["cap_w"], shards=c["shards"])


def _cap_never_binds(c: Choices) -> Truth:
    return _token(c["batch_size"], cap_w=c["cap_w"], shards=c["shards"], precision=c["precision"])


def _fits(c: Choices, gigabytes: float) -> bool:
    size = _BYTES[c.get("precision", "bf16")]
    return (_BILLIONS * size + c["batch_size"] * _CONTEXT_GB * size / 2) / c["shards"] < gigabytes


def _cliff(c: Choices) -> Truth:
    return _memory_bound(c) if _fits(c, 40.0) else Truth(None)


def _kernels(c: Choices) -> Truth:
    good = {
        ("bf16", "cublas"): 0.75,
        ("bf16", "triton"): 0.55,
        ("fp8", "triton"): 0.8,
        ("fp8", "cublas"): 0.3,
    }
    overhead = {"cublas": 700.0, "triton": 1100.0, "eager": 5000.0}[c["kernels"]]
    efficiency = good.get((c["precision"], c["kernels"]), 0.4)
    return _token(
        c["batch_size"],
        precision=c["precision"],
        overhead_us=overhead,
        efficiency=efficiency,
        shards=c["shards"],
    )


def _ties(c: Choices) -> Truth:
    overhead = {"a": 900.0, "b": 905.0, "c": 2500.0}[c["engine"]]
    return _token(
        c["batch_size"], shards=c["shards"], overhead_us=overhead, precision=c["precision"]
    )


def _clock(c: Choices) -> Truth:
    return _token(c["batch_size"], clock=c["clock_mhz"] / 1980, shards=c["shards"], efficiency=0.35)


def _edp(c: Choices) -> Truth:
    found = _token(
        c["batch_size"], clock=c["clock_mhz"] / 1980, cap_w=c["cap_w"], shards=c["shards"]
    )
    return Truth(found.energy_j * found.latency_s / c["batch_size"], found.latency_s)


def _needle(c: Choices) -> Truth:
    found = _token(c["batch_size"], shards=c["shards"], precision=c["precision"])
    good = (c["backend"], c["precision"]) == ("flashinfer", "fp8")
    return Truth(
        found.energy_j
        * (0.72 if good else {"fa3": 1.0, "flashinfer": 1.06, "triton": 1.15}[c["backend"]])
    )


def _sawtooth(c: Choices) -> Truth:
    padded = 32 * math.ceil(c["batch_size"] / 32)
    _, joules = step(padded, shards=c["shards"], precision=c["precision"], efficiency=0.3)
    return Truth(joules / c["batch_size"])


def _everything(c: Choices) -> Truth:
    if not _fits(c, 60.0):
        return Truth(None)
    bubble = 0.0 if c["pipeline"] == 1 else 400.0 * c["pipeline"]
    overhead = {"fast": 800.0, "paper": 9000.0, "vllm": 1500.0}[c["engine"]]
    found = _token(
        c["batch_size"],
        shards=c["shards"],
        precision=c["precision"],
        cap_w=c["cap_w"],
        overhead_us=overhead,
        bubble_us=bubble,
    )
    return Truth(found.energy_j * (1.0 + 0.12 * (c["pipeline"] - 1)), found.latency_s)


_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

LANDSCAPES = [
    Landscape(
        "bound by memory",
        {"batch_size": _BATCHES, "shards": (1, 2, 4, 8), "precision": ("fp32", "bf16", "fp8")},
        _memory_bound,
    ),
    Landscape(
        "a cap that binds",
        {
            "batch_size": _BATCHES,
            "shards": (1, 2, 4),
            "cap_w": (130, 150, 200, 250, 300, 400, 500, None),
        },
        _cap_binds,
    ),
    Landscape(
        "a cap that never binds",
        {
            "batch_size": (1, 2, 4, 8, 16),
            "shards": (1, 2, 4),
            "precision": ("bf16", "fp8"),
            "cap_w": (600, 650, 700, None),
        },
        _cap_never_binds,
    ),
    Landscape(
        "a cliff of memory",
        {
            "batch_size": (8, 16, 32, 64, 96, 128, 160, 192),
            "shards": (1, 2, 4, 8),
            "precision": ("fp32", "bf16", "fp8"),
        },
        _cliff,
    ),
    Landscape(
        "kernels and precision together",
        {
            "batch_size": (8, 16, 32, 64, 128, 256),
            "shards": (1, 2),
            "precision": ("bf16", "fp8"),
            "kernels": ("cublas", "triton", "eager"),
        },
        _kernels,
    ),
    Landscape(
        "two engines that tie",
        {
            "batch_size": (4, 8, 16, 32, 64),
            "shards": (1, 2, 4),
            "precision": ("bf16", "fp8"),
            "engine": ("a", "b", "c"),
        },
        _ties,
    ),
    Landscape(
        "a clock with a valley",
        {
            "batch_size": (32, 64, 128, 256),
            "shards": (1, 2),
            "clock_mhz": tuple(range(660, 1981, 120)),
        },
        _clock,
    ),
    Landscape(
        "a latency that bounds the batch",
        {"batch_size": _BATCHES, "shards": (1, 2, 4, 8), "precision": ("fp32", "bf16", "fp8")},
        _memory_bound,
        limit_s=0.004,
    ),
    Landscape(
        "energy x delay",
        {
            "batch_size": (16, 32, 64, 128),
            "shards": (1, 2, 4, 8),
            "clock_mhz": (900, 1200, 1500, 1800, 1980),
            "cap_w": (300, 450, None),
        },
        _edp,
    ),
    Landscape(
        "one pair that is cheap",
        {
            "batch_size": (8, 16, 32, 64, 128),
            "shards": (1, 2, 4),
            "precision": ("fp32", "bf16", "fp8"),
            "backend": ("fa3", "flashinfer", "triton"),
        },
        _needle,
    ),
    Landscape(
        "tiles that are padded",
        {
            "batch_size": tuple(range(16, 257, 16)),
            "shards": (1, 2, 4),
            "precision": ("bf16", "fp8"),
        },
        _sawtooth,
    ),
    Landscape(
        "six axes with a cliff",
        {
            "batch_size": (8, 16, 32, 64, 128, 256),
            "shards": (1, 2, 4, 8),
            "pipeline": (1, 2),
            "precision": ("bf16", "fp8"),
            "engine": ("fast", "paper", "vllm"),
            "cap_w": (300, 400, 500, None),
        },
        _everything,
        limit_s=0.02,
    ),
]


# --- what searches need ---------------------------------------------------------------------------

PARALLEL, REPEATS, SEEDS = 4, 3, 20
NEAR = 0.02  # a setting that costs so much more than the optimum is as good


@dataclass(frozen=True)
class Found:
    """One search: the regret of what it holds for the best after each run, and its verdict."""

    regrets: list[float]
    verdict: Verdict

    @property
    def needed(self) -> int:
        """The runs from which on its best was near the optimum to the end."""
        return needed(self.regrets)


def needed(regrets: list[float]) -> int:
    """Return the number of runs from which on all regrets are small; one more than there are where the last is not."""
    far = [k for k, regret in enumerate(regrets, 1) if regret > NEAR]
    return far[-1] + 1 if far else 1


def search(landscape: Landscape, seed: int, most: int | None = None) -> Found:
    """Search a landscape until the verdict is final, or so many runs are spent."""
    space, rng = landscape.space, np.random.default_rng(seed)
    seen: list[Observation] = []
    values: dict[int, list[Value]] = {}
    regrets: list[float] = []
    while most is None or len(seen) < most:
        runs = Runs(seen, values, REPEATS)
        chosen = next_runs(
            space, runs, PARALLEL if most is None else min(PARALLEL, most - len(seen)), seed
        )
        if not chosen:
            break
        regrets += [regrets[-1] if regrets else math.inf] * (len(chosen) - 1)
        for setting in chosen:
            one = landscape.observe(setting, rng)
            seen.append(one)
            if one.goal is not None:
                values.setdefault(setting, []).append(Value(one.goal, 0.0, ("board",)))
        best = believe(space, seen, seed).best
        regrets.append(math.inf if best is None else landscape.regrets[best])
    return Found(regrets, judge(space, Runs(seen, values, REPEATS), seed))


def in_order(landscape: Landscape, order: Iterable[int], seed: int) -> int:
    """Return how many runs it takes to run settings in an order and hold the cheapest that is allowed for the best."""
    rng, best, regrets = np.random.default_rng(seed), None, []
    for setting in order:
        one = landscape.observe(setting, rng)
        if (
            one.goal is not None
            and all(over < 1 for over in one.over_limit)
            and (best is None or one.goal < best.goal)
        ):
            best = one
        regrets.append(math.inf if best is None else landscape.regrets[best.setting])
    return needed(regrets)


def summary(landscape: Landscape, seeds: int = SEEDS) -> dict[str, Any]:
    """Return what searches of a landscape came to, with those that run settings at random and in the grid's order."""
    count = len(landscape.settings())
    found = [search(landscape, seed) for seed in range(seeds)]
    quarter = [one.regrets[min(count // 4, len(one.regrets)) - 1] for one in found]
    shuffled = [np.random.default_rng(seed).permutation(count).tolist() for seed in range(seeds)]
    best = int(np.argmin(landscape.regrets))
    ends = [one.verdict for one in found]
    return {
        "landscape": landscape.name,
        "settings": count,
        "near": sum(regret <= NEAR for regret in landscape.regrets),
        "regret_at_a_quarter": median(quarter),
        "runs_until_near": median(one.needed for one in found),
        "random": median(in_order(landscape, order, seed) for seed, order in enumerate(shuffled)),
        "grid": median(in_order(landscape, range(count), seed) for seed in range(seeds)),
        "runs_until_final": median(len(one.regrets) for one in found),
        "regret_at_the_end": median(
            landscape.regrets[one.best] for one in ends if one.best is not None
        ),
        "worst_regret_at_the_end": max(
            landscape.regrets[one.best] for one in ends if one.best is not None
        ),
        "ends_with_ties": sum(bool(one.ties) for one in ends),
        "optimum_called_dearer": sum(best in one.beaten for one in ends),
        "seeds": seeds,
    }


if __name__ == "__main__":
    print(
        json.dumps({"noise": NOISE, "landscapes": [summary(one) for one in LANDSCAPES]}, indent=1)
    )
