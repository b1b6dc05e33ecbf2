"""Measure any command: a sweep's sidecar around it, and a sweep directory of one point as what comes of it.

    wattflow measure [--out DIR] -- CMD ...

    sidecar warm -> directory (wattflow.measurement) -> sidecar ready -> the command, which tells its spans
        (wattflow.told) -> sidecar closed -> spans, part, record

In a Slurm step over several nodes there is one `measure` a node.

Until the command starts, whatever is wrong ends `measure`, and the command is not run. From then on nothing that goes
wrong with measuring touches the command, and its exit code is that of `measure`.

This module loads nothing heavy: the sidecar is under way before pyarrow is, and both take their time at once.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattflow.config import Power, check_value
from wattflow.errors import CommandError, RefusedError
from wattflow.power.parent import Sidecar
from wattflow.process import node_name
from wattflow.told import ENVIRONMENT, known_sum

if TYPE_CHECKING:
    from wattflow.schema import JobInfo

STDOUT = "-"  # --tokens-json: the lines of the command's own output
DRAIN_S = 0.5  # for the last lines of an output that a daemon may hold open
PASSED_ON = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2),  # by which Slurm tells of a time limit
)


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
    """How a measurement ended: the exit code of the command, lines for a person, and what could not be measured."""

    exit_code: int
    folder: Path
    lines: list[str]
    complete: bool  # measured, and collected: not where other nodes have parts, too


@dataclass(frozen=True)
class Place:
    """Where this process stands: alone, or as one node's of a Slurm step."""

    node: str
    task: int
    nodes: int
    job: "JobInfo"

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
class Ran:
    """A command that has ended: its exit code as a shell says it, when it ran, and the tokens its output told."""

    exit_code: int
    start_ns: int
    end_ns: int
    tokens_out: int | None


def _run(asked: Asked, signals: _Signals, mark: Callable[[], None]) -> Ran:
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
    return Ran(code if code >= 0 else 128 - code, start_ns, end_ns, tokens)


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


# --- from start to end ----------------------------------------------------------------------------


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
    signals = _Signals()
    base = os.environ.get("SLURM_TMPDIR")
    with (
        tempfile.TemporaryDirectory(
            prefix="wattflow-measure-", dir=base, ignore_cleanup_errors=True
        ) as spool,
        Sidecar(asked.power, place.node, Path(spool)) as sidecar,
    ):
        told = Path(spool) / "spans.jsonl"
        told.touch(mode=0o600)
        os.environ[ENVIRONMENT] = str(told)  # the command's, and the sidecar's to know it by
        sidecar.warm()
        from wattflow.measurement import Measurement  # noqa: PLC0415 (pyarrow, while the sidecar starts)

        measurement = Measurement(asked, place)
        try:
            measurement.open(sidecar)
            ran = _run(asked, signals, sidecar.mark)
        except BaseException as error:
            measurement.close(
                error, interrupted=isinstance(error, CommandError) and error.exit_code > 128
            )
            raise
        tokens = _tokens(asked, place, ran, warn)
        lines, complete = measurement.finish(sidecar, ran, told, tokens)
    return Outcome(ran.exit_code, measurement.folder, lines, complete)


def _tokens(asked: Asked, place: Place, ran: Ran, warn: Callable[[str], None]) -> int | None:
    """The tokens by JSON: of the command's output, or of a file, which nodes may share and task 0 alone reads."""
    if asked.tokens_json is None or asked.tokens_key is None:
        return None
    if asked.tokens_json == STDOUT:
        if ran.tokens_out is None:
            warn(f"no line of the output is JSON with a whole number at {asked.tokens_key}.")
        return ran.tokens_out
    if place.task != 0:
        return None
    tokens, why_not = _tokens_in_file(Path(asked.tokens_json), asked.tokens_key, ran.start_ns)
    if why_not is not None:
        warn(why_not)
    return tokens
