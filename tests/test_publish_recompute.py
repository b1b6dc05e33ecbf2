"""What was changed in a sweep since it was measured is found by recomputing each attempt."""

import json
import shutil

import pytest
from forgery import (
    POINTS,
    TWO,
    add_watts,
    change_choice,
    edit,
    first_trace,
    make_original,
    said,
    set_cell,
)
from sweeps import Gpu, Made, choices, constant, id_of, make_attempt

from wattflow.collect.collect import collect
from wattflow.publish.verify import verify
from wattflow.store.layout import SweepDir


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The sweep, its bundle, and that unpacked; nobody writes there."""
    return make_original(tmp_path_factory.mktemp("original"))


@pytest.fixture
def sweep(original, tmp_path):
    """A copy of the sweep, to be changed."""
    shutil.copytree(original / "s", tmp_path / "s")
    return SweepDir(tmp_path / "s")


def test_one_sample_moved_by_three_watts(sweep):
    """3 W more in one sample of 20 ms are 0.06 J: found by the joules alone, 3.5e-5 of 1,700 J."""
    shutil.rmtree(sweep.traces)
    edit(first_trace(sweep.path), add_watts(3.0))
    verdict = verify(sweep.path)
    assert not verdict.verified
    changed, other = verdict.attempts if not verdict.attempts[0].ok else verdict.attempts[::-1]
    assert other.ok
    (joules,) = [d for d in changed.differences if (d.where, d.what) == ("points", "energy_j")]
    assert joules.recomputed - joules.published == pytest.approx(0.06, rel=1e-6)
    assert joules.relative == pytest.approx(0.06 / 1700.06, rel=1e-6)


def test_a_removed_sample(sweep):
    """A row taken out of a constant trace leaves the joules, and is missed by the count of samples."""
    shutil.rmtree(sweep.traces)
    edit(first_trace(sweep.path), lambda rows: [r for i, r in enumerate(rows) if i != 300])
    verdict = verify(sweep.path)
    assert any(d.what == "samples" for one in verdict.attempts for d in one.differences)


def test_a_removed_gpu(sweep):
    """A trace that is gone is named, and no total of the point is left."""
    first_trace(sweep.path, of=1).unlink()
    verdict = verify(sweep.path)
    text = said(verdict)
    assert not verdict.verified
    assert f"GPU {TWO[1]} of the record has no trace." in text
    (bad,) = [one for one in verdict.attempts if not one.ok]
    assert bad.energy_j == pytest.approx(1700.0)
    assert bad.recomputed_j is None


def test_a_gpu_removed_from_record_spans_and_traces(sweep):
    """Taken out everywhere, the GPU is missed by the point's shards and by the published boards."""
    trace = first_trace(sweep.path, of=1)
    attempt = trace.parents[1]
    trace.unlink()
    record = json.loads((attempt / "record.json").read_text())
    record["ranks"] = record["ranks"][:1]
    record["nodes"][0]["devices"] = record["nodes"][0]["devices"][:1]
    (attempt / "record.json").write_text(json.dumps(record))
    edit(attempt / "timings" / "node1.parquet", lambda rows: [r for r in rows if r["rank"] == 0])
    verdict = verify(sweep.path)
    (bad,) = [one for one in verdict.attempts if not one.ok]
    assert {"boards", "gpus", "reasons", "valid"} <= {d.what for d in bad.differences}


def test_a_foreign_trace(sweep):
    """A trace of a GPU that the record does not name is told."""
    trace = first_trace(sweep.path)
    shutil.copy(trace, trace.with_name("node1-GPU-other.parquet"))
    assert "traces/node1-GPU-other.parquet: a trace of no device of the record." in said(
        verify(sweep.path)
    )


def test_a_changed_choice_of_the_point_id(sweep):
    """Another batch size in the grid hashes to another point_id, which is told."""
    edit(sweep.grid_path, change_choice("batch_size", 16))
    verdict = verify(sweep.path)
    assert not verdict.verified
    assert verdict.right_ids == 1
    assert f"they hash to {id_of(choices(shards=2, batch_size=16))}" in said(verdict)


def test_a_changed_choice_outside_the_point_id(sweep):
    """Another idle window in the grid is not that of the record."""
    edit(sweep.grid_path, change_choice("power.idle_s", 9.0))
    text = said(verify(sweep.path))
    assert "grid.parquet and record.json differ in power.idle_s 9.0 and 5.0." in text


def test_another_time_limit_of_a_resume_is_no_fault(sweep):
    """How jobs were asked for may differ between a record and the grid: rows say what each attempt had."""
    edit(sweep.grid_path, change_choice("cluster.time_min", 9))
    assert said(verify(sweep.path)).count("time_min") == 0
    assert verify(sweep.path).verified
    collect(sweep)
    assert verify(sweep.path).verified


def test_a_changed_choice_of_the_record(sweep):
    """A record that tells another precision than the grid is found."""
    path = next(sweep.path.glob("points/*/attempt-1/record.json"))
    record = json.loads(path.read_text())
    record["choices"]["precision"] = "fp32"
    path.write_text(json.dumps(record))
    assert "differ in precision 'bf16' and 'fp32'." in said(verify(sweep.path))


@pytest.mark.parametrize(
    ("column", "factor"), [("energy_j", 1 - 2e-9), ("energy_per_token_j", 0.99), ("power_w", 1.001)]
)
def test_a_joule_edited_in_the_points(sweep, column, factor):
    """Any published number that is off by more than 1e-9 of itself is told, by how much."""
    edit(sweep.points_path, set_cell(column, lambda value: value * factor))
    (bad,) = [one for one in verify(sweep.path).attempts if not one.ok]
    (difference,) = bad.differences
    assert (difference.where, difference.what) == ("points", column)
    assert difference.relative == pytest.approx(abs(1 - factor), rel=2e-2)


def test_rounding_below_the_tolerance_passes(sweep):
    """A last bit, as another processor may round it, is no difference."""
    edit(sweep.points_path, set_cell("energy_j", lambda value: value * (1 + 1e-12)))
    verdict = verify(sweep.path)
    assert verdict.verified
    assert max(one.largest for one in verdict.attempts) == pytest.approx(1e-12, rel=0.1)


def test_a_joule_edited_in_the_phases(sweep):
    """A GPU's joules in one phase are told with phase, node and GPU."""
    edit(sweep.phases_path, set_cell("energy_j", lambda value: value + 1.0))
    (bad,) = [one for one in verify(sweep.path).attempts if not one.ok]
    (difference,) = bad.differences
    assert difference.where == "phases"
    assert difference.what.endswith(" energy_j")
    assert difference.device in TWO


def test_a_dropped_attempt(sweep):
    """An attempt that lies on disk and is left out of the results is told: nobody picks the cheap ones."""
    make_attempt(sweep, POINTS[0], Made([Gpu(uuid, constant(99.0)) for uuid in TWO]))
    collect(sweep)
    assert verify(sweep.path).verified
    edit(sweep.points_path, lambda rows: [row for row in rows if row["attempt"] != 2])
    edit(sweep.phases_path, lambda rows: [row for row in rows if row["attempt"] != 2])
    text = said(verify(sweep.path))
    assert "attempt 2: not in the results." in text
    assert "counts null" not in text


def test_an_attempt_made_to_count(sweep):
    """That the older of two valid attempts counts does not follow from them."""
    make_attempt(sweep, POINTS[0], Made([Gpu(uuid, constant(99.0)) for uuid in TWO]))
    collect(sweep)
    edit(sweep.points_path, set_cell("counts", True))
    (bad,) = [one for one in verify(sweep.path).attempts if not one.ok]
    assert [d.what for d in bad.differences] == ["counts"]


def test_an_invented_row(sweep):
    """A row of an attempt that is not on disk is told."""
    edit(sweep.points_path, lambda rows: [*rows, {**rows[0], "attempt": 7}])
    assert "attempt 7: in the results, and not on disk." in said(verify(sweep.path))


def test_an_attempt_that_still_runs_is_a_note(sweep):
    """A claimed attempt without a record is not a fault of what was published."""
    sweep.claim_attempt(id_of(POINTS[0]))
    verdict = verify(sweep.path)
    assert verdict.verified
    assert verdict.notes == [f"point {id_of(POINTS[0])}, attempt 2: not collected yet."]
