"""What neighbours change: controls that are kept, and comparisons that rest on them."""

import json
from dataclasses import replace

import polars as pl
import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep
from test_analysis_comparisons import compared

from wattflow import open_sweep
from wattflow.analysis import controls
from wattflow.analysis.beside import MixedError
from wattflow.analysis.comparisons import arms
from wattflow.analysis.controls import Bound, Control
from wattflow.cli import local as verbs
from wattflow.collect.collect import collect

BOARDS = ["GPU-a", "GPU-b", "GPU-c"]
WIDE = Bound(1.01, 0.99, 1.02, 3)


def control_of(points, **over):
    """A control of the nodes of some points, of two slots."""
    kind = controls.kind_of(points.row(0, named=True))
    return replace(Control("neighbours", *kind, 2, dict.fromkeys(controls.METRICS, WIDE)), **over)


def mixed(points):
    """The same points, those of batch 4 beside others in two slots."""
    beside = pl.col("batch_size") == 4
    return points.with_columns(beside=beside, slots=pl.when(beside).then(2))


def test_without_a_control_of_these_nodes_a_mixture_is_refused(tmp_path):
    """The reason names site, GPU and node, and the control; one of another GPU, or of other slots, bounds nothing."""
    points = mixed(compared(tmp_path, BOARDS).points)
    known = control_of(points)
    for found in ((), (replace(known, gpu_name="another"),), (replace(known, slots=4),)):
        with pytest.raises(
            MixedError, match=r"3 of these 6 points .* not known for local, .*grid=neighbours"
        ):
            arms(points, "batch_size", "energy_per_token_j", controls=found)


def test_a_control_widens_the_interval_by_what_neighbours_may_change(tmp_path):
    """Joules 0.9 times as many, neighbours at most 2 %: both ends of the interval go 2 % further, and it says why."""
    points = compared(tmp_path, BOARDS).points
    alone = arms(points, "batch_size", "energy_per_token_j")[1].ratio
    ours = mixed(points)
    wide = arms(ours, "batch_size", "energy_per_token_j", controls=(control_of(ours),))[1].ratio
    assert wide.ratio == alone.ratio
    assert (wide.low, wide.high) == (
        pytest.approx(alone.low / 1.02),
        pytest.approx(alone.high * 1.02),
    )
    assert wide.established
    assert wide.rests_on.endswith("neighbours change at most 2 %, by the control neighbours")


def test_a_difference_that_neighbours_may_make_is_not_established(tmp_path):
    """10 % fewer joules beside others, where neighbours may change 20 %."""
    points = mixed(compared(tmp_path, BOARDS).points)
    much = dict.fromkeys(controls.METRICS, Bound(1.1, 0.95, 1.2, 3))
    found = arms(
        points, "batch_size", "energy_per_token_j", controls=(control_of(points, bounds=much),)
    )
    assert (found[1].ratio.established, found[1].ratio.why_not) == (
        False,
        "within what neighbours may change",
    )


def test_controls_are_found_beside_a_sweep_and_damaged_ones_are_none(tmp_path):
    """Kept in one sweep and used in the next; what is no interval, or no JSON, bounds nothing."""
    points = compared(tmp_path, BOARDS)
    known = control_of(points.points)
    other = make_sweep(tmp_path / "neighbours", [choices()])
    controls.keep(other, [known])
    assert controls.near(points.directory) == controls.of(other) == [known]
    kept = json.loads(other.controls_path.read_text())
    kept["controls"][0]["bounds"]["energy"]["low"] = -1.0
    other.controls_path.write_text(json.dumps(kept))
    assert controls.near(points.directory) == []
    other.controls_path.write_text("{")
    assert controls.near(points.directory) == []


def made_control(folder):
    """A control of two rounds: on each of two boards 100 W alone and 103 W in both slots."""
    point = {"sweep__block": "neighbours", "sweep__repeats": 8, "cluster__side_by_side": True}
    sweep_points = [choices(repeat=r, cluster__gpus_per_node=2, **point) for r in range(8)]
    sweep = make_sweep(folder, sweep_points)
    for r, one in enumerate(sweep_points):
        all_slots = r % 4 >= 2
        watts = (100.0 + r % 2) * (1.03 if all_slots else 1.0)
        seen = {"slots": 2, "neighbours": float(all_slots), "neighbour_gpus": 1}
        seen |= {"neighbour_power_w": 90.0, "neighbour_temperature_c": 50.0, "host_load_pct": 1.0}
        make_attempt(sweep, one, Made([Gpu(f"GPU-{r % 2}", constant(watts))], beside=seen))
    return sweep


def test_collect_keeps_what_a_control_measured(tmp_path, capsys):
    """Both boards took 3 % more in all slots: the ratio is 1.03, the rate's 1, and `collect` prints them."""
    sweep = made_control(tmp_path / "neighbours")
    verbs.collect([str(sweep.path)])
    printed = capsys.readouterr().err
    (control,) = controls.of(sweep)
    assert control.bounds["energy"].ratio == pytest.approx(1.03, rel=1e-3)
    assert control.bounds["rate"].ratio == pytest.approx(1.0)
    assert (control.slots, control.bounds["power"].pairs, control.cluster) == (2, 2, "local")
    assert "energy in all 2 slots of local" in printed


def test_an_ordinary_sweep_makes_no_control(tmp_path):
    """Points that happened to run alone and beside others, in no order, bound nothing."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    make_attempt(sweep, choices(), Made([Gpu("GPU-a")]))
    collect(sweep)
    assert not sweep.controls_path.exists()
    assert open_sweep(sweep.path).controls == []
