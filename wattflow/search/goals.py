"""What a search asks for: the least of a figure, under conditions, read from the rows of a sweep.

energy_per_token_j           any column of `points`; of one a second, such as tokens_per_s, the most
edp, ed2p                    J/token times seconds a token, once or twice
price, carbon                a million tokens by the factors that the site declares (cluster.cost)
itl_p99_s<0.05               a condition: any column, < or >, and a number
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from wattflow.analysis.beside import is_mixed
from wattflow.analysis.comparisons import OTHER_MODELS, has_other_models, of_watts, runs_of
from wattflow.analysis.statistics import Value
from wattflow.analysis.sweep import Sweep
from wattflow.errors import RefusedError
from wattflow.search.propose import Observation
from wattflow.store.columns import POINT

_CONDITION = re.compile(r"\s*(\w+)\s*(<=?|>=?)\s*([0-9.eE+-]+)\s*")
_FAR = 1000.0  # times its limit, or a part of it: what lies farther counts as this
_TOKEN_J = "energy_per_token_j"  # noqa: S105 (a column)
# goals that no column has: J/token times a power of the seconds a token, or a column of `cost`
_DELAYS = {"edp": 1, "ed2p": 2}
_BILLED = {"price": "price_per_million_tokens", "carbon": "carbon_g_per_million_tokens"}
UNITS = {"edp": "J s/token^2", "ed2p": "J s^2/token^3", **_BILLED}


@dataclass(frozen=True)
class Condition:
    """A column that has to stay below a limit, or above it."""

    column: str
    limit: float
    is_most: bool

    @classmethod
    def parsed(cls, text: str) -> "Condition":
        """Return `itl_p99_s<0.05` as a condition; RefusedError for another form, an unknown column or no limit."""
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise RefusedError(f"--subject-to {text}: COLUMN<NUMBER or COLUMN>NUMBER, in quotes.")
        column, sign, number = found.groups()
        _check_column(f"--subject-to {text}", column)
        try:
            limit = float(number)
        except ValueError:
            limit = 0.0
        if not 0 < limit < float("inf"):
            raise RefusedError(f"--subject-to {text}: {number} is no number above 0.")
        return cls(column, limit, sign.startswith("<"))

    def over(self, value: float) -> float:
        """Return a figure over its limit, or the limit over it: below 1 keeps the condition.

        From 1/1000 to 1000, as a fit takes its logarithm: a count of 0 keeps any upper limit and breaks any lower one.
        """
        least = self.limit / _FAR
        share = max(value, least) / self.limit
        return min(_FAR, share if self.is_most else 1 / share)

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.column}{'<' if self.is_most else '>'}{self.limit:g}"


@dataclass(frozen=True)
class Goal:
    """A figure of which a search wants the least, or of one a second the most, under conditions."""

    name: str
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def parsed(cls, name: str, conditions: Sequence[str]) -> "Goal":
        """Return what a person asked for; RefusedError for a figure that there is none of."""
        if name not in (*_DELAYS, *_BILLED):
            _check_column(f"--goal {name}", name)
        return cls(name, tuple(map(Condition.parsed, conditions)))

    @property
    def is_most(self) -> bool:
        """Whether more of it is better."""
        return self.name.endswith("_per_s")

    @property
    def is_energy(self) -> bool:
        """Whether it rests on joules, which a simulated meter makes up."""
        return self.name in (*_DELAYS, *_BILLED) or of_watts(self.name)

    def shown(self, value: float) -> float:
        """Return what a person calls the figure that a search holds: rates are held as seconds."""
        return 1.0 / value if self.is_most else value


@dataclass(frozen=True)
class Reading:
    """What the rows of a sweep say of its settings."""

    seen: list[Observation]
    values: dict[int, list[Value]]
    void: list[
        int
    ]  # the setting of each finished run that counts in no figure, or lacks one that is asked
    why_void: dict[str, int]  # how many, by reason
    simulated: bool
    never_bound: list[int]  # power caps (W) that held no run back, of those that ran


def read(sweep: Sweep, settings: Mapping[str, int], goal: Goal) -> Reading:
    """Return the runs of a collected sweep; `settings` has the setting of each point.

    RefusedError where joules of several kinds would be held against each other, or no factor is declared.
    """
    tried = sweep.points.filter(
        pl.col("point_id").is_in([*settings]) & pl.col("status").is_in(["finished", "failed"])
    )
    tried = tried.with_columns(_goal_column(sweep, tried, goal).alias("goal_"))
    failed = tried.filter(pl.col("status") == "failed")
    finished = tried.filter(pl.col("status") == "finished")
    needed = ["goal_", *(one.column for one in goal.conditions)]
    known = [pl.col(name).is_not_null() for name in needed]
    good = finished.filter(pl.col("counts") & pl.col("goal_").gt(0) & pl.all_horizontal(known))
    _refuse_kinds(good, goal)
    seen = [Observation(settings[point], None) for point in failed["point_id"]]
    values: dict[int, list[Value]] = {}
    for row, value in zip(good.to_dicts(), _values(good, goal), strict=True):
        setting = settings[row["point_id"]]
        over = tuple(one.over(row[one.column]) for one in goal.conditions)
        seen.append(Observation(setting, value.value, over))
        values.setdefault(setting, []).append(value)
    void = finished.join(good.select("point_id"), on="point_id", how="anti")
    why: dict[str, int] = {}
    for row in void.to_dicts():
        lacking = [one.column for one in goal.conditions if row[one.column] is None]
        lacking = [goal.name] if not (row["goal_"] or 0) > 0 else lacking
        reason = f"no {lacking[0]}" if row["counts"] and lacking else ""
        reason = reason or ", ".join(row["reasons"] or ()) or "does not count"
        why[reason] = why.get(reason, 0) + 1
    simulated = goal.is_energy and bool(good["simulated"].any())
    void_settings = [settings[point] for point in void["point_id"]]
    return Reading(seen, values, void_settings, why, simulated, _never_bound(good))


NOTHING_READ = Reading([], {}, [], {}, simulated=False, never_bound=[])


def _never_bound(rows: pl.DataFrame) -> list[int]:
    known = rows.drop_nulls(["control_power_limit_w", "cap_bound"])
    bound = known.group_by("control_power_limit_w").agg(pl.col("cap_bound").any())
    return sorted(bound.filter(~pl.col("cap_bound"))["control_power_limit_w"].to_list())


def _check_column(option: str, name: str) -> None:
    if name not in POINT.names or not _is_number(name):
        raise RefusedError(
            f"{option}: {name} is not a number's column, nor one of {', '.join((*_DELAYS, *_BILLED))}; "
            "docs/results.md has the columns."
        )


def _is_number(name: str) -> bool:
    kind = str(POINT.field(name).type)
    return kind.startswith(("double", "int", "uint"))


def _goal_column(sweep: Sweep, rows: pl.DataFrame, goal: Goal) -> pl.Series:
    """Return the goal of each row, the less the better; null where it is not known."""
    if goal.name in _DELAYS:
        power = _DELAYS[goal.name]
        return rows.select(pl.col(_TOKEN_J) / pl.col("tokens_per_s") ** power).to_series()
    if goal.name in _BILLED:
        column = _BILLED[goal.name]
        bills = sweep.cost().select("point_id", "attempt", column)
        found = rows.join(bills, on=["point_id", "attempt"], how="left", maintain_order="left")
        # a run that failed, or has no joules, has no bill either, whatever is declared
        billed = found.filter(pl.col("counts") & (pl.col(_TOKEN_J) > 0))[column]
        if len(billed) and billed.is_null().all():
            raise RefusedError(
                f"--goal {goal.name}: the site declares no such factor (cluster.cost), or it covers no run."
            )
        return found[column]
    own = pl.col(goal.name).cast(pl.Float64)
    return rows.select(1.0 / own if goal.is_most else own).to_series()


def _values(rows: pl.DataFrame, goal: Goal) -> list[Value]:
    """Return each row's goal with the doubt of the figure that it is made of, relative to it."""
    base = goal.name if goal.name in POINT.names else _TOKEN_J
    found = []
    for value, made in zip(rows["goal_"], runs_of(rows, base), strict=True):
        scale = value / made.value
        wide = None if made.expanded_u is None else made.expanded_u * scale
        found.append(replace(made, value=value, u=made.u * scale, expanded_u=wide))
    return found


def _refuse_kinds(rows: pl.DataFrame, goal: Goal) -> None:
    kinds: list[Any] = rows.select("boundary", "simulated").unique().rows()
    if goal.is_energy and len(kinds) > 1:
        raise RefusedError(
            f"the runs that count have joules of {len(kinds)} kinds (boundary, measured or simulated), which no search "
            "holds against each other. Make a sweep a kind."
        )
    for cluster in rows.partition_by("cluster", "cluster_gpu_model"):
        if has_other_models(cluster):
            raise RefusedError(
                f"the runs that count on {cluster['cluster'][0]} are of {OTHER_MODELS}, which no search holds against "
                "each other. Ask for one by the profile (constraint, gpu_request)."
            )
    if is_mixed(rows):
        raise RefusedError(
            "some runs had neighbours on their node and some were alone, which no search holds against each other."
        )
