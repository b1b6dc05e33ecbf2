"""What cannot have happened is not verified, though results that were made anew agree with it.

Most start from the shipped run on an H100, of which one thing is changed in the raw files; then `collect` makes the
results anew, so that every figure follows from the traces.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forgery import edit, said
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.publish import archive
from wattflow.publish.bundle import bundle
from wattflow.publish.plausibility import marks
from wattflow.publish.verify import verify
from wattflow.store.layout import SweepDir

H100 = Path(__file__).parent.parent / "docs" / "bundles" / "llama-7b-h100.zip"
PAPER, FAST = ("da8926df4739", "3cc06a501609"), ("4b48cb1b9bc7", "2febc5584704")  # two repeats each
HOUR_NS = 3600 * 10**9


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The shipped bundle's sweep; nobody writes there."""
    folder = tmp_path_factory.mktemp("h100")
    archive.unpack(H100, folder)
    return folder / "sweep"


@pytest.fixture
def sweep(unpacked, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(unpacked, tmp_path / "s")
    return SweepDir(tmp_path / "s")


def folder(sweep, point_id=FAST[0]):
    return sweep.path / "points" / point_id / "attempt-1"


def change_record(attempt, change):
    path = attempt / "record.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def the(attempt, kind):
    (path,) = (attempt / kind).glob("*.parquet")
    return path


def rewrite(path, change):
    """Rewrite a table with some columns changed: `change` is given it and returns another; metadata stay."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def shifted(names, by_ns):
    def change(table):
        for name in names:
            at = table.schema.get_field_index(name)
            values = pa.array(np.asarray(table[name]) + by_ns, table.schema.field(name).type)
            table = table.set_column(at, table.schema.field(name), values)
        return table

    return change


def verdict_of(sweep):
    """The verdict once results are made anew; each figure follows from the traces."""
    shutil.rmtree(sweep.results)
    collect(sweep)
    found = verify(sweep.path)
    assert not any(one.differences for one in found.attempts), said(found)
    assert any(one.counts for one in found.attempts)
    return found


def refused(sweep, words):
    found = verdict_of(sweep)
    assert not found.verified
    assert words in said(found)
    return found


def test_a_genuine_run_is_plausible_in_all_that_is_held_to_it(sweep):
    """The H100's own attempts, collected anew, have nothing that could not be."""
    found = verdict_of(sweep)
    assert found.verified, said(found)
    bundle(sweep, sweep.path.parent / "again.zip")
    assert verify(sweep.path.parent / "again.zip").verified


# --- times ----------------------------------------------------------------------------------------


def test_spans_and_samples_an_hour_before_the_attempt(sweep):
    """All of an attempt moved back by an hour but its record: each span and sample lies before `started_ns`."""
    attempt = folder(sweep)
    rewrite(the(attempt, "timings"), shifted(["start_ns", "end_ns"], -HOUR_NS))
    rewrite(the(attempt, "traces"), shifted(["time_ns"], -HOUR_NS))
    found = refused(sweep, "3,598.9 s before the attempt.")
    assert "samples of GPU-" in said(found)


def test_an_attempt_moved_an_hour_after_its_end(sweep):
    """The same the other way: spans and samples end after `ended_ns`."""
    attempt = folder(sweep)
    rewrite(the(attempt, "timings"), shifted(["start_ns", "end_ns"], HOUR_NS))
    rewrite(the(attempt, "traces"), shifted(["time_ns"], HOUR_NS))
    refused(sweep, "s after the attempt.")


def test_samples_outside_of_the_attempt(sweep):
    """Some samples of another day in front of a trace are none of this attempt."""

    def change(table):
        early = shifted(["time_ns"], -24 * HOUR_NS)(table.slice(0, 50))
        return pa.concat_tables([early, table])

    rewrite(the(folder(sweep), "traces"), change)
    change_record(folder(sweep), lambda record: record["nodes"][0].pop("energy_j"))
    refused(sweep, "before the attempt.")


def test_an_attempt_that_ended_before_it_started(sweep):
    """`ended_ns` a minute before `started_ns`, and none at all."""
    change_record(folder(sweep), lambda r: r.update(ended_ns=r["started_ns"] - 60 * 10**9))
    refused(sweep, "it ended 60.0 s before it started.")
    change_record(folder(sweep), lambda r: r.update(ended_ns=None))
    refused(sweep, "does not say when")


def test_a_phase_longer_than_the_attempt(sweep):
    """The load takes an hour in an attempt of twelve seconds."""

    def change(rows):
        for row in rows:
            if row["phase"] == "load":
                row["start_ns"] -= HOUR_NS

    edit(the(folder(sweep), "timings"), lambda rows: [r for r in rows if r["phase"] != "idle"])
    edit(the(folder(sweep), "timings"), change)
    refused(sweep, "takes 3,60")


# --- tokens ---------------------------------------------------------------------------------------


def more_tokens(sweep, kept, by_request):
    """Tokens of one batch raised in spans and requests alike."""

    def requests(rows):
        rows[0]["tokens_kept"] = kept(rows[0]["tokens_kept"])

    def spans(rows):
        (row,) = [r for r in rows if (r["phase"], r["batch"]) == ("decode", 0)]
        row["tokens_kept"] += by_request

    edit(folder(sweep) / "requests.parquet", requests)
    edit(the(folder(sweep), "timings"), spans)


def test_67_tokens_where_at_most_64_are_made(sweep):
    """An answer of 67 tokens at max_gen_len=64, counted in requests and spans."""
    more_tokens(sweep, lambda kept: kept + 3, 3)
    refused(sweep, "an answer has 67 tokens, and max_gen_len is 64.")


def test_tokens_of_no_span(sweep):
    """Tokens that one batch's requests lost and another's gained add up, and are of no span."""

    def change(rows):
        rows[0]["tokens_kept"] -= 3
        rows[-1]["tokens_kept"] += 3

    edit(folder(sweep) / "requests.parquet", change)
    refused(sweep, "tokens in its requests")


def test_more_prompts_than_a_batch_takes(sweep):
    """All prompts in one batch of 64; a prompt twice; more prompts than were asked."""

    def change(rows):
        for row in rows:
            row["batch"] = 0
        rows[1]["prompt"] = rows[0]["prompt"]

    edit(folder(sweep) / "requests.parquet", change)
    change_record(folder(sweep), lambda record: record["prompts"].update(count=100))
    found = said(refused(sweep, "a batch has 192 prompts, and batch_size is 64."))
    assert "a prompt is answered twice." in found
    assert "192 prompts are answered of 100." in found


def test_more_tokens_kept_than_computed(sweep):
    """Tokens computed in a batch are at least those that were kept, less the one that a prefill makes."""

    def change(rows):
        (row,) = [r for r in rows if (r["phase"], r["batch"]) == ("decode", 0)]
        row["tokens_computed"] = 7

    edit(the(folder(sweep), "timings"), change)
    refused(sweep, "batch 0: 7 tokens computed, 4096 kept.")


# --- devices --------------------------------------------------------------------------------------


def test_one_gpu_under_two_names(sweep):
    """The same UUID is an H100 in one attempt and an H200 in another, in record and trace; or only in the record."""
    change_record(folder(sweep), lambda r: r["nodes"][0]["devices"][0].update(name="NVIDIA H200"))
    refused(sweep, "is a 'NVIDIA H200' in the record, and a 'NVIDIA H100 80GB HBM3' in its trace.")

    def rename(table):
        return table.replace_schema_metadata(table.schema.metadata | {b"gpu_name": b"NVIDIA H200"})

    path = the(folder(sweep), "traces")
    pq.write_table(rename(pq.read_table(path)), path)
    refused(sweep, "is a 'NVIDIA H200', and a 'NVIDIA H100 80GB HBM3' in")


def test_more_ranks_than_shards(sweep):
    """Two ranks for one shard, each number once; and a number twice."""

    def change(record):
        record["ranks"].append({**record["ranks"][0], "rank": 1})

    change_record(folder(sweep), change)
    table = pq.read_table(the(folder(sweep), "timings"))
    second = table.set_column(
        0, table.schema.field("rank"), pa.array([1] * table.num_rows, pa.int32())
    )
    pq.write_table(pa.concat_tables([table, second]), the(folder(sweep), "timings"))
    refused(sweep, "2 ranks ran, and the point has 1.")
    pq.write_table(table, the(folder(sweep), "timings"))
    change_record(folder(sweep), lambda record: record["ranks"][1].update(rank=0))
    refused(sweep, "two ranks have one number.")


def test_a_gpu_that_is_measured_twice(sweep):
    """One UUID as two devices of a node, and a node twice in a record."""

    def change(record):
        record["nodes"][0]["devices"] *= 2
        record["nodes"] *= 2

    change_record(folder(sweep), change)
    found = said(refused(sweep, "is measured as 4 devices."))
    assert "is in the record 2 times." in found


# --- power ----------------------------------------------------------------------------------------


def raised(path, watts, rows=slice(300, 310)):
    table = pq.read_table(path)
    at = table.schema.get_field_index("power_w")
    values = table["power_w"].to_pylist()
    powered = [i for i, value in enumerate(values) if value is not None]
    for i in powered[rows]:
        values[i] = watts
    column = pa.array(values, table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), column), path)


def test_watts_that_no_such_board_can_take(sweep):
    """1,600 W of a board of 700 W; by the limit that its record has, 1,000 W of one of 400 W too."""
    change_record(folder(sweep), lambda record: record["nodes"][0].pop("energy_j"))
    raised(the(folder(sweep), "traces"), 1600.0)
    refused(sweep, "a sample of 1,600 W, more than such a device can take.")
    raised(the(folder(sweep), "traces"), 1000.0)
    assert verdict_of(sweep).verified
    change_record(
        folder(sweep), lambda r: r["nodes"][0]["devices"][0].update(power_limit_max_w=400.0)
    )
    refused(sweep, "a sample of 1,000 W")


def test_joules_of_a_record_that_are_not_those_of_its_trace(sweep):
    """Some samples lowered, or the record's own joules: 5 % of difference is no rounding."""
    change_record(
        folder(sweep), lambda r: r["nodes"][0].update(energy_j=0.95 * r["nodes"][0]["energy_j"])
    )
    refused(sweep, "J, its traces 3,201.1 J from first to last sample.")


def test_a_counter_that_falls(sweep):
    """An energy counter that goes back by 1 kJ and on from there was not reset."""

    def change(rows):
        counted = [row for row in rows if row["counter_mj"] is not None]
        assert len(counted) > 10
        for row in counted[len(counted) // 2 :]:
            row["counter_mj"] -= 2_000_000

    path = the(folder(sweep), "traces")
    metadata = pq.read_schema(path).metadata
    edit(path, change)
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    collect(sweep)
    assert "its energy counter falls, and not to 0." in said(verify(sweep.path))


# --- attempts beside each other -------------------------------------------------------------------


def copy_samples(sweep, source, target, *, by_ns):
    """One repeat's spans, samples and requests as another's, moved in time, its record made to fit."""
    mine, other = folder(sweep, source), folder(sweep, target)
    before = json.loads((mine / "record.json").read_text())
    for kind, names in (("timings", ["start_ns", "end_ns"]), ("traces", ["time_ns"])):
        shutil.copy(the(mine, kind), the(other, kind))
        rewrite(the(other, kind), shifted(names, by_ns))
    shutil.copy(mine / "requests.parquet", other / "requests.parquet")

    def change(record):
        record["started_ns"] = before["started_ns"] + by_ns
        record["ended_ns"] = before["ended_ns"] + by_ns
        record["nodes"] = before["nodes"]

    change_record(other, change)


@pytest.mark.parametrize("pair", [FAST, PAPER, (FAST[0], PAPER[0])])
def test_one_gpus_samples_as_two_repeats(sweep, pair):
    """Copied as they are, or moved by ten minutes: two points cannot have the same samples, whatever their choices."""
    copy_samples(sweep, *pair, by_ns=0)
    found = said(refused(sweep, f"has the samples of point {pair[1]}, attempt 1."))
    assert f"was busy at that time in point {pair[0]}, attempt 1." in found
    copy_samples(sweep, *pair, by_ns=600 * 10**9)
    found = said(refused(sweep, f"has the samples of point {pair[0]}, attempt 1."))
    assert "was busy at that time" not in found


def test_two_attempts_of_one_gpu_at_one_time(sweep):
    """Another run's own samples, moved into the time of the first."""
    started = [json.loads((folder(sweep, p) / "record.json").read_text()) for p in FAST]
    by_ns = started[0]["started_ns"] - started[1]["started_ns"] + 10**9
    attempt = folder(sweep, FAST[1])
    rewrite(the(attempt, "timings"), shifted(["start_ns", "end_ns"], by_ns))
    rewrite(the(attempt, "traces"), shifted(["time_ns"], by_ns))

    def change(record):
        record["started_ns"] += by_ns
        record["ended_ns"] += by_ns

    change_record(attempt, change)
    refused(sweep, f"was busy at that time in point {FAST[0]}, attempt 1.")


def test_a_counter_that_begins_again(sweep):
    """The second run's counter lies below where the first one's ended, by more than it could count from 0."""

    def change(rows):
        for row in rows:
            if row["counter_mj"] is not None:
                row["counter_mj"] += 10**12

    path = the(folder(sweep, FAST[0]), "traces")
    metadata = pq.read_schema(path).metadata
    edit(path, change)
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    refused(sweep, "has an energy counter that does not go on from that in")


def test_repeats_of_a_first_version_are_held_to_each_other_too(tmp_path):
    """Without joules in their records, two repeats on one GPU at one time are refused, two settings are not."""
    wave = lambda s: 300 + 50 * np.sin(7 * s)  # noqa: E731
    for over, verified in (({"repeat": 1}, False), ({"seed": 1}, True)):
        points = [choices(), choices(**over)]
        made = make_sweep(tmp_path / f"{verified}", points)
        for point in points:
            make_attempt(made, point, Made([Gpu("GPU-a", wave)]))
        assert verdict_of(made).verified == verified


def test_marks_are_of_what_happens_once():
    """Runs of samples that vary are found again in a part of them; constant power and two levels have none."""
    rng = np.random.default_rng(1)
    watts = rng.normal(300, 10, 2000)
    assert len(marks(watts)) > 100
    assert marks(watts[500:1500]) < marks(watts)
    assert not marks(rng.normal(300, 10, 2000)) & marks(watts)
    assert not marks(np.full(2000, 70.0))
    assert not marks(np.tile([70.0, 300.0], 1000))
    assert not marks(watts[:20])
