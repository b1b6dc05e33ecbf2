"""The error of a board's power sensor: reading = (1 + gain) x true + offset, the same in each of a board's readings.

Gain and offset of 19 boards beside an external meter: *Part-time Power Measurements* (SC24, arXiv 2312.02741), figure
9.
They are taken as draws of one bivariate distribution, of which only these 19 are known: means and covariance have
18 degrees of freedom, and a further board lies around the mean with 1 + 1/19 of the variance (JCGM 101:2008, 6.4.9).
The mean itself is no correction that every model of board deserves, so it counts as uncertainty too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Boards:
    """Mean and covariance of gain (1) and offset (W) over some metered boards."""

    n: int
    gain_mean: float
    offset_mean_w: float
    gain_sd: float
    offset_sd_w: float
    correlation: float

    @classmethod
    def fitted(cls, gain: npt.ArrayLike, offset_w: npt.ArrayLike) -> "Boards":
        """Return the model of metered boards, one gain and offset each."""
        gains, offsets = np.asarray(gain, np.float64), np.asarray(offset_w, np.float64)
        return cls(
            n=len(gains),
            gain_mean=float(gains.mean()),
            offset_mean_w=float(offsets.mean()),
            gain_sd=float(gains.std(ddof=1)),
            offset_sd_w=float(offsets.std(ddof=1)),
            correlation=float(np.corrcoef(gains, offsets)[0, 1]),
        )

    @property
    def freedom(self) -> int:
        """Degrees of freedom of what this model says of a further board."""
        return self.n - 1

    def u(self, by_gain: float, by_offset: float, boards: float = 1) -> float:
        """Return the standard uncertainty of by_gain x gain + by_offset x offset, in the mean over some boards.

        What boards do not share shrinks with their number; the mean of all boards stays.
        """
        mean = by_gain * self.gain_mean + by_offset * self.offset_mean_w
        return math.sqrt(mean**2 + self._variance(by_gain, by_offset) * (1 / boards + 1 / self.n))

    def relative_u(self, watts: float, boards: float = 1) -> float:
        """Return the relative standard uncertainty of an energy that boards took at a mean of so many W each."""
        return self.u(1.0, 1.0 / watts, boards)

    def sum_u(self, energy_j: Sequence[float], seconds: Sequence[float]) -> float:
        """Return the standard uncertainty of the sum of what boards took, each J in its own s."""
        total_j, total_s = sum(energy_j), sum(seconds)
        mean_j = total_j * self.gain_mean + total_s * self.offset_mean_w
        own = sum(self._variance(*pair) for pair in zip(energy_j, seconds, strict=True))
        return math.sqrt(mean_j**2 + own + self._variance(total_j, total_s) / self.n)

    def _variance(self, by_gain: float, by_offset: float) -> float:
        gain, offset = by_gain * self.gain_sd, by_offset * self.offset_sd_w
        return max(gain**2 + offset**2 + 2 * self.correlation * gain * offset, 0.0)

    def ratio_half(self, watts: float, other_w: float, factor: float, boards: float = 1) -> float:
        """Return how far ln of a ratio of two powers on the same boards may be off, at `factor` standard uncertainties.

        The true power is (reading - offset) / (1 + gain): of the ratio of two readings the offset's share remains, and
        is infinite where the offset may be all that was read. Equal watts have none.
        """
        if watts == other_w:
            return 0.0
        offset_w = factor * self.u(0.0, 1.0, boards)
        if offset_w >= min(watts, other_w):
            return math.inf
        return max(
            abs(math.log1p(sign * offset_w / watts) - math.log1p(sign * offset_w / other_w))
            for sign in (-1, 1)
        )


METERED = Boards(
    n=19,
    gain_mean=-0.00984398,
    offset_mean_w=-0.857677,
    gain_sd=0.0365651,
    offset_sd_w=5.87048,
    correlation=-0.548328,
)
