"""Measure any command: a sweep's sidecar around it, and a sweep directory of one point as what comes of it.

    wattflow measure [--out DIR] -- CMD ...

    claim -> sidecar ready -> the command, its spans told by itself (wattflow.told) -> sidecar closed -> part -> record

In a Slurm step over several nodes there is one `measure` a node. Task 0 makes the directory and its record; each node
adds its traces, spans and part (timings/<node>.json), which belong to the record whenever it is read.

Until the command starts, whatever is wrong ends `measure`, and the command is not run. From then on nothing that goes
wrong with measuring touches the command, and its exit code is that of `measure`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from wattflow.columns import PHASE, POINT, REASONS
from wattflow.config import ID_VERSION, Power, check_value
from wattflow.errors import CommandError, DamagedError, RefusedError, WattflowError
from wattflow.power.parent import Sidecar
from wattflow.process import node_name
from wattflow.schema import (
    GRID,
    SCHEMA_VERSION,
    SPAN,
    JobInfo,
    NodeInfo,
    Part,
    Ready,
    Record,
)
from wattflow.stream import read_table, write_table
from wattflow.sweepdir import AttemptDir, SweepDir, read_json, write_json
from wattflow.told import AROUND, ENVIRONMENT, OUTSIDE, Piece, known_sum, parse, pieces, tells

JOIN_S = 120.0  # how long a node waits for task 0's record
STDOUT = "-"  # --tokens-json: the lines of the command's own output
DRAIN_S = 0.5  # for the last lines of an output that a daemon may hold open
RANKS_A_NODE = 1024  # a device's rank is its node's task times this, plus its place there
PASSED_ON = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2),  # by which Slurm tells of a time limit
)
_ABOUT = {"schema_version": str(SCHEMA_VERSION)}


@dataclass(frozen=True)
class Asked:
    """What is to be measured, and how."""

    command: list[str]
    out: Path | None = None  # null: a new folder below ./sweeps
    power: Power = field(default_factory=Power)
    tokens_json: str | None = None
    tokens_key: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a measurement ended: the exit code of the command, where its record lies, what could not be measured."""

    exit_code: int
    sweep: SweepDir
    attempt: AttemptDir
    nodes: int
    error: str | None


@dataclass(frozen=True)
class Place:
    """Where this process stands: alone, or as one node's of a Slurm step."""

    node: str
    task: int
    nodes: int
    job: JobInfo

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        """From Slurm's variables; RefusedError where a node has several tasks, as each would measure all of it."""
        step = environment.get("SLURM_STEP_ID")
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1")) if step is not None else 1
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1")) if step is not None else 1
        if tasks > nodes:
            raise RefusedError(
                f"{tasks} tasks on {nodes} nodes: one `wattflow measure` a node, or each GPU is billed to several. "
                "Use `srun --ntasks-per-node=1 wattflow measure ...`; the command starts its ranks, as torchrun does."
            )
        return cls(
            node=node_name(),
            task=int(environment.get("SLURM_NODEID", "0")) if nodes > 1 else 0,
            nodes=nodes,
            job={
                "job_id": environment.get("SLURM_JOB_ID"),
                "array_task": environment.get("SLURM_ARRAY_TASK_ID"),
                "restart": int(environment.get("SLURM_RESTART_COUNT", "0")),
                "cluster": environment.get("SLURM_CLUSTER_NAME", "local"),
                "step": step,
            },
        )


def power_settings(words: Sequence[str]) -> Power:
    """The settings of `power.KEY=VALUE` words; RefusedError for another key, a wrong type or value."""
    power = Power()
    for word in words:
        key, equals, text = word.partition("=")
        name = key.removeprefix("power.")
        default = getattr(power, name, None) if key != name else None
        if default is None or not equals:
            known = ", ".join(f"power.{key}" for key in vars(power))
            raise RefusedError(f"--set {word}: not KEY=VALUE with one of {known}.")
        value = _typed(word, text, default)
        check_value(key, value)
        setattr(power, name, value)
    return power


def _typed(word: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise RefusedError(f"--set {word}: true or false.")
        return text.lower() == "true"
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError as error:
            raise RefusedError(f"--set {word}: {text!r} is no number.") from error
    return text


# --- the directory --------------------------------------------------------------------------------


def point_id(command: Sequence[str]) -> str:
    """12 hex digits by which measurements of one command are attempts at one point."""
    canonical = json.dumps([ID_VERSION, {"measure.command": list(command)}], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _directory(asked: Asked, place: Place) -> SweepDir:
    """Where the measurement goes: as asked, else a name of its own below ./sweeps, the same on all nodes of a step."""
    if asked.out is not None:
        return SweepDir(asked.out.expanduser().absolute())
    name = f"measure-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if place.nodes > 1:
        name = f"measure-{place.job['job_id']}.{place.job['step']}"
    return SweepDir.named("sweeps", name)


def _make(sweep: SweepDir, asked: Asked, place: Place) -> AttemptDir:
    """A new attempt in a directory that holds this command's point, or does so now; RefusedError for another's."""
    mine = point_id(asked.command)
    if sweep.measured_path.is_file():
        held = read_json(sweep.measured_path)
        if held.get("point_id") != mine:
            raise RefusedError(
                f"{sweep.path}: holds the measurement of another command ({' '.join(held['command'])}). Name another "
                "folder with --out."
            )
    elif sweep.path.is_dir() and any(path.name[0] != "." for path in sweep.path.iterdir()):
        raise RefusedError(
            f"{sweep.path}: is not empty and holds no measurement. Name another --out."
        )
    sweep.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(sweep.measured_path, {"point_id": mine, "command": asked.command})
    sweep.make()
    choices = json.dumps(_choices(asked, place))
    row = {"point_id": mine, "position": 0, "reason": None, "choices": choices}
    table = pa.Table.from_pylist([row], schema=GRID).replace_schema_metadata(_ABOUT)
    write_table(sweep.grid_path, table)
    return sweep.claim_attempt(mine)


def _choices(asked: Asked, place: Place) -> dict[str, object]:
    """What was chosen, in the places that a sweep's choices have; the others are null in results."""
    return {
        "measure": {"command": asked.command},
        "power": asdict(asked.power),
        "cluster": {"name": place.job["cluster"], "accounting": True, "group_readable": False},
    }


def _join(sweep: SweepDir, asked: Asked, place: Place) -> AttemptDir:
    """The attempt of this step, made by task 0, in which this node has no part yet; RefusedError if none comes."""
    end = time.monotonic() + JOIN_S
    while time.monotonic() < end:
        for attempt in reversed(sweep.attempts(point_id(asked.command))):
            with contextlib.suppress(FileNotFoundError, DamagedError):
                if read_json(attempt.record_path).get("job") == place.job and _claim_part(
                    attempt, place.node
                ):
                    return attempt
        time.sleep(0.1)
    raise RefusedError(
        f"{sweep.path}: {place.node} waited {JOIN_S:g} s for task 0 of step {place.job['step']} to make it. It has to "
        "measure the same command, and the folder to lie on a disk that all nodes see."
    )


def _claim_part(attempt: AttemptDir, node: str) -> bool:
    """Whether this node's place in an attempt was free, and is now taken."""
    try:
        descriptor = os.open(attempt.part_path(node), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        json.dump({"status": "running"}, file)
    return True


# --- the command ----------------------------------------------------------------------------------


def _check_command(command: Sequence[str]) -> None:
    """CommandError where there is no such command, or it may not be run."""
    if not command:
        raise RefusedError("no command: wattflow measure [--out DIR] -- CMD ...")
    name = command[0]
    if shutil.which(name) is not None:
        return
    if os.sep in name and Path(name).exists():
        raise CommandError(f"{name}: may not be run (is it executable, and no folder?).", 126)
    raise CommandError(f"{name}: command not found.", 127)


class _Signals:
    """What becomes of signals: they end what prepares, go to the command's process group, and never cut what closes."""

    def __init__(self) -> None:
        self._group: int | None = None
        self._starting = self._closing = False
        self._waiting: list[int] = []
        for signum in PASSED_ON:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup means the command too
                signal.signal(signum, self._heed)

    def _heed(self, signum: int, _frame: object) -> None:
        if self._closing:
            return
        if self._starting:
            self._waiting.append(signum)
        elif self._group is None:
            self._closing = True
            name = signal.Signals(signum).name
            raise CommandError(f"ended by {name} before the command started.", 128 + signum)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, signum)

    @contextlib.contextmanager
    def starting(self) -> Iterator[Callable[[int], None]]:
        """Signals wait meanwhile; the function that is given tells the command's process group."""
        self._starting = True
        try:
            yield self._tell_group
        finally:
            self._starting = False

    def _tell_group(self, group: int) -> None:
        self._group = group
        self._starting = False
        for signum in self._waiting:
            self._heed(signum, None)

    def close(self) -> None:
        """From now on signals are passed over: what is left takes a moment."""
        self._closing = True


@contextlib.contextmanager
def _terminal(group: int) -> Iterator[Callable[[], None]]:
    """Give the command the terminal of this process, if it has one, and take it back; yields what a stop calls for."""
    if not (os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()):
        yield _nothing
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or handing it over would stop this one

    def stopped() -> None:
        """Ctrl-Z: stop as the command did, and go on with it."""
        os.tcsetpgrp(0, os.getpgrp())
        os.kill(os.getpid(), signal.SIGSTOP)
        os.tcsetpgrp(0, group)
        os.killpg(group, signal.SIGCONT)

    os.tcsetpgrp(0, group)
    os.killpg(
        group, signal.SIGCONT
    )  # it may have been stopped for reading before the terminal was its own
    try:
        yield stopped
    finally:
        os.tcsetpgrp(0, os.getpgrp())
        signal.signal(signal.SIGTTOU, before)


def _nothing() -> None:
    """A command that was stopped from elsewhere is waited for."""


@dataclass(frozen=True)
class _Ran:
    """A command that has ended: its exit code as a shell says it, when it ran, and the tokens its output told."""

    exit_code: int
    start_ns: int
    end_ns: int
    tokens_out: int | None


def _run(asked: Asked, signals: _Signals, mark: Callable[[], None]) -> _Ran:
    """Run the command to its end, its input and output untouched unless --tokens-json reads the output."""
    reads = asked.tokens_json == STDOUT
    with signals.starting() as tell_group:
        mark()
        start_ns = time.time_ns()
        try:
            process = subprocess.Popen(
                asked.command, process_group=0, stdout=subprocess.PIPE if reads else None
            )
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            raise CommandError(f"{asked.command[0]}: {error.strerror}.", code) from error
        tell_group(process.pid)
    output = _Output(process, asked.tokens_key or "") if reads else None
    with _terminal(process.pid) as stopped:
        code = _wait(process.pid, stopped)
    end_ns = time.time_ns()
    mark()
    process.returncode = code
    signals.close()
    tokens = None if output is None else output.tokens()
    return _Ran(code if code >= 0 else 128 - code, start_ns, end_ns, tokens)


def _wait(pid: int, stopped: Callable[[], None]) -> int:
    """The exit code of a child, negative for a signal."""
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        stopped()


# --- tokens ---------------------------------------------------------------------------------------


class _Output:
    """Passes the command's output on, and counts the tokens in those of its lines that are JSON."""

    def __init__(self, process: "subprocess.Popen[bytes]", key: str) -> None:
        assert process.stdout is not None
        self._pipe, self._key = process.stdout, key
        self._counts: list[int | None] = []
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def _pass_on(self) -> None:
        rest = b""
        while data := os.read(self._pipe.fileno(), 65536):
            with contextlib.suppress(OSError):  # a reader that went away, as `head` does
                _write_all(1, data)
            *lines, rest = (rest + data).split(b"\n")
            self._counts += [_tokens_in_line(line, self._key) for line in lines]
        self._counts.append(_tokens_in_line(rest, self._key))

    def tokens(self) -> int | None:
        """The sum over the lines that tell the key; null where none does."""
        self._thread.join(DRAIN_S)
        return known_sum(list(self._counts))


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _tokens_in_line(line: bytes, key: str) -> int | None:
    if not line.lstrip().startswith(b"{"):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return _tokens_at(json.loads(line), key)
    return None


def _tokens_at(value: Any, key: str) -> int | None:
    """The whole number at a dotted key of a JSON value, summed over a list of values; null where none has it."""
    if isinstance(value, list):
        return known_sum([_tokens_at(each, key) for each in value])
    first, _, rest = key.partition(".")
    if not isinstance(value, dict) or first not in value:
        return None
    inner = value[first]
    if rest:
        return _tokens_at(inner, rest)
    if isinstance(inner, list):
        return known_sum([n if isinstance(n, int) else None for n in inner])
    return inner if isinstance(inner, int) and not isinstance(inner, bool) else None


def _tokens_in_file(path: Path, key: str, start_ns: int) -> tuple[int | None, str | None]:
    """The tokens in a file of JSON or JSON lines that the command wrote, or why they are not known."""
    try:
        # the kernel stamps files by a clock that may be a tick behind
        if path.stat().st_mtime_ns < start_ns - 20_000_000:
            return None, f"{path}: is older than the command, which did not write it."
        text = path.read_bytes()
    except OSError as error:
        return None, f"{path}: {error.strerror}."
    try:
        tokens = _tokens_at(json.loads(text), key)
    except (ValueError, RecursionError):
        tokens = known_sum([_tokens_in_line(line, key) for line in text.splitlines()])
    return tokens, None if tokens is not None else f"{path}: no whole number at {key}."


# --- the measurement ------------------------------------------------------------------------------


def measure(asked: Asked, warn: Callable[[str], None]) -> Outcome:
    """Run the command and measure it; what went wrong with measuring is in the outcome, not an error, once it ran.

    RefusedError, PowerError or CommandError before the command started, the last also where a signal ended that.
    `warn` takes lines for a person.
    """
    if asked.tokens_json is not None and not asked.tokens_key:
        raise RefusedError(
            "--tokens-json: name the tokens' key too, such as usage.completion_tokens."
        )
    _check_command(asked.command)
    place = Place.of(os.environ)
    sweep = _directory(asked, place)
    signals = _Signals()
    if place.task == 0:
        attempt = _make(sweep, asked, place)
        _claim_part(attempt, place.node)
    else:
        attempt = _join(sweep, asked, place)
    measuring = _Measuring(asked, place, attempt)
    base = os.environ.get("SLURM_TMPDIR")
    try:
        with tempfile.TemporaryDirectory(
            prefix="wattflow-measure-", dir=base, ignore_cleanup_errors=True
        ) as spool:
            ran = measuring.run(Path(spool), signals, warn)
    except BaseException as trouble:
        measuring.close(trouble)
        raise
    error = measuring.error
    if place.nodes == 1:
        from wattflow.collect import collect  # noqa: PLC0415 (loaded while the sidecar started)

        try:
            collect(sweep)
        except (WattflowError, OSError, pa.ArrowException) as trouble:
            error = error or str(trouble)
    return Outcome(ran.exit_code, sweep, attempt, place.nodes, error)


def summary(outcome: Outcome) -> list[str]:
    """Lines for a person: joules, watts, tokens and why there are none, then each device's joules in the window."""
    if outcome.error is not None:
        return [f"not measured: {outcome.error}"]
    if outcome.nodes > 1:
        return [f"this node's part is in {outcome.sweep.path}; `wattflow collect` merges all."]
    (row,) = _rows(outcome.sweep.points_path, POINT, outcome.attempt)
    mark = "~" if row["simulated"] else ""
    about = [f"{row['duration_s']:.3f} s" if row["duration_s"] is not None else "no window"]
    if row["energy_j"] is not None:
        about += [f"{mark}{row['energy_j']:.1f} J", f"{mark}{row['power_w']:.1f} W"]
    if row["tokens_kept"]:
        about.append(f"{row['tokens_kept']} output tokens")
    if row["energy_per_token_j"] is not None:
        about.append(f"{mark}{row['energy_per_token_j']:.4g} J/token")
    lines = [f"{', '.join(about)}; {row['power_source']} ({row['boundary']})"]
    devices: dict[str, list[float | None]] = {}
    for phase in _rows(outcome.sweep.phases_path, PHASE, outcome.attempt):
        if phase["phase"] not in (*AROUND, OUTSIDE):
            devices.setdefault(phase["gpu_uuid"], []).append(phase["energy_j"])
    for uuid, parts in devices.items():
        known = [part for part in parts if part is not None]
        joules = f"{mark}{sum(known):.1f} J" if len(known) == len(parts) else "no joules"
        lines.append(f"  {uuid}  {joules}")
    lines += [f"  {REASONS[code][1]}" for code in row["reasons"] if code not in _SAID_OF_ALL]
    return lines


_SAID_OF_ALL = {"no_requests"}


def _rows(path: Path, schema: pa.Schema, attempt: AttemptDir) -> list[dict[str, Any]]:
    """The rows of one attempt in a table of results."""
    table = read_table(path, schema)
    return [row for row in table.to_pylist() if row["attempt"] == attempt.number]


class _Measuring:
    """One node's part in the measurement of a command."""

    def __init__(self, asked: Asked, place: Place, attempt: AttemptDir) -> None:
        self._asked, self._place, self._attempt = asked, place, attempt
        self.error: str | None = None
        self._part: Part = {
            "schema_version": SCHEMA_VERSION,
            "node": place.node,
            "task": place.task,
            "status": "running",
            "error": None,
            "exit_code": None,
            "ranks": [],
            "nodes": [],
            "tokens_out": None,
            "bad_lines": 0,
            "still_running": 0,
        }
        self._record: Record = {
            "schema_version": SCHEMA_VERSION,
            "point_id": attempt.point_id,
            "attempt": attempt.number,
            "status": "running",
            "error": None,
            "error_rank": None,
            "started_ns": time.time_ns(),
            "ended_ns": None,
            "choices": _choices(asked, place),
            "job": place.job,
            "measure": {"command": asked.command, "nodes": place.nodes},
        }

    def _write_record(self) -> None:
        if self._place.task == 0:
            self._attempt.write_record(self._record)

    def run(self, spool: Path, signals: _Signals, warn: Callable[[str], None]) -> _Ran:
        """Start the sidecar, run the command, and write this node's part; raises only while the command has not run."""
        self._write_record()
        told_path = spool / "spans.jsonl"
        told_path.touch(mode=0o600)
        os.environ[ENVIRONMENT] = str(told_path)  # the command's, and the sidecar's to know it by
        with (
            Sidecar(self._asked.power, self._place.node, spool) as sidecar,
            ThreadPoolExecutor(1) as beside,
        ):
            about = beside.submit(_about)
            ready = sidecar.start(self._attempt)
            self._record["versions"], self._record["git"] = about.result()
            ran = _run(self._asked, signals, sidecar.mark)
            try:
                self._finish(ran, sidecar, ready, told_path, warn)
            except (WattflowError, OSError, pa.ArrowException) as error:
                self.error = str(error)
                self.close(error)
        return ran

    def _finish(
        self,
        ran: _Ran,
        sidecar: Sidecar,
        ready: Ready,
        told_path: Path,
        warn: Callable[[str], None],
    ) -> None:
        """Write spans, part and record of a command that ran."""
        self._part["exit_code"] = ran.exit_code
        self._part["still_running"] = _still_running(told_path)
        info = sidecar.stop()
        self._part["tokens_out"] = self._tokens(ran, warn)
        spans, self._part["bad_lines"] = parse(told_path.read_bytes().splitlines())
        write_table(
            self._attempt.spans_path(self._place.node),
            _span_table(pieces(spans, ran.start_ns, ran.end_ns), self._place, info),
        )
        self._part["ranks"] = [
            {
                "rank": RANKS_A_NODE * self._place.task + i,
                "node": self._place.node,
                "local_rank": i,
                "gpu_uuid": device["uuid"],
                "device": device["name"],
            }
            for i, device in enumerate(ready["devices"])
        ]
        self._part["nodes"] = [info]
        self._part["status"] = "finished"
        write_json(self._attempt.part_path(self._place.node), self._part)
        self._record["status"] = "finished"
        self._record["ended_ns"] = time.time_ns()
        self._record["ranks"] = self._part["ranks"]
        self._record["nodes"] = self._part["nodes"]
        self._write_record()

    def _tokens(self, ran: _Ran, warn: Callable[[str], None]) -> int | None:
        """The tokens by JSON: of the command's output, or of a file, which nodes may share and task 0 alone reads."""
        asked = self._asked
        if asked.tokens_json is None or asked.tokens_key is None:
            return None
        if asked.tokens_json == STDOUT:
            if ran.tokens_out is None:
                warn(f"no line of the output is JSON with a whole number at {asked.tokens_key}.")
            return ran.tokens_out
        if self._place.task != 0:
            return None
        tokens, why_not = _tokens_in_file(Path(asked.tokens_json), asked.tokens_key, ran.start_ns)
        if why_not is not None:
            warn(why_not)
        return tokens

    def close(self, error: BaseException) -> None:
        """Keep why there is no measurement."""
        ended = isinstance(error, CommandError) and error.exit_code > 128
        self._part["status"] = self._record["status"] = "interrupted" if ended else "failed"
        self._part["error"] = self._record["error"] = str(error) or type(error).__name__
        self._record["error_rank"] = 0
        self._record["ended_ns"] = time.time_ns()
        with contextlib.suppress(OSError):  # the disk may be what failed
            write_json(self._attempt.part_path(self._place.node), self._part)
            self._write_record()


def _about() -> tuple[dict[str, str], str | None]:
    """Versions and commit for the record; while the sidecar starts it also loads what collects at the end."""
    from wattflow import collect  # noqa: F401, PLC0415 (slow, and here nobody waits for it)
    from wattflow.run import commit, versions  # noqa: PLC0415 (as above)

    return versions(), commit()


def _still_running(told_path: Path) -> int:
    """How many processes of the command outlive it."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal()]
    mine = [pid for pid in pids if pid != os.getpid() and tells(pid, str(told_path))]
    return sum(not _is_child(pid) for pid in mine)


def _is_child(pid: int) -> bool:
    """Whether a process is this one's own child, the sidecar, or on its way out."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return words[0] == "Z" or int(words[1]) == os.getpid()


def _span_table(found: Sequence[Piece], place: Place, info: NodeInfo) -> pa.Table:
    """The spans of a node: each piece is one of every device, as it is not known which device it used."""
    rows = [
        {
            "rank": RANKS_A_NODE * place.task + i,
            "node": place.node,
            "gpu_uuid": device["uuid"],
            "phase": piece.phase,
            "batch": None,
            "start_ns": piece.start_ns,
            "end_ns": piece.end_ns,
            "tokens_in": piece.tokens_in,
            "tokens_kept": piece.tokens_out,
            "tokens_computed": None,
        }
        for piece in found
        for i, device in enumerate(info["devices"])
    ]
    return pa.Table.from_pylist(rows, schema=SPAN).replace_schema_metadata(_ABOUT)
