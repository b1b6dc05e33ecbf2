"""What one attempt cost: one row by hand, and what is missing or damaged costs it and no other."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collection import cut, one, phases, rows, text
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.store.tables import write_table


def test_constant_power_end_to_end(tmp_path):
    """70 W over a window of 10 s is 700 J: every ratio follows by hand."""
    made = Made([Gpu("GPU-a")], batches=2, prefill_s=1.0, decode_s=3.5, pause_s=1.0, tokens=100)
    _, _, row = one(tmp_path, made)
    expected = {
        "duration_s": 10.0,
        "energy_j": 700.0,
        "power_w": 70.0,
        "tokens_kept": 200,
        "computed_tokens": 480,  # 2 x 40 of prefill too
        "tokens_in": 80,
        "responses": 8,
        "tokens_per_s": 20.0,
        "responses_per_s": 0.8,
        "energy_per_token_j": 3.5,
        "energy_per_computed_token_j": 700 / 480,
        "energy_per_response_j": 87.5,
        "prefill_energy_j": 140.0,
        "decode_energy_j": 490.0,
        "other_energy_j": 70.0,
        "prefill_s": 2.0,
        "decode_s": 7.0,
        "other_s": 1.0,
        "idle_power_w": 70.0,
        "load_energy_j": 70.0,
        "load_s": 1.0,
        "warmup_energy_j": 70.0,
        "job_energy_j": 700.0 + 3 * 70.0,
        "counter_ratio": 1.0,
        "coverage": 1.0,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert row["valid"]
    assert row["counts"]
    assert row["reasons"] == ["dummy_text"]


def test_a_choice_that_this_version_does_not_know_costs_no_joules(tmp_path):
    """The record of a later version, whose new key says nothing of power or time: 70 W for 10 s stay 700 J."""
    point = choices(shards=1)
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a")], batches=2, prefill_s=1.0, decode_s=3.5, pause_s=1.0, tokens=100)
    attempt = make_attempt(sweep, point, made)
    record = attempt.read_record()
    record["choices"] = {**record["choices"], "new_axis": 1}
    attempt.write_record(record)
    (row,) = rows(sweep)
    assert (row["counts"], row["energy_j"]) == (True, pytest.approx(700.0))


WITHHELD = (
    "energy_j",
    "power_w",
    "energy_per_token_j",
    "job_energy_j",
    "energy_per_response_j",
    "decode_energy_j",
)


def test_a_missing_trace_withholds_the_total(tmp_path):
    """Without one GPU's trace no energy is known, only why; tokens per second stay."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b")]))
    attempt.trace_path("node1", "GPU-b").unlink()
    sweep.points_path.unlink()
    (row,) = rows(sweep)
    assert [row[name] for name in WITHHELD] == [None] * len(WITHHELD)
    assert "missing_trace" in row["reasons"]
    assert not row["valid"]
    assert not row["counts"]
    assert row["tokens_per_s"] > 0


def test_a_missing_node_withholds_the_total(tmp_path):
    """A node of the record without spans withholds the job's joules."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b", node="node2")]))
    attempt.spans_path("node2").unlink()
    sweep.points_path.unlink()
    (row,) = rows(sweep)
    assert [row[name] for name in WITHHELD] == [None] * len(WITHHELD)
    assert "missing_node" in row["reasons"]
    assert row["nodes_seen"] == 1


def test_fewer_ranks_than_shards(tmp_path):
    """An attempt by one rank at a point of two shards is no measurement of it."""
    point = choices(shards=2)
    sweep = make_sweep(tmp_path / "s", [point])
    make_attempt(sweep, point, Made([Gpu("GPU-a")]))
    (row,) = rows(sweep)
    assert row["energy_j"] is None
    assert "missing_rank" in row["reasons"]


def test_ranks_that_share_a_gpu_are_no_point_of_as_many_shards(tmp_path):
    """Two ranks on one GPU: its joules are billed once, but two shards were asked for, so the row does not count."""
    row = one(tmp_path, Made([Gpu("GPU-a", ranks=2)]))[2]
    assert row["energy_j"] == pytest.approx(595.0)
    assert (row["gpus"], row["shards"]) == (1, 2)
    assert "missing_gpu" in row["reasons"]
    assert not row["valid"]


def foreign(path):
    write_table(path, pa.table({"x": [1]}))


@pytest.mark.parametrize("harm", [cut, foreign, text])
@pytest.mark.parametrize("which", ["trace", "spans", "requests", "record"])
def test_damage_costs_one_attempt(tmp_path, harm, which):
    """A cut, foreign or garbled file costs its attempt alone, and the summary names it."""
    points = [choices(repeat=0), choices(repeat=1)]
    sweep = make_sweep(tmp_path / "s", points)
    attempts = [make_attempt(sweep, point, Made([Gpu("GPU-a")])) for point in points]
    bad = attempts[0]
    paths = {
        "trace": bad.trace_path("node1", "GPU-a"),
        "spans": bad.spans_path("node1"),
        "requests": bad.requests_path,
        "record": bad.record_path,
    }
    harm(paths[which])
    summary = collect(sweep)
    first, second = pq.read_table(sweep.points_path).to_pylist()
    assert first["reasons"] == ["damaged"]
    assert paths[which].name in first["error"]
    assert [first["valid"], second["valid"]] == [False, True]
    assert len(summary.damaged) == 1
    assert f"point {bad.point_id}, attempt 1" in summary.damaged[0]


def test_damage_leaves_what_was_known_before_it(tmp_path):
    """Behind a cut trace the tokens and times of the spans stand in the row, of which no figure is made."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    cut(attempt.trace_path("node1", "GPU-a"))
    sweep.points_path.unlink()
    (row,) = rows(sweep)
    assert (row["tokens_kept"], row["duration_s"], row["status"]) == (200, 8.5, "finished")
    assert (row["energy_j"], row["reasons"], row["valid"]) == (None, ["damaged"], False)
    assert phases(sweep) == []
