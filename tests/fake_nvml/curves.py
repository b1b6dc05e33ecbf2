"""The fake NVML's power curves and UUIDs, told in Python: what the joules of a window truly are.

Twin of nvml.c; test_power_nvml.py holds the two together.
"""

import os
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MASK = (1 << 64) - 1


def _hash(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def this_node() -> str:
    """The name from which the fake library derives its UUIDs in this environment."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def uuid(node: str, index: int) -> str:
    """The UUID of a node's fake GPU."""
    high = _mix(_hash(f"{node}/{index}"))
    low = _mix(high)
    digits = f"{high:016x}{low:016x}"
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@dataclass(frozen=True)
class Curve:
    """Watts over unix time: `base_w` and, for half of each period, up to `swing_w` more."""

    kind: str  # ramp (up, then down), square, constant
    base_w: float
    swing_w: float
    period_ns: int

    def watts(self, time_ns: ArrayLike) -> NDArray[np.float64]:
        """Watts at unix times in ns."""
        phase = np.mod(np.asarray(time_ns, np.int64), self.period_ns) / self.period_ns
        if self.kind == "constant":
            return np.full(phase.shape, self.base_w)
        if self.kind == "square":
            return self.base_w + np.where(phase < 0.5, self.swing_w, 0.0)
        return self.base_w + self.swing_w * (1.0 - np.abs(2.0 * phase - 1.0))

    def joules(self, start_ns: int, end_ns: int) -> float:
        """The exact energy between two unix times in ns."""
        base = self.base_w * (end_ns - start_ns) / 1e9
        if self.kind == "constant":
            return base
        periods = end_ns // self.period_ns - start_ns // self.period_ns
        whole = periods * self.swing_w * self.period_ns / 2e9
        return base + whole + self._swing_j(end_ns) - self._swing_j(start_ns)

    def _swing_j(self, time_ns: int) -> float:
        period_s, x = self.period_ns / 1e9, (time_ns % self.period_ns) / 1e9
        if self.kind == "square":
            return self.swing_w * min(x, period_s / 2)
        if x <= period_s / 2:
            return self.swing_w * x * x / period_s
        return self.swing_w * (period_s / 2 - (period_s - x) ** 2 / period_s)


def curve(gpu_uuid: str, setting: str | None = None) -> Curve:
    """The curve of a fake GPU; `setting` as in FAKE_NVML_CURVE (by default, that of this environment)."""
    seed = _mix(_hash(gpu_uuid))
    kind, *given = (setting or os.environ.get("FAKE_NVML_CURVE") or "ramp").split(":")
    derived: list[Any] = [
        60.0 + (seed & 0xFF) * 0.5,
        40.0 + (seed >> 8 & 0xFF) * 0.5,
        2.0 + (seed >> 16 & 7) * 0.4,
    ]
    base_w, swing_w, period_s = [float(v) for v in given] + derived[len(given) :]
    return Curve(kind, base_w, swing_w, round(period_s * 1e9))
