"""A program that a test starts and that would go on for ever ends with the test run, also where that is killed."""

import shutil

_SETPRIV = shutil.which("setpriv")  # of Linux


def bound(*words: str) -> list[str]:
    """Returns the words that start a program which the kernel kills when the thread that started it ends."""
    return [_SETPRIV, "--pdeathsig", "KILL", *words] if _SETPRIV else list(words)
