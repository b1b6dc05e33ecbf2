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
        # a long line: what is cut off is said
        ("x" * 400 + "\n", "x" * 300 + " ..."),
        ("x" * 40_000, "... " + "x" * 296 + " ..."),
        ("\u20ac" * 20_000 + " end\nlast", "last"),
        # colours and progress bars
        ("\x1b[31mOSError: disk\x1b[0m", "OSError: disk"),
        (" 1 %\r 2 %\rKilled", "Killed"),
        # what follows a reason is none
        (
            "RuntimeError: boom\n/x/y.py:3: UserWarning: 1 leaked\n  warnings.warn(\n",
            "RuntimeError: boom",
        ),
        (
            "Fatal Python error: Aborted\n\nCurrent thread 0x1 (recent):\n  File x\n\nExtension modules: numpy\n",
            "Fatal Python error: Aborted",
        ),
        ("ValueError: two lines:\n    the second", "ValueError: two lines:"),
        ("  all of it is indented\n", "all of it is indented"),
        # Slurm's in other versions' forms
        ("boom\n[2026-11-30T12:00:00.123] error: *** JOB 7 ON n1 CANCELLED ***\n", "boom"),
        ("boom\nslurmstepd-n1: error: x\n", "boom"),
        # a hole that a network disk left, and what is no text
        ("boom\n" + "\0" * 500, "boom"),
        ("\0\0\n---\n", None),
    ],
)
def test_the_last_line_that_is_not_slurms(text, words, tmp_path):
    """Slurm's lines, empty ones and those behind a reason are passed over; a line is cut at 300 letters."""
    log = tmp_path / "101_0_log.err"
    log.write_text(text)
    assert last_words(log) == words


def test_no_log_and_no_file_have_no_words(tmp_path):
    """Nothing, a FIFO, which would be waited for, and a link, which may lead to somebody else's file."""
    assert last_words(tmp_path / "none") is None
    os.mkfifo(tmp_path / "fifo")
    assert last_words(tmp_path / "fifo") is None
    (tmp_path / "secret").write_text("a secret")
    (tmp_path / "link").symlink_to("secret")
    assert last_words(tmp_path / "link") is None


def test_bytes_that_are_no_text_are_no_error(tmp_path):
    """A core's bytes in a log, the last line among them."""
    log = tmp_path / "log"
    log.write_bytes(b"\x7fELF\xff\xfe\x00\n" + bytes(range(256)) * 200 + b"\nboom \xff\n")
    assert last_words(log) == "boom \ufffd"
