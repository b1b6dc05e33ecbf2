"""What a bundle carries of Parquet tables: the columns that are known, their texts replaced."""

import json

import pyarrow as pa
import pytest
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.publish.pseudonyms import Pseudonyms, Surroundings
from wattflow.publish.tables import (
    published_phases,
    published_points,
    published_requests,
    published_spans,
    published_trace,
)
from wattflow.store.columns import PHASE, POINT
from wattflow.store.schema import REQUEST, SPAN, TRACE
from wattflow.store.tables import read_table

AROUND = Surroundings(nodes=frozenset({"node1"}), private=frozenset({"proj-x"}))
NAMES = Pseudonyms(b"salt", AROUND, measured=False)
NODE, DEVICE = NAMES.node("node1"), NAMES.device("GPU-a")
POINT_CHOICES = choices(cluster__account="proj-x")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A point with a finished attempt and one that failed, on GPU-a of node1; collected."""
    made = make_sweep(tmp_path_factory.mktemp("sweeps") / "s", [POINT_CHOICES])
    make_attempt(made, POINT_CHOICES, Made([Gpu("GPU-a")]))
    make_attempt(made, POINT_CHOICES, Made([Gpu("GPU-a")], status="failed"))
    collect(made)
    return made


@pytest.fixture(scope="module")
def attempt(sweep):
    """The finished attempt."""
    return sweep.attempts(sweep.points()[0].point_id)[0]


def test_a_trace_keeps_its_readings_and_says_whose_by_pseudonyms(attempt):
    """Power is the same; node and UUID in the metadata are replaced, and what is not listed there is gone."""
    trace = read_table(attempt.trace_path("node1", "GPU-a"), TRACE)
    trace = trace.replace_schema_metadata({**trace.schema.metadata, b"user": b"quill"})
    found = published_trace(trace, NAMES)
    assert found.column("power_w").equals(trace.column("power_w"))
    about = found.schema.metadata
    assert (about[b"node"], about[b"gpu_uuid"]) == (NODE.encode(), DEVICE.encode())
    assert about[b"source"] == b"nvml_buffer"
    assert b"user" not in about


def test_spans_and_phases_name_node_and_device_alike(sweep, attempt):
    """So that tables join; the program's own phase of two words is replaced, ours stay."""
    spans = read_table(attempt.spans_path("node1"), SPAN)
    at = spans.schema.get_field_index("phase")
    own = pa.array(["my phase", *spans["phase"].to_pylist()[1:]])
    found = published_spans(spans.set_column(at, SPAN.field("phase"), own), NAMES)
    assert set(found["node"].to_pylist()) == {NODE}
    assert set(found["gpu_uuid"].to_pylist()) == {DEVICE}
    assert found["phase"].to_pylist()[0] == NAMES.phase("my phase") != "my phase"
    assert found["phase"].to_pylist()[1:] == spans["phase"].to_pylist()[1:]
    phases = published_phases(read_table(sweep.phases_path, PHASE), NAMES)
    assert set(phases["node"].to_pylist()) == {NODE}
    assert set(phases["gpu_uuid"].to_pylist()) == {DEVICE}


def test_requests_have_counts_and_no_answers(attempt):
    """Four prompts a batch, two batches; a column that is not known stays behind."""
    requests = read_table(attempt.requests_path, REQUEST)
    said = pa.array(["an answer"] * requests.num_rows)
    at = requests.schema.get_field_index("text")
    requests = requests.set_column(at, REQUEST.field("text"), said).append_column("note", said)
    found = published_requests(requests, NAMES)
    assert found.schema.names == REQUEST.names
    assert found["text"].null_count == found.num_rows == 8
    assert found["tokens_kept"].equals(requests["tokens_kept"])


def test_points_keep_figures_and_lose_names(sweep):
    """Joules are the same; node, GPU, account and error are replaced; an untraced attempt's own joules go."""
    points = read_table(sweep.points_path, POINT)
    before = points.to_pylist()
    traced = {(before[0]["point_id"], 1)}
    found = published_points(points, {before[0]["point_id"]: POINT_CHOICES}, traced, NAMES)
    assert found.schema.names == points.schema.names
    first, second = found.to_pylist()
    assert first["energy_j"] == before[0]["energy_j"] == pytest.approx(70 * 8.5)
    assert first["node_names"] == [NODE]
    assert first["boards"] == [DEVICE]
    assert first["cluster_account"] is None
    assert first["model"] == "tiny"
    assert first["job_id"] == NAMES.job("17")
    assert first["record_stamp_ns"] is None
    assert json.loads(first["engine_info"])["name"] == "paper"
    assert before[1]["unfinished_energy_j"] > 0
    assert (second["error"], second["unfinished_energy_j"]) == ("withheld", None)


def test_a_point_that_was_not_tried_says_why_without_names():
    """Its reason is about choices, and stays but for what choices withhold."""
    row = dict.fromkeys(POINT.names) | {
        "point_id": "0" * 12,
        "error": "shards=4 of proj-x",
        "reasons": [],
    }
    table = pa.Table.from_pylist([row], schema=POINT)
    (found,) = published_points(table, {"0" * 12: POINT_CHOICES}, set(), NAMES).to_pylist()
    assert found["error"] == "shards=4 of (withheld)"
    assert found["attempt"] is None
