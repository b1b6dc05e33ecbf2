"""Processes of a test: how it waits for what they do, and how they end with it."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")
PATIENCE_S = 300.0  # a busy machine is slow, and only a test that fails waits for so long

_SETPRIV = shutil.which("setpriv")  # of Linux


def until(fact: Callable[[], Value], timeout_s: float = PATIENCE_S, each_s: float = 0.02) -> Value:
    """Returns the first value of a fact that is true; AssertionError where none comes in time."""
    end_s = time.monotonic() + timeout_s
    while not (value := fact()):
        assert time.monotonic() < end_s, f"not true within {timeout_s:g} s; the last value: {value}"
        time.sleep(each_s)
    return value


def at_once(count: int, code: str, *words: str) -> list[str]:
    """Returns the line that each of so many processes prints when all of them begin at one moment.

    Their code prints `ready`, reads a line, prints its own and reads to the end of its input, which comes once all
    have spoken: none is over before another one began, however busy the machine is.
    """
    command = [sys.executable, "-c", code, *words]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    try:
        assert [_line(one) for one in running] == ["ready"] * count
        for one in running:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        return [_line(one) for one in running]
    finally:
        for one in running:
            one.communicate()


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def gone(pid: int) -> bool:
    """Whether a process has ended; its zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def bound(*words: str) -> list[str]:
    """Returns the words that start a program which the kernel kills when the thread that started it ends.

    For programs that would go on for ever where the test run is killed; without Linux's setpriv they do.
    """
    return [_SETPRIV, "--pdeathsig", "KILL", *words] if _SETPRIV else list(words)
