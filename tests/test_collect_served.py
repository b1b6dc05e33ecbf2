"""Joules of requests as `collect` writes them, of a load whose power follows a hidden law through an H100's sensor."""

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


def test_a_bundle_verifies_them(swept, tmp_path):
    """The columns are recomputed from the raw traces and tables that the bundle has."""
    sweep, _ = swept
    packed = tmp_path / "s.zip"
    bundle(sweep, packed)
    assert verify(packed).verified
