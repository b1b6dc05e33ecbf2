"""Iterations of an engine that schedules by itself: counts, and the part of the window in which its batch was full."""

import pyarrow as pa
import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

import wattflow
from wattflow.collect.collect import collect
from wattflow.collect.scheduling import Part, full_rows
from wattflow.publish.bundle import bundle
from wattflow.publish.verify import verify
from wattflow.store.schema import ITERATION, SCHEMA_VERSION, SPAN
from wattflow.store.tables import read_table, write_table


def table(first_tokens, finished, start_ns=0, step_ns=10**9, node="n1"):
    """One iteration a second: first tokens and requests done in each, ten tokens kept in each."""
    rows = [
        {
            **dict.fromkeys(ITERATION.names, 0),
            "node": node,
            "iteration": i,
            "start_ns": start_ns + i * step_ns,
            "end_ns": start_ns + (i + 1) * step_ns,
            "first_tokens": begun,
            "finished": done,
            "tokens_kept": 10,
            "cached_tokens": 3,
            "preempted": 1,
        }
        for i, (begun, done) in enumerate(zip(first_tokens, finished, strict=True))
    ]
    made = pa.Table.from_pylist(rows, schema=ITERATION)
    return made.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})


def test_the_full_part_is_mlenergys():
    """Two at once of eight: full after the second first token (row 1) until 8 - 2 - 1 = 5 are done (row 4)."""
    steps = table([1, 1, 2, 2, 2, 0, 0], [0, 0, 2, 2, 2, 1, 1])
    assert full_rows(steps, 2) == Part(2, 4)


@pytest.mark.parametrize(
    ("first_tokens", "finished"),
    [([1, 1], [0, 2]), ([1, 1, 1], [0, 0, 3]), ([1], [1]), ([4, 0], [0, 4])],
)
def test_too_few_requests_never_fill_a_batch(first_tokens, finished):
    """n - batch_size - 1 must be left, and later than the first tokens."""
    assert full_rows(table(first_tokens, finished), 3) is None


def collected(tmp_path, mode, first_tokens, finished):
    """The row of an attempt of 100 W whose window has one iteration a second from its start."""
    point = choices(batch_size=2, workload={"mode": mode})
    point["engine"]["name"] = "vllm"
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a", constant(100.0))])
    attempt = make_attempt(sweep, point, made)
    node = attempt.read_record()["ranks"][0]["node"]
    start = first_prefill(attempt, node)
    steps = table(first_tokens, finished, start, 10**9, node)
    write_table(attempt.iterations_path(node), steps)
    collect(sweep)
    (row,) = wattflow.open_sweep(sweep.path).attempts.to_dicts()
    return sweep, row


def first_prefill(attempt, node):
    """The start of the first prefill."""
    rows = read_table(attempt.spans_path(node), SPAN).to_pylist()
    return min(row["start_ns"] for row in rows if row["phase"] == "prefill")


def test_full_columns_are_joules_and_tokens_between_its_edges(tmp_path):
    """Full from 2 s to 5 s of a steady 100 W: 300 J and 30 tokens; ratios follow; a bundle verifies them."""
    sweep, row = collected(tmp_path, "offline", [1, 1, 2, 2, 2, 0], [0, 0, 2, 2, 2, 2])
    assert row["full_s"] == pytest.approx(3.0)
    assert row["full_energy_j"] == pytest.approx(300.0, rel=2e-3)
    assert row["full_tokens_kept"] == 30
    assert row["full_energy_per_token_j"] == pytest.approx(10.0, rel=2e-3)
    assert (row["full_tokens_per_s"], row["full_power_w"]) == (
        pytest.approx(10.0),
        pytest.approx(100.0, rel=2e-3),
    )
    assert (row["iterations"], row["cached_tokens"], row["preemptions"]) == (6, 18, 6)
    assert "never_full" not in row["reasons"]
    packed = tmp_path / "s.zip"
    bundle(sweep, packed)
    assert verify(packed).verified


def test_a_batch_that_was_never_full_is_remarked(tmp_path):
    """Its counts stay, full_* is null, and the row is valid."""
    _, row = collected(tmp_path, "offline", [1, 1, 0], [0, 0, 2])
    assert "never_full" in row["reasons"]
    assert row["valid"]
    assert (row["full_s"], row["full_energy_j"], row["full_tokens_per_s"]) == (None, None, None)
    assert row["iterations"] == 3


def test_static_batches_have_counts_alone(tmp_path):
    """A static batch is full by its making."""
    _, row = collected(tmp_path, "static", [1, 1, 2, 2, 2, 0], [0, 0, 2, 2, 2, 2])
    assert (row["iterations"], row["full_s"]) == (6, None)
    assert "never_full" not in row["reasons"]
