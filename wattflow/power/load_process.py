"""A process that loads one GPU during a calibration; it speaks JSON lines as `engine.pulsed_load` does.

This module only knows its command.
"""

import contextlib
import json
import select
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wattflow.errors import PowerError, RefusedError
from wattflow.power.sidecar_process import child_environment
from wattflow.store.files import create, read_own

READY_S, ANSWER_S = 180.0, 30.0  # for a load to import torch, and to answer after its last edge


def load_command(text: str) -> list[str]:
    """Return the arguments of a load's command line; RefusedError for none, or one that this machine does not have."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:  # a quotation that does not end
        raise RefusedError(f"--load {text}: {error}.") from error
    if not arguments or shutil.which(arguments[0]) is None:
        raise RefusedError(f"--load {text}: no command that can be run here.")
    return arguments


class Load:
    """The process that loads one GPU: it switches at given times and reports when it did."""

    def __init__(self, command: Sequence[str], uuid: str, log: Path) -> None:
        """Start it; `ready` waits for it."""
        self._uuid, self._log = uuid, log
        with create(log) as file:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**child_environment(), "CUDA_VISIBLE_DEVICES": uuid},
            )

    def ready(self) -> str:
        """Return the name of what it loads, once it is warm and idle; PowerError where that never comes."""
        return str(self._answer("ready", READY_S))

    def switch(self, edges_ns: Sequence[int]) -> None:
        """Have it go on, off, on, off ... at these unix times."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died, which `switched` reports
            self._process.stdin.write(json.dumps({"edges": list(edges_ns)}).encode() + b"\n")
            self._process.stdin.flush()

    def switched(self) -> list[int]:
        """Return the unix times at which it switched, once all edges are over; PowerError where it died."""
        return [int(edge) for edge in self._answer("edges", ANSWER_S)]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self, key: str, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        came, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if came else b""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return json.loads(line)[key]
        lines = read_own(self._log).decode(errors="replace").strip().splitlines()
        why = f"did not answer within {timeout_s:g} s" if not came else f"answered {line[:80]!r}"
        raise PowerError(
            f"the load of {self._uuid} {why} instead of its {key}; its last line: {lines[-1] if lines else 'none'}"
        )
