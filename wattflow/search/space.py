"""The settings that a search may run: their axes, and coordinates in which near ones are alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wattflow.energy.curve import Floats

Level = str | float | bool | None  # the value of one axis
_SPREAD = 4.0  # positive values that span more are spaced by their logarithms: 1, 2, 4, 8


@dataclass(frozen=True)
class Axis:
    """One choice that varies, with its values in order, null last."""

    name: str
    values: tuple[Level, ...]

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers, null aside: then near values are alike."""
        known = [value for value in self.values if value is not None]
        numbers = [v for v in known if isinstance(v, (int, float)) and not isinstance(v, bool)]
        return len(numbers) == len(known) > 1

    def places(self) -> Floats:
        """Return where each value lies: numbers from 0 to 1, others by their position."""
        if not self.is_numeric:
            return np.arange(len(self.values), dtype=float)
        known = np.array([float(v) for v in self.values if v is not None])
        if known.min() > 0 and known.max() / known.min() >= _SPREAD:
            known = np.log(known)
        placed: Floats = (known - known.min()) / (known.max() - known.min())
        if None not in self.values:
            return placed
        # as a board is found is beyond the highest cap, clock or length that was asked for
        return np.append(placed, 1.0 + 1.0 / len(known))


@dataclass(frozen=True)
class Space:
    """All settings of a grid that can run; a setting is a row of positions, one an axis."""

    axes: tuple[Axis, ...]
    settings: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, names: Sequence[str], rows: Sequence[Sequence[Level]]) -> "Space":
        """Return the space of distinct rows of values, one value a name."""
        axes = tuple(Axis(name, _ordered([row[k] for row in rows])) for k, name in enumerate(names))
        at = [{_key(value): k for k, value in enumerate(axis.values)} for axis in axes]
        settings = (
            tuple(of[_key(value)] for of, value in zip(at, row, strict=True)) for row in rows
        )
        return cls(axes, tuple(dict.fromkeys(settings)))

    @cached_property
    def coordinates(self) -> Floats:
        """Where each setting lies, settings x axes."""
        places = [axis.places() for axis in self.axes]
        return np.array([[p[k] for p, k in zip(places, one, strict=True)] for one in self.settings])

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each axis is numeric."""
        return tuple(axis.is_numeric for axis in self.axes)

    def values(self, setting: int) -> dict[str, Level]:
        """Return the choices of a setting by axis."""
        positions = self.settings[setting]
        return {a.name: a.values[k] for a, k in zip(self.axes, positions, strict=True)}


def _key(value: Level) -> tuple[str, Level]:
    return type(value).__name__, value  # true is not 1


def _ordered(values: Sequence[Level]) -> tuple[Level, ...]:
    distinct = list({_key(value): value for value in values}.values())
    known = [value for value in distinct if value is not None]
    if all(isinstance(v, (int, float)) and not math.isnan(v) for v in known):
        known.sort(key=float)
    else:
        known.sort(key=str)
    return (*known, None) if len(known) < len(distinct) else tuple(known)
