"""What a person queries: one row a point, all attempts, phases, traces, and a timeline."""

import polars as pl
import pytest
from sweeps import Gpu, Made, choices, constant, demo, make_attempt, make_sweep

import wattflow
from wattflow.collect.collect import collect
from wattflow.energy.boards import METERED
from wattflow.errors import RefusedError
from wattflow.nullable import NO_DOUBT, with_doubt


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A collected sweep of 8 points that count, a failed and an infeasible one."""
    directory = demo(tmp_path_factory.mktemp("sweeps") / "demo")
    collect(directory)
    return wattflow.open_sweep(directory.path)


def test_one_row_a_point(sweep):
    """`points` has every point of the grid once, in the grid's order, failed and infeasible ones too."""
    assert sweep.points["point_id"].n_unique() == len(sweep.points) == 10
    assert sweep.points["status"].to_list() == ["finished"] * 8 + ["failed", "infeasible"]
    assert sweep.points["shards"].to_list() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 4]


def test_a_newcomers_query(sweep):
    """The query of the README works: choices and joules are plain columns."""
    table = sweep.points.select("model", "shards", "tokens_per_s", "energy_per_token_j")
    assert table.row(0)[:2] == ("tiny", 1)
    assert table["energy_per_token_j"].null_count() == 2


def test_points_prefer_the_attempt_that_counts(tmp_path):
    """A failed attempt after a good one hides it in `points` no more than in `attempts`."""
    point = choices()
    directory = make_sweep(tmp_path / "s", [point])
    make_attempt(directory, point, Made([Gpu("GPU-a")]))
    make_attempt(directory, point, Made([Gpu("GPU-a")], status="failed"))
    collect(directory)
    found = wattflow.open_sweep(directory.path)
    assert found.points["attempt"].to_list() == [1]
    assert found.attempts["attempt"].to_list() == [1, 2]


def test_points_show_the_newest_where_none_counts(tmp_path):
    """Of two failed attempts `points` shows the second."""
    point = choices()
    directory = make_sweep(tmp_path / "s", [point])
    for _ in range(2):
        make_attempt(directory, point, Made([Gpu("GPU-a")], status="failed"))
    collect(directory)
    assert wattflow.open_sweep(directory.path).points["attempt"].to_list() == [2]


def test_phases_join_points(sweep):
    """The phases of a point, joined on point_id and attempt, add up to its joules."""
    window = sweep.phases.filter(pl.col("phase").is_in(["prefill", "decode", "other"]))
    sums = window.group_by("point_id", "attempt").agg(pl.col("energy_j").sum().alias("sum_j"))
    joined = sweep.points.join(sums, on=["point_id", "attempt"])
    assert len(joined) == 8
    assert (joined["sum_j"] - joined["energy_j"]).abs().max() < 1e-6


def test_traces_are_lazy_and_name_their_owner(sweep):
    """Traces of one point come out by its id, with power and stamps."""
    point = sweep.points["point_id"][0]
    frame = sweep.traces().filter(pl.col("point_id") == point)
    assert isinstance(frame, pl.LazyFrame)
    read = frame.collect()
    assert read["gpu_uuid"].unique().to_list() == ["host-node1"]
    assert read["power_w"].drop_nulls().len() > 100


def test_no_traces_yet(tmp_path):
    """A sweep of which nothing finished has an empty table of traces with its columns."""
    directory = make_sweep(tmp_path / "s", [choices()])
    collect(directory)
    found = wattflow.open_sweep(directory.path)
    assert found.traces().collect().is_empty()
    assert "power_w" in found.traces().collect_schema().names()


def test_a_timeline_has_power_and_phases(sweep):
    """The chart holds the mean power of each device and the phases behind it, on one axis in seconds."""
    point = sweep.points["point_id"][0]
    chart = sweep.timeline(point[:8]).to_dict()
    marks = [layer["mark"]["type"] for layer in chart["layer"]]
    assert marks == ["rect", "area", "line"]
    assert chart["layer"][2]["encoding"]["x"]["title"] == "seconds since the first prefill"
    assert chart["layer"][2]["encoding"]["y"]["title"] == "power, W (~ simulated)"


@pytest.mark.parametrize(
    ("source", "boundary", "mean"),
    [
        ("nvml_buffer", "gpu", with_doubt(70.0, 2 * METERED.relative_u(70.0) * 70.0, "W")),
        ("rapl", "host", f"70.0 W ({NO_DOUBT})"),
        ("simulated", "host", "~70.0 W"),
    ],
)
def test_a_timeline_says_what_its_watts_may_be_off(tmp_path, source, boundary, mean):
    """By the board's gain and offset, or why nobody knows."""
    point, period_s = choices(), 0.02 if boundary == "gpu" else 0.05
    made = make_sweep(tmp_path / "s", [point])
    uuid = "GPU-a" if boundary == "gpu" else "host-node1"
    make_attempt(
        made, point, Made([Gpu(uuid)], source=source, boundary=boundary, period_s=period_s)
    )
    collect(made)
    opened = wattflow.open_sweep(made.path)
    title = opened.timeline(opened.points["point_id"][0]).to_dict()["title"]
    assert title["subtitle"].endswith(f"mean of the window, all devices: {mean}")


def test_power_starts_at_the_first_prefill(tmp_path):
    """Seconds count from the window's start on each node's own clock, so nodes 3 s apart line up."""
    point = choices(shards=2)
    directory = make_sweep(tmp_path / "s", [point])
    gpus = [Gpu("GPU-a"), Gpu("GPU-b", constant(200.0), node="node2")]
    attempt = make_attempt(directory, point, Made(gpus, offset_s={"node2": 3.0}))
    collect(directory)
    power = wattflow.open_sweep(directory.path).power(attempt.point_id)
    first = power.group_by("node").agg(pl.col("seconds").min()).sort("node")
    assert first["seconds"].to_list() == pytest.approx([-3.1, -3.1], abs=0.05)
    second = power.filter(pl.col("node") == "node2")["power_w"]
    assert (second.min(), second.max()) == pytest.approx((200.0, 200.0))


@pytest.mark.parametrize("point", ["ffffffffffff", "", "zz"])
def test_an_unknown_point(sweep, point):
    """A point that is not there, or names none, is refused with where to look."""
    with pytest.raises(RefusedError, match="point_id"):
        sweep.timeline(point)


def test_a_timeline_of_nothing(sweep):
    """A failed point has no timeline, and the error says its status and reason."""
    failed = sweep.points.filter(pl.col("status") == "failed")["point_id"][0]
    with pytest.raises(RefusedError, match="failed"):
        sweep.timeline(failed)


def test_no_sweep_there(tmp_path):
    """A path without a sweep is refused."""
    with pytest.raises(RefusedError, match="no sweep there"):
        wattflow.open_sweep(tmp_path)


def test_a_sweep_not_collected(tmp_path):
    """A sweep without results is refused, and the message names `wattflow collect`."""
    directory = make_sweep(tmp_path / "s", [choices()])
    with pytest.raises(RefusedError, match="wattflow collect"):
        wattflow.open_sweep(directory.path)


def test_cut_results(tmp_path):
    """Results that were cut are refused with the same advice."""
    directory = make_sweep(tmp_path / "s", [choices()])
    collect(directory)
    directory.points_path.write_bytes(b"PAR1")
    with pytest.raises(RefusedError, match="wattflow collect"):
        _ = wattflow.open_sweep(directory.path).points
