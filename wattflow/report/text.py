"""How values read as text, on a page, on paper and in a terminal."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wattflow.analysis.axes import Along, along_in_words
from wattflow.analysis.means import Energy, Setting
from wattflow.analysis.statistics import BreakEven, Ratio
from wattflow.nullable import number, with_doubt
from wattflow.store.columns import REASONS

# what joules enclose, in words
BOUNDARIES = {
    "gpu": "the GPU boards that the job used, each counted once; CPUs, memory, fans, power supplies and cooling are "
    "outside",
    "module": "the superchips that the job used, each counted once: GPU, Grace CPU and their memory; fans, power "
    "supplies and cooling are outside",
    "host": "the host as one device, shared by all ranks on it",
    "node": "the node as one device, shared by all ranks on it",
}


def boundary(name: str) -> str:
    """Return what joules of a boundary enclose."""
    return BOUNDARIES.get(name, "several boundaries, whose joules are not added")


def plain(value: object) -> str:
    """Return a value as text; `-` for null."""
    return "-" if value is None else str(value)


def energy(one: Energy) -> str:
    """Return an energy with its doubt, in J, or in kJ from 100 kJ on."""
    scale, unit = (1.0, "J") if one.energy_j < 1e5 else (1e3, "kJ")
    doubt = None if one.expanded_u_j is None else one.expanded_u_j / scale
    return with_doubt(one.energy_j / scale, doubt, unit, mark(one.simulated))


def mark(simulated: object) -> str:
    """Return what goes before watts and joules: `~` where they were simulated."""
    return "~" if simulated else ""


def choice(axis: str, value: Any) -> str:
    """Return a choice as a person wrote it: a measured command is kept as JSON."""
    return plain(value) if axis != "command" or value is None else shlex.join(json.loads(value))


def interval(low: float | None, high: float | None, form: str, mark: str = "") -> str:
    """Return both ends of an interval; `-` where it is not known."""
    return "-" if low is None or high is None else f"{mark}{low:{form}} to {mark}{high:{form}}"


def break_even(even: BreakEven | None, mark: str = "") -> str:
    """Return the host watts at which two settings cost the same, with their 95 % interval, or why there are none."""
    if even is None or even.host_w is None:
        return "-" if even is None or even.why_not is None else even.why_not
    middle = number(even.host_w, mark)
    if even.low_w is None:
        return middle
    return f"{middle} ({number(even.low_w, mark)} to {number(even.high_w, mark)})"


def established(ratio: Ratio, by: str, along: Along) -> str:
    """Return whether a ratio is a difference, and of what beside the compared choice."""
    verdict = "yes" if ratio.established else f"no: {ratio.why_not}"
    moved = along_in_words(along)
    return f"{verdict}, of {by} together with {moved}" if moved else verdict


def rests_on(ratio: Ratio) -> str:
    """Return what a ratio takes for granted, and of how many comparisons it is one."""
    of = f"one of {ratio.family} comparisons (Holm); " if ratio.family > 1 else ""
    return f"{of}{ratio.rests_on}"


def change(ratio: Ratio) -> str:
    """Return a ratio as a change in percent, with its 95 % interval where there is one."""
    middle = f"{percent(ratio.ratio):+.2f}"
    if ratio.low is None or ratio.high is None:
        return middle
    return f"{middle} ({percent(ratio.low):+.2f} to {percent(ratio.high):+.2f})"


def percent(ratio: float) -> float:
    """Return a ratio as a change in percent."""
    return 100.0 * (ratio - 1.0)


@dataclass(frozen=True)
class Number:
    """A figure of the tables: its column and heading, and whether it is joules or watts, which simulation makes `~`."""

    column: str
    heading: str
    power: bool


NUMBERS = (
    Number("tokens_per_s", "tokens/s", power=False),
    Number("words_per_s", "words/s", power=False),
    Number("responses_per_s", "responses/s", power=False),
    Number("power_w", "W", power=True),
    Number("energy_per_token_j", "J/token", power=True),
    Number("energy_per_response_j", "J/response", power=True),
)


def sensor(one: Setting) -> str:
    """Return the sensor of a setting's watts, and that its points ran side by side with others, if so."""
    return f"{one.power_source}{', side by side' if one.beside else ''}"


def source(one: Setting) -> str:
    """Return where the watts of a setting came from; why, where there are none."""
    if one.n:
        return f"{one.power_source} ({one.boundary}){', side by side' if one.beside else ''}"
    return "; ".join(reason for reason in one.reasons if REASONS[reason][0])


# --- in sentences -----------------------------------------------------------------------------------


def count_of(n: int, name: str) -> str:
    """Return so many of a thing: `1 run`, `2 runs`."""
    return f"{n} {name}{'' if n == 1 else 's'}"


def span(values: Sequence[float]) -> str:
    """Return the least and the most of some numbers."""
    if not values:
        return "an unknown number of"
    least, most = f"{min(values):.5g}", f"{max(values):.5g}"
    return least if least == most else f"{least} to {most}"


def listed(names: Iterable[object]) -> str:
    """Return names for a sentence of Markdown: `a, b and c`."""
    *most, last = [markdown(name) for name in names] or ["unknown"]
    return f"{', '.join(most)} and {last}" if most else last


def markdown(value: object) -> str:
    """Return what somebody wrote as a line of Markdown that shows it as it is."""
    return re.sub(
        r"([\\`*<>\[\]|]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z]))", r"\\\1", " ".join(str(value).split())
    )
