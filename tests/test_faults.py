"""What disks and other people do to a sweep: what is told, and that nothing is lost or counted twice.

The faults of a cluster stand in tests/slurm/test_cluster_faults.py; docs/faults.md lists all.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chaos import kills
from chaos.model_slurm import ModelSlurm
from sweeps import Gpu, Made, make_attempt

from wattflow.collect import collect
from wattflow.config.choices import to_dict
from wattflow.errors import DamagedError, WattflowError
from wattflow.plan.points import Plan
from wattflow.slurm import client
from wattflow.store.layout import SweepDir
from wattflow.submit import journal, resume, send, status

CLI = [sys.executable, "-m", "wattflow.cli"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSlurm:
    for name in ("PATH", "MODEL", "XDG_CACHE_HOME", "WATTFLOW_VICTIM", "WATTFLOW_KILL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    made = ModelSlurm(tmp_path / "slurm")
    made.use()
    return made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def told_by_cli(*words: str, uid: int | None = None) -> subprocess.CompletedProcess[str]:
    """What a person sees of a verb."""
    return subprocess.run([*CLI, *words], capture_output=True, text=True, check=False, user=uid)


def runs_once(model: ModelSlurm, made: Plan) -> bool:
    """Whether each point would run exactly once."""
    return model.runs() == {point.point_id: 1 for point in made.points}


def fill(folder: Path, leave: int) -> Path:
    """A file that takes all but so many bytes of a disk."""
    free = os.statvfs(folder)
    path = folder / "filler"
    path.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - leave))
    return path


@pytest.mark.parametrize("leave", [0, 4096, 12288, 20480, 40960])
def test_a_full_disk_stops_a_submit_and_the_rest_is_sent_once_there_is_room(
    leave, model, small_disk
):
    """However far the submit came: an error of the disk, then resume and the same submit, and each point runs once."""
    made = kills.demo(small_disk, 6)
    made.sweep.make()
    filler = fill(small_disk, leave)
    with pytest.raises((OSError, WattflowError)):
        send.submit(made)
    filler.unlink()
    if made.sweep.grid_path.is_file():
        resume.resume(made.sweep)
    send.submit(made)
    assert runs_once(model, made)
    assert model.states()["held"] == 0


def test_a_full_disk_is_told_in_one_line(model, small_disk):
    """No traceback: what failed, and where."""
    made = kills.demo(small_disk, 2)
    send.submit(made)
    fill(small_disk, 0)
    done = told_by_cli("collect", str(made.sweep.path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


def test_a_read_only_disk_is_told_in_one_line_and_status_still_answers(model, small_disk):
    """Nothing can be submitted, and what is known can be read."""
    made = kills.demo(small_disk, 2)
    send.submit(made)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = told_by_cli("resume", str(made.sweep.path))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "Read-only file system" in done.stderr
    assert told_by_cli("status", str(made.sweep.path)).returncode == 4


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user needs root")
def test_another_user_may_not_resume_a_sweep_and_sees_why(model, tmp_path):
    """Even one who can read it: jobs would run as him and write into another's files."""
    made = kills.demo(tmp_path, 2)
    send.submit(made)
    above = [path for path in tmp_path.parents if Path(tempfile.gettempdir()) in path.parents]
    for folder in [*above, tmp_path, made.sweep.path, *made.sweep.path.rglob("*")]:
        folder.chmod(folder.stat().st_mode | (0o055 if folder.is_dir() else 0o044))
    before = made.sweep.journal_path.read_bytes()
    code = (
        "import os, sys; os.setuid(65534)\n"
        "from pathlib import Path\n"
        "from wattflow.submit import resume\n"
        "from wattflow.errors import RefusedError\n"
        "from wattflow.store.layout import SweepDir\n"
        "try:\n"
        "    resume.resume(SweepDir(Path(sys.argv[1])))\n"
        "except RefusedError as error:\n"
        "    print(error)\n"
    )
    # loaded before it becomes the other user, who may not read this checkout
    code = "import wattflow.submit.resume, wattflow.plan.grid\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, str(made.sweep.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Only its owner may submit" in done.stdout, done.stderr
    assert made.sweep.journal_path.read_bytes() == before


# --- damaged files --------------------------------------------------------------------------------


def test_a_damaged_record_costs_its_attempt_and_resume_runs_the_point_again(model, tmp_path):
    """Of two finished points one record is cut: status tells the file, resume sends that point alone."""
    made = kills.demo(tmp_path, 2)
    send.submit(made)
    for point in made.points:
        make_attempt(made.sweep, to_dict(point.config), Made([Gpu("GPU-0")]))
    for job in (model.folder / "jobs").iterdir():
        (job / "state").write_text("cancelled\n")
    record = made.sweep.attempts(made.points[0].point_id)[0].record_path
    record.write_bytes(record.read_bytes()[:100])
    client.forget()
    rows = status.states(made.sweep)
    assert [row.state == "done" for row in rows] == [False, True]
    assert str(record) in str(rows[0].reason)
    assert resume.resume(made.sweep).points == 1


def test_a_damaged_journal_is_refused_by_name_and_line_and_nothing_is_sent(model, tmp_path):
    """What was sent is not known then, so sending could double it."""
    made = kills.demo(tmp_path, 2)
    send.submit(made)
    text = made.sweep.journal_path.read_text()
    made.sweep.journal_path.write_text("rubbish\n" + text)
    with pytest.raises(DamagedError, match=r"journal\.jsonl, line 1"):
        resume.resume(made.sweep)
    assert runs_once(model, made)


def test_damaged_results_are_collected_anew(model, tmp_path):
    """points.parquet is what follows from the attempts: cut, it is no trouble to status and is written again."""
    made = kills.demo(tmp_path, 2)
    send.submit(made)
    make_attempt(made.sweep, to_dict(made.points[0].config), Made([Gpu("GPU-0")]))
    collect.collect(made.sweep)
    whole = made.sweep.points_path.read_bytes()
    made.sweep.points_path.write_bytes(whole[: len(whole) // 2])
    client.forget()
    assert status.counts(status.states(made.sweep)) == {"done": 1, "waiting": 1}
    collect.collect(made.sweep)
    assert pq.read_table(made.sweep.points_path)["counts"].to_pylist() == [True, False]


def test_a_collected_point_whose_attempts_were_removed_stays_done_by_its_row(model, tmp_path):
    """Its folder is gone and its row is kept: it is done, and the reason says what it is so by."""
    made = kills.demo(tmp_path, 1)
    send.submit(made)
    attempt = make_attempt(made.sweep, to_dict(made.points[0].config), Made([Gpu("GPU-0")]))
    collect.collect(made.sweep)
    attempt.path.parent.rename(tmp_path / "elsewhere")
    client.forget()
    (row,) = status.states(made.sweep)
    assert (row.state, row.reason) == (
        "done",
        "its files were removed; its row is kept as it was collected",
    )


def test_a_sweep_moved_to_another_path_goes_on_there(model, tmp_path):
    """No job lives: its journal, status and resume hold no path of old; the points that are sent look there."""
    made = kills.demo(tmp_path, 3)
    send.submit(made)
    make_attempt(made.sweep, to_dict(made.points[0].config), Made([Gpu("GPU-0")]))
    for job in (model.folder / "jobs").iterdir():
        (job / "state").write_text("cancelled\n")
    moved = SweepDir(tmp_path / "archive" / "renamed")
    moved.path.parent.mkdir()
    made.sweep.path.rename(moved.path)
    client.forget()
    assert [row.state for row in status.states(moved)] == ["done", "unknown", "unknown"]
    assert resume.resume(moved).points == 2
    assert sum(model.runs().values()) == 2
    assert all(str(sent.folder).startswith(str(moved.path)) for sent in journal.read(moved))


def test_words_that_hydra_takes_for_its_own_trouble_are_refused():
    """model=null is a ValueError inside Hydra, found by the fuzzer: it is one line, and exit code 2."""
    done = told_by_cli("plan", "model=null")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_each_fault_of_the_docs_names_a_test_that_exists():
    """docs/faults.md: the last cell of every row."""
    tests = Path(__file__).parent
    known = {
        name
        for path in [*tests.glob("test_*.py"), *tests.glob("slurm/test_*.py")]
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    page = (tests.parent / "docs" / "faults.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    faults = [row for row in rows if not row.startswith("| fault")]
    assert len(faults) > 20
    named = [set(re.findall(r"`(test_\w+)`", row)) for row in faults]
    assert all(named)
    assert set().union(*named) <= known
