"""A bounded run of tests/chaos/fuzz.py: the same cases each time, of each kind of input some."""

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parent / "chaos" / "fuzz.py"


def test_files_damaged_at_random_raise_no_error_but_our_own(tmp_path):
    """1,200 seeded cases over overrides, configs, files of sweeps, verbs, bundles, checkpoints, other programs' texts.

    A child, so that what ends a process below Python would be seen too.
    """
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--cases", "1200", "--seed", "14"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("1200 cases, seed 14: ")
