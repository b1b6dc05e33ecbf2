"""The last line of a log as the reason of a failure."""

import os

import pytest

from wattflow.submit.last_words import last_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "loading\nwattflow: data/x.jsonl: no such file.\n",
            "wattflow: data/x.jsonl: no such file.",
        ),
        (
            "ModuleNotFoundError: torch\nsrun: error: n1: task 0: Exited with exit code 1\n\n",
            "ModuleNotFoundError: torch",
        ),
        ("slurmstepd: error: *** STEP 7.0 ENDED ***\n", None),
        ("", None),
        ("x" * 40_000, "x" * 300),
    ],
)
def test_the_last_line_that_is_not_slurms(text, words, tmp_path):
    """Slurm's lines and empty ones are passed over; a line is cut at 300 letters."""
    log = tmp_path / "101_0_log.err"
    log.write_text(text)
    assert last_words(log) == words


def test_no_log_and_no_file_have_no_words(tmp_path):
    """Nothing, and a FIFO, which would be waited for."""
    assert last_words(tmp_path / "none") is None
    os.mkfifo(tmp_path / "fifo")
    assert last_words(tmp_path / "fifo") is None
