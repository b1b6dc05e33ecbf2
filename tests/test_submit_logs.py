"""Logs of a point, found and followed."""

import itertools
import os
import signal
import subprocess
import sys

import pytest
from sent_sweeps import attempt, name_of, sent
from sweeps import choices, make_sweep

from wattflow.errors import DamagedError, RefusedError
from wattflow.store import rank_errors
from wattflow.store.rank_errors import RankError
from wattflow.submit import journal, logs, select, send


def test_logs_are_those_of_the_newest_task_and_attempt_and_of_one_rank_if_asked(fake, tmp_path):
    """What each rank printed, then the attempt's own; rank 1 is not rank 11."""
    made = sent(tmp_path, 1)
    folder = journal.read(made.sweep)[0].folder
    for rank in (0, 1, 11):
        (folder / f"101_{rank}_log.err").write_text(f"rank {rank}")
    one = attempt(made, 0, "failed", "101")
    one.error_path(1).write_text("{}")
    point_id = made.points[0].point_id
    assert len(logs.logs(made.sweep, point_id)) == 4
    of_one = logs.logs(made.sweep, point_id, rank=1)
    assert [log.path.name for log in of_one] == ["101_1_log.err", "error-rank1.json"] or [
        log.path.name for log in of_one
    ] == ["error-rank1.json", "101_1_log.err"]
    with pytest.raises(RefusedError, match="no log of rank 5"):
        logs.logs(made.sweep, point_id, rank=5)


def test_a_link_in_the_place_of_a_jobs_folder_is_not_followed(fake, tmp_path):
    """What lies outside of the sweep is no log of it."""
    made = sent(tmp_path, 1)
    folder = journal.read(made.sweep)[0].folder
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "101_0_log.err").write_text("another's")
    with pytest.raises(DamagedError, match="a link in the place of a folder"):
        logs.logs(made.sweep, made.points[0].point_id)


def test_a_file_managers_files_are_no_logs(fake, tmp_path):
    """Nor an editor's copies: what nobody of ours wrote is not shown."""
    made = sent(tmp_path, 1)
    one = attempt(made, 0, "failed", "101")
    (one.logs / "rank0.log").write_text("boom")
    for name in (".DS_Store", "Thumbs.db", ".rank0.log.swp", "rank0.log~"):
        (one.logs / name).write_bytes(b"\0\1")
    found = logs.logs(made.sweep, made.points[0].point_id)
    assert [log.path.name for log in found] == ["rank0.log"]


def test_following_a_log_shows_what_is_added_until_the_attempt_ends(fake, tmp_path):
    """First what is there, then each new line, those of a new file too; the closed record ends it."""
    made = sent(tmp_path, 1)
    log = journal.read(made.sweep)[0].folder / "101_0_log.out"
    log.write_text("one\ntw")
    one = attempt(made, 0, "running", "101")
    fake.queue(f"101|RUNNING|None|{name_of(made)}")
    steps = logs.follow(made.sweep, made.points[0].point_id)
    assert next(steps) == logs.Log(log, "one\n")
    with log.open("a") as file:
        file.write("o\nthree")
    assert next(steps) == logs.Log(log, "two\n")
    told = one.sidecar_log_path("node1")
    told.write_text("from the sidecar\n")
    assert next(steps) == logs.Log(told, "from the sidecar\n")
    record = one.read_record()
    assert record is not None
    one.write_record({**record, "status": "failed", "error": "boom"})
    assert list(steps) == [logs.Log(log, "three")]


def test_following_the_log_of_a_point_that_ended_shows_it_once(fake, tmp_path):
    """There is nothing to wait for; one without a log is refused as without --follow."""
    made = sent(tmp_path, 2)
    attempt(made, 0, "finished", "101_0").sidecar_log_path("node1").write_text("all\n")
    ids = [point.point_id for point in made.points]
    assert [log.text for log in logs.follow(made.sweep, ids[0])] == ["all\n"]
    fake.accounting("101_1|FAILED|None")
    with pytest.raises(RefusedError, match="no log"):
        list(logs.follow(made.sweep, ids[1]))


def test_ctrl_c_ends_following_without_a_traceback(fake, tmp_path):
    """The exit code is 130, as of any command that was interrupted, and the run goes on."""
    made = sent(tmp_path, 1)
    send.keep(made)
    attempt(made, 0, "running", "101").sidecar_log_path("node1").write_text("a line\n")
    fake.queue(f"101|RUNNING|None|{name_of(made)}")
    words = ["logs", str(made.sweep.path), made.points[0].point_id, "-f"]
    with subprocess.Popen(
        [sys.executable, "-m", "wattflow.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "a line\n"
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=600)
    assert following.returncode == 130
    assert "Traceback" not in err


def test_the_newest_failure_needs_no_name_and_a_point_its_first_digits(fake, tmp_path):
    """Of two that failed the later one; a beginning that several share is refused with all of them."""
    made = sent(tmp_path, 3)
    send.keep(made)
    for i, state in enumerate(("failed", "failed", "finished")):
        one = attempt(made, i, state, f"101_{i}")
        one.logs.mkdir(exist_ok=True)
        log = one.logs / "rank0.err"
        log.write_text(f"log of {i}\n")
        os.utime(log, (1_760_000_000 + i, 1_760_000_000 + i))
    fake.queue()
    assert logs.newest_failure(made.sweep) == made.points[1].point_id
    first = made.points[0].point_id
    assert select.one(made.sweep, first) == select.one(made.sweep, first[:11]) == first
    with pytest.raises(RefusedError, match="no such point"):
        select.one(made.sweep, "x")
    with pytest.raises(RefusedError, match="no such point"):
        select.one(made.sweep, "")


def test_a_beginning_of_several_ids_lists_them(tmp_path):
    """Many enough points that two begin alike."""
    sweep = make_sweep(tmp_path / "s", [choices(seed=seed) for seed in range(20)])
    ids = sorted(point.point_id for point in sweep.points())
    first = next(a[0] for a, b in itertools.pairwise(ids) if a[0] == b[0])
    with pytest.raises(RefusedError, match="points begin so: ") as refused:
        select.one(sweep, first)
    assert sum(point_id in str(refused.value) for point_id in ids) >= 2


def test_a_traceback_stands_once(fake, tmp_path):
    """What a rank printed begins further out than its error does; an error that nobody printed is shown as it reads."""
    made = sent(tmp_path, 1)
    log = journal.read(made.sweep)[0].folder / "101_0_log.err"
    begins = "Traceback (most recent call last):\n"
    body = '  File "attempt.py", line 7, in run\n    load()\nOSError: no such weights\n'
    log.write_text(f'loading\n{begins}  File "task.py", line 3, in run_points\n    run()\n{body}')
    one = attempt(made, 0, "failed", "101")
    for rank, text in ((0, f"{begins}{body}"), (1, f"{begins}  rank 1's own\nValueError: two\n")):
        rank_errors.write(one, RankError(rank, 1, False, "boom", traceback=text))
    fake.accounting("101|FAILED|None")
    point_id = made.points[0].point_id
    for found in (logs.logs(made.sweep, point_id), list(logs.follow(made.sweep, point_id))):
        assert [shown.path.name for shown in found] == ["101_0_log.err", "error-rank1.json"]
        text = "".join(shown.text for shown in found)
        assert text.count("OSError: no such weights") == 1
        assert text.endswith("rank 1's own\nValueError: two\n")
