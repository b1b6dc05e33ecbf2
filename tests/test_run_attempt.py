"""One attempt at a point: what lies on disk when it is finished, and when it failed."""

import json

import pytest
from local_runs import one_rank
from partial_attempts import slow
from sweeps import id_of, make_sweep

from wattflow.errors import EngineError
from wattflow.run.place import Progress
from wattflow.run.task import Todo, run_points


def attempt_at(point, tmp_path, report=lambda point, progress: None):
    """Run one point on one rank of this process; its attempt."""
    sweep = make_sweep(tmp_path / "demo", [point])
    point_id = id_of(point)
    with one_rank(tmp_path) as (place, signals):
        try:
            run_points(Todo(sweep, [point_id], {}), place, signals, report)
        finally:
            (attempt,) = sweep.attempts(point_id)
    return attempt


def test_a_finished_attempt_has_all_its_files_and_an_empty_spool(tmp_path):
    """Six batches are reported in order; record, requests, spans and trace lie there, and no heartbeat is left."""
    seen = []
    point = slow(engine__synthetic_ms_per_token=1.0)
    attempt = attempt_at(point, tmp_path, lambda _, progress: seen.append(progress))
    record = attempt.read_record()
    assert (record["status"], record["choices"]) == ("finished", point)
    files = {path.name for path in attempt.path.rglob("*") if path.is_file()}
    assert {"record.json", "requests.parquet", "n1.parquet"} <= files
    assert not {"heartbeat.json", "error-rank0.json"} & files
    phases = [progress.phase for progress in seen]
    assert phases == ["idle", "load", "warmup", *["batches"] * 7]
    assert seen[-1] == Progress("batches", 6, 6)
    assert not list((tmp_path / "spool").glob(f"{attempt.point_id}*"))


def test_a_failed_attempt_says_why_in_its_record_and_with_a_traceback_beside_it(tmp_path):
    """No prompts: the attempt is closed as failed, and the point counts as failed for its task."""
    point = slow(dataset__path=str(tmp_path / "nowhere.json"))
    sweep = make_sweep(tmp_path / "demo", [point])
    point_id = id_of(point)
    with one_rank(tmp_path) as (place, signals), pytest.raises(EngineError, match="1 of 1 points"):
        run_points(Todo(sweep, [point_id], {}), place, signals, lambda point_id, progress: None)
    (attempt,) = sweep.attempts(point_id)
    record = attempt.read_record()
    assert (record["status"], record["error_rank"]) == ("failed", 0)
    assert "nowhere.json" in record["error"]
    assert "Traceback" in json.loads(attempt.error_path(0).read_text())["traceback"]
    assert not (attempt.path / "heartbeat.json").exists()
