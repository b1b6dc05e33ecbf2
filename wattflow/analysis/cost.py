"""What joules cost by declared factors, and what the host may draw before a slower setting stops being cheaper.

    kWh = J / 3.6e6        price = kWh x PUE x price per kWh        carbon = kWh x PUE x g per kWh

Only what is declared is used: a factor is a constant or a table over time, and carries the words of where it is from.
"""

import csv
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from wattflow.config.checks import FACTOR_RANGES
from wattflow.nullable import quotient
from wattflow.store.sources import SECOND_NS

J_PER_KWH = 3.6e6
HOUR_S = 3600.0
_HOUR_NS = 3600 * SECOND_NS


@dataclass(frozen=True)
class Factor:
    """So much a kWh: one value at all times, or values that each hold until the next one, for an hour at most."""

    source: str
    values: tuple[float, ...]
    starts_ns: tuple[int, ...] = ()  # unix time of each value, rising; none for a constant

    def mean(self, start_ns: int, end_ns: int) -> float | None:
        """Return the mean over a time, weighted by it; null unless the values cover all of it."""
        if not self.starts_ns:
            return self.values[0]
        starts = np.array(self.starts_ns, dtype=np.int64)
        ends = np.minimum(np.append(starts[1:], starts[-1] + _HOUR_NS), starts + _HOUR_NS)
        held_ns = np.clip(np.minimum(ends, end_ns) - np.maximum(starts, start_ns), 0, None)
        if end_ns <= start_ns or held_ns.sum() < end_ns - start_ns:
            return None
        return float(held_ns @ np.array(self.values)) / (end_ns - start_ns)


def table(text: str, column: str, source: str) -> Factor:
    """Return the factor of a CSV with the columns `time` and `column`; ValueError says which line is wrong.

    Times are ISO 8601 with an offset from UTC, and rise. Other columns are passed over, but every line has as many as
    the header: a decimal comma or one between thousands would make two numbers of one. What is no CSV at all is a
    csv.Error.
    """
    lines = csv.reader(text.removeprefix("\ufeff").splitlines())  # spreadsheets begin with a mark
    header = [cell.strip() for cell in next(lines, [])]
    _check_header(header, ("time", column))
    time_at, value_at = header.index("time"), header.index(column)
    starts_ns: list[int] = []
    values: list[float] = []
    for line in lines:
        if not line:
            continue
        try:
            _check_width(line, header)
            starts_ns.append(_unix_ns(line[time_at]))
            values.append(_number(line[value_at], column))
        except ValueError as error:
            raise ValueError(f"line {lines.line_num}: {error}") from error
        if len(starts_ns) > 1 and starts_ns[-1] <= starts_ns[-2]:
            raise ValueError(f"line {lines.line_num}: {line[time_at]} is not after the line before")
    if not values:
        raise ValueError("no line below the header")
    return Factor(source, tuple(values), tuple(starts_ns))


def _check_header(header: list[str], needed: tuple[str, ...]) -> None:
    """Raise ValueError unless each of the columns stands there once."""
    parted = next((sign for sign in ";\t|" if sign in "".join(header)), None)
    hint = f" (columns are parted by commas, not by {parted!r})" if parted else ""
    if missing := [name for name in sorted(needed) if name not in header]:
        raise ValueError(f"line 1: no column {', '.join(missing)}{hint}")
    if several := [name for name in sorted(needed) if header.count(name) > 1]:
        raise ValueError(f"line 1: more than one column {', '.join(several)}")


def _check_width(line: list[str], header: list[str]) -> None:
    if len(line) != len(header):
        raise ValueError(
            f"{len(line)} columns where the header has {len(header)} (decimals have a point, and thousands nothing "
            "between them)"
        )


def _unix_ns(text: str) -> int:
    when = datetime.fromisoformat(text.strip())
    if when.tzinfo is None:
        raise ValueError(f"{text} has no offset from UTC, such as Z or +01:00")
    if not _FIRST_YEAR <= when.year < _LAST_YEAR:
        raise ValueError(f"{text} is not between {_FIRST_YEAR} and {_LAST_YEAR}")
    return (when - _EPOCH) // timedelta(microseconds=1) * 1000


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_YEAR, _LAST_YEAR = 1970, 2200


def _number(text: str, column: str) -> float:
    """Return a number with a decimal point; ValueError for any other, or one that no tariff or grid has."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text} is no number (with a point before its decimals)")
    value = float(text)
    least, most = FACTOR_RANGES[column]
    if not least <= value <= most:
        raise ValueError(f"{text} is not between {least:g} and {most:g} {column}")
    return value


_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True)
class Factors:
    """What a site declares; null for what it does not."""

    price: Factor | None = None
    currency: str | None = None
    carbon: Factor | None = None
    pue: float | None = None
    pue_source: str | None = None


@dataclass(frozen=True)
class Used:
    """What one attempt took and when: J, unix ns, J a token of its measured window, and their uncertainties (k = 2)."""

    energy_j: float | None
    energy_per_token_j: float | None
    start_ns: int | None
    end_ns: int | None
    energy_expanded_u_j: float | None = None
    energy_per_token_expanded_u_j: float | None = None


@dataclass(frozen=True)
class Bill:
    """The columns of energy, price and carbon of columns.COST; null where one is not known, with `why_not`."""

    energy_kwh: float | None
    energy_expanded_u_kwh: float | None
    pue: float | None
    pue_source: str | None
    facility_energy_kwh: float | None
    facility_energy_expanded_u_kwh: float | None
    currency: str | None
    price_per_kwh: float | None
    price_source: str | None
    price: float | None
    price_expanded_u: float | None
    price_per_million_tokens: float | None
    price_per_million_tokens_expanded_u: float | None
    carbon_g_per_kwh: float | None
    carbon_source: str | None
    carbon_g: float | None
    carbon_expanded_u_g: float | None
    carbon_g_per_million_tokens: float | None
    carbon_g_per_million_tokens_expanded_u: float | None
    why_not: str | None


def bill(used: Used, factors: Factors) -> Bill:
    """Return what an attempt costs.

    A factor over time is taken as its mean over the attempt: when within it the joules were drawn makes a difference
    only as far as the factor changes meanwhile. Factors are taken as declared: uncertainties are the energy's.
    """
    own = quotient(used.energy_expanded_u_j, used.energy_j)
    of_token = quotient(used.energy_per_token_expanded_u_j, used.energy_per_token_j)
    energy_kwh = kwh(used.energy_j)
    pue = factors.pue if factors.pue is not None else 1.0
    at_site_kwh = _times(energy_kwh, pue)
    million_kwh = kwh(_times(_times(used.energy_per_token_j, pue), 1e6))
    price, carbon = _mean(factors.price, used), _mean(factors.carbon, used)
    cost, cost_million = _times(at_site_kwh, price), _times(million_kwh, price)
    grams, grams_million = _times(at_site_kwh, carbon), _times(million_kwh, carbon)
    why_not = [] if used.energy_j is not None else ["no joules are known"]
    for name, factor, mean in (
        ("price_per_kwh", factors.price, price),
        ("carbon_g_per_kwh", factors.carbon, carbon),
    ):
        if factor is not None and mean is None:
            why_not.append(f"{name}: its table does not cover the attempt")
    return Bill(
        energy_kwh=energy_kwh,
        energy_expanded_u_kwh=_times(energy_kwh, own),
        pue=factors.pue,
        pue_source=factors.pue_source,
        facility_energy_kwh=_times(energy_kwh, factors.pue),
        facility_energy_expanded_u_kwh=_times(_times(energy_kwh, factors.pue), own),
        currency=factors.currency,
        price_per_kwh=price,
        price_source=None if factors.price is None else factors.price.source,
        price=cost,
        price_expanded_u=_times(cost, own),
        price_per_million_tokens=cost_million,
        price_per_million_tokens_expanded_u=_times(cost_million, of_token),
        carbon_g_per_kwh=carbon,
        carbon_source=None if factors.carbon is None else factors.carbon.source,
        carbon_g=grams,
        carbon_expanded_u_g=_times(grams, own),
        carbon_g_per_million_tokens=grams_million,
        carbon_g_per_million_tokens_expanded_u=_times(grams_million, of_token),
        why_not="; ".join(why_not) or None,
    )


def kwh(energy_j: float | None) -> float | None:
    """Return joules as kWh."""
    return None if energy_j is None else energy_j / J_PER_KWH


def _mean(factor: Factor | None, used: Used) -> float | None:
    """Return the mean of a factor over an attempt; null where there is none, or its table does not cover it."""
    if factor is None:
        return None
    if used.start_ns is not None and used.end_ns is not None:
        return factor.mean(used.start_ns, used.end_ns)
    return None if factor.starts_ns else factor.values[0]


def _times(value: float | None, by: float | None) -> float | None:
    return None if value is None or by is None else value * by


@dataclass(frozen=True)
class Spent:
    """What one setting takes for a piece of work: J within the boundary, and s."""

    energy_j: float
    time_s: float


def break_even_host_w(setting: Spent, reference: Spent) -> tuple[float | None, str | None]:
    """Return the extra host watts h at which two settings cost the same, E_A + h t_A = E_B + h t_B; null, and why.

    Below it the slower setting is the cheaper one, above it the faster one. The watts are those of all that is outside
    the boundary and runs as long as the job does: CPUs, memory, fans of all its nodes together.
    """
    saved_j = reference.energy_j - setting.energy_j
    longer_s = setting.time_s - reference.time_s
    if saved_j == 0 or longer_s == 0:
        return None, "both take the same energy" if saved_j == 0 else "both take the same time"
    if (saved_j > 0) != (longer_s > 0):
        return None, "the cheaper one is also faster"
    return saved_j / longer_s, None
