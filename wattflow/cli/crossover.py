"""The verb `crossover`."""

from typing import Annotated

import typer

from wattflow.analysis import comparisons
from wattflow.analysis.axes import along_in_words
from wattflow.analysis.crossover import Crossover, crossovers
from wattflow.analysis.sweep import open_sweep
from wattflow.cli.arguments import Along, AsJson, SweepArgument
from wattflow.cli.printing import print_json, print_table, print_text
from wattflow.nullable import with_doubt
from wattflow.report.text import interval, mark
from wattflow.store.columns import column_of, columns_in


def crossover(
    sweep: SweepArgument,
    by: Annotated[
        str, typer.Option("--by", metavar="COLUMN", help="The choice to compare.")
    ] = "precision",
    over: Annotated[
        str, typer.Option("--over", metavar="COLUMN", help="The number over which it may cross.")
    ] = "batch_size",
    metric: Annotated[
        str, typer.Option("--metric", metavar="COLUMN", help="The number to compare by.")
    ] = "energy_per_token_j",
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="VALUE", help="The value that ratios are to."),
    ] = None,
    *,
    along: Along = "",
    as_json: AsJson = False,
) -> None:
    """Show where one setting stops being dearer than another.

    The ratio at each batch, whether it is established, and the batches between which it crosses 1.
    """
    opened = open_sweep(sweep)
    by, over = column_of(by), column_of(over)
    found = crossovers(
        opened.points,
        by,
        over,
        metric,
        reference=reference,
        along=columns_in(along),
        controls=opened.controls,
    )
    if as_json:
        print_json([_as_json(one, by) for one in found])
        return
    own = mark(opened.points["simulated"].any()) if comparisons.of_watts(metric) else ""
    for one in found:
        _print_one(one, by, metric, own)


def _print_one(one: Crossover, by: str, metric: str, own: str) -> None:
    rows = []
    for arm, (_, side) in zip(one.arms, one.sides(), strict=True):
        assert arm.ratio is not None
        said = {1: "dearer", -1: "cheaper", 0: f"cannot be said: {arm.ratio.why_not}"}[side]
        along = along_in_words(arm.along)
        rows.append(
            [
                *(*one.chosen.values(), arm.chosen[one.over], arm.value, arm.mean.n),
                with_doubt(arm.mean.mean, arm.mean.expanded_u, mark=own),
                f"{arm.ratio.ratio:.4f}",
                interval(arm.ratio.low, arm.ratio.high, ".4g"),
                f"{said}{f', together with {along}' if along else ''}",
            ]
        )
    headings = [*one.chosen, one.over, by, "n", metric, f"to {one.against}", "95 % interval", ""]
    print_table(headings, rows)
    for sentence in one.sentences():
        print_text(sentence)


def _as_json(one: Crossover, by: str) -> dict[str, object]:
    return {
        **one.chosen,
        by: one.value,
        "against": one.against,
        "arms": [arm.row(by) for arm in one.arms],
        "crossings": [vars(crossing) for crossing in one.crossings],
        "said": one.sentences(),
    }
