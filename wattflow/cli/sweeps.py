"""The verbs of sweeps: what is sent, followed, ended and collected."""

import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Self

import typer

from wattflow.cli.arguments import AsJson, DryRun, Multirun, SweepArgument, Wait, Words
from wattflow.cli.printing import print_json, print_table, shown, talk
from wattflow.errors import WattflowError


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
            talk(f"sweep {made.name}: no point can run; leave --script out for the reasons.")
        return
    if test:
        _print_tested(stage.test_only(made), as_json=as_json)
        return
    if as_json:
        print_json(
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
    print_table(
        ["point_id", *varying, "note"],
        [
            [p.point_id, *(_leaf(p.choices, key) for key in varying), p.reason or ""]
            for p in made.points
        ],
    )
    talk("")
    _print_shapes(stage.shape_rows(made))
    left_out = len(made.points) - len(made.feasible)
    talk(
        f"sweep {made.name}: {len(made.feasible)} points to run, {left_out} left out with a reason above."
    )
    if made.duplicates:
        talk(f"{made.duplicates} combinations came to a point already listed.")


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
        if row["time_min"] is None:
            talk(f"{row['cluster']}: {asked}, one after another on this machine")
        else:
            talk(
                f"{row['cluster']}: {asked}, {row['jobs']} arrays, {row['tasks']} tasks of at most "
                f"{row['time_min']} min: at most {row['gpu_hours']:g} GPU-hours, {row['node_hours']:g} node-hours"
            )
        if "expected" in row:
            talk(f"  {_told_expected(row['expected'], row['time_min'])}")


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


def submit(
    words: Words = None,
    multirun: Multirun = False,
    wait: Wait = False,
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
    talk(
        f"sweep {sent.sweep.name}: {sent.points} points {'to send' if dry_run else 'sent'}; {left}."
    )
    for job_id in sent.job_ids:
        print(job_id)
    if sent.points and not dry_run:
        talk(f"`wattflow status {shown(sent.sweep.path)}` shows how far they are.")


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
            talk(told)
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
        print_table(
            headings, [list(row.values()) for row in rows], numbers=range(len(headings) - 1)
        )
        if any(cell.startswith("~") for row in rows for cell in row.values()):
            talk("~ marks watts and joules that were simulated, not measured.")
    _say_not_counting(results)
    talk(f"`wattflow report {shown(sweep.path)}` draws them.")
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
            talk(f"{row['point_id']} finished and does not count: {' '.join(why)}")


_SOME = 4  # points of one cause that are named


def _say_failures(sweep: Any, rows: Iterable[Any]) -> None:
    """Why points did not finish, for each cause once: its log, and the command that tries them again."""
    from wattflow import status as stage  # noqa: PLC0415

    for cause in stage.causes(rows):
        first, count = cause.rows[0], len(cause.rows)
        who = first.point_id if count == 1 else f"{count} points"
        talk(f"{who} {cause.state}: {cause.reason}")
        if count > 1:
            more = f" and {count - _SOME} more" if count > _SOME else ""
            talk(f"  points {' '.join(row.point_id for row in cause.rows[:_SOME])}{more}")
        if first.log is not None:
            talk(f"  log    {shown(first.log)}{' (the first of them)' if count > 1 else ''}")
        alone = first.rerun if count == 1 else None
        talk(f"  again  {alone or f'wattflow resume {_quoted(sweep)} --state {cause.state}'}")


def _quoted(sweep: Any) -> str:
    return shlex.quote(shown(sweep.path))


def run(words: Words = None, multirun: Multirun = False) -> None:
    """Run points on this machine, one after another, as an ordinary Hydra application (-m for lists of values)."""
    from wattflow import grid  # noqa: PLC0415
    from wattflow.run import run_serially  # noqa: PLC0415
    from wattflow.submit import keep  # noqa: PLC0415

    def one(made: grid.Plan, point: grid.Point) -> None:
        if point.reason is not None:
            talk(f"{point.point_id}: left out: {point.reason}")
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
            print_json([vars(row) for row in chosen])
        else:
            _print_states(chosen, filtered=bool(state or words or only), again=watch)
            talk(", ".join(f"{n} {name}" for name, n in stage.counts(rows).items()))
            for spent in stage.spent(rows):
                _say_energy(spent)
            _say_left(stage.left(directory, rows))
            _say_failures(directory, chosen)
        code = stage.exit_code(rows)
        if not watch or code not in (4, 5):
            raise typer.Exit(code)
        time.sleep(30.0)


_MANY = 200  # rows that a person may still want to see


def _print_states(rows: Sequence[Any], *, filtered: bool, again: bool) -> None:
    """A row a point; a person at a terminal who chose none of very many sees those that run."""
    terminal = sys.stdout.isatty()
    if terminal and again:
        from rich.console import Console  # noqa: PLC0415

        Console().clear()
    listed = list(rows)
    if terminal and not filtered and len(listed) > _MANY:
        listed = [row for row in listed if row.state == "running"]
        talk(f"{len(rows)} points; those that run are listed, --state lists others.")
        if not listed:
            return
    print_table(
        ["point_id", "state", "attempts", "job", "reason"],
        [[row.point_id, row.state, row.attempts, row.job, row.reason] for row in listed],
        numbers=[2],
    )


def _say_energy(spent: Any) -> None:
    """Joules so far and watts now, each with what is not in it; nothing where no point ran."""
    mark = "~" if spent.simulated else ""
    if spent.energy_j is not None:
        untold = f"; of {spent.untold} more no joules are known" if spent.untold else ""
        talk(
            f"energy so far: {mark}{spent.energy_j:,.0f} J ({mark}{spent.energy_j / 3.6e6:.4g} kWh) "
            f"of {spent.told} points{untold}"
        )
    if spent.power_w is not None:
        talk(
            f"power now: {mark}{spent.power_w:,.0f} W of {spent.watched} of {spent.running} running points"
        )
    if spent.nodes_unheard:
        talk(f"not in these: {spent.nodes_unheard} further nodes of running points")


def _say_left(left: Any) -> None:
    """What is left to run, as the estimate it is, with what it rests on; nothing where nothing is left."""
    known = left.same + left.shape
    if not known + left.unknown:
        return
    if not known:
        why = "no point like them has finished" if left.attempts else "no point has finished"
        talk(f"left: {left.unknown} points, for how long is unknown: {why}")
        return
    mark = "~" if left.simulated else ""
    energy = "" if left.energy_kwh is None else f" and {mark}{left.energy_kwh:.3g} kWh"
    unknown = f"; {left.unknown} points are unknown and not in it" if left.unknown else ""
    talk(
        f"left, an estimate: {left.gpu_hours:.3g} GPU-hours{energy} for {known} points; {left.same} by the mean of "
        f"the same choices, {left.shape} by their shape's time a step, from {left.attempts} finished{unknown}"
    )


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
    talk(f"{len(ended)} tasks {'would end' if dry_run else 'ended'}.")


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
            talk(f"==> {shown(log.path)} <==")
            last = log.path
        at_line_end = follow or log.text.endswith("\n")
        print(log.text, end="" if at_line_end else "\n", flush=follow)
    if follow:
        (row,) = stage.states(directory, {point})
        talk(f"{row.point_id} {row.state}{f': {row.reason}' if row.reason else ''}")


def collect(sweep: SweepArgument) -> None:
    """Merge traces and timings into results/*.parquet; may be run at any time, again and again."""
    from wattflow import collect as stage  # noqa: PLC0415
    from wattflow.sweepdir import SweepDir  # noqa: PLC0415

    summary = stage.collect(SweepDir.existing(sweep))
    for line in summary.damaged:
        talk(f"damaged: {line}")
    talk(
        f"{summary.points} points, {summary.attempts} attempts ({summary.new} new), {summary.counting} points count, "
        f"{summary.unfinished} are not finished; {summary.seconds:.1f} s."
    )
