"""Processes of this machine and of others, as a job id names them."""

import os
import subprocess

from processes import until

from wattflow import process


def test_a_pid_used_again_is_not_taken_for_the_job():
    """The start time differs, so the job counts as gone."""
    mine = process.job_id(os.getpid())
    assert process.lives(mine)
    assert process.lives(mine.rpartition(":")[0] + ":1") is False


def test_a_childs_parent_is_this_process_until_it_ends():
    """A zombie, which only waits to be collected, has none any more."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert process.parent(child.pid) == os.getpid()
        child.kill()
        until(lambda: process.parent(child.pid) is None)
    assert process.parent(child.pid) is None


def test_a_process_of_another_machine_is_neither_alive_nor_gone():
    """Its machine alone could tell."""
    assert process.lives("local:elsewhere:1:1") is None
