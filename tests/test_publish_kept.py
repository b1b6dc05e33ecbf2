"""Rows of pruned attempts cannot be recomputed; what was changed in them is found all the same."""

import shutil

import pyarrow.parquet as pq
import pytest
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.prune.prune import prune
from wattflow.publish.bundle import bundle
from wattflow.publish.verify import verify


@pytest.fixture
def sweep(tmp_path):
    """Two points with an attempt each, collected."""
    points = [choices(seed=seed) for seed in (0, 1)]
    sweep = make_sweep(tmp_path / "s", points)
    for i, point in enumerate(points):
        make_attempt(sweep, point, Made([Gpu("GPU-a")], started_s=100.0 * i))
    collect(sweep)
    return sweep


@pytest.mark.parametrize("column", ["energy_j", "duration_s", "tokens_per_s", "prefill_energy_j"])
def test_a_kept_row_that_was_changed_is_found(sweep, column):
    """By its copy; without one, by its sums and by what spans and records still say."""
    prune(sweep, ["traces"], apply=True)
    path = sweep.points_path
    rows = pq.read_table(path)
    at = rows.schema.get_field_index(column)
    values = rows[column].to_pylist()
    changed = [value and value * 1.01 for value in values]
    pq.write_table(rows.set_column(at, rows.schema.field(at), [changed]), path)
    verdict = verify(sweep.path)
    assert not verdict.verified
    bad = [one for one in verdict.attempts if one.kept and not one.ok]
    assert len(bad) == 2
    assert all(any(d.what == column for d in one.differences) for one in bad)
    shutil.rmtree(sweep.pruned)
    verdict = verify(sweep.path)
    assert all(
        "kept no row of it" in " ".join(one.problems) for one in verdict.attempts if one.kept
    )


def test_a_bundle_whose_rows_are_marked_as_pruned_is_not_verified(sweep, tmp_path):
    """Else a forger would mark the rows that do not come out again."""
    made = bundle(sweep, tmp_path / "b.zip")
    shutil.unpack_archive(made.path, tmp_path / "b")
    path = tmp_path / "b" / "sweep" / "results" / "points.parquet"
    rows = pq.read_table(path)
    at = rows.schema.get_field_index("reasons")
    marked = [[*reasons, "pruned"] for reasons in rows["reasons"].to_pylist()]
    pq.write_table(rows.set_column(at, rows.schema.field(at), [marked]), path)
    verdict = verify(tmp_path / "b")
    assert not verdict.verified
    assert (
        sum(
            "it counts, and nothing in the bundle" in t
            for o in verdict.attempts
            for t in o.problems
        )
        == 2
    )
