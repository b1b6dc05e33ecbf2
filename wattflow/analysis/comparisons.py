"""What each value of one choice costs beside another, over points that share all other choices.

Where another choice moves along with the compared one, their effects cannot be separated: it is named beside each
ratio, and where two move along that nobody named, there is no ratio.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import polars as pl

from wattflow.analysis import statistics
from wattflow.analysis.axes import SETUPS, Along, along_in_words, in_words, moving, varying
from wattflow.analysis.beside import is_mixed
from wattflow.analysis.controls import Control, bounding, widened
from wattflow.analysis.expanded import BOARD_COLUMNS, relative_board_u
from wattflow.analysis.statistics import BreakEven, Mean, Ratio, Run, Value
from wattflow.errors import RefusedError
from wattflow.nullable import COVERAGE
from wattflow.store.columns import CHOICE_KEYS, POINT

OTHER_MODELS = "two models of GPU"  # why nothing else is established between them
_OF_MODELS = ("cluster_gpu_model", "cluster")  # who compares these asks for just that
NO_TOKENS = BreakEven(None, None, None, "no output tokens are known")


class ConfoundedError(RefusedError):
    """Several choices move along with the compared one."""


@dataclass(frozen=True)
class Arm:
    """One value of the choice that is compared, among points that share `chosen`, the other choices that vary."""

    chosen: dict[str, Any]
    value: Any
    mean: Mean
    against: Any = None  # the value that the ratio is to
    ratio: Ratio | None = None  # null for the reference
    break_even: BreakEven | None = None
    along: Along = field(default_factory=dict)
    control: Control | None = None  # where points beside others are compared with points alone

    def row(self, by: str) -> dict[str, Any]:
        """Return the arm as a row of `Sweep.compare`."""
        shown = ("ratio", "how", "established", "why_not", "rests_on", "family")
        none = dict.fromkeys(("low", "high", *shown))
        ratio = none if self.ratio is None else vars(self.ratio)
        even = vars(self.break_even or statistics.NO_BREAK_EVEN)
        return {
            **self.chosen,
            by: self.value,
            **vars(self.mean),
            **{f"ratio_{name}": ratio[name] for name in ("low", "high")},
            **{name: ratio[name] for name in shown},
            "moves_along": along_in_words(self.along) or None,
            **{f"break_even_{name}": value for name, value in even.items()},
        }


def arms(
    points: pl.DataFrame,
    by: str,
    metric: str,
    reference: object = None,
    along: Collection[str] = (),
    *,
    controls: Sequence[Control] = (),
) -> list[Arm]:
    """Return an arm a value of `by`, in order, for each combination of the other choices that vary.

    `controls` say what neighbours change; without one for their site points beside others and alone are MixedError.
    RefusedError for a column that is no choice, no number, or has one value only; ConfoundedError where two choices
    move along with `by` that are not in `along`.
    """
    for name in along:
        _check_choice(points, "--with", name)
    rows = _comparable(points, by, metric)
    values = _values_of(rows, by)
    if reference is not None and not any(_is(value, reference) for value in values):
        there = ", ".join(map(in_words, values))
        raise RefusedError(f"{by}={reference}: no point that counts. There are {there}.")
    found = [
        arm
        for chosen, group in alike(rows, by)
        for arm in _arms_of(group, chosen, _Question(by, metric, reference, controls))
    ]
    refuse_confounded(by, [arm.along for arm in found], along)
    return [_widened(arm, metric) for arm in _as_family(found)]


def _widened(arm: Arm, metric: str) -> Arm:
    if arm.control is None or arm.ratio is None:
        return arm
    return replace(arm, ratio=widened(arm.ratio, arm.control, metric))


def _is(value: object, word: object) -> bool:
    """Return whether a value is the one that a person named."""
    return in_words(value) == in_words(word)


def _values_of(rows: pl.DataFrame, by: str) -> list[Any]:
    """Return the values of a choice in order, null last: nothing asked."""
    return rows[by].unique().sort(nulls_last=True).to_list()


def moved_along(rows: pl.DataFrame, base: pl.DataFrame, by: str) -> Along:
    """Return the choices beside `by` that differ between two groups, with their values in each.

    After them the model of GPU, the driver and the versions of software, as far as both groups know them.
    """
    moved = [name for name in moving(rows.vstack(base), meter=True) if name != by]
    along = {name: (_only(rows[name]), _only(base[name])) for name in moved}
    here, there = _found_there(rows), _found_there(base)
    differ = [name for name in here if name in there and len({*here[name], *there[name]}) > 1]
    return along | {name: (_joined(here[name]), _joined(there[name])) for name in differ}


def _found_there(rows: pl.DataFrame) -> dict[str, list[Any]]:
    """Return what is known of the machines of some points, in order: `gpu_name`, `driver`, `versions.torch`."""
    found: dict[str, set[Any]] = {}
    for name in ("gpu_name", "driver"):
        found[name] = {*rows[name].drop_nulls()}
    for text in rows["versions"].drop_nulls().unique():
        for name, version in json.loads(text).items():
            found.setdefault(f"versions.{name}", set()).add(in_words(version))
    return {name: sorted(values) for name, values in found.items() if values}


def is_other_machine(rows: pl.DataFrame, base: pl.DataFrame) -> bool:
    """Return whether two groups differ in what no setting names: the model of GPU, or how their site starts them."""
    both = pl.concat(
        [rows.select("cluster", "gpu_name", *SETUPS) for rows in (rows, base)]
    ).unique()
    return (
        has_other_models(both)
        or both.select("cluster", *SETUPS).n_unique() > both["cluster"].n_unique()
    )


def has_other_models(rows: pl.DataFrame) -> bool:
    """Return whether points ran on two models of GPU."""
    return rows["gpu_name"].drop_nulls().n_unique() > 1


def _only(values: pl.Series) -> Any:
    return _joined(values.unique().sort(nulls_last=True).to_list())


def _joined(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else " and ".join(map(in_words, values))


def refuse_confounded(
    by: str, found: Collection[Mapping[str, object]], named: Collection[str]
) -> None:
    """Raise ConfoundedError where two choices that nobody named move along in one comparison."""
    chosen = [[name for name in along if name in CHOICE_KEYS] for along in found]
    worst = max(({*along} - {*named} for along in chosen), key=len, default=set())
    if len(worst) < 2:
        return
    every = list(dict.fromkeys(name for along in chosen for name in along))
    raise ConfoundedError(
        f"{by}: {', '.join(every)} move along with it, so that no difference is known to be that of {by}. Compare "
        f"them as one by --with {','.join(every)}, or add points in which they stand still by `wattflow submit`."
    )


def _as_family(arms: Sequence[Arm]) -> list[Arm]:
    """Return arms that one call compared, their ratios corrected for how many they are."""
    judged = iter(statistics.family([arm.ratio for arm in arms if arm.ratio is not None]))
    return [arm if arm.ratio is None else replace(arm, ratio=next(judged)) for arm in arms]


def alike(rows: pl.DataFrame, by: str) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    """Return the rows of each combination of the choices that vary beside `by`, in order, with that combination."""
    others = varying(rows, by)
    if not others:
        yield {}, rows
        return
    ordered = rows.sort(others, nulls_last=True, maintain_order=True)
    for key, group in ordered.group_by(others, maintain_order=True):
        yield dict(zip(others, key, strict=True)), group


class _Question(NamedTuple):
    """What is compared: a choice, by a metric, with one of its values, under what is known of neighbours."""

    by: str
    metric: str
    reference: object
    controls: Sequence[Control]


def _arms_of(group: pl.DataFrame, chosen: dict[str, Any], asked_for: _Question) -> Iterator[Arm]:
    """Return the arms of one combination."""
    by, metric, reference, controls = asked_for
    control = bounding(group, controls, by)
    values = _values_of(group, by)
    of_value = {value: group.filter(pl.col(by).eq_missing(pl.lit(value))) for value in values}
    runs = {value: runs_of(rows, metric) for value, rows in of_value.items()}
    asked = [value for value in values if reference is not None and _is(value, reference)]
    base = asked[0] if asked else values[0]
    simulated = of_watts(metric) and bool(group["simulated"].any())
    for value, rows in of_value.items():
        mean = statistics.mean(runs[value])
        if value == base:
            yield Arm(chosen, value, mean)
            continue
        ratio = statistics.ratio(runs[value], runs[base])
        if simulated:
            ratio = replace(ratio, established=False, why_not="simulated")
        if by not in _OF_MODELS and has_other_models(rows.vstack(of_value[base])):
            ratio = replace(ratio, established=False, why_not=OTHER_MODELS)
        even, along = _break_even(rows, of_value[base]), moved_along(rows, of_value[base], by)
        mixed = control if is_mixed(rows.vstack(of_value[base])) else None
        yield Arm(chosen, value, mean, base, ratio, even, along, mixed)


def of_watts(metric: str) -> bool:
    """Return whether a column holds watts or joules, which a simulated meter makes up."""
    return "energy" in metric or "power" in metric


def _check_choice(points: pl.DataFrame, option: str, name: str) -> None:
    if name not in CHOICE_KEYS:
        raise RefusedError(
            f"{option} {name}: not a choice. The sweep varies {', '.join(moving(points))}."
        )


def _comparable(points: pl.DataFrame, by: str, metric: str) -> pl.DataFrame:
    """Return the points that count and have the metric; RefusedError where no comparison can be made of them."""
    _check_choice(points, "--by", by)
    if metric not in POINT.names or not points[metric].dtype.is_numeric():
        raise RefusedError(f"--metric {metric}: not a number's column; docs/results.md has them.")
    rows = points.filter(pl.col("counts") & (pl.col(metric) > 0))
    if rows[by].n_unique() < 2:
        raise RefusedError(
            f"{by}: {rows[by].n_unique()} value among the {len(rows)} points that count and have {metric}; "
            "a comparison needs two."
        )
    kinds = rows.select("boundary", "simulated").unique(maintain_order=True).rows()
    if of_watts(metric) and len(kinds) > 1:
        named = ", ".join(
            f"{boundary}{', simulated' if simulated else ''}" for boundary, simulated in kinds
        )
        raise RefusedError(
            f"--metric {metric}: the points that count have joules of several kinds ({named}), of which there is no "
            "ratio. Compare another metric, such as tokens_per_s."
        )
    return rows


def runs_of(rows: pl.DataFrame, metric: str) -> list[Value]:
    """Return the repeats of one arm, with their sampling uncertainty where the metric is joules, and their boards."""
    own = re.sub(r"_(j|w)$", r"_u_\1", metric)
    u = pl.lit(0.0)
    if own != metric and own in rows.columns:
        u = pl.col(own)
    elif of_watts(metric):
        u = pl.col(metric) * pl.col("energy_u_j") / pl.col("energy_j")
    found = rows.select(
        pl.col(metric).cast(pl.Float64),
        u.fill_null(0.0).alias("u"),
        "boards",
        _board_watts(metric).alias("watts"),
        pl.col("started").dt.epoch("us") / 1e6,
        "job_id",
    )
    of_sensors = rows.select(*BOARD_COLUMNS, "power_source", "unfinished_source", "boards", "gpus")
    return [
        Value(
            value,
            u_of,
            tuple(boards or ()),
            watts,
            started,
            job,
            _expanded(sensor, value, u_of, watts),
        )
        for (value, u_of, boards, watts, started, job), sensor in zip(
            found.iter_rows(), of_sensors.to_dicts(), strict=True
        )
    ]


def _expanded(
    row: Mapping[str, Any], value: float, u: float, board_watts: float | None
) -> float | None:
    """Return the expanded uncertainty of one run's value; null where that of its sensors is not known."""
    if board_watts is None or not board_watts > 0:
        return None
    relative = relative_board_u(row, board_watts * max(1, len(row["boards"] or ())))
    return None if relative is None else COVERAGE * math.hypot(relative * value, u)


def _board_watts(metric: str) -> pl.Expr:
    """Return the mean power of each board at which a metric was measured.

    Null where no power sensor made it; endless above idle, where the sensor's offset drops out.
    """
    if not of_watts(metric) or metric.startswith("power_limit"):
        return pl.lit(None, pl.Float64)
    if metric.startswith("net_"):
        return pl.lit(math.inf)
    total = pl.col("energy_j") / pl.col("duration_s")
    part = metric.partition("_energy")[0]
    if f"{part}_energy_j" in POINT.names and f"{part}_s" in POINT.names:
        total = pl.col(f"{part}_energy_j") / pl.col(f"{part}_s")
    if metric.endswith("_power_w") and not metric.startswith("steady"):
        total = pl.col(metric)
    return total / pl.max_horizontal(pl.col("boards").list.len(), pl.lit(1))


def _break_even(rows: pl.DataFrame, base: pl.DataFrame) -> BreakEven:
    """Return the extra host watts at which two arms cost the same energy a token."""
    arms: list[list[Run]] = []
    for of in (rows, base):
        known = of.filter((pl.col("energy_per_token_j") > 0) & (pl.col("tokens_per_s") > 0))
        found = known.select("energy_per_token_j", 1.0 / pl.col("tokens_per_s"), "boards")
        arms.append(
            [(energy_j, s, tuple(boards or ())) for energy_j, s, boards in found.iter_rows()]
        )
    return statistics.break_even(*arms) if all(arms) else NO_TOKENS
