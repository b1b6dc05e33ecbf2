"""A node's common sidecar (sidecar_server.py) as one of its points sees it: in place of a process of its own."""

import contextlib
import dataclasses
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattflow.config.choices import Control, Power
from wattflow.power.protocol import reachable

CONNECT_S = 60.0  # for a sidecar that comes up beside its points, or is started again
_AGAIN_S = 0.05


@dataclass(frozen=True)
class Common:
    """Where a node's common sidecar listens, and the devices that a point has of the task's."""

    spool: str
    devices: list[str]  # UUIDs


class SidecarConnection:
    """What SidecarProcess is, of a sidecar that other points use too: its end is the connection's."""

    def __init__(
        self, common: Common, power: Power, control: Control, patience_s: float = CONNECT_S
    ) -> None:
        """Connect; OSError where nothing listens for so long."""
        self._socket = _connect(Path(common.spool), patience_s)
        self._lines = self._socket.makefile("rb")
        self.pid = _peer(self._socket)
        self.send(
            {
                "power": dataclasses.asdict(power),
                "control": dataclasses.asdict(control),
                "devices": common.devices,
            }
        )

    @property
    def is_dead(self) -> bool:
        """Whether the sidecar has ended, or this connection."""
        try:
            readable, _, _ = select.select([self._socket], [], [], 0)
            return bool(readable) and not self._socket.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def send(self, command: dict[str, Any]) -> None:
        """Send one command; to a sidecar that is gone nothing is sent."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(command).encode() + b"\n")

    def replies(self) -> Iterator[dict[str, Any]]:
        """Yield its replies until it is gone; lines that are no JSON are skipped."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed by another thread
            for line in self._lines:
                with contextlib.suppress(json.JSONDecodeError):
                    message = json.loads(line)
                    if isinstance(message, dict):
                        yield message

    def wait(self) -> int:
        """Return 0, once the sidecar has closed the connection."""
        for _ in self.replies():
            pass
        self._lines.close()
        self._socket.close()
        return 0

    def hang_up(self) -> None:
        """Say that no command follows, at which the sidecar closes what it records."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End the connection at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End it while it records; the sidecar puts limits back and closes the traces by itself."""
        self.kill()

    def end_idle(self) -> None:
        """End it while it records nothing."""
        self.hang_up()
        self.wait()


def _connect(spool: Path, patience_s: float) -> socket.socket:
    """Return a connection to a spool's socket; the last OSError where there is none after some patience."""
    deadline_s = time.monotonic() + patience_s
    while True:
        one = socket.socket(socket.AF_UNIX)
        try:
            with reachable(spool) as name:
                one.connect(name)
        except OSError:
            one.close()
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(_AGAIN_S)
        else:
            return one


def _peer(connection: socket.socket) -> int:
    """Return the pid of the process at the other end."""
    form = "3i"
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form))
    pid, uid, _gid = struct.unpack(form, data)
    if uid != os.getuid():
        connection.close()
        raise PermissionError(f"the sidecar's socket is held by uid {uid}")
    return int(pid)
