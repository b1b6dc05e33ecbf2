"""A window over what `measure` did not start: a process of the caller's on this node, or a Slurm job's part on it.

find   what is asked for -> is it here, is it the caller's, which GPUs are its -> words, GPUs, whether it lives
watch  the window: until it ends, its time is over, or a signal (Ctrl-C) closes it
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wattflow import process
from wattflow.errors import RefusedError, SlurmError
from wattflow.measure.request import FORWARDED, CommandRun, Watched
from wattflow.power.in_use import Board, boards, used_by
from wattflow.slurm import client

_POLL_S = 0.2
_HOST_METERS = ("rapl", "simulated")


@dataclass(frozen=True)
class Found:
    """What is watched."""

    words: list[str]  # in a command's place
    gpus: list[str] | None  # UUIDs; null where the host is measured
    lives: Callable[[], bool]

    def watch(self, for_s: float | None, mark: Callable[[], None]) -> tuple[CommandRun, str]:
        """Return a window over it as the run of a command, and what closed it: its end, the time, or a signal."""
        closed = threading.Event()
        by: list[str] = []

        def close(signum: int, _frame: object) -> None:
            by.append(f"by {signal.Signals(signum).name}")
            closed.set()

        for signum in FORWARDED:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, close)
        mark()
        start_ns, began_s = time.time_ns(), time.monotonic()
        why = "it ended"
        while self.lives():
            left_s = _POLL_S if for_s is None else began_s + for_s - time.monotonic()
            if left_s <= 0:
                why = f"after {for_s:g} s"
                break
            if closed.wait(min(_POLL_S, left_s)):
                # a job's end also brings its other steps a SIGTERM
                why = by[0] if self.lives() else why
                break
        end_ns = time.time_ns()
        mark()
        return CommandRun(0, start_ns, end_ns, None), f"the window was closed: {why}"


def find(asked: Watched, meter: str) -> Found:
    """Return a process or job; RefusedError where it is gone, somebody else's, elsewhere, or on no GPU."""
    if not asked.number.isdecimal() and asked.kind == "pid":
        raise RefusedError(f"--pid {asked.number}: the number of a process, as `ps` lists it.")
    return _process(int(asked.number), meter) if asked.kind == "pid" else _job(asked.number, meter)


def _process(pid: int, meter: str) -> Found:
    words, owner = process.words(pid), process.owner(pid)
    identity = process.job_id(pid)
    if owner is None or not process.lives(identity):
        raise RefusedError(
            f"--pid {pid}: no such process on {process.node_name()}. It may have ended, or run on another node."
        )
    if owner != os.getuid():
        raise RefusedError(
            f"--pid {pid}: belongs to {process.user_name(owner)}. Only processes of your own are measured."
        )
    watched = f"pid:{pid}"
    there = None if meter in _HOST_METERS else boards()
    gpus = None if there is None else used_by(there, lambda one: process.is_of(one, watched))
    if gpus == []:
        raise RefusedError(
            f"--pid {pid}: neither it nor a process that it started uses a GPU of this node now. Name the process that "
            "does (`nvidia-smi` lists them); --set power.meter=rapl measures the whole host instead."
        )
    return Found(["--pid", str(pid), *words], gpus, lambda: bool(process.lives(identity)))


# --- a job of Slurm's -----------------------------------------------------------------------------


def _job(asked: str, meter: str) -> Found:
    fields, nodes = _show(asked)
    number = fields["JobId"]
    user = re.fullmatch(r"(.*)\((\d+)\)", fields.get("UserId", ""))
    if user is not None and int(user[2]) != os.getuid():
        raise RefusedError(
            f"--job {asked}: belongs to {user[1]}. Only jobs of your own are measured."
        )
    if fields.get("JobState") != "RUNNING":
        raise RefusedError(f"--job {asked}: it is {fields.get('JobState')}, not running.")
    here = process.node_name()
    if here not in nodes:
        raise RefusedError(
            f"--job {asked}: it runs on {', '.join(nodes) or 'no node'}, and this is {here}. Step into it: `srun "
            f"--overlap --jobid={number} --ntasks-per-node=1 wattflow measure --job {number}`."
        )
    own_step = os.environ.get("SLURM_STEP_ID") if os.environ.get("SLURM_JOB_ID") == number else None

    def pids() -> list[int]:
        others = (pid for pid in process.own_processes() if pid not in _own_line())
        return [pid for pid in others if process.is_in_job(pid, number, own_step)]

    there = None if meter in _HOST_METERS else boards()
    gpus = None if there is None else _of_job(asked, number, nodes[here], there)
    return Found(["--job", number, fields.get("JobName", "")], gpus, _Living(pids))


def _own_line() -> set[int]:
    """Return this process and those above it: in a step of the job they are the job's too."""
    line, above = set(), process.parent(os.getpid())
    while above is not None and above > 1:
        line.add(above)
        above = process.parent(above)
    return line | {os.getpid()}


class _Living:
    """Whether a job has processes here: those that are known are looked at, and the others only once they ended."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._known: list[str] = []

    def __call__(self) -> bool:
        """Return whether one lives."""
        self._known = [one for one in self._known if process.lives(one)]
        if not self._known:
            found = [process.job_id(pid) for pid in self._pids()]
            self._known = [one for one in found if process.lives(one)]
        return bool(self._known)


def _show(job: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return a job's fields, and its GRES by node, as scontrol has them; RefusedError for no job, or several."""
    if not re.fullmatch(r"\d+(_\d+)?", job):
        raise RefusedError(
            f"--job {job}: the number of a job, such as 77, or of an array's task, such as 55_2."
        )
    try:
        text = client.ask(["scontrol", "-o", "-d", "show", "job", job])
    except SlurmError as error:
        raise RefusedError(f"--job {job}: {error}") from error
    lines = [line for line in text.splitlines() if line.startswith("JobId=")]
    if len(lines) != 1:
        raise RefusedError(
            f"--job {job}: {len(lines)} tasks of an array. Name one of them, such as {job}_0."
        )
    fields = dict(re.findall(r"(\w+)=(\S*)", lines[0]))
    nodes = {
        node: gres
        for names, gres in re.findall(r" Nodes=(\S+) CPU_IDs=\S* Mem=\S*(?: GRES=(\S*))?", lines[0])
        for node in _hosts(names)
    }
    return fields, nodes or dict.fromkeys(_hosts(fields.get("NodeList", "")), "")


def _hosts(names: str) -> list[str]:
    """Return the nodes of a list of Slurm's, `node[1-2]` or plain names."""
    if names in ("", "(null)"):
        return []
    if "[" not in names:
        return names.split(",")
    return client.ask(["scontrol", "show", "hostnames", names]).split()


def _of_job(asked: str, number: str, gres: str, there: list[Board]) -> list[str]:
    """Return the UUIDs of a job's GPUs on this node, by Slurm's numbers of them; RefusedError where it has none."""
    indices = list(_indices(gres))
    if not indices:
        raise RefusedError(
            f"--job {asked}: Slurm gave it no GPU on this node; --set power.meter=rapl measures the whole host instead."
        )
    if len(there) == len(indices):  # a job that sees its own GPUs alone
        chosen = [board.uuid for board in there]
    elif max(indices) < len(there):
        chosen = [there[index].uuid for index in indices]
    else:
        chosen = []
    used = used_by(there, lambda pid: process.is_in_job(pid, number))
    if not chosen or not set(used) <= set(chosen):
        raise RefusedError(
            f"--job {asked}: Slurm's GPUs {', '.join(map(str, indices))} are not NVML's of these numbers here, so that "
            "the job's are not known. Name the process that uses them with --pid."
        )
    return chosen


def _indices(gres: str) -> Iterator[int]:
    """Yield the numbers of the GPUs in a GRES of Slurm's, such as gpu:a100:2(IDX:0,3) or gpu:3(IDX:0-2)."""
    for numbers in re.findall(r"gpu[^()]*\(IDX:([\d,-]+)\)", gres):
        for part in numbers.split(","):
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)
