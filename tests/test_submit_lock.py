"""The lock that lets one process at a time submit to a sweep."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chaos import kills
from fake_slurm import FakeSlurm
from processes import at_once, until

from wattflow import process
from wattflow.errors import RefusedError
from wattflow.store.layout import SweepDir
from wattflow.submit import lock, send

SECOND_NS = 1_000_000_000


def lock_of(empty_sweep: SweepDir, by: str, *, silent_s: float = 0.0) -> Path:
    """A turn that another process has, which last gave a sign some seconds ago."""
    folder = empty_sweep.path / "turns" / "7"
    folder.mkdir(parents=True)
    (folder / "by").write_text(by)
    then_ns = time.time_ns() - round(silent_s * SECOND_NS)
    os.utime(folder / "by", ns=(then_ns, then_ns))
    return folder


def test_a_second_terminal_is_refused_while_a_living_process_has_the_lock(empty_sweep):
    """The refusal names who submits; nothing of the other's turn is touched."""
    with lock.submit_lock(empty_sweep):
        pid = os.getpid()
        with (
            pytest.raises(RefusedError, match=f"another process is just submitting .*:{pid}:"),
            lock.submit_lock(empty_sweep, patience_s=0.0),
        ):
            pass
    with lock.submit_lock(empty_sweep) as mine:
        assert mine.folder.name == "2"


def test_a_lock_that_ends_soon_is_waited_for_and_logged_once(empty_sweep, caplog):
    """A collect job sends until a command that comes meanwhile has said whom it waits for, which then has its turn."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from wattflow.submit import lock\n"
        "from wattflow.store.layout import SweepDir\n"
        "with lock.submit_lock(SweepDir(Path(sys.argv[1]))):\n"
        "    print('has it', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(empty_sweep.path)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as other,
        ThreadPoolExecutor() as beside,
    ):
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "has it\n"
        beside.submit(lambda: (until(lambda: caplog.messages), other.stdin.close()))
        with lock.submit_lock(empty_sweep) as mine:
            assert mine.folder.name == "2"
    (line,) = caplog.messages
    assert f":{other.pid}:" in line
    assert line.endswith("Waiting up to 30 s for its end.")


def test_a_lock_ends_with_its_process_on_this_machine(empty_sweep):
    """A pid that lives no more has no turn, however fresh its last sign is."""
    machine = process.job_id(os.getpid()).split(":")[1]
    lock_of(empty_sweep, f"local:{machine}:999999999:1\n{process.namespace()}")
    with lock.submit_lock(empty_sweep) as mine:
        assert mine.folder.name == "8"


@pytest.mark.parametrize(("silent_s", "taken"), [(60.0, False), (300.0, True)])
def test_a_pid_of_a_container_means_nothing_outside_it(silent_s, taken, empty_sweep):
    """Another container of the same host name: no such pid here says nothing, so its signs alone count."""
    machine = process.job_id(os.getpid()).split(":")[1]
    lock_of(empty_sweep, f"local:{machine}:999999999:1\n1", silent_s=silent_s)
    if taken:
        with lock.submit_lock(empty_sweep):
            pass
    else:
        with (
            pytest.raises(RefusedError, match=machine),
            lock.submit_lock(empty_sweep, patience_s=0.0),
        ):
            pass


@pytest.mark.parametrize(("silent_s", "taken"), [(60.0, False), (300.0, True)])
def test_a_lock_of_another_machine_ends_with_its_signs_alone(silent_s, taken, empty_sweep):
    """Whether its process lives cannot be asked: 60 s of silence is too little to say that it is gone."""
    lock_of(empty_sweep, "local:elsewhere:1:1", silent_s=silent_s)
    if taken:
        with lock.submit_lock(empty_sweep):
            pass
    else:
        with (
            pytest.raises(RefusedError, match="elsewhere"),
            lock.submit_lock(empty_sweep, patience_s=0.0),
        ):
            pass


def test_who_lost_the_lock_sends_nothing_more(empty_sweep):
    """A process that was frozen for minutes wakes up: before each sbatch it sees that another has taken over."""
    with lock.submit_lock(empty_sweep) as mine:
        mine.check()
        (empty_sweep.path / "turns" / "2").mkdir()
        with pytest.raises(lock.LostLockError, match="another one has taken over"):
            mine.check()


def test_a_job_that_was_sent_while_the_lock_was_lost_is_taken_back(tmp_path, monkeypatch):
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


def test_of_many_that_want_the_lock_at_once_one_has_it(empty_sweep):
    """Eight processes at one moment: the one that has it keeps it until all others were refused."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from wattflow.submit import lock\n"
        "from wattflow.errors import RefusedError\n"
        "from wattflow.store.layout import SweepDir\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    with lock.submit_lock(SweepDir(Path(sys.argv[1])), patience_s=0.0):\n"
        "        print('has it', flush=True)\n"
        "        sys.stdin.read()\n"
        "except RefusedError:\n"
        "    print('refused', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    said = sorted(at_once(8, code, str(empty_sweep.path)))
    assert said == ["has it"] + ["refused"] * 7
