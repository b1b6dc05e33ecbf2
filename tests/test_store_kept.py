"""Rows of pruned attempts lie aside, and only grow."""

import pyarrow.parquet as pq
import pytest
from sweeps import Gpu, Made, choices, id_of, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.errors import DamagedError
from wattflow.prune.prune import prune
from wattflow.store.columns import PHASE, POINT
from wattflow.store.kept import Kept
from wattflow.store.tables import read_table

POINTS = [choices(seed=seed) for seed in (0, 1)]


@pytest.fixture
def sweep(tmp_path):
    """Two points with an attempt each, collected."""
    sweep = make_sweep(tmp_path / "s", POINTS)
    for i, point in enumerate(POINTS):
        make_attempt(sweep, point, Made([Gpu("GPU-a")], started_s=100.0 * i))
    collect(sweep)
    return sweep


def test_rows_of_further_attempts_join_those_that_are_kept(sweep):
    """Each attempt once, marked, with its phases; it counts only by what results say of all attempts together."""
    keys = [(id_of(point), 1) for point in POINTS]
    results = Kept(read_table(sweep.points_path, POINT), read_table(sweep.phases_path, PHASE))
    assert Kept.read(sweep).keys == set()
    Kept.read(sweep).with_attempts(keys[:1], results).write(sweep)
    assert Kept.read(sweep).keys == {keys[0]}
    Kept.read(sweep).with_attempts(keys, results).write(sweep)
    kept = Kept.read(sweep)
    rows = kept.points.to_pylist()
    assert [(row["point_id"], row["attempt"]) for row in rows] == keys
    assert [(row["counts"], row["reasons"][-1]) for row in rows] == [(False, "pruned")] * 2
    assert [row["energy_j"] for row in rows] == results.points["energy_j"].to_pylist()
    assert kept.phases.num_rows == results.phases.num_rows


@pytest.mark.parametrize("fault", ["cut", "no phases"])
def test_damaged_rows_are_no_empty_ones(sweep, fault):
    """Else the next collection would lose what is nowhere else."""
    results = Kept(read_table(sweep.points_path, POINT), read_table(sweep.phases_path, PHASE))
    Kept.read(sweep).with_attempts([(id_of(POINTS[0]), 1)], results).write(sweep)
    if fault == "cut":
        path = sweep.pruned / "points.parquet"
        path.write_bytes(path.read_bytes()[:-9])
    else:
        (sweep.pruned / "phases.parquet").unlink()
    with pytest.raises(DamagedError, match=r"pruned/.* Restore .*pruned from a backup"):
        Kept.read(sweep)
    before = pq.read_table(sweep.points_path)
    with pytest.raises(DamagedError):
        collect(sweep)
    assert pq.read_table(sweep.points_path).equals(before)


def test_damaged_rows_that_are_moved_away_leave_those_of_the_results(sweep):
    """As the error says: the next collection keeps each figure, and marks the attempt whose files are gone."""
    prune(sweep, ["traces"], apply=True)
    before = [row["energy_j"] for row in pq.read_table(sweep.points_path).to_pylist()]
    sweep.pruned.rename(sweep.path.parent / "elsewhere")
    assert collect(sweep).gone == 2
    after = pq.read_table(sweep.points_path).to_pylist()
    assert [row["energy_j"] for row in after] == before
    assert all("files_gone" in row["reasons"] and row["counts"] for row in after)
