"""What points should take, told from finished attempts whose means are worked out by hand."""

import pytest
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect import collect
from wattflow.config.choices import from_dict
from wattflow.plan import estimate
from wattflow.plan.estimate import Expected, Finished, Past


def work(**over):
    """A point of 4 batches and a warm-up of 10 steps each, with 2 x 1 s of idling: 50 steps."""
    few = {"n_prompts": 8, "batch_size": 2, "max_gen_len": 10, "power__idle_s": 1.0}
    return from_dict(choices(**{**few, **over}))


def test_nothing_finished_tells_nothing():
    """Unknown is null and is counted, never 0 seconds."""
    past = Past([])
    assert past.expect(work()) is None
    assert past.sum([work()]) == estimate.Sum(0.0, 0.0, 0, 0, 1, 0)


def test_repeats_tell_their_mean():
    """10 s and 20 s make 15 s; 100 J and 200 J make 150 J, whatever seed, folder and time limit."""
    past = Past([Finished(work(seed=1), 10.0, 100.0), Finished(work(repeat=1), 20.0, 200.0)])
    one = work(seed=7, repeat=2, sweeps_dir="/x", cluster__time_min=5, sweep__name="other")
    assert past.expect(one) == Expected(15.0, 150.0, "same")


def test_joules_that_some_attempts_lack_are_the_mean_of_the_others():
    """One attempt of two told its joules; where none did they are null."""
    past = Past([Finished(work(), 10.0, None), Finished(work(), 20.0, 200.0)])
    assert past.expect(work()) == Expected(15.0, 200.0, "same")
    assert Past([Finished(work(), 10.0, None)]).expect(work()) == Expected(10.0, None, "same")


def test_another_point_of_the_shape_is_told_by_its_steps():
    """52 s are 2 s of idling and 50 steps of 1 s; twice the length is 100 steps and 2 s, at the same 10 W."""
    past = Past([Finished(work(), 52.0, 520.0)])
    assert past.expect(work(max_gen_len=20)) == Expected(102.0, 1020.0, "shape")


@pytest.mark.parametrize(
    "over",
    [
        {"model__name": "llama-7b"},
        {"shards": 2, "cluster__gpus_per_node": 2},
        {"precision": "fp32"},
        {"engine__name": "fast"},
        {"cluster__gpu_model": "h100"},
        {"cluster__name": "site"},
        {"power__scope": "module"},
    ],
)
def test_points_of_another_shape_are_unknown(over):
    """Another model, number of shards, precision, engine or machine is not guessed at."""
    assert Past([Finished(work(), 52.0, 520.0)]).expect(work(**over)) is None


def test_gpu_hours_count_every_shard():
    """Two repeats of 1,800 s on four GPUs are 4 GPU-hours; 3.6 MJ each are 2 kWh; the third point is unknown."""
    wide = {"shards": 4, "cluster__gpus_per_node": 4}
    past = Past([Finished(work(**wide), 1800.0, 3.6e6)])
    points = [work(**wide, seed=1), work(**wide, seed=2), work()]
    assert past.sum(points) == estimate.Sum(4.0, 2.0, 2, 0, 1, 1)


def test_simulated_joules_stay_marked():
    """One simulated attempt among those that an estimate rests on marks it; the time is real."""
    past = Past([Finished(work(), 10.0, 100.0), Finished(work(), 10.0, 100.0, simulated=True)])
    assert past.sum([work()]).simulated
    assert not Past([Finished(work(), 10.0, 100.0)]).sum([work()]).simulated


def test_collected_results_tell_time_and_joules(tmp_path):
    """An attempt of 60 s by its record, at 70 W in all of its phases; one that failed tells nothing."""
    points = [choices(seed=1), choices(seed=2)]
    sweep = make_sweep(tmp_path / "s", points)
    made = Made([Gpu("GPU-1")])
    make_attempt(sweep, points[0], made)
    make_attempt(sweep, points[1], Made([Gpu("GPU-1")], status="failed"))
    assert estimate.collected(sweep) == []
    collect.collect(sweep)
    (seen,) = estimate.collected(sweep)
    assert seen.config == from_dict(points[0])
    assert seen.seconds == pytest.approx(60.0)
    assert seen.energy_j == pytest.approx(70.0 * (made.before_s + made.window_s), rel=0.01)


def test_simulated_joules_of_a_collected_sweep_are_told_so(tmp_path):
    """The results' own column says it."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("host-node1")], source="simulated", boundary="host")
    make_attempt(sweep, point, made)
    collect.collect(sweep)
    assert [seen.simulated for seen in estimate.collected(sweep)] == [True]
