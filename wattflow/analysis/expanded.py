"""The expanded uncertainty (k = 2) of any energy of a row: by sampling, and by gain and offset of its boards' sensors.

A row's budget holds what the sensors of its boards may be off in the measured window. Another energy of the same boards
has the same gains, and offsets times its own seconds:

    u_board(E, t)^2 = (gain E)^2 + (offset t)^2 + 2 cov E t

Nobody states the gain of a host's sensor (RAPL) or of a node's meter, and a simulated energy has none: no uncertainty.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wattflow.energy.boards import METERED
from wattflow.energy.curve import Joules
from wattflow.nullable import COVERAGE, NO_DOUBT, is_undoubted, with_doubt
from wattflow.store.schema import Reference
from wattflow.store.sources import SOURCES

BOARD_COLUMNS = ("energy_j", "duration_s", "board_gain_u_j", "board_offset_u_j", "board_u_j")

Row = Mapping[str, Any]  # of results/points.parquet


def expanded(
    row: Row, energy_j: float | None, seconds: float | None, u_j: float | None
) -> float | None:
    """Return the expanded uncertainty of an energy that a row's boards took in some seconds, `u_j` that by sampling.

    Null where one of them is unknown, and where the gain of the sensor is.
    """
    if energy_j is None or seconds is None or not energy_j > 0 or not seconds > 0:
        return None
    relative = relative_board_u(row, energy_j / seconds)
    if relative is None:
        return None
    return COVERAGE * math.hypot(relative * energy_j, u_j or 0.0)


def mean_power(row: Row) -> str:
    """Return the mean power of a row's window in words, with its expanded uncertainty, or why none is known."""
    power_w, expanded_w = row["power_w"], row["power_expanded_u_w"]
    mark = "~" if row["simulated"] else ""
    why = f" ({NO_DOUBT})" if not mark and is_undoubted(power_w, expanded_w) else ""
    return f"mean of the window, all devices: {with_doubt(power_w, expanded_w, 'W', mark)}{why}"


def relative_board_u(row: Row, watts: float) -> float | None:
    """Return the relative standard uncertainty by its boards' sensors, where all of them together took so many W."""
    energy_j, seconds, gain_j, offset_j, board_j = (row[name] for name in BOARD_COLUMNS)
    if board_j is not None and energy_j and seconds:
        gain, offset_w = gain_j / energy_j, offset_j / seconds
        shared_w = (board_j**2 - gain_j**2 - offset_j**2) / (energy_j * seconds)
        squares: float = gain**2 + (offset_w / watts) ** 2 + shared_w / watts
        return math.sqrt(max(squares, 0.0))
    source = row["power_source"] or row["unfinished_source"]
    boards = len(row["boards"] or ()) or row["gpus"]
    return metered_relative_u(source, watts, boards or 1)


def board_parts(
    energies_j: Sequence[float],
    seconds: Sequence[float],
    references: Sequence[Reference | None],
) -> dict[str, Any]:
    """Return the columns board_*: the standard uncertainty of a sum over boards by gains, offsets, and both.

    Boards without a reference are as the metered ones; those with one have its uncertainties, independent of others.
    """
    alike = [k for k, of in enumerate(references) if of is None]
    energies, times = ([of[k] for k in alike] for of in (energies_j, seconds))
    nothing = [0.0] * len(alike)
    made = sorted({of["made"] for of in references if of is not None})
    gain_j2, offset_j2, both_j2 = (
        METERED.sum_u(*pair) ** 2
        for pair in ((energies, nothing), (nothing, times), (energies, times))
    )
    for energy_j, time_s, of in zip(energies_j, seconds, references, strict=True):
        if of is not None:
            own_j, own_offset_j = energy_j * of["gain_u"], time_s * of["offset_u_w"]
            gain_j2, offset_j2 = gain_j2 + own_j**2, offset_j2 + own_offset_j**2
            both_j2 += own_j**2 + own_offset_j**2 + 2 * of["correlation"] * own_j * own_offset_j
    return {
        "board_gain_u_j": gain_j2**0.5,
        "board_offset_u_j": offset_j2**0.5,
        "board_u_j": max(both_j2, 0.0) ** 0.5,
        "board_reference": f"{len(energies_j) - len(alike)} of {len(energies_j)} boards, {', '.join(made)}"
        if made
        else None,
    }


def of_board(source: str, joules: Joules, reference: Reference | None) -> float | None:
    """Return the expanded uncertainty of an energy of one board, by its reference where a meter was beside it.

    Null where the energy is unknown or 0, and where the gain of the sensor is.
    """
    energy_j = joules.energy_j
    if energy_j is None or not energy_j > 0 or not has_stated_gain(source):
        return None
    board_j = board_parts([energy_j], [joules.seconds], [reference])["board_u_j"]
    return COVERAGE * math.hypot(board_j, joules.u_j or 0.0)


def metered_relative_u(source: str | None, watts: float, boards: int) -> float | None:
    """Return the same of boards of which nothing but their number is known; null for a sensor without a stated gain."""
    if not source or not has_stated_gain(source) or not 0 < watts < math.inf:
        return None
    return METERED.sum_u([watts / boards] * boards, [1.0] * boards) / watts


def sensors_expanded(
    source: str | None, value: float | None, seconds: float | None, boards: int | None
) -> float | None:
    """Return the expanded uncertainty by their sensors of J that some boards took in so many s (in 1 s: of W).

    Null where a part is unknown.
    """
    if value is None or not seconds or not boards or not value > 0:
        return None
    relative = metered_relative_u(source, value / seconds, boards)
    return None if relative is None else COVERAGE * relative * value


def has_stated_gain(source: str) -> bool:
    """Return whether gain and offset of such sensors were metered: those of GPU boards alone."""
    return all(
        name in SOURCES and name != "simulated" and SOURCES[name].boundary == "gpu"
        for name in source.split(" + ")
    )
