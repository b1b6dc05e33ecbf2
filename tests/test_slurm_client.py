"""Slurm's commands: an sbatch that is never repeated, ranges of tasks."""

import os
import re
from dataclasses import replace

import pytest
from fake_slurm import FakeSlurm
from submissions import intents, plan, seeds

from wattflow.errors import RefusedError, SlurmError
from wattflow.process import user_name
from wattflow.slurm import client
from wattflow.store.layout import SweepDir
from wattflow.submit import send


def test_sbatch_is_kept_from_the_variables_of_a_surrounding_job(fake, tmp_path, monkeypatch):
    """Inside a job SLURM_* would be options of sbatch; SLURM_CONF names the cluster and stays."""
    told = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "64", "SLURMD_NODENAME": "n1"}
    for name, value in {**told, "SLURM_CONF": "/etc/x.conf"}.items():
        monkeypatch.setenv(name, value)
    send.submit(plan(tmp_path, *seeds(1)))
    seen = (fake.folder / "job-101.env").read_text()
    assert re.findall(r"^(SLURM\w+)=", seen, re.MULTILINE) == ["SLURM_CONF"]
    assert os.environ["SLURM_NTASKS"] == "64"


def test_an_sbatch_that_timed_out_after_accepting_is_found_by_name_and_not_repeated(fake, tmp_path):
    """'Socket timed out' with the job in the queue: one sbatch, and its id is journalled."""
    fake.refuse(
        "sbatch: error: Batch job submission failed: Socket timed out", though_accepted=True
    )
    sent = send.submit(plan(tmp_path, *seeds(2)))
    assert sent.job_ids == ["101"]
    assert len(fake.calls("sbatch")) == 2  # the points, then the collector


def test_an_sbatch_that_timed_out_without_a_job_is_tried_again(fake, tmp_path):
    """'Socket timed out' with nothing in the queue: the second try sends the one job."""
    fake.refuse(
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    )
    sent = send.submit(plan(tmp_path, *seeds(2)))
    assert sent.job_ids == ["101"]
    assert len(fake.calls("sbatch")) == 3


def replace_sbatch(fake: FakeSlurm, text: str) -> None:
    """Another sbatch, which calls the fake one as `real`."""
    path = fake.folder / "bin" / "sbatch"
    path.rename(path.with_name("real"))
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_an_sbatch_that_hangs_after_accepting_is_found_by_name(fake, tmp_path):
    """timeout(1) ends it with 124 and no word: the job is in the queue, and is not sent again."""
    replace_sbatch(fake, '"$(dirname "$0")/real" "$@" > /dev/null; exit 124')
    sent = send.submit(plan(tmp_path, *seeds(2)))
    assert (sent.job_ids, sent.collect_job) == (["101"], "102")
    assert sorted(fake.scripts()) == ["101", "102"]


def test_an_sbatch_that_names_no_job_is_told_and_not_repeated(fake, tmp_path):
    """Whatever stands in for sbatch at this site prints no id: the message quotes it."""
    replace_sbatch(fake, "echo queued; echo warning >&2")
    with pytest.raises(SlurmError, match="answered 'warning queued', which names no job"):
        send.submit(plan(tmp_path, *seeds(2)))


# --- what sites and other people's jobs add to the answers ----------------------------------------


@pytest.mark.parametrize(
    "banner",
    [
        "Welcome",
        "Estimated cost of this job 12.5 GPU-h; balance 4321.0",
        "You have 3 jobs queued; this is job 4 of 50",
        "Submitted to partition gpu as job 9",
    ],
)
def test_a_banner_of_sbatch_is_no_job_id(banner, fake, tmp_path):
    """Whatever a site's sbatch prints around its line, the journal has the id of that line: 101."""
    script = fake.folder / "bin" / "sbatch"
    script.write_text(script.read_text().replace("\nid=", f"\necho '{banner}'\nid="))
    result = send.submit(plan(tmp_path, *seeds(2)))
    assert result.job_ids == ["101"]
    assert [sent.job_id for sent in intents(result.sweep)] == ["101"]


@pytest.mark.parametrize(
    "line",
    [
        b"77|RUNNING|None|f\xfcr dich",
        b"77|RUNNING|None|one\ntwo",
        b"77|RUNNING|None|a|b",
        b"80+0|RUNNING|None|het",
    ],
)
def test_names_of_other_jobs_do_not_hide_our_own(line, fake):
    """Odd bytes, bars and lines in another job's name: our task is still read as running."""
    (fake.folder / "queue").write_bytes(b"101_0|RUNNING|None|demo-1\n" + line + b"\n")
    assert client.queue()["101_0"] == client.TaskState("RUNNING", None, "demo-1")


def test_states_of_the_accounting_are_single_words(fake):
    """`CANCELLED by 1000` and a column that was cut, `CANCELLED+`, are CANCELLED; a warning is no task."""
    text = "101_0|CANCELLED by 1000|None\n101_1|CANCELLED+|None\nsacct: error: x\n\n101_2|TIMEOUT|a|b\n"
    (fake.folder / "accounting").write_text(text)
    states = {key: task.state for key, task in client.ended(["101"]).items()}
    assert states == {"101_0": "CANCELLED", "101_1": "CANCELLED", "101_2": "TIMEOUT"}


def test_variables_of_a_job_that_is_gone_do_not_reach_sbatch(fake, tmp_path, monkeypatch):
    """A shell that kept SLURM_MEM_PER_NODE of an old allocation: sbatch does not see it, SLURM_CONF it does."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4096")
    monkeypatch.setenv("SLURM_CONF", "/etc/x.conf")
    send.submit(plan(tmp_path, *seeds(1)))
    seen = (fake.folder / "job-101.env").read_text()
    assert re.findall(r"^(SLURM\w+)=", seen, re.MULTILINE) == ["SLURM_CONF"]


def test_the_job_hands_its_variables_to_its_ranks(fake, tmp_path):
    """`--export=NONE` would have srun pass nothing on: the script sets it to ALL after the site's own lines."""
    send.submit(plan(tmp_path, *seeds(1)))
    script = (fake.folder / "job-101.sh").read_text()
    assert script.index("export SLURM_EXPORT_ENV=ALL") < script.index("\nsrun ")


def test_a_user_without_an_entry_or_a_home_is_served(fake, tmp_path, monkeypatch):
    """No entry for the uid and no HOME: the number is the name, and answers are not kept."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    (fake.folder / "queue").write_text("101_0|RUNNING|None|demo-1\n")
    assert client.cached_queue(user_name()) == {
        "101_0": client.TaskState("RUNNING", None, "demo-1")
    }
    assert f"-u {os.getuid()} " in fake.calls("squeue")[0] + " "
    client.forget()


def test_a_cache_that_cannot_be_written_stops_nothing(fake, tmp_path, monkeypatch):
    """The cache's place is a file: Slurm is asked each time, and a submit ends as it should."""
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    assert client.cache_folder() is None
    assert send.submit(plan(tmp_path, *seeds(1))).job_ids == ["101"]


def test_a_sweep_whose_jobs_could_not_be_found_by_name_is_refused(fake, tmp_path):
    """A name of 81 letters is refused before anything is written; one of 80 is sent and read back."""
    long = plan(tmp_path, *seeds(1))
    for letters in (80, 81):
        named = replace(long, name="a" * letters, sweep=SweepDir(tmp_path / ("a" * letters)))
        if letters == 80:
            assert send.submit(named).points == 1
            assert len(intents(named.sweep)) == 1
        else:
            with pytest.raises(RefusedError, match="81 letters"):
                send.submit(named)
            assert not named.sweep.path.exists()


# --- a release whose answer is an error -----------------------------------------------------------


def failing_scontrol(fake):
    """A scontrol that says no, whatever becomes of the jobs."""
    path = fake.folder / "bin" / "scontrol"
    path.write_text(path.read_text() + 'echo "slurm_suspend error: Socket timed out" >&2; exit 1\n')


@pytest.mark.parametrize(
    ("queue", "stuck"),
    [
        ([], []),  # they ended meanwhile
        (["101_0|RUNNING|None|a", "102|PENDING|Priority|b"], []),
        (["101_0|PENDING|JobHeldUser|a", "102|PENDING|Dependency|b"], ["101"]),
        (["101_0|PENDING|JobHeldAdmin|a", "102|PENDING|JobHeldUser|b"], ["101", "102"]),
    ],
)
def test_a_release_that_answers_with_an_error_is_looked_at(fake, queue, stuck):
    """Jobs that start all the same are no failure."""
    failing_scontrol(fake)
    fake.queue(*queue)
    held, why = client.release(["101", "102"])
    assert held == stuck
    assert "Socket timed out" in why
    assert fake.calls("scontrol") == ["release 101,102", "release 101", "release 102"]


def test_where_slurm_says_nothing_the_first_error_stays(fake):
    """Nobody knows then."""
    failing_scontrol(fake)
    fake.silent()
    with pytest.raises(SlurmError, match="Socket timed out"):
        client.release(["101"])
