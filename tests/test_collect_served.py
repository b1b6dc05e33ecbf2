"""Joules of requests as `collect` writes them, of a load whose power follows a hidden law through an H100's sensor."""

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hidden_power import LAW
from served_sweeps import swept_load

from wattflow.collect.collect import collect
from wattflow.publish.bundle import bundle
from wattflow.publish.verify import verify
from wattflow.store.columns import SERVED
from wattflow.store.layout import served_path


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A collected sweep of one point, and the run that it is of."""
    return swept_load(tmp_path_factory.mktemp("served") / "s")


def test_requests_and_idle_are_the_loads_measured_joules(swept):
    """Their sum is the meter's from the first iteration to the last, and nearly the hidden truth."""
    sweep, run = swept
    (row,) = pq.read_table(sweep.points_path).to_pylist()
    requests = pq.read_table(served_path(sweep), schema=SERVED).to_pylist()
    total = row["requests_energy_j"] + row["requests_idle_energy_j"]
    assert sum(one["energy_j"] for one in requests) == pytest.approx(
        row["requests_energy_j"], rel=1e-9
    )
    assert total == pytest.approx(run.true_j, rel=2e-3)
    assert (
        sum(one["counted"] for one in requests)
        == row["load_requests"]
        == int((run.due - run.due[0] >= 5.0).sum())
    )


def test_joules_of_tokens_are_the_hidden_laws(swept):
    """Input, output at the load's mean length, idle and busy watts, each within its interval or 5 %."""
    sweep, run = swept
    (row,) = pq.read_table(sweep.points_path).to_pylist()
    positions = sum(
        sum(range(n + 1, n + m)) for n, m in zip(run.tokens_in, run.tokens_out, strict=True)
    )
    mean = positions / (run.tokens_out - 1).sum()
    assert row["input_token_j"] == pytest.approx(LAW[2], rel=0.05)
    assert row["output_token_j"] == pytest.approx(LAW[4] + LAW[5] * mean, rel=0.05)
    assert 0 < row["output_token_half_width_j"] < 0.1 * row["output_token_j"]
    assert row["model_idle_w"] == pytest.approx(LAW[0], rel=0.02)
    assert row["cached_token_j"] is None
    assert "cached" in row["power_model_dropped"]
    assert row["power_model_held_out"] < 0.05


def test_a_second_collect_keeps_the_rows(swept):
    """Nothing changed: they are taken over as they are."""
    sweep, _ = swept
    before = pq.read_table(served_path(sweep))
    collect(sweep)
    assert pq.read_table(served_path(sweep)).equals(before)


@pytest.mark.parametrize("damage", [b"", None])
def test_rows_that_were_lost_are_made_again(swept, damage):
    """A file that was cut short or removed: its attempts are collected anew, though their points' rows are there."""
    sweep, _ = swept
    before, path = pq.read_table(served_path(sweep)), served_path(sweep)
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    collect(sweep)
    assert pq.read_table(path).equals(before)


def test_a_bundle_verifies_them(swept, tmp_path):
    """The columns are recomputed from the raw traces and tables that the bundle has."""
    sweep, _ = swept
    packed = tmp_path / "s.zip"
    bundle(sweep, packed)
    assert verify(packed).verified


@pytest.fixture
def with_a_gap(tmp_path):
    """Returns the row and the requests of the load without the trace's rows of some seconds from second 12 on."""

    def made(seconds):
        sweep, _ = swept_load(tmp_path / "s")
        (attempt,) = sweep.attempts(sweep.points()[0].point_id)
        for path in (attempt.path / "traces").rglob("*.parquet"):
            trace = pq.read_table(path)
            start_ns = pc.add(pc.min(trace["time_ns"]), 12 * 10**9)
            end_ns = pc.add(start_ns, round(seconds * 1e9))
            lost = pc.and_(
                pc.greater(trace["time_ns"], start_ns), pc.less(trace["time_ns"], end_ns)
            )
            pq.write_table(trace.filter(pc.invert(lost)), path)
        sweep.points_path.unlink()
        collect(sweep)
        (row,) = pq.read_table(sweep.points_path).to_pylist()
        return row, pq.read_table(served_path(sweep), schema=SERVED).to_pylist()

    return made


def test_a_second_with_a_gap_teaches_the_model_nothing(with_a_gap):
    """Three tenths of one without samples, as if it took nothing: the law is found as before."""
    row, _ = with_a_gap(0.3)
    assert "gap" not in row["reasons"]
    assert row["input_token_j"] == pytest.approx(LAW[2], rel=0.01)
    assert row["power_model_held_out"] < 0.01  # with that second 0.04


def test_a_load_that_was_not_measured_has_no_joules_of_requests(with_a_gap):
    """Three seconds of thirty: as the meter's total is withheld, so are its parts; the times stand."""
    row, requests = with_a_gap(3.0)
    assert "gap" in row["reasons"]
    assert row["energy_j"] is None
    assert row["power_model"] is None
    assert {one["energy_j"] for one in requests} == {None}
    assert all(one["ttft_s"] > 0 for one in requests)
