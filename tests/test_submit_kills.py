"""Submits and resumes that are killed at any moment lose no point and send none twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from chaos import kills
from chaos.model_slurm import ModelSlurm
from fake_slurm import FakeSlurm

from wattflow.submit import journal, resume, send


def by_the_program(*words: str) -> subprocess.CompletedProcess[str]:
    """The kills in a process of their own, which forks."""
    command = [sys.executable, str(Path(kills.__file__)), "--kills", "2", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def test_points_survive_a_kill_in_each_window():
    """Two kills in each of five windows: after one resume each point would run exactly once, and no job stays held."""
    done = by_the_program("--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'kills': 10," in done.stdout.splitlines()[-1]
    assert "'lost': 0, 'twice': 0, 'held': 0" in done.stdout.splitlines()[-1]


def test_the_same_kills_lose_points_where_the_journal_has_no_intents():
    """The control: with the INTENT lines left out the counts are not 0, so the counting sees what it should."""
    done = by_the_program("--seed", "3", "--without-intent")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "'lost': 0, 'twice': 0" not in done.stdout.splitlines()[-1]


def test_a_job_that_turns_up_after_resume_took_its_submission_back_is_ended(tmp_path, monkeypatch):
    """Even where the late process still wrote its id down: held, it would wait for ever."""
    fake = FakeSlurm(tmp_path / "slurm", monkeypatch)
    made = kills.demo(tmp_path, 2)
    send.submit(made)
    (name,) = [sent.name for sent in journal.read(made.sweep) if sent.kind == "points"]
    lines = made.sweep.journal_path.read_text().splitlines(keepends=True)
    made.sweep.journal_path.write_text(next(x for x in lines if name in x))
    journal.write(made.sweep, "cancelled", name)
    journal.write(made.sweep, "submitted", name, job_id="101")
    fake.queue(f"101_0|PENDING|JobHeldUser|{name}", f"101_1|PENDING|JobHeldUser|{name}")
    assert resume.resume(made.sweep).points == 2
    assert fake.calls("scancel") == ["101"]


def test_two_resumes_at_once_send_each_point_once(tmp_path):
    """Four processes resume one sweep of six points that all failed; however they fall, no point would run twice."""
    made = kills.demo(tmp_path, 6)
    model = ModelSlurm(tmp_path / "slurm")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from wattflow.submit import resume\n"
        "from wattflow.errors import RefusedError\n"
        "from wattflow.store.layout import SweepDir\n"
        "try:\n"
        "    resume.resume(SweepDir(Path(sys.argv[1])))\n"
        "except RefusedError as error:\n"
        "    print('refused' if 'just submitting' in str(error) else error)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PATH", "MODEL", "XDG_CACHE_HOME", "WATTFLOW_VICTIM", "WATTFLOW_KILL"):
            patch.setenv(name, os.environ.get(name, ""))
        model.use()
        send.submit(made)
        for job in (model.folder / "jobs").iterdir():
            (job / "state").write_text("cancelled\n")
        words = [sys.executable, "-c", code, str(made.sweep.path)]
        others = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        said = {str(other.communicate(timeout=600)[0]).strip() for other in others}
    assert said <= {"", "refused"}
    assert model.runs() == {point.point_id: 1 for point in made.points}


def test_a_local_process_that_the_journal_does_not_know_runs_nothing(empty_sweep):
    """Its submitter died between starting it and writing it down: resume would start another beside it."""
    command = [sys.executable, "-m", "wattflow.submit.local", str(empty_sweep.path), "demo-1", "{}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=600)
    assert done.returncode == 1


# --- the journal's lines --------------------------------------------------------------------------


def test_a_line_cut_by_a_crash_does_not_hide_the_one_after_it(empty_sweep):
    """Half an INTENT, then a whole one: the whole one is read."""
    empty_sweep.journal_path.write_text('{"schema_version": 1, "event": "int')
    sent = journal.Submission(
        "demo-1", "points", [["0123456789ab"]], empty_sweep.submitit / "demo-1", 0
    )
    journal.intend(empty_sweep, sent)
    assert [one.name for one in journal.read(empty_sweep)] == ["demo-1"]


def test_a_job_of_a_submission_that_was_taken_back_is_cancelled_when_it_turns_up(
    tmp_path, monkeypatch
):
    """sbatch was still at it when resume looked: the next resume finds the held job by its name."""
    fake = FakeSlurm(tmp_path / "slurm", monkeypatch)
    made = kills.demo(tmp_path, 2)
    send.submit(made)
    (name,) = [sent.name for sent in journal.read(made.sweep) if sent.kind == "points"]
    fake.queue(*(f"{key}|PENDING|JobHeldUser|{name}" for key in ("101_0", "101_1", "999_0")))
    assert resume.resume(made.sweep).points == 0
    assert fake.calls("scancel") == ["999"]
