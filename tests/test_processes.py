"""Programs that tests start end with the test run."""

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# starts a program that says its pid and would go on for an hour, and waits for it
PARENT = """
import subprocess
from processes import bound
subprocess.run(bound("sh", "-c", "echo $$ && exec sleep 3600"))
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv on the PATH")
def test_a_bound_program_ends_with_a_parent_that_is_killed():
    """SIGKILL of the parent: its child ends too."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    words = [sys.executable, "-c", PARENT]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        ended, _, _ = select.select([child], [], [], 300.0)
    finally:
        os.close(child)
    assert ended
