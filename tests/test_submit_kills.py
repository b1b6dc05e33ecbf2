"""Nothing is lost and nothing doubled when submit or resume is killed, and by whom else the turn may be had.

`make chaos` kills forty times in each window; here a few do.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos import kills
from chaos.model_slurm import ModelSlurm
from fake_slurm import FakeSlurm

from wattflow import process
from wattflow.errors import RefusedError
from wattflow.store.layout import SweepDir
from wattflow.submit import journal, lock, resume, send

SECOND_NS = 1_000_000_000


def by_the_program(*words: str) -> subprocess.CompletedProcess[str]:
    """The kills in a process of their own, which forks."""
    command = [sys.executable, str(Path(kills.__file__)), "--kills", "2", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


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


# --- one at a time --------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    made = SweepDir(tmp_path / "demo")
    made.make()
    return made


def turn_of(sweep: SweepDir, by: str, *, silent_s: float = 0.0) -> Path:
    """A turn that another process has, which last gave a sign some seconds ago."""
    folder = sweep.path / "turns" / "7"
    folder.mkdir(parents=True)
    (folder / "by").write_text(by)
    then_ns = time.time_ns() - round(silent_s * SECOND_NS)
    os.utime(folder / "by", ns=(then_ns, then_ns))
    return folder


def test_a_second_terminal_is_refused_while_a_living_process_has_the_turn(sweep):
    """The refusal names who submits; nothing of the other's turn is touched."""
    with lock.submit_lock(sweep):
        pid = os.getpid()
        with (
            pytest.raises(RefusedError, match=f"another process is just submitting .*:{pid}:"),
            lock.submit_lock(sweep, patience_s=0.0),
        ):
            pass
    with lock.submit_lock(sweep) as mine:
        assert mine.folder.name == "2"


def test_a_turn_that_ends_soon_is_waited_for_and_told_once(sweep, caplog):
    """A collect job sends for 1.5 s: a command that comes meanwhile says whom it waits for, then has its turn."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from wattflow.submit import lock\n"
        "from wattflow.store.layout import SweepDir\n"
        "with lock.submit_lock(SweepDir(Path(sys.argv[1]))):\n"
        "    print('has it', flush=True)\n"
        "    time.sleep(1.5)\n"
    )
    words = [sys.executable, "-c", code, str(sweep.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        began = time.monotonic()
        with lock.submit_lock(sweep) as mine:
            assert mine.folder.name == "2"
            assert 0.5 < time.monotonic() - began < 10.0
    (line,) = caplog.messages
    assert f":{other.pid}:" in line
    assert line.endswith("Waiting up to 30 s for its end.")


def test_a_turn_ends_with_its_process_on_this_machine(sweep):
    """A pid that lives no more has no turn, however fresh its last sign is."""
    machine = process.job_id(os.getpid()).split(":")[1]
    turn_of(sweep, f"local:{machine}:999999999:1\n{process.namespace()}")
    with lock.submit_lock(sweep) as mine:
        assert mine.folder.name == "8"


@pytest.mark.parametrize(("silent_s", "taken"), [(60.0, False), (300.0, True)])
def test_a_pid_of_a_container_tells_nothing_outside_it(silent_s, taken, sweep):
    """Another container of the same host name: no such pid here says nothing, so its signs alone count."""
    machine = process.job_id(os.getpid()).split(":")[1]
    turn_of(sweep, f"local:{machine}:999999999:1\n1", silent_s=silent_s)
    if taken:
        with lock.submit_lock(sweep):
            pass
    else:
        with pytest.raises(RefusedError, match=machine), lock.submit_lock(sweep, patience_s=0.0):
            pass


@pytest.mark.parametrize(("silent_s", "taken"), [(60.0, False), (300.0, True)])
def test_a_turn_of_another_machine_ends_with_its_signs_alone(silent_s, taken, sweep):
    """Whether its process lives cannot be asked: 60 s of silence is too little to say that it is gone."""
    turn_of(sweep, "local:elsewhere:1:1", silent_s=silent_s)
    if taken:
        with lock.submit_lock(sweep):
            pass
    else:
        with (
            pytest.raises(RefusedError, match="elsewhere"),
            lock.submit_lock(sweep, patience_s=0.0),
        ):
            pass


def test_who_lost_the_turn_sends_nothing_more(sweep):
    """A process that was frozen for minutes wakes up: before each sbatch it sees that another has taken over."""
    with lock.submit_lock(sweep) as mine:
        mine.check()
        (sweep.path / "turns" / "2").mkdir()
        with pytest.raises(lock.LostLockError, match="another one has taken over"):
            mine.check()


def test_a_job_that_was_sent_while_the_turn_was_lost_is_taken_back(tmp_path, monkeypatch):
    """The process sleeps in its sbatch while another takes over: the held job that the other cannot know is ended."""
    fake = FakeSlurm(tmp_path / "slurm", monkeypatch)
    made = kills.demo(tmp_path, 2)
    sbatch = fake.folder / "bin" / "sbatch"
    taken = made.sweep.path / "turns" / "2"
    sbatch.write_text(sbatch.read_text().replace("#!/bin/bash", f"#!/bin/bash\nmkdir '{taken}'", 1))
    with pytest.raises(lock.LostLockError):
        send.submit(made)
    assert fake.calls("scancel") == ["101"]
    assert fake.calls("scontrol") == []
    assert [line["event"] for line in made.sweep.journal()] == ["intent"]


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


def test_of_many_that_want_the_turn_at_once_one_has_it(sweep):
    """Eight processes at one moment: the one that has it keeps it until all others were refused."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from wattflow.submit import lock\n"
        "from wattflow.errors import RefusedError\n"
        "from wattflow.store.layout import SweepDir\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "try:\n"
        "    with lock.submit_lock(SweepDir(Path(sys.argv[1])), patience_s=0.0):\n"
        "        time.sleep(2)\n"
        "        print('had it')\n"
        "except RefusedError:\n"
        "    print('refused')\n"
    )
    at = str(time.time() + 6.0)
    words = [sys.executable, "-c", code, str(sweep.path), at]
    others = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = sorted(str(other.communicate(timeout=60)[0]).strip() for other in others)
    assert said == ["had it"] + ["refused"] * 7


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
        said = {str(other.communicate(timeout=60)[0]).strip() for other in others}
    assert said <= {"", "refused"}
    assert model.runs() == {point.point_id: 1 for point in made.points}


def test_a_local_process_that_the_journal_does_not_know_runs_nothing(sweep):
    """Its submitter died between starting it and writing it down: resume would start another beside it."""
    command = [sys.executable, "-m", "wattflow.submit.send", str(sweep.path), "demo-1", "{}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=30)
    assert done.returncode == 1


# --- the journal's lines --------------------------------------------------------------------------


def test_a_line_cut_by_a_crash_does_not_hide_the_one_after_it(sweep):
    """Half an INTENT, then a whole one: the whole one is read."""
    sweep.journal_path.write_text('{"schema_version": 1, "event": "int')
    sent = journal.Submission("demo-1", "points", [["0123456789ab"]], sweep.submitit / "demo-1", 0)
    journal.intend(sweep, sent)
    assert [one.name for one in journal.read(sweep)] == ["demo-1"]


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
