"""The verb `measure`: the command keeps its output and its exit code."""

import json
import sys

from commands import call


def test_output_and_exit_code_are_the_commands(tmp_path):
    """A command that prints and ends with 7 does so under `measure`, which adds lines on stderr alone."""
    program = "print('out'); raise SystemExit(7)"
    done = call(
        *("measure", "--out", "m", "--set", "power.meter=simulated", "--"),
        *(sys.executable, "-c", program),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (7, "out\n")
    (record,) = (tmp_path / "m").glob("points/*/attempt-1/record.json")
    assert json.loads(record.read_text())["measure"]["command"] == [sys.executable, "-c", program]
