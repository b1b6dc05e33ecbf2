"""One rank's measurement of one point: the device that it is billed to, and the reference load around its task."""

import polars as pl
import pytest
from local_runs import SMALL, call

import wattflow
from wattflow.engine.ranks import Ranks
from wattflow.errors import PowerError
from wattflow.run.measurement import _device_of
from wattflow.run.place import Place

JOB = {"job_id": None, "array_task": None, "restart": 0, "cluster": "local"}


def place(local_rank):
    return Place(local_rank, 2, local_rank, "n1", "", "/spool", JOB)


def devices(*uuids):
    return [
        {"ordinal": i, "uuid": uuid, "bus_id": None, "name": "GPU"} for i, uuid in enumerate(uuids)
    ]


@pytest.mark.parametrize(
    ("gpu_uuid", "local_rank", "measured", "found"),
    [
        ("GPU-b", 0, ("GPU-a", "GPU-b"), "GPU-b"),  # whatever its ordinal
        (None, 1, ("host-n1",), "host-n1"),  # one meter for all CPU ranks of a host
        (None, 1, ("GPU-a", "GPU-b"), "GPU-b"),  # a torch that does not tell UUIDs
    ],
)
def test_a_rank_is_billed_to_the_device_that_it_works_on(gpu_uuid, local_rank, measured, found):
    """By UUID where torch knows it, else the host's one meter, else the ordinal."""
    ranks = Ranks(local_rank, 2, local_rank, "n1", "cuda:0", "GPU", gpu_uuid)
    assert _device_of(ranks, place(local_rank), devices(*measured))["uuid"] == found


def test_a_device_that_is_not_measured_stops_the_attempt():
    """Both sides are named, and where to look."""
    ranks = Ranks(1, 2, 1, "n1", "cuda:1", "GPU", "GPU-z")
    with pytest.raises(PowerError, match=r"rank 1 on n1 works on GPU-z.*measures 0: GPU-a"):
        _device_of(ranks, place(1), devices("GPU-a"))


def test_a_reference_load_stands_at_both_ends_and_in_no_points_joules(tmp_path):
    """Of three points the first and the last carry the fixed load, and the joules of all leave it out."""
    words = [*SMALL, "engine=synthetic", "batch_size=1,2,3", "sweep.repeats=1"]
    call("submit", *words, "sweep.reference_s=0.6", "sweep=ref", "--wait", cwd=tmp_path)
    sweep = wattflow.open_sweep(tmp_path / "sweeps" / "ref")
    rows = sweep.attempts.sort("started")
    assert [seconds is not None for seconds in rows["reference_s"]] == [True, False, True]
    for row in rows.to_dicts():
        assert (row["reference_rounds"] or 0) > 0 or row["reference_s"] is None
        own = sweep.phases.filter(
            (pl.col("point_id") == row["point_id"])
            & pl.col("phase").is_in(["prefill", "decode", "other"])
        )
        assert own["energy_j"].sum() == pytest.approx(row["energy_j"], rel=0.005)
