"""One sidecar process as its parent sees it: commands go in, replies come out, as lines of JSON."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wattflow
from wattflow import process
from wattflow.config.choices import Control, Power
from wattflow.store.files import open_append

IDLE_END_S = 5.0  # for one that records nothing to end
RESTORE_TIMEOUT_S = 10.0  # for limits and clocks to be put back


class SidecarProcess:
    """A running `python -m wattflow.power.sidecar`; protocol.py says what goes in and out."""

    def __init__(
        self, node: str, spool: Path, power: Power, control: Control, log_path: Path
    ) -> None:
        """Start it, with stderr added to a log; OSError where it cannot be started."""
        settings = {
            "node": node,
            "spool": str(spool),
            "parent_pid": os.getpid(),
            "power": dataclasses.asdict(power),
            "control": dataclasses.asdict(control),
        }
        environment = {
            **child_environment(),
            # one thread is enough for sorting, and each more costs memory
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with open_append(log_path) as log:
            self._process = subprocess.Popen(
                process.python("-m", "wattflow.power.sidecar", json.dumps(settings)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        # limits and clocks that were set have to be put back when it ends
        self._restores = control.power_limit_w is not None or control.sm_clock_mhz is not None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_dead(self) -> bool:
        """Whether it is dead."""
        return self._process.poll() is not None

    def send(self, command: dict[str, Any]) -> None:
        """Send one command; to a dead process nothing is sent."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(json.dumps(command).encode() + b"\n")
                self._process.stdin.flush()

    def replies(self) -> Iterator[dict[str, Any]]:
        """Yield its replies until it closes its end; lines that are no JSON are skipped."""
        for line in self._process.stdout or ():
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    yield message

    def wait(self) -> int:
        """Return its exit code, once it has ended; its pipes are closed then."""
        code = self._process.wait()
        self.hang_up()
        return code

    def hang_up(self) -> None:
        """Close its stdin, at whose end it ends by itself; and its stdout, if it is dead."""
        for pipe in (self._process.stdin, self._process.stdout if self.is_dead else None):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def end(self) -> None:
        """End it while it records: at once, unless it has limits to put back first."""
        if self._restores:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(RESTORE_TIMEOUT_S)
        self._process.kill()

    def end_idle(self) -> None:
        """End it while it records nothing: by the end of its stdin if it hears that, so that it puts limits back."""
        self.hang_up()
        try:
            self._process.wait(IDLE_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.hang_up()


def child_environment() -> dict[str, str]:
    """Return the environment for a child that is to find the same wattflow as this one, also from a checkout."""
    home = str(Path(wattflow.__file__).parent.parent)
    added = [] if home == sysconfig.get_path("purelib") else [home]
    paths = [*added, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
