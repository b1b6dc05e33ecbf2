"""The verbs that do a sweep's work in this process: run points, collect what they left."""

from wattflow.analysis import controls
from wattflow.cli.arguments import Multirun, Overrides, SweepArguments
from wattflow.cli.follow import Follower, finish
from wattflow.cli.opened import matching
from wattflow.cli.printing import talk
from wattflow.collect import collect as collecting
from wattflow.errors import WattflowError
from wattflow.plan import grid, points
from wattflow.run.local import run_serially
from wattflow.store.layout import SweepDir
from wattflow.submit import send


def run(overrides: Overrides = None, multirun: Multirun = False) -> None:
    """Run points here, one after another, as a Hydra application.

    Lists of values need -m.
    """

    def one(made: points.Plan, point: points.Point) -> None:
        if point.reason is not None:
            talk(f"{point.point_id}: left out: {point.reason}")
            return
        send.keep(made)
        with Follower() as follower:
            run_serially(
                str(made.sweep.path),
                [point.point_id],
                report=lambda _, at: follower.show({at.phase: at.done}, f"of {at.of} batches"),
            )

    made = grid.as_hydra_application(overrides or [], one, multirun=multirun)
    finish(made.sweep)


def collect(sweeps: SweepArguments) -> None:
    """Merge power traces and timings into tables, as often as you like."""
    paths = matching(sweeps)
    failed = 0
    for path in paths:
        if len(paths) == 1:
            _collect(SweepDir.existing(path))
            continue
        talk(f"{path}:")
        try:
            _collect(SweepDir.existing(path))
        except WattflowError as error:  # one of many keeps none of the others back
            failed += 1
            talk(f"wattflow: {error}")
    if failed:
        raise WattflowError(
            f"{failed} of {len(paths)} sweeps could not be collected; why stands above."
        )


def _collect(sweep: SweepDir) -> None:
    summary = collecting.collect(sweep)
    if summary.gone:
        talk(
            f"{summary.gone} attempts have no files any more: their rows are kept as they were, marked files_gone. To "
            "drop them, remove results/points.parquet and collect again."
        )
    if summary.pruned:
        talk(f"{summary.pruned} attempts were pruned: their rows are kept as they were collected.")
    for one in controls.of(sweep):
        for line in one.in_words():
            talk(line)
    for line in summary.damaged:
        talk(f"damaged: {line}")
    talk(
        f"{summary.points} points, {summary.attempts} attempts ({summary.new} new), {summary.counting} points count, "
        f"{summary.unfinished} are not finished; {summary.seconds:.1f} s."
    )
