"""The smallest difference between two settings that can be established, by the code that establishes it."""

import math

import numpy as np

from wattflow.analysis.statistics import Value, ratio
from wattflow.energy.boards import METERED
from wattflow.energy.curve import Floats
from wattflow.errors import RefusedError

SCATTER = 0.005  # between repeats on one board, relative, where nobody says otherwise
LINES = ((1, 1), (1, 3), (1, 10), (3, 3), (8, 3))  # boards x repeats


def resolvable(
    watts: tuple[float, float], boards: int, repeats: int, scatter: float = SCATTER
) -> float | None:
    """Return the least relative difference that such a comparison establishes; null where it establishes none.

    Two settings at so many watts a board, both on the same boards with so many repeats on each. What is compared are
    values that scatter as is to be expected, each setting's deviation just `scatter` and each board's offset one of the
    metered ones': a real comparison is as good as that in the middle, and now and then better or worse.
    """
    if min(watts) <= 0 or boards < 1 or repeats < 1 or not 0 <= scatter < 1:
        raise RefusedError(
            "resolve: watts above 0, one board and one repeat at least, and a scatter from 0 to below 1."
        )
    names = [(f"board {k}",) for k in range(boards)]
    offset = METERED.offset_sd_w * abs(1 / watts[0] - 1 / watts[1])
    between = np.exp(_deviations(boards) * math.hypot(offset, scatter * math.sqrt(2 / repeats)))
    within = 1 + _deviations(repeats) * scatter
    arms = [
        [
            Value(float(level * value), 0.0, name, watts_of)
            for name, level in zip(names, levels, strict=True)
            for value in within
        ]
        for watts_of, levels in zip(watts, (between, np.ones(boards)), strict=True)
    ]
    found = ratio(*arms)
    return None if found.high is None else 1 - found.ratio / found.high


def _deviations(n: int) -> Floats:
    """Return n values around 0 with a deviation of 1; 0 alone."""
    if n == 1:
        return np.zeros(1)
    steps = np.linspace(-1.0, 1.0, n)
    unit: Floats = steps / steps.std(ddof=1)
    return unit
