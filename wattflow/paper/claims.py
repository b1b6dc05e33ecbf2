"""What the paper claims, and whether it holds here: holds, does not hold, or cannot be said here.

A claim of a direction ("more shards cost more joules a token") is held against each pair of neighbouring values with
all else equal, by the ratios of `wattflow compare`: boards and repeats apart, Holm over all pairs.

    holds                every pair is established in the claim's direction
    does not hold        a pair is established in the other one
    cannot be said here  else, or where nothing here can say it: simulated watts, one run a side, ranks without a GPU of
                         their own, one model of GPU

A claim of no effect holds where every interval lies within 10 %, and does not where a pair is established beyond.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import polars as pl

from wattflow.analysis import caps, statistics
from wattflow.analysis.axes import in_words
from wattflow.analysis.comparisons import arms, of_watts
from wattflow.analysis.intervals import student_t
from wattflow.analysis.statistics import Ratio
from wattflow.errors import RefusedError
from wattflow.paper.results import Found

State = Literal["holds", "does not hold", "cannot be said here"]
Direction = Literal["more", "less", "alike"]

ALIKE = 1.10  # a ratio within 1 / 1.10 to 1.10 is no effect
BUSY_PCT = 90.0  # "nearly always busy": the paper prints 94 to 99
FREE_PCT = 10.0  # by how much a share of time may miss a share of memory and still stand for it
# NVIDIA's data centre boards by the year in which they came, as far as their names say it
_YEARS = {"V100": 2017, "A100": 2020, "H100": 2022, "H200": 2024, "B200": 2025, "B300": 2025}


@dataclass(frozen=True)
class Comparison:
    """One pair: what is compared, all else that it shares, and its ratio."""

    what: str
    where: str
    ratio: Ratio


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: why, the interval that decided it, and all comparisons."""

    claim: str
    source: str
    state: State
    why: str
    low: float | None = None
    high: float | None = None
    comparisons: tuple[Comparison, ...] = ()


@dataclass(frozen=True)
class _Pairs:
    """The comparisons that could be made, and why others could not."""

    made: list[Comparison]
    not_made: list[str]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, where it stands, the grid that tests it, and what judges it."""

    text: str
    source: str
    grid: str
    judge: Callable[["Claim", Sequence[Found]], Verdict]

    def verdict(self, found: Sequence[Found]) -> Verdict:
        """Return the verdict on what was found of its grid."""
        of_grid = [one for one in found if one.grid == self.grid]
        if not of_grid:
            return self.undecided(f"no point of {self.grid} was run at this scale")
        return self.judge(self, of_grid)

    def undecided(self, why: str, made: Sequence[Comparison] = ()) -> Verdict:
        """Return that it cannot be said here, with the reason."""
        return Verdict(self.text, self.source, "cannot be said here", why, comparisons=tuple(made))


# --- directions -----------------------------------------------------------------------------------


def judged(claim: Claim, pairs: _Pairs, direction: Direction) -> Verdict:
    """Return the verdict of a claim's pairs."""
    found = [
        Comparison(one.what, one.where, ratio)
        for one, ratio in zip(
            pairs.made, statistics.family([one.ratio for one in pairs.made]), strict=True
        )
    ]
    if not found:
        return claim.undecided("; ".join(dict.fromkeys(pairs.not_made)) or "no two points compare")
    against = [one for one in found if _refutes(one.ratio, direction)]
    if against:
        worst = max(against, key=lambda one: abs(math.log(one.ratio.ratio)))
        why = f"{len(against)} of {len(found)} comparisons contradict it, first {_named(worst)}"
        return _decided(claim, "does not hold", why, worst, found)
    weak = [one for one in found if not _supports(one.ratio, direction)]
    if not weak:
        least = min(found, key=lambda one: _margin(one.ratio, direction))
        why = f"all {len(found)} comparisons bear it out; the weakest is {_named(least)}"
        return _decided(claim, "holds", why, least, found)
    reasons = dict.fromkeys(one.ratio.why_not or "the interval reaches beyond 10 %" for one in weak)
    why = f"{len(weak)} of {len(found)} comparisons are open: {'; '.join(reasons)}"
    return _decided(claim, "cannot be said here", why, weak[0], found)


def _decided(
    claim: Claim, state: State, why: str, by: Comparison, found: Sequence[Comparison]
) -> Verdict:
    return Verdict(claim.text, claim.source, state, why, by.ratio.low, by.ratio.high, tuple(found))


def _named(one: Comparison) -> str:
    return f"{one.what}{' at ' + one.where if one.where else ''}"


def _supports(ratio: Ratio, direction: Direction) -> bool:
    if ratio.low is None or ratio.high is None:
        return False
    if direction == "alike":
        return ratio.low >= 1 / ALIKE and ratio.high <= ALIKE
    return ratio.established and (ratio.ratio > 1) == (direction == "more")


def _refutes(ratio: Ratio, direction: Direction) -> bool:
    if not ratio.established or ratio.low is None or ratio.high is None:
        return False
    if direction == "alike":
        return ratio.low > ALIKE or ratio.high < 1 / ALIKE
    return (ratio.ratio > 1) != (direction == "more")


def _margin(ratio: Ratio, direction: Direction) -> float:
    """Return how far the interval stays from what would leave a claim open."""
    assert ratio.low is not None
    assert ratio.high is not None
    if direction == "alike":
        return min(math.log(ALIKE * ratio.low), math.log(ALIKE / ratio.high))
    return math.log(ratio.low) if direction == "more" else -math.log(ratio.high)


def _directed(
    by: str, metric: str, direction: Direction
) -> Callable[[Claim, Sequence[Found]], Verdict]:
    """Return what judges a claim by neighbouring values of a choice."""

    def judge(claim: Claim, found: Sequence[Found]) -> Verdict:
        pairs = _Pairs([], [])
        for one in found:
            points, why = _on_gpus(one.points, metric, own=by == "shards")
            if why is not None:
                pairs.not_made.append(why)
            else:
                _compare(points, by, metric, pairs)
        return judged(claim, pairs, direction)

    return judge


def _on_gpus(points: pl.DataFrame, metric: str, *, own: bool) -> tuple[pl.DataFrame, str | None]:
    """Return the points that a claim about GPUs may rest on, or why there are none.

    `own`: only those whose ranks had a GPU each.
    """
    counting = points.filter("counts")
    if counting.is_empty():
        return counting, "no point has finished and counts"
    if of_watts(metric) and counting["simulated"].all():
        return counting, "its watts are simulated: no sensor was there"
    on_gpus = counting.filter(pl.col("boundary") == "gpu")
    if on_gpus.is_empty():
        return on_gpus, "no GPU was measured: the points ran on a host"
    if not own:
        return on_gpus, None
    alone = on_gpus.filter(pl.col("gpus") == pl.col("shards") * pl.col("pipeline"))
    return alone, "ranks shared GPUs" if alone.is_empty() else None


def _compare(points: pl.DataFrame, by: str, metric: str, pairs: _Pairs) -> None:
    """Add the ratios of neighbouring values of a choice to `pairs`, of each value to the one below."""
    values = points[by].drop_nulls().unique().sort().to_list()
    if len(values) < 2:
        pairs.not_made.append(f"one value of {by} alone was measured")
    for lower, upper in pairwise(values):
        two = points.filter(pl.col(by).is_in([lower, upper]))
        _add(pairs, two, _Question(by, metric, lower))


class _Question(NamedTuple):
    """What is compared, by a metric, against one of its values; choices that may move along."""

    by: str
    metric: str
    reference: object
    along: tuple[str, ...] = ()


def _add(pairs: _Pairs, points: pl.DataFrame, asked: _Question) -> None:
    """Add the ratios that answer a question to `pairs`, or why there are none."""
    try:
        found = [arm for arm in arms(points, *asked) if arm.ratio is not None]
    except RefusedError as error:
        pairs.not_made.append(str(error))
        return
    for arm in found:
        assert arm.ratio is not None
        what = f"{asked.by} {arm.value} against {arm.against}"
        pairs.made.append(Comparison(what, _in_words(arm.chosen), arm.ratio))


def _in_words(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{name} {in_words(value)}" for name, value in chosen.items())


# --- caps -----------------------------------------------------------------------------------------


def _capped(metric: Literal["energy", "edp"]) -> Callable[[Claim, Sequence[Found]], Verdict]:
    """Return what judges a claim by the highest cap against the next one."""
    by = "control_power_limit_w"

    def judge(claim: Claim, found: Sequence[Found]) -> Verdict:
        pairs = _Pairs([], [])
        for one in found:
            points, why = _on_gpus(one.points, "energy_j", own=False)
            limits = points[by].drop_nulls().unique().sort(descending=True).to_list()
            if why is not None or len(limits) < 2:
                pairs.not_made.append(why or "one cap alone was in force")
                continue
            try:
                tables = caps.by_cap(points.filter(pl.col(by).is_in(limits[:2])), limits[0], by)
            except RefusedError as error:
                pairs.not_made.append(str(error))
                continue
            what = f"{metric} at {limits[1]} W against {limits[0]}"
            pairs.made.extend(
                Comparison(what, _in_words(chosen), row.ratios[metric])
                for chosen, table in tables
                for row in table
                if row.ratios
            )
        return judged(claim, pairs, "less")

    return judge


# --- GPUs -----------------------------------------------------------------------------------------


def year_of(name: str) -> int | None:
    """Return the year in which a GPU came, by its name; null for one that is not listed."""
    years = {year for model, year in _YEARS.items() if model in name.upper()}
    return years.pop() if len(years) == 1 else None


def _newer(metric: str) -> Callable[[Claim, Sequence[Found]], Verdict]:
    """Return what judges a claim by the older of two models of GPU against the newer."""

    def judge(claim: Claim, found: Sequence[Found]) -> Verdict:
        pairs, by = _Pairs([], []), "cluster_gpu_model"
        usable = [_on_gpus(one.points, metric, own=False) for one in found]
        pairs.not_made.extend(why for _, why in usable if why is not None)
        points = pl.concat([own for own, _ in usable], how="diagonal")
        names = {name: year_of(str(name)) for name in points[by].unique()}
        known = sorted((year, name) for name, year in names.items() if year is not None)
        if len(known) < 2:
            pairs.not_made.append("one model of GPU alone was measured")
        for (_, older), (_, newer) in pairwise(known):
            both = points.filter(pl.col(by).is_in([older, newer]))
            _add(pairs, both, _Question(by, metric, older, ("cluster", "shards")))
        return judged(claim, pairs, "more")

    return judge


# --- activity -------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean by Student's t; null of fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    half = student_t(n - 1) * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean - half, mean + half


def _busy(claim: Claim, found: Sequence[Found]) -> Verdict:
    """Judge whether GPUs run kernels nearly always: the interval of the mean against BUSY_PCT."""
    values = _values(found, pl.col("gpu_activity_pct"))
    limits = interval(values)
    if limits is None:
        return claim.undecided(f"{len(values)} points have GPU activity; two are needed")
    low, high = limits
    state: State = "cannot be said here"
    if low >= BUSY_PCT:
        state = "holds"
    elif high < BUSY_PCT:
        state = "does not hold"
    why = f"on the mean {sum(values) / len(values):.1f} % of the time over {len(values)} points, against {BUSY_PCT:g} %"
    return Verdict(claim.text, claim.source, state, why, low, high)


def _free(claim: Claim, found: Sequence[Found]) -> Verdict:
    """Judge whether the share of time in which memory is accessed says how full it is: their difference."""
    values = _values(found, pl.col("memory_occupancy_pct") - pl.col("memory_activity_pct"))
    limits = interval(values)
    if limits is None:
        return claim.undecided(
            f"{len(values)} points have memory in use (of cluster.gpu_memory_gib) and memory activity; two are needed"
        )
    low, high = limits
    state: State = "cannot be said here"
    if low >= -FREE_PCT and high <= FREE_PCT:
        state = "holds"
    elif low > FREE_PCT or high < -FREE_PCT:
        state = "does not hold"
    why = (
        f"memory in use is {sum(values) / len(values):+.1f} points from the share of time in which it is accessed, "
        f"over {len(values)} points"
    )
    return Verdict(claim.text, claim.source, state, why, low, high)


def _values(found: Sequence[Found], of: pl.Expr) -> list[float]:
    points = [
        one.points.filter("counts").select(of.alias("of"))["of"].drop_nulls() for one in found
    ]
    return [float(value) for values in points for value in values]


# --- the list -------------------------------------------------------------------------------------

_SCALING = "paper-scaling"
_USE = "paper-lengths"
CLAIMS = tuple(
    Claim(text, source, grid, judge)
    for text, source, grid, judge in (
        (
            "More shards draw more power.",
            "Figures 4, 5",
            _SCALING,
            _directed("shards", "power_w", "more"),
        ),
        (
            "More shards cost more joules a token.",
            "Figures 6, 7",
            _SCALING,
            _directed("shards", "energy_per_token_j", "more"),
        ),
        (
            "More shards cost more joules a response.",
            "Figures 8, 9",
            _SCALING,
            _directed("shards", "energy_per_response_j", "more"),
        ),
        (
            "A larger batch draws a little more power.",
            "Figures 4, 5",
            _SCALING,
            _directed("batch_size", "power_w", "more"),
        ),
        (
            "A longer answer draws a little more power.",
            "Figures 4, 5",
            _SCALING,
            _directed("max_gen_len", "power_w", "more"),
        ),
        (
            "The batch has little effect on joules a response.",
            "Figures 8, 9",
            _SCALING,
            _directed("batch_size", "energy_per_response_j", "alike"),
        ),
        (
            "The length of answers has no clear effect on joules a response.",
            "Figures 8, 9",
            _SCALING,
            _directed("max_gen_len", "energy_per_response_j", "alike"),
        ),
        ("The newer GPU is faster.", "Figure 2", "paper-baseline", _newer("tokens_per_s")),
        ("The newer GPU draws more power.", "Figure 3", "paper-baseline", _newer("power_w")),
        (
            "The first cap below the limit saves energy.",
            "Table III",
            "paper-caps",
            _capped("energy"),
        ),
        (
            "That cap saves more energy than it costs time: energy x time falls.",
            "Table III",
            "paper-caps",
            _capped("edp"),
        ),
        ("GPUs run kernels nearly all of the time.", "Table IV", _USE, _busy),
        (
            "Memory utilisation of a quarter leaves three quarters of memory free.",
            "text on Tables IV and V",
            _USE,
            _free,
        ),
    )
)


def verdicts(found: Sequence[Found]) -> Iterator[Verdict]:
    """Yield a verdict on each claim of the paper."""
    for claim in CLAIMS:
        yield claim.verdict(found)
