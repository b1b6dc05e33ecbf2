"""Goals and conditions: as they are written, and as rows have them."""

from types import SimpleNamespace

import polars as pl
import pytest
from sweeps import Gpu, Made, choices, collected, constant

from wattflow.errors import RefusedError
from wattflow.search.goals import Condition, Goal, read

# batch size: watts, seconds of decode; 4 takes least J x s, 1 least J
SETTINGS = {1: (100.0, 4.0), 4: (150.0, 3.0)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two settings with two repeats each, and one that failed."""
    points, attempts = [], []
    for size, (watts, seconds) in SETTINGS.items():
        for repeat in range(2):
            points.append(choices(batch_size=size, repeat=repeat))
            attempts.append(Made([Gpu("GPU-1", constant(watts))], decode_s=seconds))
    points.append(choices(batch_size=8))
    attempts.append(Made([Gpu("GPU-1")], status="failed"))
    return collected(tmp_path_factory.mktemp("goals") / "s", attempts, points)


def settings_of(sweep):
    """The position of each point's batch size."""
    sizes = [1, 4, 8]
    return {p: sizes.index(b) for p, b in sweep.points.select("point_id", "batch_size").rows()}


def test_conditions_are_read_as_they_are_written():
    """Below or above; a figure over its limit is below 1 where it keeps the condition."""
    below, above = Condition.parsed("duration_s < 0.5"), Condition.parsed("tokens_per_s>=200")
    assert (below.column, below.limit, below.is_most) == ("duration_s", 0.5, True)
    assert below.over(0.25) == 0.5
    assert above.over(400.0) == 0.5
    assert below.over(0.0) < 1 < above.over(0.0)
    assert below.over(-1.0) == below.over(0.0) > 0
    assert (str(below), str(above)) == ("duration_s<0.5", "tokens_per_s>200")


@pytest.mark.parametrize(
    "text", ["duration_s", "duration_s<x", "duration_s<0", "nothing<1", "model<1", "duration_s<inf"]
)
def test_other_conditions_are_refused(text):
    """With what was written."""
    with pytest.raises(RefusedError, match="--subject-to"):
        Condition.parsed(text)


@pytest.mark.parametrize("name", ["joules", "model", "versions"])
def test_a_goal_is_a_number(name):
    """Names of goals that no column has are listed."""
    with pytest.raises(RefusedError, match="edp"):
        Goal.parsed(name, [])


def test_each_run_has_its_goal_and_its_conditions(sweep):
    """100 W for 10.5 s over 200 tokens is 5.25 J; a failed run has none."""
    found = read(sweep, settings_of(sweep), Goal.parsed("energy_per_token_j", ["duration_s<21"]))
    goals = {one.setting: one for one in found.seen}
    assert goals[0].goal == pytest.approx(5.25, rel=1e-3)
    assert goals[0].over_limit[0] == pytest.approx(0.5, rel=1e-6)
    assert goals[2].goal is None
    assert len(found.values[0]) == len(found.values[1]) == 2
    assert not found.void
    assert not found.simulated


def test_energy_times_delay_orders_otherwise_than_energy(sweep):
    """J/token times seconds a token; its doubt is that of the joules, relative."""
    energy = read(sweep, settings_of(sweep), Goal.parsed("energy_per_token_j", [])).values
    edp = read(sweep, settings_of(sweep), Goal.parsed("edp", [])).values
    assert energy[0][0].value < energy[1][0].value
    assert edp[0][0].value == pytest.approx(5.25 * 10.5 / 200, rel=1e-3)
    assert edp[0][0].expanded_u / edp[0][0].value == pytest.approx(
        energy[0][0].expanded_u / energy[0][0].value
    )
    assert edp[0][0].watts == pytest.approx(100.0, rel=1e-3)


def test_of_a_rate_the_most_is_searched(sweep):
    """It is held as seconds, and shown as the rate."""
    goal = Goal.parsed("tokens_per_s", [])
    values = read(sweep, settings_of(sweep), goal).values
    assert values[1][0].value < values[0][0].value
    assert goal.shown(values[0][0].value) == pytest.approx(200 / 10.5, rel=1e-6)


def test_a_factor_that_nobody_declared_is_refused(sweep):
    """No price is assumed."""
    with pytest.raises(RefusedError, match=r"cluster\.cost"):
        read(sweep, settings_of(sweep), Goal.parsed("price", []))


def test_a_goal_of_price_waits_for_a_run_that_can_have_one(sweep):
    """The first run that is over may be one that failed."""
    settings = {p: k for p, k in settings_of(sweep).items() if k == 2}
    assert read(sweep, settings, Goal.parsed("price", [])).seen[0].goal is None


def test_a_condition_s_figure_of_0_is_a_figure(sweep):
    """Nothing failed is fewer than one."""
    none = sweep.points.with_columns(late_s=pl.lit(0.0))
    found = read(
        SimpleNamespace(points=none), settings_of(sweep), Goal.parsed("duration_s", ["late_s<1"])
    )
    assert not found.void
    assert max(one.over_limit[0] for one in found.seen if one.goal) < 1


def test_two_gpus_under_one_profile_are_not_held_against_each_other(sweep):
    """As `compare` establishes nothing between them."""
    names = pl.when(pl.col("batch_size") == 1).then(pl.lit("A100")).otherwise(pl.lit("H100"))
    mixed = SimpleNamespace(points=sweep.points.with_columns(gpu_name=names))
    with pytest.raises(RefusedError, match="two models of GPU"):
        read(mixed, settings_of(sweep), Goal.parsed("tokens_per_s", []))


def test_price_and_carbon_follow_the_declared_factors(tmp_path):
    """0.25 a kWh times 5.25 J a token times a million."""
    over = {"cluster__cost__price_per_kwh": 0.25, "cluster__cost__price_source": "x"}
    over |= {"cluster__cost__currency": "EUR"}
    one = collected(
        tmp_path / "s", [Made([Gpu("GPU-1", constant(100.0))], decode_s=4.0)], [choices(**over)]
    )
    (point,) = one.points["point_id"]
    found = read(one, {point: 0}, Goal.parsed("price", []))
    assert found.values[0][0].value == pytest.approx(5.25e6 / 3.6e6 * 0.25, rel=1e-3)


def test_a_run_without_the_condition_s_figure_is_void(sweep):
    """No latency percentiles were measured there, and the reason says so."""
    found = read(sweep, settings_of(sweep), Goal.parsed("energy_per_token_j", ["full_s<1"]))
    assert sorted(found.void) == [0, 0, 1, 1]
    assert found.why_void == {"no full_s": 4}
