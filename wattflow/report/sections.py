"""What the sections of a report show, as values: `page.html.j2` lays them out."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wattflow import __version__
from wattflow.analysis import caps, comparisons
from wattflow.analysis.axes import axes_of, heading, is_measured, shown_axes
from wattflow.analysis.beside import MixedError
from wattflow.analysis.caps import Row as Cap
from wattflow.analysis.cheapest import METRIC
from wattflow.analysis.comparisons import Arm, ConfoundedError
from wattflow.analysis.costs import factor_lines
from wattflow.analysis.means import APART, FIGURES, Energy, Setting, energies, settings
from wattflow.analysis.pareto import Candidate, pareto
from wattflow.analysis.sweep import Sweep
from wattflow.errors import DamagedError, RefusedError
from wattflow.report.terminal import cost_table
from wattflow.store.columns import CROSSCHECK, POINT, REASONS
from wattflow.store.sources import source_of
from wattflow.store.tables import read_table

WORKS = 8  # of which the cheapest setting is named
COMPARED = 40  # rows of a comparison that are shown; `wattflow compare` has all

# Further figures, in the table where a reader asks for them, as far as any setting has them. Latencies: of requests.
MORE = (
    *(name for name in POINT.names if re.fullmatch(r"(ttft|itl|tpot|e2e)_p(50|99)_s", name)),
    *("duration_s", "energy_j", "prefill_energy_j", "decode_energy_j", "prefill_s", "decode_s"),
    *("idle_power_w", "host_power_w", "gpus", "sm_clock_mhz", "temperature_c"),
    *("decode_roofline_share", "communication_share"),
)
# what energy has a front against, beside throughput: what a person waits for
WAITS = ("ttft_p99_s", "itl_p99_s")

# What was busy, then what was full. The paper's Tables IV and V print the first and the fifth as "utilization".
USE = {
    "gpu_activity_pct": "a kernel ran, % of time",
    "sm_activity_pct": "SMs at work, %",
    "sm_occupancy_pct": "warps resident, %",
    "tensor_activity_pct": "tensor cores, %",
    "memory_activity_pct": "memory touched, % of time",
    "dram_activity_pct": "memory bandwidth, %",
    "memory_used_bytes": "memory full, GiB",
}


# --- figures: what follows from the tables of results alone ---------------------------------------


@dataclass(frozen=True)
class Cards:
    """A sweep in four numbers."""

    counting: int  # points that count
    feasible: int
    attempts: int
    tokens: float | None  # kept, of the points that count; null where none of them knows
    energies: list[Energy]


@dataclass(frozen=True)
class Comparison:
    """The values of one choice, each against the first one that shares all other choices."""

    by: str
    others: list[str]  # the other choices that vary
    arms: list[Arm]  # those that have a ratio
    refused: str | None = None  # why there are none: choices that move along


@dataclass(frozen=True)
class Best:
    """The cap that takes the least by an objective."""

    objective: str
    cap: int | None  # null: boards as found
    established: bool  # also where it is the reference itself


@dataclass(frozen=True)
class CapTable:
    """What caps change for one combination of the other choices."""

    chosen: dict[str, Any]
    rows: list[Cap]
    best: list[Best]


@dataclass(frozen=True)
class Board:
    """The power of one board under the reference load, over n phases, and over the mean of all boards."""

    node: str
    gpu_uuid: str
    n: int
    power_w: float
    power_sd_w: float | None
    power_expanded_u_w: float | None  # k = 2
    relative: float


@dataclass(frozen=True)
class Front:
    """The settings by energy a token and another figure, and which of them no other beats in both."""

    metric: str
    against: str
    candidates: list[Candidate]
    refused: str | None = None  # why there is none


@dataclass(frozen=True)
class Figures:
    """The figures of a report that `verify` holds to the tables of results; the page has them as JSON, too."""

    cards: Cards
    axes: list[str]
    results: list[Setting]
    fronts: list[Front]
    comparisons: list[Comparison]
    use: list[Setting]  # means of those columns of USE that are known
    caps: list[CapTable]
    caps_reference: int | None
    caps_refused: str | None  # why there is no table: choices that move with the caps
    boards: list[Board]
    simulated: bool  # whether any point was


_ALWAYS = ("counts", "reasons", "energy_j", "energy_expanded_u_j")


def figures(sweep: Sweep) -> Figures:
    """Return the figures of a sweep's report."""
    points = sweep.points
    axes = axes_of(points)
    rows = points.select(
        *dict.fromkeys([*_ALWAYS, *APART, *axes, *FIGURES, *MORE, *USE])
    ).to_dicts()
    counting = [row for row in rows if row["counts"]]
    more = [column for column in MORE if any(row[column] is not None for row in counting)]
    known = [column for column in USE if any(row[column] is not None for row in counting)]
    reference, tables, refused = _caps(sweep)
    return Figures(
        cards=_cards(sweep, rows),
        axes=axes,
        results=settings(rows, axes, [*FIGURES, *more]),
        fronts=[
            front for against in ("tokens_per_s", *WAITS) if (front := _front(points, against))
        ],
        comparisons=[found for axis in shown_axes(points) if (found := _comparison(sweep, axis))],
        use=settings(counting, axes, known, apart=("beside",)) if known else [],
        caps=tables,
        caps_reference=reference,
        caps_refused=refused,
        boards=[Board(**board) for board in sweep.boards().to_dicts()],
        simulated=bool(points["simulated"].any()),
    )


def _cards(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> Cards:
    points = sweep.points
    tokens = points.filter("counts")["tokens_kept"].drop_nulls()
    return Cards(
        counting=int(points["counts"].sum()),
        feasible=int((points["status"] != "infeasible").sum()),
        attempts=sweep.attempts["attempt"].drop_nulls().len(),
        tokens=float(tokens.sum()) if len(tokens) else None,
        energies=energies(rows),
    )


def _front(points: pl.DataFrame, against: str) -> Front | None:
    """Return the front of energy a token against a figure, or why there is none; null where no point has it."""
    if against not in points.columns or not (points.filter("counts")[against] > 0).any():
        return None
    try:
        return Front(METRIC, against, pareto(points, METRIC, against))
    except RefusedError as error:
        return Front(METRIC, against, [], str(error))


def _comparison(sweep: Sweep, by: str) -> Comparison | None:
    """Return the comparison by one choice, or why it is refused; null where one value alone counts."""
    try:
        arms = comparisons.arms(sweep.points, by, "energy_per_token_j", controls=sweep.controls)
    except (ConfoundedError, MixedError) as error:
        return Comparison(by, [], [], str(error))
    except RefusedError:
        return None
    shown = [arm for arm in arms if arm.ratio is not None]
    return Comparison(by, list(shown[0].chosen), shown) if shown else None


def _caps(sweep: Sweep) -> tuple[int | None, list[CapTable], str | None]:
    """Return what power caps change against the highest, or against boards as found; nothing without two caps.

    Then why there is no table, where other choices move with them.
    """
    counting = sweep.points.filter(pl.col("counts") & (pl.col("energy_j") > 0))
    limits = counting["control_power_limit_w"].unique().to_list()
    if len(limits) < 2:
        return None, [], None
    reference = None if None in limits else max(limits)
    try:
        found = sweep.caps(reference)
    except (ConfoundedError, MixedError) as error:
        return reference, [], str(error)
    tables = [
        CapTable(chosen, rows, [_best(rows, objective) for objective in ("energy", "edp", "ed2p")])
        for chosen, rows in found
    ]
    return reference, tables, None


def _best(rows: Sequence[Cap], objective: str) -> Best:
    row, established = caps.best(rows, objective)
    return Best(objective, row.cap, established or row.ratios is None)


# --- what else a page says ------------------------------------------------------------------------


@dataclass(frozen=True)
class About:
    """What was measured, and by what."""

    measured: bool  # a command under `measure`
    no_words: bool  # no point has any
    sensors: dict[str, str]  # by power_source, in words
    simulated: bool
    boundaries: list[str]
    counter_ratios: tuple[int, float, float] | None  # over how many points, least and most
    unchecked: bool  # some joules were measured, and no counter was read


def about(points: pl.DataFrame) -> About:
    """Return what was measured, over all points that have joules."""
    known = points.filter(pl.col("energy_j").is_not_null())
    ratios = points.filter("counts")["counter_ratio"].drop_nulls().to_list()
    return About(
        measured=is_measured(points),
        no_words=points["words"].null_count() == len(points),
        sensors={
            source: ", ".join(source_of(name).description for name in source.split(" + "))
            for source in known["power_source"].unique(maintain_order=True)
        },
        simulated=bool(known["simulated"].any()),
        boundaries=known["boundary"].unique(maintain_order=True).to_list(),
        counter_ratios=(len(ratios), min(ratios), max(ratios)) if ratios else None,
        unchecked=not ratios and not known["simulated"].all(),
    )


@dataclass(frozen=True)
class CostTable:
    """What was spent, as text, and the sentences about the factors; or why nothing can be said."""

    head: list[str]
    rows: list[list[str]]
    factors: list[str]
    why_not: str | None


def cost(sweep: Sweep) -> CostTable:
    """Return what a sweep cost; no rows before its first attempt."""
    try:
        rows = cost_table(sweep)
        head = [heading(name) for name in rows[0]] if rows else []
        return CostTable(head, [[*row.values()] for row in rows], factor_lines(sweep), None)
    except RefusedError as error:  # a table of factors that lies elsewhere by now
        return CostTable([], [], [], str(error))


def crosscheck(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the rows that `wattflow crosscheck` kept when it last ran; none where there are none."""
    try:
        found = read_table(sweep.directory.crosscheck_path, CROSSCHECK)
    except (FileNotFoundError, DamagedError):
        return []
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


@dataclass(frozen=True)
class Failure:
    """A point without a number."""

    point_id: str
    status: str
    reasons: list[str]
    what: str  # what happened, in words


def failures(
    points: pl.DataFrame, unstarted: Mapping[str, tuple[str, str | None]] | None = None
) -> list[Failure]:
    """Return the points without a number.

    `unstarted` has the state of points without an attempt, and why, as far as the journal and Slurm know: one whose
    task has ended waits for nothing.
    """
    found = []
    for row in points.filter(~pl.col("counts")).to_dicts():
        reasons = [reason for reason in row["reasons"] if REASONS[reason][0]]
        what = row["error"] or " ".join(REASONS[reason][1] for reason in reasons)
        status = row["status"]
        if status == "waiting" and unstarted and row["point_id"] in unstarted:
            status, why = unstarted[row["point_id"]]
            what = _UNSTARTED.get(status, "Never started") + (f": {why}" if why else ".")
        found.append(Failure(row["point_id"], status, reasons, what))
    return found


_UNSTARTED = {
    "done": "Finished since it was collected; `wattflow collect` adds it",
    "running": "Runs, and was not collected yet",
    "waiting": "Waits in the queue",
    "untried": "Never sent",
    "unknown": "Never started, as far as is known",
}


@dataclass(frozen=True)
class Remark:
    """A reason code on points that count."""

    code: str
    points: int
    meaning: str


def remarks(points: pl.DataFrame) -> list[Remark]:
    """Return the codes on points that count, the most frequent first."""
    codes = points.filter("counts")["reasons"].explode().drop_nulls().value_counts(sort=True)
    return [Remark(code, count, REASONS[code][1]) for code, count in codes.iter_rows()]


def provenance(attempts: pl.DataFrame) -> dict[str, str]:
    """Return where the numbers come from, in words: hardware, drivers, versions, prompts."""
    tried = attempts.filter(pl.col("attempt").is_not_null())
    versions: dict[str, set[str]] = {}
    for recorded in tried["versions"].drop_nulls().unique():
        for name, version in json.loads(recorded).items():
            versions.setdefault(name, set()).add(version)
    started = tried["started"].drop_nulls().sort().dt.strftime("%Y-%m-%d %H:%M")
    return {
        "devices": _distinct(tried["gpu_name"]),
        "driver": _distinct(tried["driver"]),
        "nodes": _distinct(tried["node_names"].explode()) if len(tried) else "-",
        "began": f"{started[0]} to {started[-1]} UTC" if len(started) else "-",
        "versions": ", ".join(
            f"{name} {' / '.join(sorted(some))}" for name, some in versions.items()
        )
        or "-",
        "prompts, sha256": _distinct(tried["prompts_sha256"]),
        "Slurm jobs": _distinct(tried["job_id"]),
        "report by": f"wattflow {__version__}",
    }


def _distinct(values: pl.Series, most: int = 8) -> str:
    found = [str(value) for value in values.drop_nulls().unique(maintain_order=True)]
    shown = ", ".join(found[:most]) or "-"
    return shown if len(found) <= most else f"{shown} and {len(found) - most} more"
