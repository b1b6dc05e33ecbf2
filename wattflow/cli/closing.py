"""Close a followed sweep: collect it, print its table, name what failed."""

from typing import Any

import polars as pl

from wattflow.analysis.sweep import open_sweep
from wattflow.cli.failures import say_failures
from wattflow.cli.printing import print_table, shown, talk
from wattflow.collect import collect as collecting
from wattflow.errors import WattflowError
from wattflow.nullable import NO_DOUBT, is_undoubted
from wattflow.report.terminal import table
from wattflow.store.columns import REASONS
from wattflow.submit import status as stage


def close(sweep: Any) -> None:
    """Collect, print the closing table, and name what failed."""
    collecting.collect(sweep)
    results = open_sweep(sweep.path)
    rows = table(results)
    if rows:
        headings = list(rows[0])
        print_table(
            headings, [list(row.values()) for row in rows], numbers=range(len(headings) - 1)
        )
        if any(cell.startswith("~") for row in rows for cell in row.values()):
            talk("~ marks watts and joules that were simulated, not measured.")
    if any(
        is_undoubted(row["energy_j"], row["energy_expanded_u_j"])
        for row in results.points.filter("counts", ~pl.col("simulated")).to_dicts()
    ):
        talk(NO_DOUBT)
    _say_not_counting(results)
    talk(f"`wattflow report {shown(sweep.path)}` draws them.")
    states = stage.states(sweep)
    say_failures(sweep, states)
    if stage.exit_code(states) == 3:
        raise WattflowError("some points did not finish; why stands above.")


def _say_not_counting(results: Any) -> None:
    """Which finished points are in no mean of the table, and why."""
    for row in results.points.select("point_id", "status", "counts", "reasons").to_dicts():
        if row["status"] == "finished" and not row["counts"]:
            why = [REASONS[code][1] for code in row["reasons"] if REASONS[code][0]]
            talk(f"{row['point_id']} finished and does not count: {' '.join(why)}")
