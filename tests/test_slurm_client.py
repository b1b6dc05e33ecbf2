"""Slurm's commands: an sbatch that is never repeated, ranges of tasks."""

import os
import re

import pytest
from fake_slurm import FakeSlurm
from submissions import plan, seeds

from wattflow.errors import SlurmError
from wattflow.slurm import client
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


# --- words of Slurm's -----------------------------------------------------------------------------


def test_ranges_of_tasks_are_read_and_written():
    """What sacct writes for tasks that never started, and what scancel is given."""
    assert client.expand("7_[0-2,5%4]") == ["7_0", "7_1", "7_2", "7_5"]
    assert client.expand("7_3") == ["7_3"]
    assert client.pack(["7_3", "8", "7_1", "7_2"]) == ["7_[1-3]", "8"]
