"""Query Slurm and control jobs: squeue, sacct, sinfo, scontrol, scancel and sbatch, each with a time limit.

An answer is a dict; no answer is a SlurmError, never an empty dict: what is not known is not finished.

    python -m wattflow.slurm.client SCRIPT      the part of an sbatch that never submits twice: `guarded_sbatch`
"""

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattflow import process
from wattflow.errors import SlurmError
from wattflow.process import user_name
from wattflow.slurm import task_ids
from wattflow.store.files import expanded, read_own, write_atomic

# Slurm's states of a task that has ended, of one that waits; all others are those of one that runs.
_OVER = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "REVOKED", "TIMEOUT"}
    | {"GONE"}  # ours: a local process that lives no more
)
_QUEUED = frozenset(
    {"CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"}
    | {"SPECIAL_EXIT"}
)

_TIMEOUT_S = 60.0
_CACHE_S = 30.0
_SBATCH_WAITS_S = (1.0, 5.0, 15.0, 30.0)  # before each further try
_MAY_PASS = re.compile(
    r"timed out|unable to contact|temporarily|try again|connection refused|zero bytes|"
    r"communication connection failure",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TaskState:
    """The state of one task, as Slurm reports it."""

    state: str  # RUNNING, PENDING, TIMEOUT ...
    reason: str | None = None
    name: str = ""  # the job's

    @property
    def is_over(self) -> bool:
        """Whether the task has ended."""
        return self.state in _OVER

    @property
    def is_queued(self) -> bool:
        """Whether it waits to be started."""
        return self.state in _QUEUED


def _run(command: Sequence[str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """A Slurm command that has ended; SlurmError when it is missing or does not answer in time."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",  # other jobs' names are anybody's bytes
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise SlurmError(
            f"no {command[0]} on the PATH: is this a node of the cluster? On a machine without Slurm use cluster=local."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"{command[0]} did not answer within {timeout_s:.0f} s: is the controller up (`scontrol ping`)?"
        ) from error


def ask(command: Sequence[str], timeout_s: float = _TIMEOUT_S) -> str:
    """What a Slurm command prints; SlurmError when it fails, is missing, or does not answer in time."""
    done = _run(command, timeout_s)
    if done.returncode != 0:
        message = " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"
        raise SlurmError(f"{command[0]}: {message}")
    return done.stdout


def queue(user: str | None = None) -> dict[str, TaskState]:
    """Return the state of each task of a user (the caller) that waits, runs, or ended some minutes ago, by task."""
    user = user or user_name()
    out = ask(["squeue", "-h", "-r", "-t", "all", "-u", user, "-o", "%i|%T|%r|%j"])
    tasks = {}
    for key, state, reason, name in _task_rows(out, 4):
        tasks[key] = TaskState(state, None if reason in ("None", "") else reason, name)
    return tasks


def ended(job_ids: Iterable[str]) -> dict[str, TaskState]:
    """Return the state of the tasks of jobs from the accounting, by task; it lags the queue by some seconds."""
    # by default Slurm cuts the list of an array's tasks at 64 bytes
    command = [
        "env",
        "SLURM_BITSTR_LEN=0",
        "sacct",
        "-X",
        "-n",
        "-P",
        "-o",
        "JobID,State,Reason",
        "-j",
        ",".join(job_ids),
    ]
    tasks = {}
    for key, state, reason in _task_rows(ask(command), 3):
        for task in task_ids.expand(key):
            # CANCELLED by 1000, or CANCELLED+ where the column is too narrow
            tasks[task] = TaskState(
                re.split(r"[ +]", state)[0], None if reason in ("None", "") else reason
            )
    return tasks


def _task_rows(out: str, columns: int) -> Iterator[list[str]]:
    """The cells of each line that begins with a task's id; warnings and the rest of a name of two lines do not."""
    for line in out.split("\n"):
        cells = line.split("|", columns - 1)
        if len(cells) == columns and _TASK.fullmatch(cells[0]):
            yield cells


_TASK = re.compile(r"\d+(_(\d+|\[[\d,\-]+(%\d+)?\]))?")  # 123, 123_4, 123_[0-2,7%4]


def consumed_energy_j(job_ids: Sequence[str]) -> dict[str, float]:
    """The joules that the accounting keeps of jobs, by job; those without any are left out.

    Each step of a job counts all of its nodes' energy, so that steps are not added: the largest is the job's. It is
    what the site's AcctGatherEnergyType reads, and holds no NVIDIA GPU.
    """
    out = ask(["sacct", "-n", "-P", "-o", "JobID,ConsumedEnergyRaw", "-j", ",".join(job_ids)])
    found: dict[str, float] = {}
    for line in out.splitlines():
        step, _, text = line.partition("|")
        joules = int(text) if text.isascii() and text.isdecimal() else 0
        if 0 < joules < _NO_JOULES:
            job = step.partition(".")[0]
            found[job] = max(found.get(job, 0.0), float(joules))
    return found


_NO_JOULES = 0xFFFFFFFE  # Slurm's NO_VAL and what is above it: not known


def jobs_named(name: str) -> list[str]:
    """The ids of the caller's jobs of that name which wait or run."""
    user = user_name()
    out = ask(["squeue", "-h", "-u", user, "-n", name, "-o", "%F"])
    lines = {line.strip() for line in out.splitlines()}  # among which there may be a banner's
    return sorted((line for line in lines if _JOB.fullmatch(line)), key=int)


_JOB = re.compile(r"[0-9]{1,10}")


def limits() -> tuple[int | None, int | None]:
    """MaxJobCount and MaxArraySize of this cluster; null where it does not say."""
    settings: dict[str, str] = {}
    with contextlib.suppress(SlurmError):
        text = ask(["scontrol", "show", "config"])
        settings = dict(re.findall(r"^(\w+)\s*= (\d+)$", text, re.MULTILINE))
    numbers = {key: int(value) for key, value in settings.items()}
    return numbers.get("MaxJobCount"), numbers.get("MaxArraySize")


def most_submitted(account: str | None) -> int | None:
    """The fewest jobs that the caller may have in the queue, MaxSubmitJobs, by an account of theirs (that one).

    Null where nothing limits them, or the site does not say.
    """
    user = user_name()
    command = ["sacctmgr", "-nP", "show", "assoc", "where", f"user={user}"]
    found = []
    with contextlib.suppress(SlurmError):
        table = ask([*command, "format=Account,MaxSubmitJobs"], timeout_s=20.0)
        for line in table.splitlines():
            of, _, most = line.partition("|")
            if most.isdecimal() and account in (None, of):
                found.append(int(most))
    return min(found, default=None)


def other_node() -> str | None:
    """The name of a node that is not this machine; null where there is none, or Slurm does not say."""
    here = platform.node().partition(".")[0]
    with contextlib.suppress(SlurmError):
        for line in ask(["sinfo", "-h", "-N", "-o", "%n|%o"], timeout_s=20.0).splitlines():
            host, _, address = line.partition("|")
            if host.partition(".")[0] != here and not re.match(r"127\.|::1$|localhost$", address):
                return host
    return None


def test_only(script: str) -> tuple[bool, str]:
    """Whether Slurm would take a batch script, and its answer: when the job should start, or why it would not."""
    with tempfile.TemporaryDirectory(prefix="wattflow-") as folder, _outside_any_job():
        path = Path(folder) / "job.sh"
        write_atomic(path, script.encode())
        command = ["sbatch", "--test-only", str(path)]
        try:
            done = _run(command, _TIMEOUT_S)
        except SlurmError as error:
            return False, str(error)
    # the answer comes on stderr, be it yes or no
    answer = " ".join(f"{done.stdout} {done.stderr}".split()).replace("sbatch: ", "")
    return done.returncode == 0, answer or f"exit status {done.returncode}"


def requeue(task: str) -> None:
    """Have a running task start again from its beginning, with a new time limit."""
    ask(["scontrol", "requeue", task])


def was_preempted(job_id: str) -> bool | None:
    """Whether a running job is being preempted; null where Slurm does not say."""
    with contextlib.suppress(SlurmError):
        found = re.search(r"\bPreemptTime=(\S+)", ask(["scontrol", "-o", "show", "job", job_id]))
        return None if found is None else found[1] != "None"
    return None


def release(job_ids: Sequence[str]) -> tuple[list[str], str]:
    """Let held jobs start; those that stay held all the same, and Slurm's answer.

    The answer to a release may be an error, or lost, though the jobs start: then Slurm is asked whether they do.
    """
    if not job_ids:
        return [], ""
    try:
        ask(["scontrol", "release", ",".join(job_ids)])
    except SlurmError as error:
        return _held(job_ids, error), str(error)
    return [], ""


def _held(job_ids: Sequence[str], trouble: SlurmError) -> list[str]:
    """The jobs that are held, after a release of each alone; SlurmError where Slurm does not say."""
    for job_id in job_ids:
        with contextlib.suppress(SlurmError):
            ask(["scontrol", "release", job_id])
    try:
        tasks = queue()
    except SlurmError:
        raise trouble from None
    held = {key.partition("_")[0] for key, task in tasks.items() if task.reason in _HELD}
    return [job_id for job_id in job_ids if job_id in held]


_HELD = ("JobHeldUser", "JobHeldAdmin")


def cancel(keys: Sequence[str]) -> None:
    """End tasks, or whole jobs."""
    if keys:
        ask(["scancel", *keys])


# --- answers kept for half a minute, so that a watching person costs the controller little --------


def cache_folder() -> Path | None:
    """The caller's folder of kept answers, of mode 0700; null where there can be none, as in a read-only home."""
    try:
        folder = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "wattflow"
        if not folder.is_absolute():  # no HOME, and no entry for the user
            return None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


def _cached(question: str, ask: Callable[[], dict[str, TaskState]]) -> dict[str, TaskState]:
    """An answer that is at most half a minute old; only answers are kept, never their absence."""
    # one login node may serve several clusters
    where = os.environ.get("SLURM_CONF", "") + os.environ.get("SLURM_CLUSTERS", "")
    folder = cache_folder()
    if folder is None:
        return ask()
    path = folder / f"slurm-{question.partition(' ')[0]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(read_own(path))
        age_s = time.time() - kept["time_s"]
        if kept["question"] == [where, question] and 0.0 <= age_s < _CACHE_S:
            return {key: TaskState(*word) for key, word in kept["words"].items()}
    tasks = ask()
    kept = {
        "time_s": time.time(),
        "question": [where, question],
        "words": {key: [w.state, w.reason, w.name] for key, w in tasks.items()},
    }
    with contextlib.suppress(OSError):  # a full disk: Slurm is asked again next time
        write_atomic(path, json.dumps(kept).encode())
    return tasks


def cached_queue(user: str) -> dict[str, TaskState]:
    """`queue`, asked at most once in 30 s."""
    return _cached(f"queue {user}", lambda: queue(user))


def cached_ended(job_ids: Sequence[str]) -> dict[str, TaskState]:
    """`ended`, asked at most once in 30 s for the same jobs."""
    return _cached(f"ended {','.join(job_ids)}", lambda: ended(job_ids))


def forget() -> None:
    """Drop kept answers: what was just sent or cancelled must show."""
    folder = cache_folder()
    with contextlib.suppress(OSError):
        for path in folder.glob("slurm-*.json") if folder else ():
            path.unlink(missing_ok=True)


# --- an sbatch that asks before it tries again ----------------------------------------------------


@contextlib.contextmanager
def guarded_sbatch() -> Iterator[None]:
    """Within, `sbatch` on the PATH is ours (`main`), and a surrounding job's SLURM_* variables are out of the way.

    submitit calls plain `sbatch`, without a time limit; on 'Socket timed out' the job may have been accepted.
    """
    real = shutil.which("sbatch")
    if real is None:
        raise SlurmError(
            "no sbatch on the PATH: is this a login node? On a machine without Slurm use cluster=local."
        )
    again = shlex.join(process.python("-m", "wattflow.slurm.client"))
    first = _FIRST_TRY.format(sbatch=shlex.quote(real), limit_s=_SBATCH_LIMIT_S, again=again)
    with _commands({"sbatch": first}), _outside_any_job():
        os.environ["WATTFLOW_SBATCH"] = real
        try:
            yield
        finally:
            del os.environ["WATTFLOW_SBATCH"]


_SBATCH_LIMIT_S = 120
# Nearly always the first try is the last: in plain sh it is spared the start of a Python.
_FIRST_TRY = """answer=$(timeout {limit_s} {sbatch} "$@" 2>"$0.err")
code=$?
line=$(printf '%s\\n' "$answer" | LC_ALL=C grep -a '^Submitted batch job [0-9]')
case "$code $line" in "0 Submitted"*) printf '%s\\n' "$line"; exit 0 ;; esac
export WATTFLOW_SBATCH_CODE=$code WATTFLOW_SBATCH_SAID="$(cat "$0.err") $answer"
exec {again} "$@\""""


@contextlib.contextmanager
def recording_sbatch() -> Iterator[None]:
    """Within, `sbatch` accepts anything as job 1 and sends nothing; Slurm need not be installed."""
    commands = {"sbatch": "echo Submitted batch job 1", "srun": "exit 1"}
    with _commands(commands), _outside_any_job():
        yield


@contextlib.contextmanager
def _commands(scripts: dict[str, str]) -> Iterator[None]:
    """Put small commands first on the PATH."""
    before = os.environ.get("PATH", os.defpath)
    with tempfile.TemporaryDirectory(prefix="wattflow-") as folder:
        for name, line in scripts.items():
            path = Path(folder) / name
            write_atomic(path, f"#!/bin/sh\n{line}\n".encode(), 0o700)
        os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
        try:
            yield
        finally:
            os.environ["PATH"] = before


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Take away what a job set, be it around us or long gone: sbatch and the job's srun read SLURM_* as options.

    What names the cluster stays.
    """
    taken = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM", "SRUN_", "SUBMITIT_")) and name not in _NAMES_A_CLUSTER
    }
    for name in taken:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(taken)


_NAMES_A_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


def sbatch(script: Path, program: str, trouble: SlurmError) -> str:
    """The id of the one job that the script became after a first try met trouble; SlurmError if Slurm keeps to it.

    The script's job name is unique, so a job accepted without an answer is found by it. Jobs are sent held: one that
    appears later still, after another try, never runs.
    """
    name = _job_name(script)
    for wait_s in _SBATCH_WAITS_S:
        if "did not answer" not in str(trouble) and not _MAY_PASS.search(str(trouble)):
            raise trouble
        time.sleep(wait_s)
        try:
            if found := jobs_named(name):
                return found[0]
            answer = ask([program, str(script)], timeout_s=_SBATCH_LIMIT_S)
        except SlurmError as error:
            trouble = error
            continue
        match = re.search(r"^Submitted batch job (\d+)", answer, re.MULTILINE)
        if match is None:
            raise _names_no_job(answer)
        cancel([job for job in jobs_named(name) if job != match[1]])
        return match[1]
    raise SlurmError(f"{trouble} Tried {len(_SBATCH_WAITS_S) + 1} times over a minute.")


def _names_no_job(answer: str) -> SlurmError:
    return SlurmError(f"sbatch answered {answer.strip()!r}, which names no job.")


def _first_trouble(code: int, said: str) -> SlurmError:
    """What a first try of sbatch met, by its exit status and what it printed."""
    if code == 0:
        return _names_no_job(said)
    if code == _TIMED_OUT:
        return SlurmError(f"sbatch did not answer within {_SBATCH_LIMIT_S} s.")
    return SlurmError(f"sbatch: {' '.join(said.split()) or f'exit status {code}'}")


_TIMED_OUT = 124  # by timeout(1)


def _job_name(script: Path) -> str:
    match = re.search(r"^#SBATCH --job-name=(.*)$", read_own(script).decode(), re.MULTILINE)
    if match is None:
        raise SlurmError(f"{script}: no job name in it.")
    return shlex.split(match[1])[0]


def main() -> int:
    """Stand in for sbatch after its first try."""
    given = os.environ
    trouble = _first_trouble(int(given["WATTFLOW_SBATCH_CODE"]), given["WATTFLOW_SBATCH_SAID"])
    try:
        job = sbatch(Path(sys.argv[-1]), given["WATTFLOW_SBATCH"], trouble)
    except SlurmError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Submitted batch job {job}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
