"""The smallest difference between two settings that can be established, by the code that establishes it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattflow.analysis.statistics import Value, ratio
from wattflow.energy.boards import METERED
from wattflow.energy.curve import Floats
from wattflow.errors import RefusedError

SCATTER = 0.005  # between repeats on one board, relative, where nobody says otherwise
LINES = ((1, 1), (1, 3), (1, 10), (3, 3), (8, 3))  # boards x repeats
SHARES = (1.0, 0.7, 0.5)  # of the dearer setting's watts, that the cheaper one takes in the figure
_LEAST_W, _MOST_W, _STEPS = 40.0, 1000.0, 22


@dataclass(frozen=True)
class Saving:
    """A saving of energy that a paper states, relative, and the watts a board of both settings."""

    name: str
    saving: float
    watts: tuple[float, float]  # the dearer setting's, the cheaper one's
    source: str

    @property
    def share(self) -> float:
        """The cheaper setting's watts over the dearer one's, as the nearest of SHARES."""
        return min(SHARES, key=lambda share: abs(share - self.watts[1] / self.watts[0]))


# what caps and boards are published to save, where watts are stated too: caps count as watts where they bound
PUBLISHED = (
    Saving("LLaMA-65B, cap of 175 W", 0.2321, (250.0, 175.0), "arXiv 2310.03003, Table III, mean"),
    Saving("LLaMA-65B, cap of 150 W", 0.3400, (250.0, 150.0), "arXiv 2310.03003, Table III, mean"),
    Saving("BERT, V100, cap of 200 W", 0.120, (250.0, 200.0), "arXiv 2205.09646"),
    Saving("BERT, V100, cap of 150 W", 0.242, (250.0, 150.0), "arXiv 2205.09646"),
    Saving("BERT, V100, cap of 100 W", 0.110, (250.0, 100.0), "arXiv 2205.09646"),
)


def resolvable(
    watts: tuple[float, float], boards: int, repeats: int, scatter: float = SCATTER
) -> float | None:
    """Return the least relative difference that such a comparison establishes; null where it establishes none.

    Two settings at so many watts a board, both on the same boards with so many repeats on each. What is compared are
    values that scatter as is to be expected, each setting's deviation just `scatter` and each board's offset one of the
    metered ones': a real comparison is as good as that in the middle, and now and then better or worse.
    """
    if (
        not all(0 < one < math.inf for one in watts)
        or boards < 1
        or repeats < 1
        or not 0 <= scatter < 1
    ):
        raise RefusedError(
            "resolve: finite watts above 0, one board and one repeat at least, and a scatter from 0 to below 1."
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


def lines_in_words(boards: int, repeats: int) -> str:
    """Return a line's name: `1 board x 3`."""
    return f"{boards} board{'' if boards == 1 else 's'} x {repeats}"


def drawn(scatter: float = SCATTER) -> list[dict[str, Any]]:
    """Return the points of the figure: share, watts of the dearer setting, line, least difference in percent.

    A line of one run a side has none, as it establishes nothing.
    """
    points = []
    for share in SHARES:
        for watts in np.geomspace(_LEAST_W, _MOST_W, _STEPS):
            for line in LINES:
                least = resolvable((float(watts), float(share * watts)), *line, scatter)
                if least is not None:
                    name = lines_in_words(*line)
                    points.append(
                        {"share": share, "watts": watts, "line": name, "least": 100 * least}
                    )
    return points


def published() -> list[dict[str, Any]]:
    """Return the published savings as dots of the figure."""
    return [
        {
            "name": one.name,
            "share": one.share,
            "watts": one.watts[0],
            "saving": 100 * one.saving,
            "source": one.source,
        }
        for one in PUBLISHED
    ]


def _deviations(n: int) -> Floats:
    """Return n values around 0 with a deviation of 1; 0 alone."""
    if n == 1:
        return np.zeros(1)
    steps = np.linspace(-1.0, 1.0, n)
    unit: Floats = steps / steps.std(ddof=1)
    return unit
