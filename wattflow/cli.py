"""The verbs of the command line: each parses its words, calls its stage and prints. `wattflow --help` lists them.

stdout is data, stderr is talk. Exit codes: 0 done, 1 failed while working, 2 refused before anything was sent;
`status` alone also 3 (some points failed), 4 (some wait or run), 5 (Slurm did not answer).
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Self

import typer

from wattflow import __version__
from wattflow.errors import WattflowError

# Stages are imported by the verb that needs them: --help is asked for far more often than anything else.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure what LLM inference costs in energy on a Slurm cluster, across a grid of choices.",
)

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE,...]...",
        help="Choices in Hydra's grammar: grid=NAME model=a,b shards=1,2 batch_size=range(8,65,8).",
    ),
]
Multirun = Annotated[
    bool,
    typer.Option("-m", "--multirun", help="Expand lists of values (submit and plan always do)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep's directory, or its name below ./sweeps.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow until every point has ended.")]
DryRun = Annotated[
    bool, typer.Option("-n", "--dry-run", help="Say what would be done; change nothing.")
]


def _talk(text: str) -> None:
    print(text, file=sys.stderr)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    del version  # its callback has done the work


def _table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()
) -> None:
    """Print a table: aligned on a terminal, tab-separated into a pipe. Columns in `numbers` are right-aligned."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(headings), *cells]:
            print("\t".join(row))
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, heading in enumerate(headings):
        table.add_column(
            heading, justify="right" if position in numbers else "left", overflow="fold"
        )
    for row in cells:
        table.add_row(*row)
    Console().print(table)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, default=str))


@app.command()
def plan(
    words: Words = None,
    multirun: Multirun = False,
    script: Annotated[
        bool, typer.Option("--script", help="Print the exact batch script of each shape.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Ask Slurm about each array (sbatch --test-only).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a submit of the same words would send: points, shapes, jobs, GPU-hours. Nothing is written."""
    del multirun  # a plan always expands
    from wattflow import submit as stage  # noqa: PLC0415
    from wattflow.grid import plan as make_plan  # noqa: PLC0415

    made = make_plan(words or [])
    if script:
        for text in stage.batch_scripts(made):
            print(text)
        if not made.feasible:
            _talk(f"sweep {made.name}: no point can run; leave --script out for the reasons.")
        return
    if test:
        _print_tested(stage.test_only(made), as_json=as_json)
        return
    if as_json:
        _print_json(
            {
                "name": made.name,
                "sweep": str(made.sweep.path),
                "duplicates": made.duplicates,
                "points": [
                    {"point_id": p.point_id, "reason": p.reason, **p.choices} for p in made.points
                ],
                "shapes": stage.shape_rows(made),
            }
        )
        return
    varying = _varying(made.points)
    _table(
        ["point_id", *varying, "note"],
        [
            [p.point_id, *(_leaf(p.choices, key) for key in varying), p.reason or ""]
            for p in made.points
        ],
    )
    _talk("")
    _print_shapes(stage.shape_rows(made))
    left_out = len(made.points) - len(made.feasible)
    _talk(
        f"sweep {made.name}: {len(made.feasible)} points to run, {left_out} left out with a reason above."
    )
    if made.duplicates:
        _talk(f"{made.duplicates} combinations came to a point already listed.")


def _print_tested(tested: Sequence[Any], *, as_json: bool) -> None:
    """Slurm's answer to each array; WattflowError when it would refuse one."""
    if as_json:
        _print_json([vars(one) for one in tested])
    else:
        _table(
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
    _talk(f"{len(tested)} arrays tested, nothing sent.")


def _print_shapes(rows: Sequence[dict[str, Any]]) -> None:
    """What each resource shape asks of the cluster; the hours are an upper bound, from the time limit."""
    for row in rows:
        asked = f"{row['points']} points on {row['nodes']} x {row['ranks_per_node']} ranks"
        if row["time_min"] is None:
            _talk(f"{row['cluster']}: {asked}, one after another on this machine")
        else:
            _talk(
                f"{row['cluster']}: {asked}, {row['jobs']} arrays, {row['tasks']} tasks of at most "
                f"{row['time_min']} min: at most {row['gpu_hours']:g} GPU-hours, {row['node_hours']:g} node-hours"
            )
        if "expected" in row:
            _talk(f"  {_told_expected(row['expected'], row['time_min'])}")


def _told_expected(expected: dict[str, Any], time_min: int | None) -> str:
    """An estimate with what it rests on, and a warning where a task should outlast its limit."""
    known = expected["same"] + expected["shape"]
    if not known:
        return "time unknown: no finished point of this shape was collected in sweeps_dir"
    mark = "~" if expected["simulated"] else ""
    energy = "" if expected["energy_kwh"] is None else f", {mark}{expected['energy_kwh']:.3g} kWh"
    told = (
        f"estimate: {expected['gpu_hours']:.3g} GPU-hours{energy}; {expected['same']} points by finished ones with "
        f"the same choices, {expected['shape']} by their shape's time a step"
    )
    if expected["unknown"]:
        told += f", {expected['unknown']} unknown and not in it"
    longest_min = expected["longest_task_min"]
    if longest_min is not None and time_min is not None:
        too_long = f", more than its limit of {time_min} min" if longest_min > time_min else ""
        told += f"; the longest task {longest_min:.3g} min{too_long}"
    return told


def _leaf(choices: dict[str, Any], key: str) -> Any:
    value: Any = choices
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else None
    return value


def _varying(points: Sequence[Any]) -> list[str]:
    """The keys whose values differ between points; a group stands for all of its keys."""
    from wattflow.config import flat  # noqa: PLC0415

    groups = {
        "model": "model.name",
        "dataset": "dataset.name",
        "engine": "engine.name",
        "cluster": "cluster.name",
    }
    seen: dict[str, set[str]] = {}
    for point in points:
        for key, value in flat(point.choices).items():
            seen.setdefault(key, set()).add(repr(value))
    varying = [key for key, values in seen.items() if len(values) > 1]
    by_name = [name for name in groups.values() if name in varying]
    return by_name + [
        k
        for k in varying
        if k.split(".")[0] not in groups or f"{k.split('.')[0]}.name" not in by_name
    ]


@app.command()
def submit(
    words: Words = None,
    multirun: Multirun = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow until every point has ended.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Send a sweep to Slurm, or with cluster=local to this machine, and return when the jobs are accepted.

    To a sweep that exists it adds the points that were never tried; `resume` retries those that failed.
    """
    del multirun  # a submit always expands
    from wattflow import submit as stage  # noqa: PLC0415
    from wattflow.grid import plan as make_plan  # noqa: PLC0415

    made = make_plan(words or [])
    sent = stage.submit(made, dry_run=dry_run)
    _say_sent(sent, dry_run=dry_run)
    if wait and not dry_run:
        _follow(made.sweep)


def _say_sent(sent: Any, *, dry_run: bool) -> None:
    """What a submit or resume sent, job ids on stdout."""
    _print_shapes([shape.row() for shape in sent.shapes])
    left = f"{sent.tried} sent before, {sent.infeasible} cannot run"
    _talk(
        f"sweep {sent.sweep.name}: {sent.points} points {'to send' if dry_run else 'sent'}; {left}."
    )
    for job_id in sent.job_ids:
        print(job_id)
    if sent.points and not dry_run:
        _talk(f"`wattflow status {_shown(sent.sweep.path)}` shows how far they are.")


def _shown(path: Any) -> str:
    """A path as a person would type it from here."""
    return os.path.relpath(path) if path.is_relative_to(os.getcwd()) else str(path)  # noqa: PTH109


def _follow(sweep: Any) -> None:
    """Show progress until no point waits or runs, collect, and print the closing table."""
    from wattflow import status as stage  # noqa: PLC0415

    with _Follower() as follower:
        while True:
            rows = stage.states(sweep)
            follower.show(stage.counts(rows), _last_line(sweep))
            if stage.exit_code(rows) not in (4, 5):
                break
            time.sleep(1.0)
    _close(sweep)


def _last_line(sweep: Any) -> str:
    """What the newest local job said last; empty where points run under Slurm."""
    logs = sorted(sweep.submitit.glob("*/local_0_log.out"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
    return lines[-1] if lines else ""


class _Follower:
    """Progress on stderr: a bar on a terminal, a line a change elsewhere."""

    def __init__(self) -> None:
        self._shown = ""
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn  # noqa: PLC0415

            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.description}")
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, counts: dict[Any, int], doing: str) -> None:
        """Show how many points are in each state, and what the running one does."""
        told = ", ".join(f"{n} {state}" for state, n in counts.items())
        if self._bar is not None:
            can_run = sum(counts.values()) - counts.get("infeasible", 0)
            self._bar.update(
                self._task,
                completed=counts.get("done", 0),
                total=can_run,
                description=f"{told}  {doing}",
            )
        elif told != self._shown:
            _talk(told)
        self._shown = told


def _close(sweep: Any) -> None:
    """Collect, print the closing table, and name what failed."""
    from wattflow import collect as collecting  # noqa: PLC0415
    from wattflow import status as stage  # noqa: PLC0415
    from wattflow.report import table  # noqa: PLC0415
    from wattflow.results import open_sweep  # noqa: PLC0415

    collecting.collect(sweep)
    results = open_sweep(sweep.path)
    rows = table(results)
    if rows:
        headings = list(rows[0])
        _table(headings, [list(row.values()) for row in rows], numbers=range(len(headings) - 1))
        if any(cell.startswith("~") for row in rows for cell in row.values()):
            _talk("~ marks watts and joules that were simulated, not measured.")
    _say_not_counting(results)
    _talk(f"`wattflow report {_shown(sweep.path)}` draws them.")
    states = stage.states(sweep)
    _say_failures(sweep, states)
    if stage.exit_code(states) == 3:
        raise WattflowError("some points did not finish; why stands above.")


def _say_not_counting(results: Any) -> None:
    """Which finished points are in no mean of the table, and why."""
    from wattflow.columns import REASONS  # noqa: PLC0415

    for row in results.points.select("point_id", "status", "counts", "reasons").to_dicts():
        if row["status"] == "finished" and not row["counts"]:
            why = [REASONS[code][1] for code in row["reasons"] if REASONS[code][0]]
            _talk(f"{row['point_id']} finished and does not count: {' '.join(why)}")


def _say_failures(sweep: Any, rows: Iterable[Any]) -> None:
    """Why points did not finish, for each cause once: its log, and the command that tries them again."""
    from wattflow import status as stage  # noqa: PLC0415

    for cause in stage.causes(rows):
        first, count = cause.rows[0], len(cause.rows)
        who = first.point_id if count == 1 else f"{count} points"
        _talk(f"{who} {cause.state}: {cause.reason}")
        if count > 1:
            more = f" and {count - _SOME} more" if count > _SOME else ""
            _talk(f"  points {' '.join(row.point_id for row in cause.rows[:_SOME])}{more}")
        if first.log is not None:
            _talk(f"  log    {_shown(first.log)}{' (the first of them)' if count > 1 else ''}")
        alone = first.rerun if count == 1 else None
        _talk(f"  again  {alone or f'wattflow resume {_quoted(sweep)} --state {cause.state}'}")


_SOME = 4  # points of one cause that are named


def _quoted(sweep: Any) -> str:
    return shlex.quote(_shown(sweep.path))


@app.command()
def run(words: Words = None, multirun: Multirun = False) -> None:
    """Run points on this machine, one after another, as an ordinary Hydra application (-m for lists of values)."""
    from wattflow import grid  # noqa: PLC0415
    from wattflow.run import run_serially  # noqa: PLC0415
    from wattflow.submit import keep  # noqa: PLC0415

    def one(made: grid.Plan, point: grid.Point) -> None:
        if point.reason is not None:
            _talk(f"{point.point_id}: left out: {point.reason}")
            return
        keep(made)
        with _Follower() as follower:
            run_serially(
                str(made.sweep.path),
                [point.point_id],
                report=lambda _, phase, done, of: follower.show({phase: done}, f"of {of} batches"),
            )

    made = grid.as_hydra_application(words or [], one, multirun=multirun)
    _close(made.sweep)


Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="ID", help="Only this point; may be given again."),
]
States = Annotated[
    list[str] | None, typer.Option("--state", help="Only points in this state; may be given again.")
]
Filters = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE,...]...",
        help="Only points with these choices: batch_size=8,16 model=tiny.",
    ),
]


@app.command()
def status(
    sweep: SweepArgument,
    words: Filters = None,
    *,
    state: States = None,
    only: Only = None,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every 30 s until all have ended.")
    ] = False,
) -> None:
    """Show the state of each point, why some failed, where their logs lie and how to run them again.

    Exit code 3: some points failed; 4: some wait or run; 5: Slurm did not answer.
    """
    from wattflow import status as stage  # noqa: PLC0415
    from wattflow.sweepdir import SweepDir  # noqa: PLC0415

    directory = SweepDir.existing(sweep)
    points = stage.choose(directory, words or [], only)
    stage.check_states(state or [])
    while True:
        rows = stage.states(directory)
        chosen = [
            row
            for row in rows
            if (not state or row.state in state) and (points is None or row.point_id in points)
        ]
        if as_json:
            _print_json([vars(row) for row in chosen])
        else:
            _print_states(chosen, filtered=bool(state or words or only), again=watch)
            _talk(", ".join(f"{n} {name}" for name, n in stage.counts(rows).items()))
            _say_energy(stage.spent(rows))
            _say_left(stage.left(directory, rows))
            _say_failures(directory, chosen)
        code = stage.exit_code(rows)
        if not watch or code not in (4, 5):
            raise typer.Exit(code)
        time.sleep(30.0)


def _print_states(rows: Sequence[Any], *, filtered: bool, again: bool) -> None:
    """A row a point; a person at a terminal who chose none of very many sees those that run."""
    terminal = sys.stdout.isatty()
    if terminal and again:
        from rich.console import Console  # noqa: PLC0415

        Console().clear()
    listed = list(rows)
    if terminal and not filtered and len(listed) > _MANY:
        listed = [row for row in listed if row.state == "running"]
        _talk(f"{len(rows)} points; those that run are listed, --state lists others.")
        if not listed:
            return
    _table(
        ["point_id", "state", "attempts", "job", "reason"],
        [[row.point_id, row.state, row.attempts, row.job, row.reason] for row in listed],
        numbers=[2],
    )


_MANY = 200  # rows that a person may still want to see


def _say_energy(spent: Any) -> None:
    """Joules so far and watts now, each with what is not in it; nothing where no point ran."""
    mark = "~" if spent.simulated else ""
    if spent.energy_j is not None:
        untold = f"; of {spent.untold} more no joules are known" if spent.untold else ""
        _talk(
            f"energy so far: {mark}{spent.energy_j:,.0f} J ({mark}{spent.energy_j / 3.6e6:.4g} kWh) "
            f"of {spent.told} points{untold}"
        )
    if spent.power_w is not None:
        _talk(
            f"power now: {mark}{spent.power_w:,.0f} W of {spent.watched} of {spent.running} running points"
        )
    if spent.nodes_unheard:
        _talk(f"not in these: {spent.nodes_unheard} further nodes of running points")


def _say_left(left: Any) -> None:
    """What is left to run, as the estimate it is, with what it rests on; nothing where nothing is left."""
    known = left.same + left.shape
    if not known + left.unknown:
        return
    if not known:
        why = "no point like them has finished" if left.attempts else "no point has finished"
        _talk(f"left: {left.unknown} points, for how long is unknown: {why}")
        return
    mark = "~" if left.simulated else ""
    energy = "" if left.energy_kwh is None else f" and {mark}{left.energy_kwh:.3g} kWh"
    unknown = f"; {left.unknown} points are unknown and not in it" if left.unknown else ""
    _talk(
        f"left, an estimate: {left.gpu_hours:.3g} GPU-hours{energy} for {known} points; {left.same} by the mean of "
        f"the same choices, {left.shape} by their shape's time a step, from {left.attempts} finished{unknown}"
    )


@app.command()
def resume(
    sweep: SweepArgument,
    words: Filters = None,
    *,
    state: States = None,
    only: Only = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also run points of --only that finished; all are kept.")
    ] = False,
    wait: Wait = False,
    dry_run: DryRun = False,
) -> None:
    """Send again exactly the points that were tried, did not finish, and neither wait nor run."""
    from wattflow import submit as stage  # noqa: PLC0415
    from wattflow.status import check_states, choose, states  # noqa: PLC0415
    from wattflow.sweepdir import SweepDir  # noqa: PLC0415

    directory = SweepDir.existing(sweep)
    chosen = choose(directory, words or [], only)
    if state:
        check_states(state)
        chosen = {row.point_id for row in states(directory, chosen) if row.state in state}
    sent = stage.resume(directory, dry_run=dry_run, only=chosen, force=force)
    _say_sent(sent, dry_run=dry_run)
    if wait and not dry_run:
        _follow(directory)


@app.command()
def cancel(
    sweep: SweepArgument,
    words: Filters = None,
    *,
    state: States = None,
    only: Only = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask, however many jobs it ends.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """End the sweep's jobs, waiting and running; `resume` sends their points again."""
    from wattflow import submit as stage  # noqa: PLC0415
    from wattflow.status import choose  # noqa: PLC0415
    from wattflow.sweepdir import SweepDir  # noqa: PLC0415

    directory = SweepDir.existing(sweep)
    chosen = choose(directory, words or [], only)
    states = set(state) if state else None
    if not (yes or dry_run):
        would = stage.cancel(directory, only=chosen, states=states, dry_run=True)
        if len(would) > 100 and not (
            sys.stdin.isatty()
            and typer.confirm(f"end {len(would)} tasks of {directory.name}?", err=True)
        ):
            raise WattflowError(f"{len(would)} tasks would end: say --yes to end them.")
    ended = stage.cancel(directory, only=chosen, states=states, dry_run=dry_run)
    for key in ended:
        print(key)
    _talk(f"{len(ended)} tasks {'would end' if dry_run else 'ended'}.")


@app.command()
def logs(
    sweep: SweepArgument,
    point: Annotated[str, typer.Argument(metavar="POINT", help="A point_id.")],
    rank: Annotated[int | None, typer.Option("--rank", help="Only this rank's.")] = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the attempt ends, or Ctrl-C.")
    ] = False,
) -> None:
    """Print the logs of a point's newest attempt."""
    from wattflow import status as stage  # noqa: PLC0415
    from wattflow.sweepdir import SweepDir  # noqa: PLC0415

    directory = SweepDir.existing(sweep)
    last = None
    found = stage.follow if follow else stage.logs
    for log in found(directory, point, rank):
        if log.path != last:
            _talk(f"==> {_shown(log.path)} <==")
            last = log.path
        at_line_end = follow or log.text.endswith("\n")
        print(log.text, end="" if at_line_end else "\n", flush=follow)
    if follow:
        (row,) = stage.states(directory, {point})
        _talk(f"{row.point_id} {row.state}{f': {row.reason}' if row.reason else ''}")


@app.command()
def collect(sweep: SweepArgument) -> None:
    """Merge traces and timings into results/*.parquet; may be run at any time, again and again."""
    from wattflow import collect as stage  # noqa: PLC0415
    from wattflow.sweepdir import SweepDir  # noqa: PLC0415

    summary = stage.collect(SweepDir.existing(sweep))
    for line in summary.damaged:
        _talk(f"damaged: {line}")
    _talk(
        f"{summary.points} points, {summary.attempts} attempts ({summary.new} new), {summary.counting} points count, "
        f"{summary.unfinished} are not finished; {summary.seconds:.1f} s."
    )


@app.command()
def report(sweep: SweepArgument) -> None:
    """Write results/report.html, one file that opens offline, and print its path."""
    from wattflow.report import report as write_report  # noqa: PLC0415
    from wattflow.results import open_sweep  # noqa: PLC0415

    print(write_report(open_sweep(sweep)))


@app.command()
def compare(
    sweep: SweepArgument,
    by: Annotated[str, typer.Option("--by", metavar="COLUMN", help="The choice to compare.")],
    metric: Annotated[
        str, typer.Option("--metric", metavar="COLUMN", help="The number to compare by.")
    ] = "energy_per_token_j",
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="VALUE", help="The value that ratios are to."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the values of one choice: means, 95 % intervals, and ratios paired by the boards that ran both."""
    from wattflow.report import break_even, number  # noqa: PLC0415
    from wattflow.results import of_watts, open_sweep  # noqa: PLC0415

    opened = open_sweep(sweep)
    rows = opened.compare(by, metric, reference).to_dicts()
    if as_json:
        _print_json(rows)
        return
    named = [key for key in rows[0] if key in opened.points.columns and key != "boards"]
    headings = [*named, "n", "boards", metric, "95 % interval", "ratio", "95 % interval"]
    headings += ["break-even host, W", "verdict"]
    mark = "~" if opened.points["simulated"].any() and of_watts(metric) else ""
    _table(
        headings,
        [
            [
                *(row[key] for key in named),
                row["n"],
                row["boards"],
                mark + number(row["mean"]),
                _interval(row["low"], row["high"], mark),
                "-" if row.get("ratio") is None else f"{row['ratio']:.4f}",
                _interval(row.get("ratio_low"), row.get("ratio_high"), ""),
                break_even(row, "~" if opened.points["simulated"].any() else ""),
                _verdict(row),
            ]
            for row in rows
        ],
    )


@app.command()
def caps(
    sweep: SweepArgument,
    reference: Annotated[
        str, typer.Option("--reference", metavar="CAP", help="The cap that changes are against.")
    ],
    clocks: Annotated[
        bool, typer.Option("--clocks", help="Locked clocks (MHz) in place of power caps (W).")
    ] = False,
    objective: Annotated[
        str,
        typer.Option(
            "--objective", help="What is best: energy, edp, ed2p (energy x delay^2), time."
        ),
    ] = "energy",
    as_json: AsJson = False,
) -> None:
    """Show what power caps change in time, energy and token rate against one of them, and which is best."""
    from wattflow.caps import METRICS, OBJECTIVES, best, change  # noqa: PLC0415
    from wattflow.compare import NONE  # noqa: PLC0415
    from wattflow.errors import RefusedError  # noqa: PLC0415
    from wattflow.report import break_even  # noqa: PLC0415
    from wattflow.results import open_sweep  # noqa: PLC0415

    if objective not in OBJECTIVES:
        raise RefusedError(f"--objective {objective}: one of {', '.join(OBJECTIVES)}.")
    if not (reference.isdecimal() and reference.isascii()) and reference != "none":
        raise RefusedError(f"--reference {reference}: a whole number, or none for boards as found.")
    against = None if reference == "none" else int(reference)
    by = "control_sm_clock_mhz" if clocks else "control_power_limit_w"
    opened = open_sweep(sweep)
    found = opened.caps(against, by)
    lines: list[dict[str, Any]] = [
        {
            **chosen,
            "cap": "as found" if row.cap is None else row.cap,
            "n": row.n,
            "boards": row.boards,
            "bound": row.bound,
            **{metric: None if row.ratios is None else row.ratios[metric] for metric in METRICS},
            **{f"break_even_{k}": v for k, v in vars(row.break_even or NONE).items()},
        }
        for chosen, rows in found
        for row in rows
    ]
    winners = [(chosen, *best(rows, objective)) for chosen, rows in found]
    if as_json:
        _print_json(
            {
                "reference": against,
                "objective": objective,
                "rows": [
                    {k: vars(v) if k in METRICS and v else v for k, v in line.items()}
                    for line in lines
                ],
                "best": [
                    {**chosen, "cap": row.cap, "established": sure} for chosen, row, sure in winners
                ],
            }
        )
        return
    named = list(found[0][0]) if found else []
    headings = [*named, "MHz" if clocks else "cap, W", "n", "boards", "bound"]
    headings += ["time, %", "energy, %", "token rate, %", "energy x time, %", "energy x time^2, %"]
    headings += ["break-even host, W"]
    _table(
        headings,
        [
            [
                *(line[key] for key in (*named, "cap", "n", "boards", "bound")),
                *(
                    "reference" if line[metric] is None else change(line[metric])
                    for metric in METRICS
                ),
                break_even(line, "~" if opened.points["simulated"].any() else ""),
            ]
            for line in lines
        ],
    )
    for chosen, row, sure in winners:
        where = " ".join(f"{key}={value}" for key, value in chosen.items())
        doubt = "" if sure or row.ratios is None else ", though the difference is not established"
        cap = "the boards as found" if row.cap is None else f"{row.cap} {'MHz' if clocks else 'W'}"
        _talk(f"least {objective}{f' at {where}' if where else ''}: {cap}{doubt}")


Factors = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="cluster.cost.KEY=VALUE",
        help="A factor in place of the site profile's; may be given again.",
    ),
]


@app.command()
def cost(sweep: SweepArgument, settings: Factors = None, *, as_json: AsJson = False) -> None:
    """Show GPU-hours and kWh, and price and carbon by the factors that are declared, each with its source."""
    from wattflow.report import cost_table, factor_lines  # noqa: PLC0415
    from wattflow.results import open_sweep  # noqa: PLC0415

    opened = open_sweep(sweep)
    if as_json:
        _print_json(opened.cost(settings or []).to_dicts())
        return
    rows = cost_table(opened, settings or [])
    if rows:
        headings = list(rows[0])
        first = headings.index("attempts")
        _table(
            headings, [list(row.values()) for row in rows], numbers=range(first, len(headings) - 1)
        )
    for line in factor_lines(opened, settings or []):
        _talk(line)


@app.command()
def usage(
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DIR]...", help="Folders of sweeps, or sweeps; ./sweeps."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the kWh of each sweep, and how much of it went into failures, loading, warm-up and idling."""
    from pathlib import Path  # noqa: PLC0415

    from wattflow import usage as stage  # noqa: PLC0415

    found = stage.usage([Path(folder) for folder in folders or ["sweeps"]])
    if as_json:
        told = [
            [{**vars(row), "total_kwh": row.total_kwh} for row in rows]
            for rows in (found.rows, found.totals)
        ]
        _print_json({"sweeps": told[0], "totals": told[1], "notes": found.notes})
        return
    shown = [*found.rows, *found.totals]
    kinds = [kind for kind in stage.KINDS if any(row.kwh[kind] != 0 for row in shown)]
    priced = [
        name for name in ("price", "currency", "carbon_g") if any(vars(row)[name] for row in shown)
    ]
    headings = ["sweep", "boundary", "attempts", "failed", "untold", "GPU-hours", "kWh"]
    headings += [f"{kind.replace('_', ' ')}, kWh" for kind in kinds]
    headings += [{"carbon_g": "g CO2e"}.get(name, name) for name in priced]
    _table(
        headings,
        [_usage_cells(row, kinds, priced) for row in shown],
        numbers=range(2, len(headings)),
    )
    if any(row.simulated for row in shown):
        _talk("~ marks what was simulated, not measured.")
    for kind, name in (("price", "price_source"), ("carbon", "carbon_source")):
        for source in dict.fromkeys(vars(row)[name] for row in found.rows if vars(row)[name]):
            _talk(f"{kind} by {source}")
    for note in found.notes:
        _talk(note)
    if partly := sum(row.partly for row in found.rows):
        _talk(f"of {partly} attempts a phase is not known, and not in the sums")


def _usage_cells(row: Any, kinds: Sequence[str], priced: Sequence[str]) -> list[Any]:
    from wattflow.report import number  # noqa: PLC0415

    def energy(value: float | None) -> str:
        return ("~" if row.simulated and value else "") + number(value)

    cells = [row.sweep, row.boundary, row.attempts, row.failed, row.untold, number(row.gpu_hours)]
    cells += [energy(row.total_kwh), *(energy(row.kwh[kind]) for kind in kinds)]
    return cells + [vars(row)[n] if n == "currency" else energy(vars(row)[n]) for n in priced]


@app.command()
def crosscheck(
    sweep: SweepArgument,
    *,
    url: Annotated[
        str | None,
        typer.Option("--prometheus", metavar="URL", help="The site's Prometheus server."),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Holds a bearer token for it; or WATTFLOW_PROMETHEUS_TOKEN.",
        ),
    ] = None,
    no_sacct: Annotated[
        bool, typer.Option("--no-sacct", help="Leave Slurm's accounting alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hold the joules of the same jobs and windows against sacct and a Prometheus of GPU exporters, as ratios."""
    from wattflow import crosscheck as stage  # noqa: PLC0415
    from wattflow.prometheus import Prometheus, read_token  # noqa: PLC0415
    from wattflow.report import number  # noqa: PLC0415
    from wattflow.results import open_sweep  # noqa: PLC0415

    server = None if url is None else Prometheus(url, read_token(token_file))
    rows = stage.crosscheck(open_sweep(sweep), server, sacct=not no_sacct)
    if as_json:
        _print_json(rows)
        return
    _table(
        ["point_id", "job", "source", "window", "s", "J", "site's J", "u", "ratio", "remark"],
        [
            [
                *(row["point_id"], row["job_id"], row["source"], row["window"]),
                number(row["seconds"]),
                ("~" if row["simulated"] and row["energy_j"] is not None else "")
                + number(row["energy_j"]),
                *(number(row[name]) for name in ("site_energy_j", "site_energy_u_j")),
                "-" if row["ratio"] is None else f"{row['ratio']:.4f}",
                row["why_not"] or row["remark"],
            ]
            for row in rows
        ],
        numbers=range(4, 9),
    )
    if not rows:
        _talk(
            "nothing to hold against: no attempt of a Slurm job, and no GPU's joules with --prometheus."
        )


@app.command()
def export(
    sweep: SweepArgument,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Where it goes; the sweep's results/export."),
    ] = None,
    timestamps: Annotated[
        bool,
        typer.Option("--timestamps", help="Stamp each sample with the end of its attempt."),
    ] = False,
) -> None:
    """Write one JSON an attempt and an OpenMetrics text file of them all; prints the path of the latter."""
    from pathlib import Path  # noqa: PLC0415

    from wattflow.export import export as write  # noqa: PLC0415
    from wattflow.results import open_sweep  # noqa: PLC0415

    opened = open_sweep(sweep)
    folder = opened.directory.results / "export" if out is None else Path(out)
    *documents, _, text = write(opened, folder, timestamps=timestamps)
    print(text)
    _talk(f"{len(documents)} attempts in {_shown((folder / 'attempts').absolute())}")


@app.command()
def restore(
    journal_dir: Annotated[
        str | None,
        typer.Option("--journal-dir", metavar="DIR", help="Where the jobs kept prior values."),
    ] = None,
) -> None:
    """Put back power limits and clocks that a killed job of this user's left on this node's GPUs."""
    from wattflow.config import Control  # noqa: PLC0415
    from wattflow.power.control import restore as put_back  # noqa: PLC0415

    restored = put_back(Control() if journal_dir is None else Control(journal_dir=journal_dir))
    for uuid in restored:
        print(uuid)
    _talk(f"{len(restored)} GPUs put back.")


def _interval(low: float | None, high: float | None, mark: str) -> str:
    return "-" if low is None or high is None else f"{mark}{low:.4g} to {mark}{high:.4g}"


def _verdict(row: dict[str, Any]) -> str:
    """How a ratio was found, and whether it is a difference."""
    if row.get("ratio") is None:
        return "reference"
    return f"{row['how']}: {'established' if row['established'] else row['why_not']}"


@app.command(context_settings={"allow_interspersed_args": False})
def measure(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD...", help="The command and its words.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Where it goes; by default below ./sweeps."),
    ] = None,
    tokens_json: Annotated[
        str | None,
        typer.Option(
            "--tokens-json",
            metavar="FILE",
            help="JSON or JSON lines that the command writes; - for its own output.",
        ),
    ] = None,
    tokens_key: Annotated[
        str | None,
        typer.Option("--tokens-key", metavar="KEY", help="Where the output tokens stand in it."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="power.KEY=VALUE", help="A setting of the meter."),
    ] = None,
) -> None:
    """Run any command and measure what it costs; its output is its own, and so is the exit code."""
    from pathlib import Path  # noqa: PLC0415

    from wattflow import measure as stage  # noqa: PLC0415

    asked = stage.Asked(
        command=command or [],
        out=None if out is None else Path(out),
        power=stage.power_settings(settings or []),
        tokens_json=tokens_json,
        tokens_key=tokens_key,
    )
    outcome = stage.measure(asked, lambda text: _talk(f"wattflow: {text}"))
    for line in outcome.lines:
        _talk(f"wattflow: {line}")
    if outcome.complete:
        _talk(f"wattflow: `wattflow report {_shown(outcome.folder)}` draws it.")
    sys.stderr.flush()
    os._exit(outcome.exit_code)  # the caller waits, and taking pyarrow down takes 0.1 s


@app.command()
def bundle(
    sweep: SweepArgument,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="The bundle; by default SWEEP.zip.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Pack traces, records, config, lock and hashes into one file, pseudonymised, for others to verify."""
    from pathlib import Path  # noqa: PLC0415

    from wattflow import bundle as stage  # noqa: PLC0415
    from wattflow import verify as checking  # noqa: PLC0415
    from wattflow.sweepdir import SweepDir  # noqa: PLC0415

    made = stage.bundle(
        SweepDir.existing(sweep), None if out is None else Path(out), dry_run=dry_run
    )
    total = sum(size for _, size in made.members)
    for line in made.left_out:
        _talk(f"not whole, so without its files: {line}")
    if dry_run:
        _table(["bytes", "member"], [[size, name] for name, size in made.members], numbers=[0])
        _talk(f"{len(made.members)} files, {total:,} bytes would go into {_shown(made.path)}.")
        return
    print(_shown(made.path))
    _talk(f"{len(made.members)} files, {total:,} bytes, sha256 {made.sha256}")
    _talk(
        "Publish that hash beside the figures. Left out: users, accounts, hosts, paths, prompts, answers, logs."
    )
    if made.salt is not None:
        _talk(f"The pseudonyms' salt is {_shown(made.salt)}: keep it to yourself.")
    if not checking.verify(made.path).verified:
        raise WattflowError(
            f"{_shown(made.path)} is written, and its figures do not follow from its traces: `wattflow verify "
            f"{_shown(made.path)}` says where."
        )
    _talk(f"`wattflow verify {_shown(made.path)}` passes.")


@app.command()
def verify(
    what: Annotated[
        str,
        typer.Argument(metavar="SWEEP|BUNDLE", help="A sweep's directory or name, or a bundle."),
    ],
    as_json: AsJson = False,
) -> None:
    """Recompute every published figure from the raw traces, without a GPU; exit code 1 where one differs."""
    from pathlib import Path  # noqa: PLC0415

    from wattflow import verdict as told  # noqa: PLC0415
    from wattflow import verify as stage  # noqa: PLC0415

    if Path(what).is_file():
        stage.limit_memory()
    found = stage.verify(Path(what))
    if as_json:
        _print_json(told.as_json(found))
    else:
        _table(told.HEADINGS, told.table(found), numbers=range(2, 8))
        for line in told.lines(found):
            _talk(line)
    raise typer.Exit(0 if found.verified else 1)


@app.command()
def calibrate(  # noqa: PLR0917 - options, given by name
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="A new folder, for records and passports.")
    ] = "passports",
    minutes: Annotated[
        float, typer.Option("--minutes", help="How long it takes, about; 2 at least.")
    ] = 5.0,
    load: Annotated[
        str | None,
        typer.Option(
            "--load",
            metavar="CMD",
            help="Another load's command, one process a GPU; docs/calibrate.md.",
        ),
    ] = None,
    read: Annotated[
        str | None,
        typer.Option("--from", metavar="DIR", help="Read a recorded folder again; needs no GPU."),
    ] = None,
    no_page: Annotated[
        bool, typer.Option("--no-page", help="Write JSON only, where altair is not installed.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Find out what the power sensors of this machine's GPUs show: a passport a GPU, as JSON and a page."""
    from pathlib import Path  # noqa: PLC0415

    from wattflow import passport as stage  # noqa: PLC0415

    if read is not None:
        for path in stage.read_again(Path(read), draw=not no_page):
            print(path)
        return
    from wattflow.power.calibrate import Recorder, load_command, plan  # noqa: PLC0415

    own = [sys.executable, "-P", "-m", "wattflow.engine.pulse"]
    steps = plan(minutes)
    command = own if load is None else load_command(load)
    stage.check(Path(out))
    if dry_run:
        with Recorder(command) as recorder:
            for device in recorder.devices:
                _talk(f"{device['uuid']} {device['name']}, driver {recorder.driver}")
        _table(["step", "s"], [[s.name, f"{s.seconds:.1f}"] for s in steps], numbers=[1])
        _talk(f"{sum(s.seconds for s in steps) / 60:.1f} minutes, and some seconds to start loads")
        return
    asked = stage.Asked(Path(out), steps, command, draw=not no_page)
    began_s = time.monotonic()
    paths = stage.calibrate(
        asked, lambda text: _talk(f"{time.monotonic() - began_s:5.0f} s  {text}")
    )
    for path in paths:
        print(path)


@app.command()
def tune(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Choices of one point: model=llama-7b batch_size=1 max_gen_len=256.",
        ),
    ] = None,
    goal: Annotated[
        str, typer.Option(help="What to choose by: speed, energy or edp (joules times seconds).")
    ] = "energy",
    windows: Annotated[int, typer.Option(help="Windows of each kernel set.")] = 4,
    seconds: Annotated[float, typer.Option(help="Seconds of decode in a window.")] = 4.0,
    as_json: AsJson = False,
) -> None:
    """Measure the fast engine's kernel sets on this GPU for one model and batch, and keep the best."""
    from wattflow import tune as stage  # noqa: PLC0415

    config = stage.choices(["engine=fast", *(words or [])], goal, windows, seconds)
    made = stage.tune(config, goal, windows, seconds, _talk)
    if as_json:
        _print_json(asdict(made))
        return
    mark = "~" if made.source == "simulated" else ""
    _table(
        ["kernels", "tokens/s", "J/token", "W", "SM MHz", "degC", "under cap", "note"],
        [
            [
                row["kernels"],
                _plus_minus(row, "tokens_per_s", ".1f"),
                _plus_minus(row, "energy_per_token_j", ".4g", mark),
                _plus_minus(row, "power_w", ".0f", mark),
                *(_cell(row[name], ".0f") for name in ("sm_clock_mhz", "temperature_c")),
                _cell(row["under_cap"], ".0%"),
                stage.note(row, made.best),
            ]
            for row in [*made.frontier, {**made.again, "again": True}]
        ],
        numbers=range(1, 7),
    )
    if mark:
        _talk("~ marks watts and joules that were simulated, not measured.")
    _talk(
        f"kept for this GPU, driver and torch in {_shown(made.kept)}: engine.kernels={goal} takes {made.best[goal]}"
    )


def _plus_minus(row: dict[str, Any], column: str, form: str, mark: str = "") -> str | None:
    """A mean and half its 95 % interval, where there is one."""
    value, half = row[column], row.get(f"{column}_half")
    if value is None:
        return None
    return f"{mark}{value:{form}}" + ("" if half is None else f" ± {half:.2g}")


def _cell(value: float | None, form: str) -> str | None:
    return None if value is None else f"{value:{form}}"


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can measure, for this user: sensors, rights, GPUs, Slurm, folders."""
    from wattflow.doctor import examine  # noqa: PLC0415

    findings = examine()
    if as_json:
        _print_json([finding._asdict() for finding in findings])
    else:
        _table(["check", "status", "detail"], findings)


@app.command()
def keys(
    part: Annotated[
        str,
        typer.Argument(metavar="[GROUP]", help="model, dataset, engine, power, cluster or grid."),
    ] = "",
) -> None:
    """List the keys that can be set with their defaults, or the files of one config group."""
    from wattflow import grid  # noqa: PLC0415
    from wattflow.config import DEFAULTS, GROUPS, allowed  # noqa: PLC0415

    if part:
        for name in grid.group_files(part):
            print(name)
        return
    for group in GROUPS:
        _talk(f"{group}: {', '.join(grid.group_files(group))}")
    rows = [
        [key, "null" if value is None else value, ", ".join(allowed(key))]
        for key, value in DEFAULTS.items()
    ]
    _table(["key", "default", "one of"], rows)


def main() -> None:
    """Run the command line; our own errors become one line on stderr and their exit code."""
    debug = os.environ.get("WATTFLOW_DEBUG") == "1"
    try:
        app()
    except WattflowError as error:
        if debug:
            raise
        _talk(f"wattflow: {error}")
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # a disk that is full or read-only, a folder that may not be read
        if debug:
            raise
        _talk(f"wattflow: {error}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
