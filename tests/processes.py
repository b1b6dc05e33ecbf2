"""Processes of a test: how it waits for what they do, and how they end with it."""

import shutil
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
