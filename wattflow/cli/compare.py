"""The verb that compares settings, and sweeps of the same settings."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from wattflow.analysis import comparisons
from wattflow.analysis.axes import along_in_words
from wattflow.analysis.regressions import Change, Changes, changes
from wattflow.analysis.sweep import Sweep, Sweeps
from wattflow.cli.arguments import Along, AsJson, SweepArguments
from wattflow.cli.opened import opened
from wattflow.cli.printing import print_json, print_table, talk
from wattflow.errors import RefusedError, WattflowError
from wattflow.nullable import with_doubt
from wattflow.report.text import break_even, interval, mark, rests_on
from wattflow.store.columns import columns_in


def compare(
    sweeps: SweepArguments,
    by: Annotated[str, typer.Option("--by", metavar="COLUMN", help="The choice to compare.")] = "",
    metric: Annotated[
        str, typer.Option("--metric", metavar="COLUMN", help="The number to compare by.")
    ] = "energy_per_token_j",
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="VALUE", help="The value that ratios are to."),
    ] = None,
    *,
    along: Along = "",
    against: Annotated[
        str, typer.Option("--against", metavar="SWEEP", help="An earlier sweep of the settings.")
    ] = "",
    fail_above: Annotated[
        str,
        typer.Option(
            "--fail-above", metavar="PERCENT", help="Exit with 1 where one got so much worse."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Compare the values of one choice, or two sweeps: means, intervals, ratios.

    Ratios are paired by the boards that ran both settings. A choice that moves along is named in the verdict; two are
    refused unless --with names them. Two sweeps without --by are the earlier and the later one of the same settings.
    """
    if not by:
        _compare_sweeps(_pair(sweeps, against), metric, _share(fail_above), as_json=as_json)
        return
    if against or fail_above:
        raise RefusedError("--against and --fail-above compare sweeps: leave --by out.")
    results = opened(sweeps)
    arms = comparisons.arms(
        results.points, by, metric, reference, columns_in(along), controls=results.controls
    )
    if as_json:
        print_json([arm.row(by) for arm in arms])
        return
    simulated = mark(results.points["simulated"].any())
    own = simulated if comparisons.of_watts(metric) else ""
    headings = [*arms[0].chosen, by, "n", "boards", metric, "95 % interval", "ratio"]
    headings += ["95 % interval", "break-even host, W", "rests on", "verdict"]
    print_table(
        headings,
        [
            [
                *(*arm.chosen.values(), arm.value, arm.mean.n, arm.mean.boards),
                with_doubt(arm.mean.mean, arm.mean.expanded_u, mark=own),
                interval(arm.mean.low, arm.mean.high, ".4g", own),
                "-" if arm.ratio is None else f"{arm.ratio.ratio:.4f}",
                "-" if arm.ratio is None else interval(arm.ratio.low, arm.ratio.high, ".4g"),
                break_even(arm.break_even, simulated),
                "-" if arm.ratio is None else rests_on(arm.ratio),
                "reference" if arm.ratio is None else _verdict(by, arm),
            ]
            for arm in arms
        ],
    )


def _verdict(by: str, arm: comparisons.Arm) -> str:
    """Return how a ratio was found, whether it is a difference, and of what beside the compared choice."""
    assert arm.ratio is not None
    verdict = "established" if arm.ratio.established else arm.ratio.why_not
    along = along_in_words(arm.along)
    return f"{arm.ratio.how}: {verdict}{f', of {by} together with {along}' if along else ''}"


def _pair(sweeps: Sequence[str], against: str) -> tuple[Sweep, Sweep]:
    """Return the earlier and the later sweep; RefusedError unless there are just two."""
    results = opened([*([against] if against else []), *sweeps])
    if not isinstance(results, Sweeps) or len(results.sweeps) != 2:
        raise RefusedError(
            "compare: --by COLUMN, or two sweeps of the same settings: SWEEP --against BASELINE."
        )
    before, after = results.sweeps
    return before, after


def _share(text: str) -> float | None:
    if not text:
        return None
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent < 1000:
        raise RefusedError(f"--fail-above {text}: a number of percent, such as 3%.")
    return percent / 100


def _compare_sweeps(
    pair: tuple[Sweep, Sweep], metric: str, share: float | None, *, as_json: bool
) -> None:
    found = changes(*pair, metric)
    if as_json:
        print_json(asdict(found))
    else:
        _print_changes(found, pair, metric)
    if share is None:
        return
    better_high = metric.endswith("_per_s")
    worse = [one for one in found.changes if one.is_worse(share, more_is_better=better_high)]
    if worse:
        raise WattflowError(
            f"{len(worse)} of {len(found.changes)} settings are established to be worse in {metric} by more than "
            f"{100 * share:g} %."
        )
    talk(f"no setting is established to be worse by more than {100 * share:g} %.")


def _print_changes(found: Changes, pair: tuple[Sweep, Sweep], metric: str) -> None:
    sign = mark(found.simulated)
    print_table(
        [
            *found.changes[0].chosen,
            "n",
            *(one.name for one in pair),
            "ratio",
            "95 % interval",
            "verdict",
        ],
        [
            [
                *one.chosen.values(),
                f"{one.before.n} and {one.after.n}",
                with_doubt(one.before.mean, one.before.expanded_u, mark=sign),
                with_doubt(one.after.mean, one.after.expanded_u, mark=sign),
                f"{one.ratio.ratio:.4f}",
                interval(one.ratio.low, one.ratio.high, ".4g"),
                _of_change(one),
            ]
            for one in found.changes
        ],
    )
    talk(
        f"{metric} of {pair[1].name} over {pair[0].name}, {len(found.changes)} settings that both ran."
    )
    for count, sweep in ((found.only_before, pair[0]), (found.only_after, pair[1])):
        if count:
            talk(f"{count} settings count in {sweep.name} alone.")


def _of_change(one: Change) -> str:
    verdict = "established" if one.ratio.established else one.ratio.why_not
    along = along_in_words(one.along)
    return f"{one.ratio.how}: {verdict}{f'; {along}' if along else ''}"
