"""The detached process of a local profile; tests/test_submit_send.py starts one."""

import subprocess
import sys

from wattflow.submit import journal


def test_a_process_that_the_journal_does_not_know_runs_nothing(empty_sweep):
    """Without the word of its submitter it ends with 1, before it looks at the sweep."""
    command = [sys.executable, "-m", "wattflow.submit.local", str(empty_sweep.path), "demo-1", "{}"]
    done = subprocess.run(command, input="no", text=True, check=False, timeout=600)
    assert done.returncode == 1
    assert journal.read(empty_sweep) == []
