"""The messages between a rank and its node's sidecar, as lines of JSON; sidecar.py lists them."""

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from wattflow.config.choices import Control, Power
from wattflow.store.files import check_name

Command = dict[str, Any]
Reply = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """The sidecar's argument: whose it is, and the choices that it needs."""

    node: str
    spool: Path
    parent_pid: int
    power: Power
    control: Control

    @classmethod
    def parse(cls, text: str) -> "Settings":
        """Read the JSON argument."""
        argument = json.loads(text)
        return cls(
            check_name(argument["node"], "node"),
            Path(argument["spool"]),
            int(argument["parent_pid"]),
            Power(**argument["power"]),
            Control(**argument["control"]),
        )


_SOCKET = "socket"  # in the spool


@contextlib.contextmanager
def reachable(spool: Path) -> Iterator[str]:
    """A short name of the spool's socket while it is needed: Linux takes 107 bytes of such a name."""
    folder = os.open(spool, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{_SOCKET}"
    finally:
        os.close(folder)


class Commands:
    """Lines from stdin, and SIGTERM, as commands; {"end": why} is the last."""

    def __init__(self, descriptor: int) -> None:
        """Read from a descriptor; `take_signals` adds SIGTERM."""
        self._descriptor = descriptor
        self._text = b""
        self._ended: str | None = None
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)

    def take_signals(self) -> None:
        """Have SIGTERM end the commands from now on; the main thread alone may call this."""
        signal.signal(signal.SIGTERM, self._terminate)
        # Ctrl-C reaches every process of the terminal; the parent says when to end
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # so does Slurm's warning of a preemption or of the time limit
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.set_wakeup_fd(self._waker.fileno())

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self.end("SIGTERM")

    def end(self, why: str) -> None:
        """End the commands, from any thread."""
        self._ended = why
        with contextlib.suppress(OSError):  # it is awake already, or closed
            self._waker.send(b"\0")

    def wait(self, timeout_s: float | None) -> Command | None:
        """Return the next command, or None when the time is up; no time-out with None."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._ended:
                return {"end": self._ended}
            if b"\n" in self._text:
                line, self._text = self._text.split(b"\n", 1)
                command: Command = json.loads(line)
                return command
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            wake = self._wake.fileno()
            readable, _, _ = select.select([self._descriptor, wake], [], [], left_s)
            if not readable:
                return None
            if wake in readable:
                self._wake.recv(64)
            if self._descriptor in readable:
                data = self._read()
                self._text += data
                if not data:
                    self._ended = "end of stdin"

    def _read(self) -> bytes:
        """Return what has come, nothing at the end; a connection whose other end was killed has ended too."""
        with contextlib.suppress(ConnectionResetError):
            return os.read(self._descriptor, 65536)
        return b""

    def close(self) -> None:
        """Give back what waiting took; the descriptor is the caller's."""
        self._wake.close()
        self._waker.close()
