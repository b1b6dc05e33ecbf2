"""Processes of this machine: local jobs, and children under limits that read what strangers made.

A local job is a process, named by its machine, pid and start, so that a pid used again is never taken for it.
"""

import ctypes
import importlib
import os
import platform
import pwd
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wattflow.errors import WattflowError

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM when the parent dies; SystemExit when it is dead already."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)


def python(*arguments: str) -> list[str]:
    """The command of this interpreter with some arguments; a module of the working folder never hides a real one."""
    return [sys.executable, "-P", *arguments]


LOCAL = "local:"  # the prefix of job ids that are a process of some machine and no job of Slurm's


def user_name(uid: int | None = None) -> str:
    """The name of a user (the caller); their number where this machine has no entry for it."""
    uid = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def node_name() -> str:
    """Slurm's name of this node, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or platform.node().split(".")[0] or "localhost"


def job_id(pid: int) -> str:
    """The local job id of a living process of this machine."""
    return f"{LOCAL}{platform.node()}:{pid}:{_start(pid)}"


def namespace() -> str:
    """The pid namespace of this process: a container has its own pids, though its host's name may be another's."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:  # no Linux
        return ""


def parent(pid: int) -> int | None:
    """The parent's pid; null where a process has ended."""
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def _start(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; null where it has ended."""
    fields = _stat(pid)
    return None if fields is None else fields[19]


def _stat(pid: int) -> list[str] | None:
    """The state of a process and the fields after it, as proc(5) lists them; null for none, or only a zombie."""
    try:
        # the command's name stands in brackets and may hold spaces
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields


def lives(job: str) -> bool | None:
    """Whether a local job runs; null on any machine but its own."""
    node, pid, start = [*job.removeprefix(LOCAL).rsplit(":", 2), "", ""][:3]
    if node != platform.node() or not pid.isdecimal():
        return None
    return _start(int(pid)) == start


def end(job: str) -> None:
    """Ask a local job of this machine, and all processes of its session, to end."""
    os.killpg(int(job.rsplit(":", 2)[1]), signal.SIGTERM)


# --- children under limits ------------------------------------------------------------------------

# the folder of the package last, so that no file there stands in for a library
_CHILD = (
    "import sys; sys.path.append(sys.argv[1]); from wattflow.process import _answer; "
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
    root = str(Path(__file__).resolve().parents[1])
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
