"""Children under limits, which read what strangers made: what that does to a library ends the child alone."""

import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wattflow.errors import WattflowError
from wattflow.process import die_with_parent, python

# the folder of the package last, so that no file there stands in for a library
_CHILD = (
    "import sys; sys.path.append(sys.argv[1]); from wattflow.store.confined import _answer; "
    "_answer(*sys.argv[2:])"
)


@dataclass(frozen=True)
class Limits:
    """What a child may take; null for no limit."""

    memory_bytes: int | None = None  # of addresses
    cpu_s: int | None = None
    wall_s: float | None = None


class ConfinedError(WattflowError, RuntimeError):
    """A child under limits gave no answer; says what ended it."""


def confined(function: str, argument: str, limits: Limits) -> str:
    """Return what a function of ours (`module:name`, text to text) answers in a child under limits.

    ConfinedError where the child dies, whatever of: a crash in a library, the kernel, a limit.
    """
    root = str(Path(__file__).resolve().parents[2])
    numbers = [str(limits.memory_bytes or 0), str(limits.cpu_s or 0)]
    command = python("-c", _CHILD, root, function, str(os.getpid()), *numbers)
    # what it leaves in its folder for temporary files when it is killed goes with the folder
    with tempfile.TemporaryDirectory(prefix="wattflow-") as folder:
        try:
            done = subprocess.run(
                command,
                input=argument.encode(),
                capture_output=True,
                env={**os.environ, "TMPDIR": folder},
                timeout=limits.wall_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConfinedError(f"it takes longer than {limits.wall_s:g} s") from None
    if done.returncode == 0:
        return done.stdout.decode()
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and limits.cpu_s:
        raise ConfinedError(f"it takes more than {limits.cpu_s} s of a CPU, or the kernel ended it")
    if done.returncode < 0:
        raise ConfinedError(f"its reader was ended by {signal.Signals(-done.returncode).name}")
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    raise ConfinedError(f"its reader ended with code {done.returncode} ({''.join(last):.200})")


def _answer(function: str, parent_pid: str, memory_bytes: str, cpu_s: str) -> None:
    """Be the child: take the limits, call the function with what stdin holds, and write what it returns to stdout."""
    die_with_parent(int(parent_pid))
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: int(memory_bytes) or None,
        resource.RLIMIT_CPU: int(cpu_s) or None,
    }
    for kind, limit in wanted.items():
        _, most = resource.getrlimit(kind)
        if limit is not None:
            soft = limit if most == resource.RLIM_INFINITY else min(limit, most)
            resource.setrlimit(kind, (soft, most))
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    module, _, name = function.partition(":")
    answer: str = getattr(importlib.import_module(module), name)(sys.stdin.read())
    answers.write(answer)
    answers.flush()
