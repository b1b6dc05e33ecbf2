"""A local job is a process, named by its machine, pid and start, so that a pid used again is never taken for it."""

import ctypes
import os
import platform
import pwd
import re
import signal
import sys
from pathlib import Path

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


WATCHED = "WATTFLOW_WATCHED"  # what `measure` watches and did not start: pid:NUMBER or job:NUMBER


def is_of(pid: int, watched: str) -> bool | None:
    """Whether a process is one that `measure` watches, or of the job that it watches; null where it has ended."""
    kind, _, number = watched.partition(":")
    if kind == "job":
        return is_in_job(pid, number)
    above: int | None = pid
    while above is not None and above > 1:
        if above == int(number):
            return True
        above = parent(above)
    return None if parent(pid) is None else False


def is_in_job(pid: int, job: str, but_step: str | None = None) -> bool | None:
    """Whether a process is one of a Slurm job's, but not of a step; null where it has ended.

    By its control group where Slurm makes one, else by the environment that it began with, which its owner can read.
    """
    try:
        group = Path(f"/proc/{pid}/cgroup").read_text("utf-8", "replace")
        found = re.search(rf"/job_{job}(?:/step_([^/\n]+))?(?:/|$)", group, re.MULTILINE)
        if found is not None:
            return but_step is None or found[1] != but_step
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:
        return False  # somebody else's
    in_step = but_step is not None and f"SLURM_STEP_ID={but_step}".encode() in variables
    return f"SLURM_JOB_ID={job}".encode() in variables and not in_step


def owner(pid: int) -> int | None:
    """The user of a process; null where there is none."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except FileNotFoundError:
        return None


def words(pid: int) -> list[str]:
    """The command of a process, as it was started; empty where it has ended or hides it."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return []
    return text.rstrip("\0").split("\0") if text else []


def own_processes() -> list[int]:
    """The processes of the caller that this machine shows."""
    return [
        int(entry.name)
        for entry in os.scandir("/proc")
        if entry.name.isdecimal() and owner(int(entry.name)) == os.getuid()
    ]


def _start(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; null where it has ended."""
    fields = _stat(pid)
    return None if fields is None else fields[19]


def _stat(pid: int) -> list[str] | None:
    """The state of a process and the fields after it, as proc(5) lists them; null for none, or only a zombie."""
    try:
        # the command's name stands in brackets and may hold spaces
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
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
