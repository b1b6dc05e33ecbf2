"""Search a grid for the setting that costs least, by runs through the ordinary submit.

    plan -> settings -> runs of the sweep so far -> verdict -> submit what decides most -> wait for one -> ...

What is known is what lies in the sweep: its journal says which points were asked, its results what they came to. A
search that was killed goes on by the same command from there, and no run is lost.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from wattflow.analysis.axes import choice_columns, is_work, moving
from wattflow.analysis.statistics import Ratio
from wattflow.analysis.sweep import Sweep, open_sweep
from wattflow.collect.collect import collect
from wattflow.config.choices import to_dict
from wattflow.errors import RefusedError
from wattflow.nullable import known_sum
from wattflow.plan.points import Plan
from wattflow.search.goals import NOTHING_READ, Goal, Reading, read
from wattflow.search.propose import design, design_size
from wattflow.search.space import Space
from wattflow.search.verdict import Runs, Verdict, judge, next_runs
from wattflow.store.columns import choice_values
from wattflow.store.files import write_json
from wattflow.submit import journal, send
from wattflow.submit import resume as resuming
from wattflow.submit.status import Row, states

POLL_S = 2.0
_PATIENCE_S = 300.0  # with a point of which nobody knows
_TRIES = 3  # of a point whose attempts were cut short
_OVER = ("done", "failed")
_CUT_SHORT = (
    "interrupted",
    "untried",
)  # of a point that was asked: its task was ended, or never sent


@dataclass(frozen=True)
class Budget:
    """What a search may spend in all, with what the sweep spent before; null: no bound."""

    points: int | None = None
    gpu_hours: float | None = None
    kwh: float | None = None


@dataclass(frozen=True)
class Spent:
    """What the attempts of a sweep took so far, failed ones too; null where nothing is known."""

    points: int  # that were asked
    over: int  # of those, points whose runs are over
    gpu_hours: float | None
    kwh: float | None
    gpu_hours_known: float = 1.0  # the share of attempts whose GPU-hours these are
    kwh_known: float = 1.0
    simulated: bool = False  # kWh of which some are arithmetic, not measured

    def room(self, budget: Budget, n: int) -> int:
        """Return how many of n further points a budget has room for, each taking the mean of those that are over.

        An attempt that does not say what it took counts with the mean of those that do; where none does, none fits.
        """
        room = n if budget.points is None else min(n, budget.points - self.points)
        if self.unbounded(budget) is not None:
            return 0
        for most, taken, known in (
            (budget.gpu_hours, self.gpu_hours, self.gpu_hours_known),
            (budget.kwh, self.kwh, self.kwh_known),
        ):
            if most is None or not taken or not self.over:
                continue
            each = taken / known / self.over
            room = min(room, int(most / each - self.over + 1e-9) - (self.points - self.over))
        return max(0, room)

    def unbounded(self, budget: Budget) -> str | None:
        """Return why a budget bounds nothing: points are over, and none says what it took of it; null else."""
        if not self.over:
            return None
        for option, most, taken in (
            ("--gpu-hours", budget.gpu_hours, self.gpu_hours),
            ("--kwh", budget.kwh, self.kwh),
        ):
            if most is not None and taken is None:
                return f"no run says what it took of {option}, which bounds nothing here"
        return None


@dataclass(frozen=True)
class Grid:
    """The settings of a plan and the points of each: its repeats, in order."""

    space: Space
    points: list[list[str]]

    @classmethod
    def of(cls, plan: Plan) -> "Grid":
        """Return the settings of a plan that can run; RefusedError where there are none, or points do other work."""
        chosen = [choice_values(to_dict(point.config)) for point in plan.feasible]
        axes = moving(choice_columns(chosen)) if chosen else []
        if not axes:
            raise RefusedError(
                f"sweep {plan.name}: {len(chosen)} points can run and no choice varies among them. Give one several "
                "values: batch_size=8,16,32."
            )
        if work := [name for name in axes if is_work(name)]:
            raise RefusedError(
                f"{', '.join(work)}: points differ in the work they do, and none is a cheaper way to another's. "
                "Search each by itself."
            )
        rows = [tuple(one[name] for name in axes) for one in chosen]
        space = Space.of(axes, rows)
        at = {row: k for k, row in enumerate(dict.fromkeys(rows))}
        points: list[list[str]] = [[] for _ in space.settings]
        order = sorted(range(len(rows)), key=lambda k: chosen[k]["repeat"])
        for k in order:
            points[at[rows[k]]].append(plan.feasible[k].point_id)
        return cls(space, points)

    @property
    def repeats(self) -> int:
        """The most points that a setting has."""
        return max(map(len, self.points))

    def settings(self) -> dict[str, int]:
        """Return the setting of each point."""
        return {point: k for k, of in enumerate(self.points) for point in of}

    def unasked(self, chosen: Sequence[int], asked: Sequence[str]) -> list[str]:
        """Return a point for each setting that was chosen: the first of its repeats that was not asked yet."""
        taken, found = {*asked}, []
        for setting in chosen:
            left = [point for point in self.points[setting] if point not in taken]
            if left:
                found.append(left[0])
                taken.add(left[0])
        return found


@dataclass(frozen=True)
class State:
    """Where a search stands."""

    reading: Reading
    verdict: Verdict
    spent: Spent
    under_way: int
    chosen: list[str]  # points to ask next
    stopped_by: str | None  # what ends the search, null while it goes on


@dataclass(frozen=True)
class Search:
    """What is searched, for what, and with how much."""

    plan: Plan
    grid: Grid
    goal: Goal
    budget: Budget
    parallel: int
    seed: int = 0

    @classmethod
    def of(cls, plan: Plan, goal: Goal, budget: Budget, parallel: int) -> "Search":
        """Return the search of a plan; RefusedError for one that can decide nothing."""
        if parallel < 1:
            raise RefusedError(f"--parallel {parallel}: one point at least.")
        for name, most in vars(budget).items():
            if most is not None and not 0 < most < math.inf:
                raise RefusedError(f"--{name.replace('_', '-')} {most:g}: a number above 0.")
        return cls(plan, Grid.of(plan), goal, budget, parallel, plan.points[0].config.sweep.seed)

    def first(self) -> list[int]:
        """Return the settings that a fresh search runs first."""
        space = self.grid.space
        return design(space, design_size(space), self.seed)


Watch = Callable[[State], None]
# a point, its state and its attempts: all is fitted anew only where one of these has changed
_Stand = tuple[str, str, int]


def optimize(search: Search, watch: Watch, poll_s: float = POLL_S) -> State:
    """Run the search to its end and return where it stands then; `watch` sees each state that differs from the last.

    It ends when no further run is worth it, or the budget is spent and no point is under way.
    """
    sweep = search.plan.sweep
    done: set[_Stand] | None = None
    seen: list[_Stand] | None = None
    since: dict[str, float] = {}
    results: Sweep | None = None
    while True:
        rows = _settled(_asked(search), since)
        stands: list[_Stand] = [(row.point_id, row.state, row.attempts) for row in rows]
        if stands != seen:
            over = {one for one in stands if one[1] in _OVER}
            if over != done and sweep.grid_path.is_file():
                collect(sweep)
                results, done = open_sweep(sweep.path), over
            state = _look(search, results, rows)
            if state.chosen:
                send.submit(search.plan, only={*state.chosen})
            _keep(search, state)
            watch(state)
            if state.stopped_by is not None:
                return state
            seen = None if state.chosen else stands
        if again := {row.point_id for row in rows if row.state in _CUT_SHORT and not _is_lost(row)}:
            resuming.resume(sweep, only=again)
        time.sleep(poll_s)


def _asked(search: Search) -> list[Row]:
    """Return the states of the points that were asked; none where the sweep is new."""
    sweep = search.plan.sweep
    if not sweep.grid_path.is_file():
        return []
    asked = send.tried(sweep) & {*search.grid.settings()}
    if not asked:
        return []
    sent = journal.times_sent(journal.read(sweep))
    # a task that ended before its attempt began was a try as well
    return [
        replace(row, attempts=max(row.attempts, sent[row.point_id])) for row in states(sweep, asked)
    ]


def _settled(rows: Sequence[Row], since: dict[str, float]) -> list[Row]:
    """Return rows in which a point that nobody has known of for _PATIENCE_S was cut short.

    So it is where a site keeps no accounting and a job was killed. `since`: when each was first not known of, s.
    """
    now = time.monotonic()
    unknown = {row.point_id for row in rows if row.state == "unknown"}
    for known in since.keys() - unknown:
        del since[known]
    return [
        replace(row, state="interrupted")
        if row.point_id in unknown and now - since.setdefault(row.point_id, now) >= _PATIENCE_S
        else row
        for row in rows
    ]


def _look(search: Search, results: Sweep | None, rows: Sequence[Row]) -> State:
    """Return where a search stands, with what it asks next."""
    settings = search.grid.settings()
    reading = NOTHING_READ if results is None else read(results, settings, search.goal)
    waiting = [settings[r.point_id] for r in rows if r.state not in _OVER and not _is_lost(r)]
    void = [*reading.void, *(settings[row.point_id] for row in rows if _is_lost(row))]
    runs = Runs(reading.seen, reading.values, search.grid.repeats, waiting, void)
    spent = _spent(results, len(rows), len(rows) - len(waiting))
    free = search.parallel - len(waiting)
    chosen: list[str] = []
    if free > 0:
        wanted = next_runs(search.grid.space, runs, free, search.seed)
        chosen = search.grid.unasked(wanted, [row.point_id for row in rows])
    room = spent.room(search.budget, len(chosen))
    stopped_by = None
    if not waiting and not chosen:
        stopped_by = "no further run is worth it"
    elif not waiting and not room:
        stopped_by = spent.unbounded(search.budget) or "the budget is spent"
    verdict = judge(search.grid.space, runs, search.seed)
    return State(reading, verdict, spent, len(waiting), chosen[:room], stopped_by)


def _is_lost(row: Row) -> bool:
    """Return whether a point was cut short so often that it is given up."""
    return row.state in _CUT_SHORT and row.attempts >= _TRIES


def _spent(results: Sweep | None, points: int, over: int) -> Spent:
    if results is None:
        return Spent(points, over, None, None)
    bills = results.cost()
    hours, kwh = bills["gpu_hours"], bills["energy_kwh"]
    hours_known, kwh_known = [1 - one.null_count() / max(1, len(one)) for one in (hours, kwh)]
    return Spent(
        points,
        over,
        gpu_hours=known_sum(hours),
        kwh=known_sum(kwh),
        gpu_hours_known=hours_known,
        kwh_known=kwh_known,
        simulated=bool(bills["simulated"].any()),
    )


def _keep(search: Search, state: State) -> None:
    """Write where the search stands into the sweep, for people and programs: it is never read to go on."""
    if search.plan.sweep.results.is_dir():
        write_json(search.plan.sweep.search_path, document(search, state))


def document(search: Search, state: State) -> dict[str, Any]:
    """Return where a search stands as JSON."""
    space, verdict = search.grid.space, state.verdict

    def rivals(of: Mapping[int, Ratio]) -> list[dict[str, Any]]:
        if state.reading.simulated:
            of = {k: replace(one, established=False, why_not="simulated") for k, one in of.items()}
        return [{**space.values(k), **asdict(ratio)} for k, ratio in of.items()]

    best = {} if verdict.best is None else space.values(verdict.best)
    runs = [] if verdict.best is None else state.reading.values[verdict.best]
    return {
        "goal": search.goal.name,
        "subject_to": [str(one) for one in search.goal.conditions],
        "budget": asdict(search.budget),
        "spent": asdict(state.spent),
        "settings": len(space.settings),
        "simulated": state.reading.simulated,
        "best": best or None,
        "runs_of_best": [search.goal.shown(one.value) for one in runs],
        "ties": rivals(verdict.ties),
        "open": rivals(verdict.open),
        "dearer": rivals(verdict.beaten),
        "dearer_by_the_fit": verdict.unlikely,
        "excluded": verdict.excluded,
        "not_run": verdict.unseen,
        "worth_a_run": verdict.hopeful,
        "caps_that_never_bound_w": state.reading.never_bound,
        "axes": [{**asdict(one), "matters": one.matters} for one in verdict.effects],
        "stopped_by": state.stopped_by,
    }
