"""Run any command beside a sweep's sidecar, and leave a sweep directory of one point.

    wattflow measure [--out DIR] -- CMD ...
    wattflow measure [--out DIR] --pid PID | --job ID [--for 60s]      what runs already: watch.py

    sidecar warm -> directory (record.py) -> sidecar ready -> the command, which reports its spans (timeline.py)
        -> sidecar closed -> spans, part, record

In a Slurm step over several nodes there is one `measure` a node.

Before the command starts, an error ends `measure` and the command is not run. From then on no fault of measuring
touches the command, and its exit code is that of `measure`.

This module imports nothing heavy: the sidecar starts first, and pyarrow is imported meanwhile.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wattflow import process
from wattflow.config.choices import Power
from wattflow.config.overrides import with_settings
from wattflow.errors import CommandError, RefusedError
from wattflow.measure.request import FORWARDED, CommandRun, Outcome, Place, Request
from wattflow.measure.stops import Stops
from wattflow.measure.tokens import STDOUT, Output, count_tokens
from wattflow.power.sidecar_client import Sidecar
from wattflow.spans import ENVIRONMENT

if TYPE_CHECKING:
    from wattflow.measure.watch import Found

_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def power_settings(settings: Sequence[str]) -> Power:
    """Return the meter's settings of `power.KEY=VALUE`; RefusedError for another key, a wrong type or value."""
    return with_settings(Power(), "power", settings)


# --- the command ----------------------------------------------------------------------------------


def check_command(command: Sequence[str]) -> None:
    """Raise CommandError where there is no such command, or it may not be run."""
    if not command:
        raise RefusedError("no command: wattflow measure [--out DIR] -- CMD ...")
    name = command[0]
    if shutil.which(name) is not None:
        return
    if os.sep in name and Path(name).exists():
        raise CommandError(f"{name}: may not be run (is it executable, and no folder?).", 126)
    raise CommandError(f"{name}: command not found.", 127)


class _Signals:
    """Ends the preparation at a signal, forwards signals to the command, and ignores them while files are closed."""

    def __init__(self) -> None:
        self._group: int | None = None
        self._starting = self._closing = False
        self._waiting: list[int] = []
        for signum in FORWARDED:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup means the command too
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, _frame: object) -> None:
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
                if signum in _ENDING:  # one that is stopped would never hear of it
                    os.killpg(self._group, signal.SIGCONT)

    @contextlib.contextmanager
    def starting(self) -> Iterator[Callable[[int], None]]:
        """Hold signals back until the command's process group is known; yields the function that sets it."""
        self._starting = True
        try:
            yield self._set_group
        finally:
            self._starting = False

    def _set_group(self, group: int) -> None:
        self._group = group
        self._starting = False
        for signum in self._waiting:
            self._handle(signum, None)

    def close(self) -> None:
        """Ignore signals from now on: what is left takes a moment."""
        self._closing = True


@contextlib.contextmanager
def _terminal(group: int) -> Iterator[Callable[[], None]]:
    """Lend the command this process's terminal, if it has one; yields the function to call when the command stops."""
    if not (os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()):
        yield _nothing
        return
    before = signal.signal(
        signal.SIGTTOU, signal.SIG_IGN
    )  # or handing it over would stop this process

    def stopped() -> None:
        """Ctrl-Z: stop as the command did, and continue together with it."""
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
    """Without a terminal, wait for whoever stopped the command to continue it."""


def _run(request: Request, signals: _Signals, mark: Callable[[], None]) -> CommandRun:
    """Run the command to its end, its input and output untouched unless --tokens-json reads the output."""
    reads = request.tokens_json == STDOUT
    with signals.starting() as set_group:
        mark()
        start_ns = time.time_ns()
        try:
            process = subprocess.Popen(
                request.command, process_group=0, stdout=subprocess.PIPE if reads else None
            )
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            raise CommandError(f"{request.command[0]}: {error.strerror}.", code) from error
        set_group(process.pid)
    output = Output(process, request.tokens_key or "") if reads else None
    stops = Stops()
    with stops.watched(process.pid), _terminal(process.pid) as stopped:
        code = _wait(process.pid, stopped, stops)
    end_ns = time.time_ns()
    mark()
    process.returncode = code
    signals.close()
    tokens = None if output is None else output.tokens()
    fault = None if output is None else output.fault
    exit_code = code if code >= 0 else 128 - code
    return CommandRun(exit_code, start_ns, end_ns, tokens, fault, stops.intervals())


def _wait(pid: int, stopped: Callable[[], None], stops: Stops) -> int:
    """Wait for a child, and note when it stands still; its exit code, negative for a signal."""
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED)
        if os.WIFSTOPPED(status):
            stops.begin()
            stopped()
        elif os.WIFCONTINUED(status):
            stops.end()
        else:
            return os.waitstatus_to_exitcode(status)


# --- from start to end ----------------------------------------------------------------------------


def measure(request: Request, warn: Callable[[str], None]) -> Outcome:
    """Run a command and measure it; once it runs, faults of measuring are lines of the outcome, not errors.

    RefusedError, PowerError or CommandError before the command starts, the last also after a signal. `warn` takes
    lines for a person.
    """
    if request.tokens_json is not None and not request.tokens_key:
        raise RefusedError(
            "--tokens-json: name the tokens' key too, such as usage.completion_tokens."
        )
    found = None if request.watched is None else _found(request)
    if found is None:
        check_command(request.command)
    else:
        request = replace(request, command=found.words)
    place = Place.of(os.environ)
    signals = _Signals()
    base = os.environ.get("SLURM_TMPDIR")
    with (
        tempfile.TemporaryDirectory(
            prefix="wattflow-measure-", dir=base, ignore_cleanup_errors=True
        ) as spool,
        Sidecar(request.power, place.node, Path(spool)) as sidecar,
    ):
        spans_file = Path(spool) / "spans.jsonl"
        spans_file.touch(mode=0o600)
        # the command inherits it, and the sidecar knows the command's processes by it
        os.environ[ENVIRONMENT] = str(spans_file)
        sidecar.warm()
        from wattflow.measure.record import Measurement  # noqa: PLC0415 (pyarrow, while the sidecar starts)

        measurement = Measurement(request, place)
        try:
            measurement.open(sidecar)
            lines = []
            if found is None:
                run = _run(request, signals, sidecar.mark)
            else:
                assert request.watched is not None
                run, why = found.watch(request.watched.for_s, sidecar.mark)
                lines.append(why)
        except BaseException as error:
            measurement.close(
                error, interrupted=isinstance(error, CommandError) and error.exit_code > 128
            )
            raise
        tokens = count_tokens(request, place, run, warn)
        said, complete = measurement.finish(sidecar, run, spans_file, tokens)
    return Outcome(run.exit_code, measurement.folder, lines + said, complete)


def _found(request: Request) -> "Found":
    """Return what is watched, and have the sidecar measure its GPUs and know its processes; RefusedError."""
    from wattflow.measure.watch import find  # noqa: PLC0415 (it loads pynvml, which a command does not wait for)

    asked = request.watched
    assert asked is not None
    if request.command:
        raise RefusedError(
            f"--{asked.kind} {asked.number}: it runs already, so there is no command to start."
        )
    if request.tokens_json is not None:
        raise RefusedError(
            f"--tokens-json: of a command that `measure` starts, not of --{asked.kind}."
        )
    found = find(asked, request.power.meter)
    number = found.words[1]  # of a task of an array, its job's
    os.environ[process.WATCHED] = f"{asked.kind}:{number}"
    if found.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(found.gpus)
    return found
