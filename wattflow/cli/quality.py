"""The verb that shows right answers beside joules."""

from dataclasses import asdict

from wattflow.analysis.axes import axes_of
from wattflow.analysis.quality import Quality, of_sweep
from wattflow.analysis.sweep import Sweep, open_sweep
from wattflow.cli.arguments import AsJson, SweepArgument
from wattflow.cli.printing import print_json, print_table, talk
from wattflow.nullable import number
from wattflow.report.text import interval, mark


def quality(sweep: SweepArgument, *, as_json: AsJson = False) -> None:
    """Show how many answers are right, and the joules of each right one.

    By GSM8K's #### rule, for real weights and prompts with reference results. The energy of all tries at a point is in
    the joules of its right answers.
    """
    opened = open_sweep(sweep)
    found = of_sweep(opened)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    _print(opened, found)


def _print(opened: Sweep, found: list[Quality]) -> None:
    axes = axes_of(opened.points)
    rows = {row["point_id"]: row for row in opened.points.to_dicts()}
    head = ["point_id", *axes, "right", "of", "share", "95 % interval", "J a right answer"]
    print_table(
        [*head, "95 % interval", "tries", "note"],
        [
            [
                *(
                    one.point_id,
                    *(rows[one.point_id][axis] for axis in axes),
                    one.right,
                    one.answers,
                ),
                *(number(one.share), interval(one.share_low, one.share_high, ".3f")),
                number(one.per_right_j, mark(one.simulated)),
                interval(one.per_right_low_j, one.per_right_high_j, ".4g", mark(one.simulated)),
                *(one.tries, one.reason or ""),
            ]
            for one in found
        ],
    )
    if any(one.simulated for one in found):
        talk("~ marks joules that were simulated, not measured.")
