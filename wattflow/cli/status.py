"""The verbs that show where a sweep stands: `status` and `logs`."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from wattflow.cli.arguments import AsJson, Filters, Only, States, SweepArgument
from wattflow.cli.failures import say_failures
from wattflow.cli.printing import print_json, print_table, print_text, shown, talk
from wattflow.nullable import NO_DOUBT, is_undoubted, with_doubt
from wattflow.store.layout import SweepDir
from wattflow.submit import logs as point_logs
from wattflow.submit import select, summary
from wattflow.submit import status as stage


def status(
    sweep: SweepArgument,
    filters: Filters = None,
    *,
    state: States = None,
    only: Only = None,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every 30 s until all have ended.")
    ] = False,
) -> None:
    """Show each point's state, why some failed, and what to do next.

    Exit code 3: some points failed; 4: some wait or run; 5: Slurm did not answer.
    """
    directory = SweepDir.existing(sweep)
    points = select.choose(directory, filters or [], only)
    stage.check_states(state or [])
    while True:
        rows = stage.states(directory)
        chosen = [
            row
            for row in rows
            if (not state or row.state in state) and (points is None or row.point_id in points)
        ]
        if as_json:
            print_json([vars(row) for row in chosen])
        else:
            _print_states(directory, chosen, filtered=bool(state or filters or only), again=watch)
            print_text("")
            print_text(", ".join(f"{n} {name}" for name, n in stage.counts(rows).items()))
            _say_doubts(rows)
            for spent in summary.spent(rows):
                _say_energy(spent)
            _say_left(summary.left(directory, rows))
            say_failures(directory, chosen, print_text)
        code = stage.exit_code(rows)
        if not watch or code not in (4, 5):
            raise typer.Exit(code)
        time.sleep(30.0)


_MANY = 200  # rows that a person may still want to see


def _print_states(sweep: Any, rows: Sequence[Any], *, filtered: bool, again: bool) -> None:
    """A row a point; a person at a terminal who chose none of very many sees those that run."""
    terminal = sys.stdout.isatty()
    if terminal and again:
        from rich.console import Console  # noqa: PLC0415 - slow to import, for a terminal alone

        Console().clear()
    listed = list(rows)
    if terminal and not filtered and len(listed) > _MANY:
        listed = [row for row in listed if row.state == "running"]
        talk(f"{len(rows)} points; those that run are listed, --state lists others.")
        if not listed:
            return
    words = select.choices_in_words(sweep)
    print_table(
        ["point_id", "state", "choices", "attempts", "job", "reason"],
        [
            [row.point_id, row.state, words.get(row.point_id), row.attempts, row.job, row.reason]
            for row in listed
        ],
        numbers=[3],
    )


def _say_doubts(rows: Sequence[Any]) -> None:
    """Say how many points are done and count in no figure, and why, as far as they were collected."""
    doubts = Counter(row.doubt for row in rows if row.doubt is not None)
    if doubts:
        why = "; ".join(f"{n}: {doubt}" for doubt, n in doubts.most_common())
        print_text(f"of the done points {doubts.total()} do not count: {why}")


def _say_energy(spent: Any) -> None:
    """Joules so far and watts now, each with what is not in it; nothing where no point ran."""
    mark = "~" if spent.simulated else ""
    if spent.energy_j is not None:
        unknown = (
            f"; energy unknown for {spent.points_unknown} more" if spent.points_unknown else ""
        )
        doubt_j = spent.energy_expanded_u_j
        kwh = with_doubt(spent.energy_j / 3.6e6, doubt_j and doubt_j / 3.6e6, "kWh", mark)
        joules = with_doubt(spent.energy_j, doubt_j, "J", mark)
        print_text(f"energy so far: {joules} ({kwh}) of {spent.points_known} points{unknown}")
    if spent.power_w is not None:
        watts = with_doubt(spent.power_w, spent.power_expanded_u_w, "W", mark)
        print_text(f"power now: {watts} of {spent.watched} of {spent.running} running points")
    undoubted = is_undoubted(spent.energy_j, spent.energy_expanded_u_j)
    undoubted |= is_undoubted(spent.power_w, spent.power_expanded_u_w)
    if undoubted and not spent.simulated:
        talk(NO_DOUBT)
    if spent.nodes_unheard:
        print_text(f"not in these: {spent.nodes_unheard} further nodes of running points")


def _say_left(left: Any) -> None:
    """What is left to run, as the estimate it is, with what it rests on; nothing where nothing is left."""
    known = left.same + left.shape
    if not known + left.unknown:
        return
    if not known:
        why = "no point like them has finished" if left.attempts else "no point has finished"
        print_text(f"left: {left.unknown} points, for how long is unknown: {why}")
        return
    mark = "~" if left.simulated else ""
    kwh = with_doubt(left.energy_kwh, left.energy_expanded_u_kwh, "kWh", mark)
    energy = "" if left.energy_kwh is None else f" and {kwh}"
    unknown = f"; {left.unknown} points are unknown and not in it" if left.unknown else ""
    print_text(
        f"left, an estimate: {left.gpu_hours:.3g} GPU-hours{energy} for {known} points; {left.same} by the mean of "
        f"the same choices, {left.shape} by their shape's time a step, from {left.attempts} finished{unknown}"
    )


def logs(
    sweep: SweepArgument,
    point: Annotated[
        str | None,
        typer.Argument(
            metavar="[POINT]", help="A point_id or its beginning; the newest failure without one."
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Only this rank's.")] = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the attempt ends, or Ctrl-C.")
    ] = False,
) -> None:
    """Print the logs of a point's newest attempt."""
    directory = SweepDir.existing(sweep)
    point = point_logs.newest_failure(directory) if point is None else select.one(directory, point)
    last = None
    found = point_logs.follow if follow else point_logs.logs
    for log in found(directory, point, rank):
        if log.path != last:
            talk(f"==> {shown(log.path)} <==")
            last = log.path
        at_line_end = follow or log.text.endswith("\n")
        print_text(log.text, end="" if at_line_end else "\n", flush=follow)
    if follow:
        (row,) = stage.states(directory, {point})
        talk(f"{row.point_id} {row.state}{f': {row.reason}' if row.reason else ''}")
