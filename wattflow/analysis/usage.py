"""What somebody's sweeps took: kWh by sweep, and how much of it went into failures, loading, warm-up and idling.

    wattflow usage [DIR...]

It reads what the collector wrote. An attempt whose joules are not known is counted and never taken for 0, simulated
joules are never added to measured ones, nor those of one boundary to another's. An attempt that a copy of a sweep holds
too is counted once.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from wattflow.analysis.copies import Earlier, note, without
from wattflow.analysis.cost import kwh
from wattflow.analysis.means import of_sum
from wattflow.analysis.sweep import Sweep, open_sweep
from wattflow.errors import RefusedError, WattflowError
from wattflow.nullable import known_sum, quotient
from wattflow.store.layout import SweepDir

# where the joules of an attempt go: a column of kWh each
PARTS = ("counting", "not_counting", "load", "warmup", "idle", "reference", "outside")
KINDS = (*PARTS, "failed", "running")
_J = {
    "load": ["load_energy_j"],
    "warmup": ["warmup_energy_j"],
    "idle": ["idle_energy_j", "idle_after_energy_j"],
    "reference": ["reference_energy_j"],
}


@dataclass(frozen=True)
class Row:
    """What the attempts of one sweep took within one boundary; kWh by kind, null where none is known."""

    sweep: str
    boundary: str | None  # null where no attempt has any joules
    simulated: bool | None
    attempts: int
    unknown: int  # of them, attempts without known joules
    partly: int  # and attempts of which a phase is not known
    failed: int  # and attempts that failed or were cut short
    gpu_hours: float | None
    kwh: dict[str, float | None]  # by KINDS
    # k = 2, over the energy: that of the sensors above all, which all kinds share; null where that of a run is unknown
    relative_expanded_u: float | None
    price: float | None
    currency: str | None
    price_source: str | None  # the words of where each factor is from
    carbon_g: float | None
    carbon_source: str | None

    def document(self) -> dict[str, object]:
        """Return the row as `wattflow usage --json` prints it."""
        names = {"unknown": "untold"}  # what its readers know it by
        of = {names.get(name, name): value for name, value in vars(self).items()}
        return {**of, "total_kwh": self.total_kwh}

    @property
    def total_kwh(self) -> float | None:
        """All kinds together, as far as they are known; null where none is."""
        return known_sum(list(self.kwh.values())) if self.unknown < self.attempts else None


@dataclass(frozen=True)
class Usage:
    """A row a sweep and boundary, the same over all sweeps, and what could not be read or is not in it."""

    rows: list[Row]
    totals: list[Row]
    notes: list[str]


def usage(folders: Sequence[Path]) -> Usage:
    """Return what the sweeps in some folders took; a folder may itself be one. RefusedError where there is no sweep."""
    rows: list[Row] = []
    notes: list[str] = []
    earlier = Earlier()
    for name, directory in _sweeps(folders).items():
        try:
            sweep = open_sweep(directory.path)
            bills, gone = _bills(sweep)
            copies = earlier.copies(sweep.attempts)
            rows += _rows(name, sweep, bills, copies)
            found = [*gone, *_newer(sweep), *_shared_loads(sweep), *note(copies)]
            earlier.add(name, sweep.attempts)
        except (WattflowError, OSError) as error:
            found = [str(error)]
        notes += [f"{name}: {note}" for note in found]
    keys = dict.fromkeys((row.boundary, row.simulated) for row in rows)
    totals = [
        _total([row for row in rows if (row.boundary, row.simulated) == key])
        for key in keys
        if len(rows) > 1
    ]
    return Usage(rows, totals, notes)


def _sweeps(folders: Sequence[Path]) -> dict[str, SweepDir]:
    """Return the sweeps by their names; those of one name in several folders by their paths."""
    found: dict[Path, SweepDir] = {}
    for folder in folders:
        paths = [folder / "grid.parquet", *sorted(folder.glob("*/grid.parquet"))]
        own = [path.parent.resolve() for path in paths if path.is_file()]
        if not own:
            raise RefusedError(
                f"{folder}: no sweep, and none in it (no grid.parquet). Name sweeps, or a folder of them such as "
                "./sweeps."
            )
        found |= {path: SweepDir(path) for path in own}
    names = Counter(path.name for path in found)
    return {
        path.name if names[path.name] == 1 else os.path.relpath(path): sweep
        for path, sweep in found.items()
    }


def _newer(sweep: Sweep) -> list[str]:
    """Return a note where attempts were made after the sweep was collected."""
    seen = sweep.attempts["attempt"].drop_nulls().len()
    directory = sweep.directory
    there = sum(len(directory.attempts(point_id)) for point_id in directory.points_on_disk())
    if there <= seen:
        return []
    again = f"Run `wattflow collect {sweep.directory.path}`."
    return [f"{there - seen} attempts are newer than its results. {again}"]


def _shared_loads(sweep: Sweep) -> list[str]:
    """Return a note where points of a task shared a load, which no sidecar saw."""
    shared = int(sweep.attempts["reasons"].list.contains("load_shared").sum())
    return [f"{shared} attempts shared loads, which were not measured"] if shared else []


def _bills(sweep: Sweep) -> tuple[pl.DataFrame, list[str]]:
    """Return what each attempt took and costs; without price and carbon, and a note, where a factor cannot be read."""
    try:
        return sweep.cost(), []
    except RefusedError as error:
        kwh_alone = sweep.cost(["cluster.cost.price_path=null", "cluster.cost.carbon_path=null"])
        return kwh_alone, [f"without price and carbon, {error}"]


def _rows(name: str, sweep: Sweep, costs: pl.DataFrame, copies: pl.DataFrame) -> list[Row]:
    """Return the rows of one sweep, from its attempts and what they cost, without those that are copies."""
    bills = costs.select(
        "point_id",
        "attempt",
        "boundary",
        "simulated",
        "gpu_hours",
        "energy_kwh",
        "energy_expanded_u_kwh",
        "price",
        "currency",
        "price_source",
        "carbon_g",
        "carbon_source",
    )
    names = [name for columns in _J.values() for name in columns]
    tried = (
        without(sweep.attempts.filter(pl.col("attempt").is_not_null()), copies)
        .select(
            "point_id", "attempt", "status", "counts", "unfinished_energy_j", *names, _window_j()
        )
        .with_columns(newest=pl.col("attempt") == pl.col("attempt").max().over("point_id"))
        .join(bills, on=["point_id", "attempt"], how="left")
        .join(_outside(sweep), on=["point_id", "attempt"], how="left")
        .with_columns(
            pl.col(name).fill_null(pl.col(name).drop_nulls().first())
            for name in ("boundary", "simulated")
        )
    )
    groups = tried.group_by("boundary", "simulated", maintain_order=True)
    return [_row(name, group) for _, group in groups]


def _window_j() -> pl.Expr:
    """Return the joules of an attempt's own window: energy_j, unless the row holds those of earlier pieces, too."""
    around = ("load_energy_j", "warmup_energy_j", "idle_energy_j", "idle_after_energy_j")
    own = pl.col("job_energy_j") - pl.sum_horizontal(around)
    return pl.when(pl.col("pieces") > 1).then(own).otherwise(pl.col("energy_j")).alias("window_j")


def _outside(sweep: Sweep) -> pl.DataFrame:
    """Return the joules of measured commands before and after their windows, an attempt each."""
    outside = sweep.phases.filter(pl.col("phase") == "outside")
    return outside.group_by("point_id", "attempt").agg(
        pl.when(pl.col("energy_j").null_count() == 0)
        .then(pl.col("energy_j").sum())
        .alias("outside_energy_j")
    )


def _row(name: str, group: pl.DataFrame) -> Row:
    finished = group.filter(pl.col("status") == "finished")
    running = group.filter((pl.col("status") == "running") & pl.col("newest"))
    failed = group.filter(pl.col("status") != "finished").join(
        running.select("point_id", "attempt"), on=["point_id", "attempt"], how="anti"
    )
    kwh = {
        "counting": _kwh(finished.filter("counts"), ["window_j"]),
        "not_counting": _kwh(finished.filter(~pl.col("counts")), ["window_j"]),
        **{part: _kwh(finished, columns) for part, columns in _J.items()},
        "outside": _kwh(finished, ["outside_energy_j"]),
        "failed": _kwh(failed, ["unfinished_energy_j"]),
        "running": _kwh(running, ["unfinished_energy_j"]),
    }
    known = group.filter(pl.any_horizontal(pl.col("window_j", "unfinished_energy_j").is_not_null()))
    currencies = group["currency"].drop_nulls().unique().to_list()
    one_currency = len(currencies) == 1
    return Row(
        sweep=name,
        boundary=group["boundary"][0],
        simulated=group["simulated"][0],
        attempts=len(group),
        unknown=len(group) - len(known),
        partly=len(known.filter(pl.col("energy_kwh").is_null())),
        failed=len(failed),
        gpu_hours=known_sum(group["gpu_hours"].to_list()),
        kwh=kwh,
        relative_expanded_u=_relative_u(known),
        price=known_sum(group["price"].to_list()) if one_currency else None,
        currency=currencies[0] if one_currency else None,
        price_source=_named(group["price_source"].to_list()),
        carbon_g=known_sum(group["carbon_g"].to_list()),
        carbon_source=_named(group["carbon_source"].to_list()),
    )


def _relative_u(known: pl.DataFrame) -> float | None:
    """Return the expanded uncertainty of what attempts took over what they took; null where one's is unknown."""
    whole = known.drop_nulls("energy_kwh")
    return quotient(
        of_sum(whole["energy_expanded_u_kwh"].to_list()), known_sum(whole["energy_kwh"].to_list())
    )


def _kwh(of: pl.DataFrame, columns: list[str]) -> float | None:
    """Return the sum of some columns of J as kWh: 0 without attempts of the kind, null where none is known."""
    if of.is_empty():
        return 0.0
    energy_j = known_sum([value for column in columns for value in of[column].to_list()])
    return kwh(energy_j)


def _named(sources: Sequence[str | None]) -> str | None:
    """Return the distinct sources, joined; null where there are none."""
    return " + ".join(dict.fromkeys(source for source in sources if source)) or None


def _total(rows: Sequence[Row]) -> Row:
    """Return the rows of several sweeps within one boundary as one."""
    currencies = {row.currency for row in rows if row.currency is not None}
    one_currency = len(currencies) == 1
    return Row(
        sweep="all",
        boundary=rows[0].boundary,
        simulated=rows[0].simulated,
        attempts=sum(row.attempts for row in rows),
        unknown=sum(row.unknown for row in rows),
        partly=sum(row.partly for row in rows),
        failed=sum(row.failed for row in rows),
        gpu_hours=known_sum([row.gpu_hours for row in rows]),
        kwh={kind: known_sum([row.kwh[kind] for row in rows]) for kind in KINDS},
        relative_expanded_u=quotient(
            of_sum(
                None if row.relative_expanded_u is None else row.relative_expanded_u * row.total_kwh
                for row in rows
                if row.total_kwh
            ),
            known_sum([row.total_kwh for row in rows]),
        ),
        price=known_sum([row.price for row in rows]) if one_currency else None,
        currency=currencies.pop() if one_currency else None,
        price_source=_named([row.price_source for row in rows]),
        carbon_g=known_sum([row.carbon_g for row in rows]),
        carbon_source=_named([row.carbon_source for row in rows]),
    )
