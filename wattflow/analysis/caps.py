"""What a power cap or a locked clock changes: time, energy and token rate against a reference, and which one is best.

The form of Table III of arXiv 2310.03003, for any model and GPU, with intervals. A cap is best for an objective: the
least energy, or energy times delay, or times delay squared, which weigh the time that a cap costs more and more.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from wattflow.analysis import statistics
from wattflow.analysis.axes import Along, along_in_words
from wattflow.analysis.comparisons import (
    OTHER_MODELS,
    alike,
    has_other_models,
    moved_along,
    refuse_confounded,
)
from wattflow.analysis.controls import bounding
from wattflow.analysis.statistics import Boards, BreakEven, Ratio, Value
from wattflow.errors import RefusedError

OBJECTIVES = ("energy", "edp", "ed2p", "time")
METRICS = ("time", "energy", "rate", "edp", "ed2p")


@dataclass(frozen=True)
class Run:
    """One repeat at one cap: its time, joules with their standard uncertainty, and tokens a second."""

    time_s: float
    energy_j: float
    energy_u_j: float
    tokens_per_s: float
    boards: Boards
    bound: bool | None = None  # whether the cap held power back
    started: float | None = None  # s
    session: str | None = None  # its job

    def value(self, metric: str) -> Value:
        """Return one of METRICS: edp is energy x time, ed2p energy x time^2 (Horowitz et al., 1994)."""
        power_of_time = {"energy": 0, "edp": 1, "ed2p": 2}.get(metric)
        if power_of_time is not None:
            scale = self.time_s**power_of_time
            watts = self.energy_j / self.time_s / max(1, len(self.boards))
            return self._of(self.energy_j * scale, self.energy_u_j * scale, watts)
        return self._of(self.time_s if metric == "time" else self.tokens_per_s)

    def _of(self, value: float, u: float = 0.0, watts: float | None = None) -> Value:
        return Value(value, u, self.boards, watts, self.started, self.session)


@dataclass(frozen=True)
class Row:
    """One cap against the reference: the ratio of each of METRICS; null for the reference itself."""

    cap: int | None  # null: as it was found
    n: int
    boards: int
    bound: int | None  # runs in which the cap held power back; null where none was asked
    ratios: dict[str, Ratio] | None
    break_even: BreakEven | None = None  # null for the reference
    along: Along = field(default_factory=dict)  # other choices that moved with the cap

    @property
    def name(self) -> int | str:
        """The cap, or that boards were as found."""
        return "as found" if self.cap is None else self.cap

    def row(self) -> dict[str, Any]:
        """Return the row as `wattflow caps --json` prints it."""
        ratios = {metric: vars(self.ratios[metric]) if self.ratios else None for metric in METRICS}
        even = vars(self.break_even or statistics.NO_BREAK_EVEN)
        return {
            "cap": self.name,
            "n": self.n,
            "boards": self.boards,
            "bound": self.bound,
            "moves_along": along_in_words(self.along) or None,
            **ratios,
            **{f"break_even_{name}": value for name, value in even.items()},
        }


def table(runs: Mapping[int | None, Sequence[Run]], reference: int | None) -> list[Row]:
    """Return a row a cap, the highest first; `runs` must have the reference."""
    base = runs[reference]
    rows = []
    for cap in sorted(runs, key=lambda cap: (cap is not None, -(cap or 0))):
        ratios = {
            metric: statistics.ratio(
                [run.value(metric) for run in runs[cap]], [run.value(metric) for run in base]
            )
            for metric in METRICS
        }
        bounds = [run.bound for run in runs[cap] if run.bound is not None]
        rows.append(
            Row(
                cap=cap,
                n=len(runs[cap]),
                boards=len({run.boards for run in runs[cap]}),
                bound=sum(bounds) if bounds else None,
                ratios=None if cap == reference else ratios,
                break_even=None
                if cap == reference
                else statistics.break_even(_spent(runs[cap]), _spent(base)),
            )
        )
    return rows


def by_cap(
    points: pl.DataFrame, reference: int | None, by: str, along: Collection[str] = ()
) -> list[tuple[dict[str, Any], list[Row]]]:
    """Return the table of each combination of the other choices that vary, with those choices.

    RefusedError where no point at the reference counts, or none beside it; ConfoundedError where two choices that are
    not in `along` move with the caps.
    """
    if by not in ("control_power_limit_w", "control_sm_clock_mhz"):
        raise RefusedError(f"{by}: not control_power_limit_w or control_sm_clock_mhz.")
    rows = points.filter(pl.col("counts") & (pl.col("energy_j") > 0))
    found = rows[by].unique().to_list()
    if reference not in found or len(found) < 2:
        there = ", ".join("null" if cap is None else str(cap) for cap in sorted(found, key=str))
        raise RefusedError(
            f"{by}: points that count have {there or 'none'}; a table needs the reference "
            f"{'null' if reference is None else reference} and another. Rows where a cap was not in force do not "
            "count (`not_applied`)."
        )
    out = []
    for chosen, group in alike(rows, by):
        of_cap = {cap: group.filter(pl.col(by).eq_missing(pl.lit(cap))) for cap in found}
        of_cap = {cap: rows for cap, rows in of_cap.items() if len(rows)}
        if reference in of_cap and len(of_cap) > 1:
            bounding(group, (), by)
            runs = {cap: _runs(rows) for cap, rows in of_cap.items()}
            moved = {cap: moved_along(rows, of_cap[reference], by) for cap, rows in of_cap.items()}
            refuse_confounded(by, moved.values(), along)
            made = [replace(r, along=moved[r.cap]) for r in table(runs, reference)]
            base = of_cap[reference]
            other = [cap for cap, own in of_cap.items() if has_other_models(own.vstack(base))]
            out.append((chosen, [_unsure(row) if row.cap in other else row for row in made]))
    return _as_families(out)


def _unsure(row: Row) -> Row:
    """Return a row of which no ratio is established, as other boards than the reference's may make it."""
    if row.ratios is None:
        return row
    ratios = {
        metric: replace(ratio, established=False, why_not=OTHER_MODELS)
        for metric, ratio in row.ratios.items()
    }
    return replace(row, ratios=ratios)


def _as_families(
    found: Sequence[tuple[dict[str, Any], list[Row]]],
) -> list[tuple[dict[str, Any], list[Row]]]:
    """Return tables with the ratios of each metric corrected for how many of it there are in all of them."""
    compared = [row.ratios for _, rows in found for row in rows if row.ratios is not None]
    judged = {
        metric: iter(statistics.family([ratios[metric] for ratios in compared]))
        for metric in METRICS
    }
    return [
        (
            chosen,
            [
                replace(row, ratios={metric: next(judged[metric]) for metric in METRICS})
                if row.ratios is not None
                else row
                for row in rows
            ],
        )
        for chosen, rows in found
    ]


def _runs(rows: pl.DataFrame) -> list[Run]:
    """Return the repeats at one cap."""
    return [
        Run(
            time_s=row["duration_s"],
            energy_j=row["energy_j"],
            energy_u_j=row["energy_u_j"] or 0.0,
            tokens_per_s=row["tokens_per_s"],
            boards=tuple(row["boards"] or ()),
            bound=row["cap_bound"],
            started=None if row["started"] is None else row["started"].timestamp(),
            session=row["job_id"],
        )
        for row in rows.to_dicts()
    ]


def _spent(runs: Sequence[Run]) -> list[statistics.Run]:
    return [(run.energy_j, run.time_s, run.boards) for run in runs]


def best(rows: Sequence[Row], objective: str) -> tuple[Row, bool]:
    """Return the row with the least of an objective, and whether its difference to the reference is established."""
    least = min(rows, key=lambda row: 1.0 if row.ratios is None else row.ratios[objective].ratio)
    return least, least.ratios is not None and least.ratios[objective].established


def percent(ratio: float) -> float:
    """A ratio as a change in percent."""
    return 100.0 * (ratio - 1.0)
