"""A control out of collected points."""

import polars as pl
from test_analysis_controls import made_control

from wattflow import open_sweep
from wattflow.analysis.control_runs import measure
from wattflow.collect.collect import collect


def test_boards_have_to_run_both_ways(tmp_path):
    """Without runs alone, or where not all slots were full, there is no control; boards that ran both make one."""
    sweep = made_control(tmp_path / "neighbours")
    collect(sweep)
    points = open_sweep(sweep.path).points
    assert len(measure("n", points)) == 1
    assert measure("n", points.filter(~pl.col("beside"))) == []
    partly = points.with_columns(neighbours=pl.col("neighbours") * 0.5)
    assert measure("n", partly) == []
    assert measure("n", points.clear()) == []


def test_the_bound_of_several_points_holds_for_all(tmp_path):
    """Two batch sizes: the lowest low and the highest high of both."""
    sweep = made_control(tmp_path / "neighbours")
    collect(sweep)
    points = open_sweep(sweep.path).points
    dearer = pl.when(pl.col("beside")).then(pl.col("power_w") * 1.1).otherwise(pl.col("power_w"))
    other = points.with_columns(batch_size=pl.lit(8, pl.Int64), power_w=dearer)
    (one,), (both,) = measure("n", points), measure("n", pl.concat([points, other]))
    assert both.bounds["power"].low == one.bounds["power"].low
    assert both.bounds["power"].high > 1.1 * one.bounds["power"].ratio
