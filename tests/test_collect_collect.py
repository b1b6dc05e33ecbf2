"""Attempts on disk become tables: again and again, in order, each attempt read once."""

import json
import os
import shutil
import stat
import time

import pyarrow.parquet as pq
import pytest
from collection import cut, one, rows, text
from sweeps import START_NS, Gpu, Made, choices, constant, id_of, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.errors import DamagedError
from wattflow.publish.verify import verify
from wattflow.store.columns import PHASE, POINT


def test_a_mended_file_is_seen(tmp_path):
    """A damaged attempt is read again by the next collection, though its record has not changed."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    path = attempt.trace_path("node1", "GPU-a")
    whole = path.read_bytes()
    cut(path)
    sweep.points_path.unlink()
    assert rows(sweep)[0]["reasons"] == ["damaged"]
    path.write_bytes(whole)
    assert rows(sweep)[0]["valid"]


@pytest.mark.parametrize("which", ["points_path", "phases_path"])
def test_damaged_results_are_made_anew(tmp_path, which):
    """Results that were cut are no obstacle: they are computed from the attempts once more."""
    sweep, _, row = one(tmp_path, Made([Gpu("GPU-a")]))
    text(getattr(sweep, which))
    assert rows(sweep) == [row]


def test_the_newest_valid_attempt_counts(tmp_path):
    """Of a finished attempt, a second finished one and a failed third, the second counts; all three have rows."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    for made in (
        Made([Gpu("GPU-a")]),
        Made([Gpu("GPU-a", constant(80.0))]),
        Made([Gpu("GPU-a")], status="failed"),
    ):
        make_attempt(sweep, point, made)
    found = rows(sweep)
    assert [row["attempt"] for row in found] == [1, 2, 3]
    assert [row["counts"] for row in found] == [False, True, False]
    assert found[2]["reasons"] == ["failed"]
    assert found[2]["error"] == "the checkpoint ends early"


def test_a_requeued_point(tmp_path):
    """An attempt cut short and a whole one after it: two rows, the whole one counts, and only it is billed."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    make_attempt(sweep, point, Made([Gpu("GPU-a")], status="interrupted"))
    make_attempt(sweep, point, Made([Gpu("GPU-a")]))
    first, second = rows(sweep)
    assert (first["reasons"], first["energy_j"], first["counts"]) == (["interrupted"], None, False)
    assert second["counts"]


def test_points_without_attempts(tmp_path):
    """A point never tried waits, one that cannot run is infeasible with its figures, one being run is unfinished."""
    points = [choices(repeat=0), choices(shards=3), choices(repeat=1)]
    sweep = make_sweep(tmp_path / "s", points, [None, "shards=3 does not divide n_heads=32", None])
    sweep.claim_attempt(id_of(points[2]))
    found = rows(sweep)
    assert [row["status"] for row in found] == ["waiting", "infeasible", "running"]
    assert [row["reasons"] for row in found] == [["waiting"], ["infeasible"], ["unfinished"]]
    assert found[1]["error"] == "shards=3 does not divide n_heads=32"
    assert found[1]["attempt"] is None


def test_collecting_twice_changes_nothing(tmp_path):
    """The second collection reads no attempt anew and leaves the same rows and traces."""
    sweep, _, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    (bucket,) = sweep.traces.iterdir()
    before = [pq.read_table(path) for path in (sweep.points_path, sweep.phases_path, bucket)]
    written = bucket.stat().st_mtime_ns
    assert collect(sweep).new == 0
    assert [pq.read_table(p) for p in (sweep.points_path, sweep.phases_path, bucket)] == before
    assert bucket.stat().st_mtime_ns == written


def test_a_new_attempt_joins_its_bucket(tmp_path):
    """A later attempt's trace stands beside the earlier one's, and the earlier row is taken over."""
    sweep, _, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    make_attempt(sweep, choices(shards=1), Made([Gpu("GPU-a")]))
    assert collect(sweep).new == 1
    (bucket,) = sweep.traces.iterdir()
    table = pq.read_table(bucket)
    assert set(table["attempt"].to_pylist()) == {1, 2}
    assert [row["counts"] for row in pq.read_table(sweep.points_path).to_pylist()] == [False, True]


def test_collected_traces_are_the_sidecars(tmp_path):
    """Every reading of a billed GPU is in results/traces, under the first two digits of the point's id."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    table = pq.read_table(sweep.traces / f"{attempt.point_id[:2]}.parquet")
    raw = pq.read_table(attempt.trace_path("node1", "GPU-a"))
    assert table.num_rows == raw.num_rows
    assert set(table["point_id"].to_pylist()) == {attempt.point_id}


def test_rows_keep_the_declared_types(tmp_path):
    """points.parquet and phases.parquet have the declared columns and types, in order."""
    sweep, _, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    for path, schema in ((sweep.points_path, POINT), (sweep.phases_path, PHASE)):
        stored = pq.read_schema(path)
        assert [(f.name, f.type) for f in stored] == [(f.name, f.type) for f in schema]
        assert stored.metadata[b"schema_version"] == b"1"


def test_a_thousand_failed_points_are_quick(tmp_path):
    """1,000 records of failed attempts are collected in under 3 s, and in under 1.5 s the second time."""
    points = [choices(seed=i) for i in range(1000)]
    sweep = make_sweep(tmp_path / "s", points)
    for point in points:
        attempt = sweep.claim_attempt(id_of(point))
        record = {
            "schema_version": 1,
            "point_id": attempt.point_id,
            "attempt": 1,
            "status": "failed",
            "error": "no",
            "started_ns": START_NS,
            "choices": point,
        }
        attempt.record_path.write_text(json.dumps(record))
    for limit_s in (3.0, 1.5):
        began = time.process_time()
        assert collect(sweep).attempts == 1000
        assert time.process_time() - began < limit_s


def test_results_are_opened_to_the_group_only_when_asked(tmp_path):
    """cluster.group_readable lets the group read results/ and the report, and pass through the sweep; no more."""
    asked = choices()
    asked["cluster"] = {**asked["cluster"], "group_readable": True}
    sweep = make_sweep(tmp_path / "shared", [asked])
    collect(sweep)
    assert sweep.results.stat().st_mode & 0o777 == 0o750
    assert sweep.points_path.stat().st_mode & 0o777 == 0o640
    assert sweep.path.stat().st_mode & 0o777 == 0o710
    assert sweep.submitit.stat().st_mode & 0o777 == 0o700
    alone = make_sweep(tmp_path / "alone", [choices()])
    collect(alone)
    assert alone.points_path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("way", ["results", "results/traces", "results/private"])
def test_collect_opens_no_private_file_to_the_group(way, tmp_path):
    """A sweep out of somebody's tar, group-readable, whose `results` leads to a home: a key there stays 0600."""
    asked = choices()
    asked["cluster"] = {**asked["cluster"], "group_readable": True}
    sweep = make_sweep(tmp_path / "theirs", [asked])
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    key = home / "id_ed25519"
    key.touch(mode=0o600)
    if way == "results":
        sweep.traces.rmdir()
    place = sweep.path / way
    if place.is_dir():
        place.rmdir()
    place.symlink_to(home)
    with pytest.raises(DamagedError, match=rf"{way}: a link"):
        collect(sweep)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert list(home.iterdir()) == [key]


@pytest.mark.parametrize("removed", ["points", "an attempt", "its traces"])
def test_rows_whose_files_were_removed_stay_and_say_so(removed, tmp_path):
    """After rm -r of all points, one attempt or its traces the row is as it was, counts as it did, and is marked."""
    points = [choices(), choices(seed=1)]
    sweep = make_sweep(tmp_path / "s", points)
    for i, point in enumerate(points):
        make_attempt(sweep, point, Made([Gpu("GPU-a")], started_s=100.0 * i))
    collect(sweep)
    before = pq.read_table(sweep.points_path).to_pylist()
    phases = pq.read_table(sweep.phases_path)
    attempt = sweep.attempts(id_of(points[0]))[0].path
    kept_away = tmp_path / "away"
    gone = {"points": sweep.path / "points", "an attempt": attempt}.get(removed, attempt / "traces")
    gone.rename(kept_away)
    marked = 2 if removed == "points" else 1
    for _ in range(2):  # and stays so
        summary = collect(sweep)
        assert (summary.gone, summary.counting, summary.unfinished) == (marked, 2, 0)
        after = pq.read_table(sweep.points_path).to_pylist()
        assert [r["reasons"][-1] for r in after].count("files_gone") == marked
        for row, old in zip(after, before, strict=True):
            assert row | {"reasons": None} == old | {"reasons": None}
        assert pq.read_table(sweep.phases_path).equals(phases)
    verdict = verify(sweep.path)
    assert not verdict.verified
    if removed != "its traces":
        assert sum("its files are gone" in text for text in verdict.problems) == marked
    if gone.is_dir():
        gone.rmdir()
    kept_away.rename(gone)
    collect(sweep)
    assert pq.read_table(sweep.points_path).to_pylist() == before
    assert verify(sweep.path).verified


@pytest.mark.parametrize("files", ["traces/*.parquet", "timings/*.parquet", "*.parquet"])
def test_rows_stay_where_files_alone_were_removed(files, tmp_path):
    """Folders and records stay, newer than the rows, and other versions collect: no figure and no copy is lost."""
    points = [choices(), choices(seed=1)]
    sweep = make_sweep(tmp_path / "s", points)
    for i, point in enumerate(points):
        make_attempt(sweep, point, Made([Gpu("GPU-a"), Gpu("GPU-b")], started_s=100.0 * i))
    failed = make_attempt(sweep, points[0], Made([Gpu("GPU-a")], status="failed", started_s=300.0))
    shutil.rmtree(failed.path / "traces")  # it never had any, which is no loss
    collect(sweep)
    before = pq.read_table(sweep.points_path).to_pylist()
    copies = {path: pq.read_table(path) for path in sweep.traces.iterdir()}
    for point in points:
        attempt = sweep.attempts(id_of(point))[0]
        for path in attempt.path.glob(files):
            path.unlink()
        os.utime(attempt.record_path)
    older = pq.read_table(sweep.points_path)
    about = {**older.schema.metadata, b"wattflow": b"0.0.1"}
    pq.write_table(older.replace_schema_metadata(about), sweep.points_path)
    assert collect(sweep).gone == 2
    after = pq.read_table(sweep.points_path).to_pylist()
    assert [row["reasons"][-1] == "files_gone" for row in after] == [True, False, True]
    for row, old in zip(after, before, strict=True):
        assert row | {"reasons": None} == old | {"reasons": None}
    assert all(pq.read_table(path).equals(copy) for path, copy in copies.items())


def test_an_unfinished_attempt_keeps_its_bill_without_its_traces(tmp_path):
    """Its joules stand in no ratio, but in what the sweep cost."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    attempt = make_attempt(sweep, choices(), Made([Gpu("GPU-a")], status="failed"))
    collect(sweep)
    (before,) = pq.read_table(sweep.points_path).to_pylist()
    assert before["unfinished_energy_j"] > 0
    attempt.trace_path("node1", "GPU-a").unlink()
    os.utime(attempt.record_path)
    assert collect(sweep).gone == 1
    (after,) = pq.read_table(sweep.points_path).to_pylist()
    assert after["unfinished_energy_j"] == before["unfinished_energy_j"]
