"""Children under limits, which read what strangers made: what that does to a library ends the child alone."""

import contextlib
import importlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
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


NO_MEMORY = 77  # the exit code of a child that could not go on for want of it


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
    raise ConfinedError(_ended(done.returncode, done.stderr))


def _ended(code: int, errors: bytes) -> str:
    """Return how a child ended, in words."""
    if code < 0:
        return f"its reader was ended by {signal.Signals(-code).name}"
    last = errors.decode(errors="replace").strip().splitlines()[-1:]
    return f"its reader ended with code {code} ({''.join(last):.200})"


def _limit(wanted: Mapping[int, int | None]) -> None:
    """Lower limits of this process; null leaves one as it is."""
    for kind, limit in wanted.items():
        _, most = resource.getrlimit(kind)
        if limit is not None:
            soft = limit if most == resource.RLIM_INFINITY else min(limit, most)
            resource.setrlimit(kind, (soft, most))


def _answer(function: str, parent_pid: str, memory_bytes: str, cpu_s: str) -> None:
    """Be the child: take the limits, call the function with what stdin holds, and write what it returns to stdout."""
    die_with_parent(int(parent_pid))
    _limit(
        {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_AS: int(memory_bytes) or None,
            resource.RLIMIT_CPU: int(cpu_s) or None,
        }
    )
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    module, _, name = function.partition(":")
    answer: str = getattr(importlib.import_module(module), name)(sys.stdin.read())
    answers.write(answer)
    answers.flush()


# --- a child that is asked more than once ---------------------------------------------------------

_SERVER = _CHILD.replace("_answer", "_serve")
# Slurm and a terminal send these to all processes of a step or session; the parent is who acts on them
_PARENTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LONGEST_ANSWER = 2**28


@dataclass(frozen=True)
class Budget:
    """What a child that is asked again and again may take."""

    memory_bytes: int  # of addresses
    cpu_s: float  # for all of it, and
    cpu_s_a_byte: float  # for each byte that it is given

    def cpu_s_for(self, size_bytes: int) -> int:
        """Return the seconds of a CPU for so many bytes, whole ones as the kernel counts."""
        return math.ceil(self.cpu_s + self.cpu_s_a_byte * size_bytes)


class Conversation:
    """A child under limits in which a function of ours (`module:name`) made what answers texts by texts."""

    def __init__(self, function: str, budget: Budget, environment: Mapping[str, str]) -> None:
        """Start it."""
        self._budget, self._size_bytes = budget, 0
        root = str(Path(__file__).resolve().parents[2])
        command = python("-c", _SERVER, root, function, str(budget.memory_bytes))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
        )

    def ask(self, question: str, size_bytes: int) -> str:
        """Return its answer to a question about so many bytes more; ConfinedError where it dies, whatever of."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._size_bytes += size_bytes
        cpu_s = self._budget.cpu_s_for(self._size_bytes)
        line = json.dumps([cpu_s, question]).encode() + b"\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            text = self._process.stdout.readline(_LONGEST_ANSWER)
            if text.endswith(b"\n"):
                answer: str = json.loads(text)
                return answer
        except BrokenPipeError:
            text = b""
        if text:
            self._process.kill()
            raise ConfinedError(f"its answer has more than {_LONGEST_ANSWER} bytes")
        raise ConfinedError(self._end(cpu_s))

    def _end(self, cpu_s: int) -> str:
        """Return what ended the child."""
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return f"it takes more than {cpu_s} s of a CPU"
        if code in (NO_MEMORY, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL):
            return f"it takes more than {self._budget.memory_bytes / 2**30:g} GiB of memory, or breaks its library"
        return _ended(code, self._last_words())

    def _last_words(self) -> bytes:
        self._errors.seek(0)
        return self._errors.read(2**16)

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.kill()
        self._process.wait()


def _serve(function: str, memory_bytes: str) -> None:
    """Be the child: take the limits, then answer each line of stdin, until there is none."""
    for signum in _PARENTS:
        signal.signal(signum, signal.SIG_IGN)
    _limit({resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: int(memory_bytes)})
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    module, _, name = function.partition(":")
    answer: Callable[[str], str] | None = None
    for line in sys.stdin:
        cpu_s, question = json.loads(line)
        _limit({resource.RLIMIT_CPU: cpu_s})
        answer = answer or getattr(importlib.import_module(module), name)()
        answers.write(json.dumps(answer(question)) + "\n")
        answers.flush()
