"""The verbs of sweeps: what can be chosen, what is sent and ended."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from wattflow.analysis.axes import choice_columns, shown_axes
from wattflow.analysis.resolve import resolvable
from wattflow.cli.arguments import (
    AsJson,
    DryRun,
    Filters,
    Multirun,
    Only,
    Overrides,
    States,
    SweepArgument,
    Wait,
)
from wattflow.cli.follow import follow_sweep
from wattflow.cli.printing import print_json, print_table, print_text, shown, talk
from wattflow.config.checks import allowed
from wattflow.config.choices import GROUPS, to_dict
from wattflow.config.identity import DEFAULTS
from wattflow.errors import RefusedError, WattflowError
from wattflow.nullable import with_doubt
from wattflow.plan import grid
from wattflow.plan.hydra import group_files
from wattflow.plan.settings import cluster_settings
from wattflow.store import notes
from wattflow.store.columns import CHOICE_KEYS, choice_values
from wattflow.store.layout import SweepDir
from wattflow.submit import resume as resuming
from wattflow.submit import send
from wattflow.submit.preview import preview
from wattflow.submit.same_axes import check_axes
from wattflow.submit.select import choose, refuse_idle_filters, split_settings
from wattflow.submit.status import check_states, states


def keys(
    part: Annotated[
        str,
        typer.Argument(metavar="[GROUP]", help="model, dataset, engine, power, cluster or grid."),
    ] = "",
) -> None:
    """List what can be chosen: all keys with their defaults, or one group."""
    if part:
        for name in group_files(part):
            print_text(name)
        return
    for group in GROUPS:
        talk(f"{group}: {', '.join(group_files(group))}")
    rows = [
        [key, "null" if value is None else value, ", ".join(allowed(key))]
        for key, value in DEFAULTS.items()
    ]
    print_table(["key", "default", "one of"], rows)


def plan(
    overrides: Overrides = None,
    multirun: Multirun = False,
    script: Annotated[
        bool, typer.Option("--script", help="Print the exact batch script of each shape.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Ask Slurm about each array (sbatch --test-only).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Preview a submit: points, job shapes, GPU-hours. Writes nothing."""
    del multirun  # a plan always expands

    made = grid.plan(overrides or [])
    if script:
        for text in send.batch_scripts(made):
            print_text(text)
        if not made.feasible:
            talk(f"sweep {made.name}: no point can run; leave --script out for the reasons.")
        return
    if test:
        _print_tested(send.test_only(made), as_json=as_json)
        return
    before = preview(made)
    if as_json:
        print_json(
            {
                "name": made.name,
                "sweep": str(made.sweep.path),
                "duplicates": made.duplicates,
                "points": [
                    {"point_id": p.point_id, "reason": p.reason, **to_dict(p.config)}
                    for p in made.points
                ],
                "shapes": before.rows,
                "cost": before.quote.as_json(),
            }
        )
        return
    chosen = [choice_values(to_dict(p.config)) for p in made.points]
    named = shown_axes(choice_columns(chosen))
    named += ["repeat"] if len({row["repeat"] for row in chosen}) > 1 else []
    print_table(
        ["point_id", *(CHOICE_KEYS[column] for column in named), "note"],
        [
            [p.point_id, *(row[column] for column in named), p.reason or ""]
            for p, row in zip(made.points, chosen, strict=True)
        ],
    )
    talk("")
    _print_shapes(before.rows)
    left_out = len(made.points) - len(made.feasible)
    talk(
        f"sweep {made.name}: {len(made.feasible)} points to run, {left_out} left out with a reason above."
    )
    if made.feasible:
        talk(before.quote.words())
    for note in [*made.notes, *_least_claim(made)]:
        talk(note)
    if made.duplicates:
        talk(f"{made.duplicates} combinations came to a point already listed.")
    try:
        check_axes(made)
        send.check_node_hours(before.shapes)
    except RefusedError as error:
        talk(f"`wattflow submit` would refuse them: {error}")


def _least_claim(made: Any) -> list[str]:
    """What differences a sweep on GPUs can establish on one board with its repeats; nothing where no GPU is asked."""
    configs = [point.config for point in made.feasible]
    if not configs or any(config.cluster.gpu_model is None for config in configs):
        return []
    repeats = len({config.repeat for config in configs})
    alike, apart = (resolvable(watts, 1, repeats) for watts in ((300.0, 300.0), (300.0, 150.0)))
    if alike is None or apart is None:
        return ["with one run of a setting no difference can be established: add sweep.repeats=3"]
    claim = (
        f"with {repeats} repeats on one board differences below {100 * alike:.1f} % cannot be established, nor below "
        f"{100 * apart:.1f} % where one setting takes 300 W and the other 150; `wattflow resolve` has other watts"
    )
    return [claim]


def _print_tested(tested: Sequence[Any], *, as_json: bool) -> None:
    """Slurm's answer to each array; WattflowError when it would refuse one."""
    if as_json:
        print_json([vars(one) for one in tested])
    else:
        print_table(
            ["cluster", "nodes", "ranks_per_node", "tasks", "accepted", "answer"],
            [
                [one.cluster, one.nodes, one.ranks_per_node, one.tasks, one.accepted, one.answer]
                for one in tested
            ],
            numbers=[1, 2, 3],
        )
    refused = sum(not one.accepted for one in tested)
    if refused:
        raise WattflowError(
            f"Slurm would refuse {refused} of {len(tested)} arrays; why stands above."
        )
    talk(f"{len(tested)} arrays tested, nothing sent.")


def _print_shapes(rows: Sequence[dict[str, Any]]) -> None:
    """What each resource shape asks of the cluster; the hours are an upper bound, from the time limit."""
    for row in rows:
        asked = f"{row['points']} points on {row['nodes']} x {row['ranks_per_node']} ranks"
        asked += f", {row['slots']} at once on a node" * (row["slots"] > 1)
        if row["time_min"] is None:
            talk(f"{row['cluster']}: {asked}, one after another on this machine")
        else:
            talk(
                f"{row['cluster']}: {asked}, {row['jobs']} arrays, {row['tasks']} tasks of at most "
                f"{row['time_min']} min: at most {row['gpu_hours']:g} GPU-hours, {row['node_hours']:g} node-hours"
            )
        if "expected" in row:
            talk(f"  {_estimate(row['expected'], row['time_min'])}")


def _estimate(expected: dict[str, Any], time_min: int | None) -> str:
    """An estimate with what it rests on, and a warning where a task should outlast its limit."""
    known = expected["same"] + expected["shape"]
    if not known:
        return "time unknown: no finished point of this shape was collected in sweeps_dir"
    mark = "~" if expected["simulated"] else ""
    kwh = with_doubt(expected["energy_kwh"], expected["energy_expanded_u_kwh"], "kWh", mark)
    energy = "" if expected["energy_kwh"] is None else f", {kwh}"
    text = (
        f"estimate: {expected['gpu_hours']:.3g} GPU-hours{energy}; {expected['same']} points by finished ones with "
        f"the same choices, {expected['shape']} by their shape's time a step"
    )
    if expected["unknown"]:
        text += f", {expected['unknown']} unknown and not in it"
    longest_min = expected["longest_task_min"]
    if longest_min is not None and time_min is not None:
        too_long = f", more than its limit of {time_min} min" if longest_min > time_min else ""
        text += f"; the longest task {longest_min:.3g} min{too_long}"
    return text


def submit(
    overrides: Overrides = None,
    multirun: Multirun = False,
    wait: Wait = False,
    dry_run: DryRun = False,
    *,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="NAME", help="A tag that list shows; may be given again."),
    ] = None,
    note: Annotated[
        str, typer.Option("--note", metavar="TEXT", help="A line about the sweep, shown by list.")
    ] = "",
) -> None:
    """Send a sweep to Slurm, or run it here with cluster=local.

    It returns when the jobs are accepted. To an existing sweep it adds the points that were never tried; `resume`
    retries those that failed.
    """
    del multirun  # a submit always expands

    notes.check(tag or [], note)
    made = grid.plan(overrides or [])
    sent = send.submit(made, dry_run=dry_run, announce=lambda quote: talk(quote.words()))
    if (tag or note) and not dry_run:
        notes.add(made.sweep, tag or [], note)
    if any(point.config.sweep.on_interrupt == "continue" for point in made.feasible):
        talk(
            "sweep.on_interrupt=continue: a point that is cut short and goes on counts in no figure; restart makes "
            "it anew as a whole."
        )
    say_sent(sent, dry_run=dry_run)
    if wait and not dry_run:
        follow_sweep(made.sweep)
    else:
        _refuse_none(sent)


def say_sent(sent: Any, *, dry_run: bool) -> None:
    """What a submit or resume sent, job ids on stdout."""
    _print_shapes([shape.row() for shape in sent.shapes])
    left = f"{sent.tried} sent before, {sent.infeasible} cannot run"
    talk(
        f"sweep {sent.sweep.name}: {sent.points} points {'to send' if dry_run else 'sent'}; {left}."
    )
    for job_id in sent.job_ids:
        print_text(job_id)
    for line in sent.ignored:
        talk(line)
    if sent.points and not dry_run:
        talk(f"`wattflow status {shown(sent.sweep.path)}` shows how far they are.")


def _refuse_none(sent: Any) -> None:
    """Raise RefusedError where nothing was sent though points are not finished."""
    if not sent.points and sent.left:
        raise RefusedError(f"sweep {sent.sweep.name}: 0 points sent: {'; '.join(sent.left)}.")


def resume(
    sweep: SweepArgument,
    filters: Filters = None,
    *,
    state: States = None,
    only: Only = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also run points of --only that finished; all are kept.")
    ] = False,
    wait: Wait = False,
    dry_run: DryRun = False,
) -> None:
    """Send the points again that were tried and did not finish.

    Points that wait or run are left alone. cluster.KEY=VALUE asks for another time limit, partition or setup, now and
    in later resumes; other KEY=VALUE choose points.
    """
    directory = SweepDir.existing(sweep)
    chosen_by, anew = split_settings(filters or [])
    refuse_idle_filters(directory, chosen_by)
    chosen = choose(directory, chosen_by, only)
    if state:
        check_states(state)
        chosen = {row.point_id for row in states(directory, chosen) if row.state in state}
    settings = cluster_settings(anew) if anew else {}
    sent = resuming.resume(directory, dry_run=dry_run, only=chosen, force=force, settings=settings)
    say_sent(sent, dry_run=dry_run)
    if settings and sent.points:
        talk(f"{' '.join(anew)}: asked for these points, also by later resumes.")
    if wait and not dry_run:
        follow_sweep(directory)
    else:
        _refuse_none(sent)


def cancel(
    sweep: SweepArgument,
    filters: Filters = None,
    *,
    state: States = None,
    only: Only = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask, however many jobs it ends.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """End a sweep's jobs, waiting and running.

    `resume` sends their points again.
    """
    directory = SweepDir.existing(sweep)
    chosen = choose(directory, filters or [], only)
    wanted = set(state) if state else None
    if not (yes or dry_run):
        would = resuming.cancel(directory, only=chosen, states=wanted, dry_run=True)
        if len(would) > 100 and not (
            sys.stdin.isatty()
            and typer.confirm(f"end {len(would)} tasks of {directory.name}?", err=True)
        ):
            raise WattflowError(f"{len(would)} tasks would end: say --yes to end them.")
    ended = resuming.cancel(directory, only=chosen, states=wanted, dry_run=dry_run)
    for key in ended:
        print_text(key)
    talk(f"{len(ended)} tasks {'would end' if dry_run else 'ended'}.")
