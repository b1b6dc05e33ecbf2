"""The search over a sweep's own files: what is asked, what a kill leaves, what a budget ends."""

from dataclasses import replace
from pathlib import Path

import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep, plan_point

from wattflow.errors import RefusedError
from wattflow.plan.points import Plan
from wattflow.search import optimize as stage
from wattflow.search.goals import Goal
from wattflow.search.optimize import Budget, Grid, Search, Spent, optimize
from wattflow.store.files import read_json
from wattflow.store.layout import SweepDir
from wattflow.submit.journal import Submission
from wattflow.submit.status import Row

BATCHES, PRECISIONS = (1, 2, 4, 8, 16, 32), ("bf16", "fp8")
GOAL = Goal.parsed("energy_per_token_j", [])


def watts(point):
    """Least at batch 16 in fp8, by far."""
    off = {1: 4, 2: 3, 4: 2, 8: 1, 16: 0, 32: 1}[point["batch_size"]]
    return 200.0 * (1 + 0.5 * off) * (1.0 if point["precision"] == "fp8" else 1.5) + point["repeat"]


class Site:
    """Runs what is sent to it at once."""

    def __init__(self, folder):
        self.points = [
            choices(batch_size=b, precision=p, repeat=r)
            for b in BATCHES
            for p in PRECISIONS
            for r in range(3)
        ]
        planned = [plan_point(one) for one in self.points]
        self.plan = Plan("s", SweepDir(folder / "s"), [], planned, 0)
        self.of = {one.point_id: point for one, point in zip(planned, self.points, strict=True)}
        self.sent = []
        self.fails = lambda _: False

    def submit(self, plan, only):
        assert plan is self.plan
        if not plan.sweep.grid_path.is_file():
            make_sweep(plan.sweep.path, self.points)
        for point_id in sorted(only):
            self.sent.append(point_id)
            point = self.of[point_id]
            status = "failed" if self.fails(point) else "finished"
            made = Made(
                [Gpu("GPU-1", constant(watts(point)))],
                status=status,
                started_s=20.0 * len(self.sent),
            )
            make_attempt(plan.sweep, point, made)

    def search(self, **over):
        return replace(Search.of(self.plan, GOAL, Budget(), 3), **over)


@pytest.fixture
def site(tmp_path, monkeypatch):
    made = Site(tmp_path)
    monkeypatch.setattr(stage.send, "submit", made.submit)
    return made


def run(search, watch=lambda _: None):
    return optimize(search, watch, poll_s=0.0)


def test_the_search_finds_the_best_and_keeps_what_it_found(site):
    """Of 36 points it asks a part, none twice; the cheapest setting has the repeats that establish it."""
    states = []
    search = site.search()
    end = run(search, states.append)
    assert search.grid.space.values(end.verdict.best) == {"batch_size": 16, "precision": "fp8"}
    assert len(site.sent) == len(set(site.sent)) < 20
    assert end.stopped_by == "no further run is worth it"
    assert end.spent.points == end.spent.over == len(site.sent)
    kept = read_json(site.plan.sweep.search_path)
    assert kept["best"] == {"batch_size": 16, "precision": "fp8"}
    assert kept["dearer"][0]["established"]


def test_a_search_that_was_killed_goes_on_from_what_its_sweep_has(site):
    """In the end it has asked what it would have asked without the kill."""

    class KilledError(Exception):
        pass

    def killing(state):
        if state.spent.points >= 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(site.search(), killing)
    before = list(site.sent)
    assert 5 <= len(before) < 15
    end = run(site.search())
    assert site.sent[: len(before)] == before
    assert len(site.sent) == len(set(site.sent))
    assert site.search().grid.space.values(end.verdict.best)["batch_size"] == 16


def test_a_finished_search_asks_nothing_more(site):
    """The same command again."""
    run(site.search())
    sent = len(site.sent)
    assert run(site.search()).stopped_by == "no further run is worth it"
    assert len(site.sent) == sent


def test_points_are_bounded_with_those_of_earlier_searches(site):
    """Seven in all, in two calls."""
    end = run(site.search(budget=Budget(points=4)))
    assert (len(site.sent), end.stopped_by) == (4, "the budget is spent")
    run(site.search(budget=Budget(points=7)))
    assert len(site.sent) == 7


def test_a_budget_of_energy_stops_before_it_is_overdrawn():
    """Each point that is over took 0.1 kWh: of 0.5 one more fits while one is under way."""
    spent = Spent(points=4, over=3, gpu_hours=None, kwh=0.3)
    assert spent.room(Budget(kwh=0.5), 4) == 1
    assert spent.room(Budget(kwh=0.31), 4) == 0
    assert spent.room(Budget(points=5, kwh=9.0), 4) == 1
    assert Spent(0, 0, None, None).room(Budget(gpu_hours=1.0), 4) == 4


def test_what_attempts_do_not_say_counts_with_the_mean_of_those_that_do():
    """Half of three points' attempts say 0.15 kWh: each point took 0.1."""
    spent = Spent(points=3, over=3, gpu_hours=None, kwh=0.15, kwh_known=0.5)
    assert spent.room(Budget(kwh=0.5), 4) == 2


def test_a_budget_of_what_no_run_says_ends_the_search(site, monkeypatch):
    """No joules are known there: 5 kWh would bound nothing."""
    monkeypatch.setattr(
        stage, "_spent", lambda _, points, over: Spent(points, over, None, None, 0.0, 0.0)
    )
    end = run(site.search(budget=Budget(kwh=5.0)))
    assert "--kwh, which bounds nothing" in end.stopped_by
    assert len(site.sent) <= 3


def test_nothing_is_established_by_simulated_joules(site, monkeypatch):
    """Neither in what a program reads."""
    looked = stage.read
    monkeypatch.setattr(stage, "read", lambda *words: replace(looked(*words), simulated=True))
    kept = stage.document(search := site.search(), run(search))
    assert kept["dearer"]
    assert not any(one["established"] for one in kept["dearer"])


def test_a_fit_is_made_anew_only_where_a_point_has_changed(site, monkeypatch):
    """A search of days looks each two seconds."""
    looks, states = [], []
    looked, asked = stage._look, stage._asked
    monkeypatch.setattr(stage, "_look", lambda *words: looks.append(1) or looked(*words))

    def waiting(search):
        """Nothing is over in the first ten looks after something was asked."""
        rows = asked(search)
        states.append(len(rows))
        if len(states) < 10:
            return [replace(row, state="running", power_w=float(len(states))) for row in rows]
        return rows

    monkeypatch.setattr(stage, "_asked", waiting)
    run(site.search(budget=Budget(points=3)))
    assert len(states) >= 10
    assert len(looks) <= 4


def test_a_point_that_nobody_knows_of_is_cut_short_after_a_while(monkeypatch):
    """Its job is gone and the site keeps no accounting; until then, and where it is known again, it waits."""
    clock = iter((0.0, 10.0, 20.0, 30.0, stage._PATIENCE_S + 30.0))
    monkeypatch.setattr(stage.time, "monotonic", lambda: next(clock))
    since = {}
    states = [
        stage._settled([Row("p", state, 1)], since)[0].state
        for state in ("unknown", "unknown", "running", "unknown", "unknown")
    ]
    assert states == ["unknown", "unknown", "running", "unknown", "interrupted"]


def test_settings_that_fail_are_left_out(site):
    """Batch 16 does not run: the best is beside it, and the failures are counted."""
    site.fails = lambda point: point["batch_size"] == 16
    end = run(site.search())
    best = site.search().grid.space.values(end.verdict.best)
    assert best["batch_size"] in (8, 32)
    assert best["precision"] == "fp8"
    assert end.verdict.excluded >= 1


def test_points_that_were_cut_short_are_sent_again_three_times_at_most(site, monkeypatch):
    """Then they are given up, and the search ends."""
    again = []

    def submit(plan, only):
        if not plan.sweep.grid_path.is_file():
            make_sweep(plan.sweep.path, site.points)
        for point_id in only:
            cut_short(point_id)

    def cut_short(point_id):
        make_attempt(site.plan.sweep, site.of[point_id], Made([Gpu("GPU-1")], status="interrupted"))

    def resume(sweep, only):
        again.extend(only)
        for point_id in only:
            cut_short(point_id)

    monkeypatch.setattr(stage.send, "submit", submit)
    monkeypatch.setattr(stage.resuming, "resume", resume)
    end = run(site.search(budget=Budget(points=2)))
    assert end.verdict.best is None
    assert end.stopped_by == "the budget is spent"
    assert sorted(again.count(one) for one in set(again)) == [2, 2]


def test_a_task_that_ended_before_its_attempt_was_a_try(site, monkeypatch):
    """Else a job that Slurm cancels before it starts would be sent for ever."""
    search = site.search()
    (point,) = search.grid.points[0][:1]
    make_sweep(site.plan.sweep.path, site.points)
    monkeypatch.setattr(stage.send, "tried", lambda _: {point})
    monkeypatch.setattr(stage, "states", lambda *_: [Row(point, "interrupted", 0)])
    for times in (2, 3):
        sent = [Submission(str(k), "points", [[point]], Path(), 0, str(k)) for k in range(times)]
        monkeypatch.setattr(stage.journal, "read", lambda _, sent=sent: sent)
        (row,) = stage._asked(search)
        assert stage._is_lost(row) is (times == 3)


def test_a_grid_of_other_work_or_of_one_setting_is_refused(tmp_path):
    """None is a cheaper way to another's answer."""
    sweep = SweepDir(tmp_path / "s")
    lengths = [plan_point(choices(max_gen_len=n, batch_size=n)) for n in (8, 16)]
    with pytest.raises(RefusedError, match="max_gen_len"):
        Grid.of(Plan("s", sweep, [], lengths, 0))
    repeats = [plan_point(choices(repeat=n)) for n in range(3)]
    with pytest.raises(RefusedError, match="no choice varies"):
        Grid.of(Plan("s", sweep, [], repeats, 0))


def test_points_that_cannot_run_are_no_settings(tmp_path):
    """And a search needs at least one point at once."""
    points = [plan_point(choices(batch_size=b), "too large" if b == 4 else None) for b in (1, 2, 4)]
    plan = Plan("s", SweepDir(tmp_path / "s"), [], points, 0)
    assert len(Grid.of(plan).space.settings) == 2
    with pytest.raises(RefusedError, match="--parallel 0"):
        Search.of(plan, GOAL, Budget(), 0)
    for hours in (-1.0, float("inf"), float("nan")):
        with pytest.raises(RefusedError, match=f"--gpu-hours {hours:g}"):
            Search.of(plan, GOAL, Budget(gpu_hours=hours), 1)
