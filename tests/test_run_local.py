"""Ranks as processes of this machine: how they are started, and what is kept when they are killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import polars as pl
from commands import call as command_line
from local_runs import SMALL, call
from processes import until
from sweeps import choices, id_of, make_sweep

import wattflow
from wattflow.run import local
from wattflow.run.local import RankJob
from wattflow.run.place import Place, Progress, TaskEnds
from wattflow.run.task import Todo
from wattflow.store import rank_errors
from wattflow.store.rank_errors import RankError

JOB = {"job_id": None, "array_task": None, "restart": 0, "cluster": "local"}


def process(code, rank=0):
    """A rank's stand-in; rank 0 reports on its stdout."""
    stdout = subprocess.PIPE if rank == 0 else None
    return subprocess.Popen([sys.executable, "-c", code], stdout=stdout, text=True)


def test_a_job_comes_out_of_json_as_it_went_in():
    """The ends of the task and the place are values again, not dictionaries."""
    place = Place(1, 2, 1, "n1", "file:///meet", "/spool", JOB)
    job = RankJob(
        "/sweeps/demo",
        ["0123456789ab"],
        {"0123456789ab": 3},
        TaskEnds(first=True, last=False),
        place,
    )
    assert RankJob.from_json(json.dumps(asdict(job))) == job


def test_only_lines_of_progress_are_passed_on():
    """What else rank 0 prints is no progress; it is waited for."""
    progress = '{"progress": {"phase": "batches", "done": 1, "of": 4}, "point": "0123456789ab"}'
    lines = f"print('hello'); print('{progress}')"
    seen = []
    rank0 = process(lines)
    local._follow([rank0], set(), lambda *one: seen.append(one))
    assert seen == [("0123456789ab", Progress("batches", 1, 4))]
    assert rank0.returncode == 0


def test_a_rank_that_waits_for_a_dead_peer_is_ended(monkeypatch):
    """Rank 1 dies of SIGKILL, and rank 0 would wait for ever: it goes too, and is not taken for the cause."""
    monkeypatch.setattr(local, "_FAILED_PEER_S", 0.2)
    ranks = [process("import time; time.sleep(3600)", rank) for rank in (0, 1)]
    ranks[1].kill()
    outlived = set()
    local._follow(ranks, outlived, lambda *_: None)
    assert local._end(ranks, outlived) == [-signal.SIGTERM, -signal.SIGKILL]


def test_a_rank_that_closes_its_record_after_a_peer_failed_is_left_to_it(monkeypatch):
    """Within its time rank 0 ends by itself, with its own code."""
    monkeypatch.setattr(local, "_FAILED_PEER_S", 60.0)
    closing = "import time, sys; time.sleep(1.5); sys.exit(5)"
    ranks = [process(closing), process("raise SystemExit(3)", 1)]
    outlived = set()
    local._follow(ranks, outlived, lambda *_: None)
    assert (local._end(ranks, outlived), outlived) == ([5, 3], set())


def test_a_killed_rank_is_the_cause_where_others_only_lost_it(tmp_path):
    """Rank 1 died by SIGKILL and rank 0 met a closed connection: the record names rank 1, and both logs are kept."""
    point = choices()
    sweep = make_sweep(tmp_path / "demo", [point])
    attempt = sweep.claim_attempt(id_of(point))
    rank_errors.write(attempt, RankError(0, 70, interrupted=False, error="connection closed"))
    for rank in (0, 1):
        (tmp_path / f"rank{rank}.log").write_text(f"log of {rank}")
    local._close_unfinished(attempt, tmp_path, [1, -signal.SIGKILL])
    record = attempt.read_record()
    assert (record["status"], record["error_rank"]) == ("failed", 1)
    assert record["error"] == "rank 1 was killed: SIGKILL."
    assert (attempt.logs / "rank1.log").read_text() == "log of 1"


def test_ranks_that_left_nothing_are_recorded_by_their_exit_codes(tmp_path):
    """Neither record nor error: the codes are what is known."""
    point = choices()
    sweep = make_sweep(tmp_path / "demo", [point])
    attempt = sweep.claim_attempt(id_of(point))
    local._close_unfinished(attempt, tmp_path, [0, 3])
    assert attempt.read_record()["error"] == "ranks ended: rank 1 with 3"


def _rank(point_folder, rank):
    """The pid of one rank of the running point, from the processes' command lines."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"wattflow.run.local" in words
            and str(point_folder).encode() in words[-2]
            and b'"rank": %d,' % rank in words[-2]
        ):
            return int(path.parent.name)
    return None


def _status_of_failures(where):
    """What `status` prints once it ends with 3: all points are over, and some failed."""
    done = command_line("status", "hurt", cwd=where)
    return done if done.returncode == 3 else None


def test_a_killed_rank_fails_its_point_and_resume_runs_that_one_alone(tmp_path):
    """kill -9 of rank 1: the point is failed with a reason and a log, the other is done; resume mends it."""
    words = [
        *SMALL,
        "engine=synthetic",
        "engine.synthetic_ms_per_token=200",
        f"cluster.spool_dir={tmp_path}",
        "sweep=hurt",
        "sweep.repeats=1",
    ]
    call("submit", *words, "shards=2", "batch_size=3,6", cwd=tmp_path)
    sweep = tmp_path / "sweeps" / "hurt"
    until(lambda: list(tmp_path.glob("wattflow-*/*/spans-rank0.arrow")))
    os.kill(until(lambda: _rank(sweep, 1)), signal.SIGKILL)
    status = until(lambda: _status_of_failures(tmp_path))
    assert status.stdout.count("\tdone\t") == 1
    assert status.stdout.count("\tfailed\t") == 1
    assert "rank 1 was killed: SIGKILL" in status.stdout
    assert "wattflow resume" in status.stdout
    call("resume", "hurt", "--wait", cwd=tmp_path)
    attempts = sorted(path.name for path in sweep.glob("points/*/attempt-*"))
    assert attempts == ["attempt-1", "attempt-1", "attempt-2"]
    results = wattflow.open_sweep(sweep)
    assert results.points["counts"].to_list() == [True, True]
    # its traces were closed: simulated watts lie between 40 and 120
    (failed,) = results.attempts.filter(pl.col("status") == "failed").to_dicts()
    assert failed["unfinished_source"] == "simulated"
    assert 40.0 <= failed["unfinished_energy_j"] / failed["unfinished_s"] <= 120.0 * (1 + 1e-9)


def synthetic(seed, **more):
    """A point that a rank sleeps through in a moment."""
    small = {"n_prompts": 2, "batch_size": 2, "max_gen_len": 4, "power__idle_s": 0.1}
    engine = {"engine__name": "synthetic", "engine__device": "cpu", "power__meter": "simulated"}
    return choices(seed=seed, **{**small, **engine, **more})


def test_points_share_a_process_as_slurm_s_tasks_do(tmp_path):
    """Two a task in their order; blocks of repeats; each alone, where nothing says otherwise, across shapes too."""

    def tasks(*points):
        sweep = make_sweep(tmp_path / str(len(list(tmp_path.iterdir()))), points)
        ids = [id_of(point) for point in points]
        made = local.tasks_of(Todo(sweep, ids, {}))
        return [[ids.index(point_id) for point_id in task] for task in made]

    assert tasks(*(synthetic(k, cluster__points_per_task=2) for k in range(3))) == [[0, 1], [2]]
    blocks = [synthetic(k, repeat=k % 2, sweep__block="board") for k in range(4)]
    assert tasks(*blocks) == [[0, 2], [1, 3]]
    assert tasks(*(synthetic(k, shards=1 + k % 2) for k in range(4))) == [[0], [1], [2], [3]]


def test_a_task_is_one_process_and_a_kill_costs_the_point_it_was_at(tmp_path, monkeypatch):
    """The process of three points dies in the first one's batches: another runs the two that are left."""
    slow = synthetic(1, cluster__points_per_task=3, engine__synthetic_ms_per_token=60e3)
    points = [slow, *(synthetic(k, cluster__points_per_task=3) for k in (2, 3))]
    sweep = make_sweep(tmp_path / "demo", points)
    ids = [id_of(point) for point in points]
    spawn, ranks, seen = local._spawn, [], []

    def kill(point_id, progress):
        seen.append(point_id)
        if point_id == ids[0] and progress.phase == "warmup":
            ranks[0].kill()

    def counted(job, threads):
        ranks.append(spawn(job, threads))
        return ranks[-1]

    monkeypatch.setattr(local, "_spawn", counted)
    assert local.run_serially(str(sweep.path), ids, report=kill) == ids[:1]
    assert len(ranks) == 2
    assert list(dict.fromkeys(seen)) == ids
    records = [sweep.attempts(point_id)[0].read_record() for point_id in ids]
    assert [record["status"] for record in records] == ["failed", "finished", "finished"]
    assert records[0]["error"] == "rank 0 was killed: SIGKILL."
