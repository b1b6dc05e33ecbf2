"""The verb that searches a grid for the setting that costs least."""

from collections.abc import Iterator
from typing import Annotated

import typer

from wattflow.analysis import statistics
from wattflow.analysis.axes import in_words
from wattflow.cli.arguments import AsJson, DryRun, Overrides
from wattflow.cli.printing import print_json, print_table, shown, talk
from wattflow.errors import WattflowError
from wattflow.plan import grid
from wattflow.report.text import interval, mark
from wattflow.search.goals import Goal
from wattflow.search.optimize import Budget, Search, State, document
from wattflow.search.optimize import optimize as run_search
from wattflow.search.space import Level

_MOST_DEARER = 10  # settings that the table shows, the nearest


def optimize(
    overrides: Overrides = None,
    *,
    goal: Annotated[
        str,
        typer.Option(
            "--goal", metavar="COLUMN", help="What is to be least; also edp, ed2p, price, carbon."
        ),
    ] = "energy_per_token_j",
    subject_to: Annotated[
        list[str] | None,
        typer.Option(
            "--subject-to",
            metavar="COLUMN<NUMBER",
            help="A condition, or COLUMN>NUMBER; may be given again.",
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option("--parallel", metavar="N", help="Points that wait or run at once.")
    ] = 4,
    points: Annotated[
        int | None, typer.Option("--points", metavar="N", help="Points to ask at most, in all.")
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option("--gpu-hours", metavar="H", help="GPU-hours to spend at most.")
    ] = None,
    kwh: Annotated[
        float | None, typer.Option("--kwh", metavar="KWH", help="Energy to spend at most.")
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Search a grid for the setting that costs least, in as few runs as decide it.

    It goes on until no further run is worth it or the budget is spent. A search that was ended goes on by the same
    command from what its sweep has.
    """
    wanted = Goal.parsed(goal, subject_to or [])
    search = Search.of(grid.plan(overrides or []), wanted, Budget(points, gpu_hours, kwh), parallel)
    if dry_run:
        _say_plan(search)
        return
    shown_before: list[str] = []

    def watch(state: State) -> None:
        line = _progress(search, state)
        if line not in shown_before[-1:]:
            shown_before.append(line)
            talk(line)

    state = run_search(search, watch)
    if as_json:
        print_json(document(search, state))
    else:
        _print(search, state)
    if state.verdict.best is None:
        raise WattflowError(
            f"no setting ran and kept the conditions; `wattflow status {shown(search.plan.sweep.path)}` says why runs "
            "failed."
        )


def _words(values: dict[str, Level]) -> str:
    return ", ".join(f"{name} {in_words(value)}" for name, value in values.items())


def _say_plan(search: Search) -> None:
    """Say what would be searched, and print the settings that run first."""
    space = search.grid.space
    names = [axis.name for axis in space.axes]
    print_table(names, [list(space.values(k).values()) for k in search.first()])
    for axis in space.axes:
        talk(f"{axis.name}: {', '.join(map(in_words, axis.values))}")
    bounds = [
        f"{most:g} {name.replace('_', ' ')}" for name, most in vars(search.budget).items() if most
    ]
    conditions = "".join(f", {one}" for one in search.goal.conditions)
    talk(
        f"sweep {search.plan.name}: {len(space.settings)} settings that can run, up to {search.grid.repeats} runs "
        f"each; the {'most' if search.goal.is_most else 'least'} {search.goal.name}{conditions}; at most "
        f"{' and '.join(bounds) or 'what decides it'}. The settings above run first, {search.parallel} at once; "
        "nothing was sent."
    )


def _figure(search: Search, state: State, setting: int) -> str:
    values = state.reading.values[setting]
    sign = mark(state.reading.simulated)
    return f"{sign}{search.goal.shown(statistics.mean(values).mean):.4g}"


def _progress(search: Search, state: State) -> str:
    """Return where the search stands, in a line."""
    verdict, spent = state.verdict, state.spent
    parts = [f"{spent.over} runs over, {state.under_way + len(state.chosen)} under way"]
    if verdict.best is not None:
        parts.append(
            f"best so far {_words(search.grid.space.values(verdict.best))}: "
            f"{_figure(search, state, verdict.best)} {search.goal.name}"
        )
        parts.append(f"{len(verdict.open)} not decided")
    parts.append(f"{verdict.unseen} of {len(search.grid.space.settings)} settings not run")
    return "; ".join(parts)


def _print(search: Search, state: State) -> None:
    """Print the best, what ties with it and what is dearer, then what the search rests on."""
    verdict, space = state.verdict, search.grid.space
    if verdict.best is not None:
        names = [axis.name for axis in space.axes]
        rows = [
            [*space.values(k).values(), *_cells(search, state, k), said]
            for k, said in _listed(state)
        ]
        headings = [*names, "n", search.goal.name, "95 % interval", "to the best", "verdict"]
        print_table(headings, rows)
    for line in _sentences(search, state):
        talk(line)


def _listed(state: State) -> Iterator[tuple[int, str]]:
    verdict = state.verdict
    assert verdict.best is not None
    yield verdict.best, "best"
    dearer = "simulated" if state.reading.simulated else "dearer"
    nearest = dict(sorted(verdict.beaten.items(), key=lambda one: one[1].ratio)[:_MOST_DEARER])
    for of, said in ((verdict.ties, "tie"), (verdict.open, "not decided"), (nearest, dearer)):
        for k in sorted(of, key=lambda one: of[one].ratio):
            yield k, said


def _cells(search: Search, state: State, setting: int) -> list[object]:
    verdict = state.verdict
    mean = statistics.mean(state.reading.values[setting])
    low, high = mean.low, mean.high
    if search.goal.is_most:  # held as seconds
        low, high = _inverse(high), _inverse(low)
    ratios = {**verdict.beaten, **verdict.ties, **verdict.open}
    ratio = ratios.get(setting)
    return [
        mean.n,
        _figure(search, state, setting),
        interval(low, high, ".4g", mark(state.reading.simulated)),
        None if ratio is None else f"{ratio.ratio:.3f}",
    ]


def _inverse(value: float | None) -> float | None:
    return 1 / value if value is not None and value > 0 else None


def _sentences(search: Search, state: State) -> Iterator[str]:
    """Yield what the verdict rests on and what it leaves open."""
    verdict, spent = state.verdict, state.spent
    settings = len(search.grid.space.settings)
    amounts = (
        ("", spent.gpu_hours, "GPU-hours", spent.gpu_hours_known),
        (mark(spent.simulated), spent.kwh, "kWh", spent.kwh_known),
    )
    taken = "".join(
        f", {sign}{value:.3g} {unit}{'' if known == 1 else f' (of {100 * known:.0f} % of attempts)'}"
        for sign, value, unit, known in amounts
        if value is not None
    )
    yield (
        f"{spent.points} points of {settings - verdict.unseen} of {settings} settings{taken}; stopped as "
        f"{state.stopped_by}."
    )
    for count, said in (
        (
            len(verdict.ties) + len(verdict.open),
            "settings may be as good as the best: ties, not losers",
        ),
        (verdict.unlikely, "that ran are dearer by the fit of all runs alone"),
        (
            verdict.unseen,
            f"settings did not run; the fit holds {verdict.hopeful} of them worth a run",
        ),
        (verdict.excluded, "settings failed or broke a condition"),
        *(
            (n, f"runs finished and count in no figure: {why}")
            for why, n in state.reading.why_void.items()
        ),
    ):
        if count:
            yield f"{count} {said}."
    for one in verdict.effects:
        if one.matters is False:
            yield (
                f"{one.axis} does not matter: beside the best it changes {search.goal.name} by {100 * one.most:.1f} % "
                "at most, by the fit."
            )
    if state.reading.never_bound:
        yield f"caps that never held power back: {', '.join(map(str, state.reading.never_bound))} W."
    if state.reading.simulated:
        yield "~ marks what was simulated, not measured: nothing is established by it."
