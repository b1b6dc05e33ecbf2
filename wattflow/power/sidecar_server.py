"""One sidecar for the points that run side by side on a node; each speaks to it as to a sidecar of its own.

    python -m wattflow.power.sidecar_server '{"node": "n1", "spool": "/tmp/x", "parent_pid": 42, "slots": 2}'

    stdout      {"listening": true}     points may connect to SPOOL/socket
    socket      {"power": {...}, "control": {...}, "devices": [UUID, ...]}    first
                then the lines of sidecar.py, both ways

A connection has a meter of its own for its own devices and a thread that reads it, so that a slow call for one GPU
holds up no other, and one point's meter or limits change nothing for its neighbours. When a connection ends, its traces
are closed, and then its devices are free for the next one. The process ends with its parent.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wattflow.config.choices import Control, Power
from wattflow.errors import PowerError, WattflowError
from wattflow.power.gpus import find_gpus
from wattflow.power.neighbours import NodeWatch, Window
from wattflow.power.nvml_calls import call, call_or_none
from wattflow.power.protocol import Commands, Settings, reachable
from wattflow.power.serving import Parent, serve
from wattflow.power.sidecar import only_one, report
from wattflow.process import die_with_parent
from wattflow.store.files import check_name, open_append

log = logging.getLogger(__name__)

FREE_S = 60.0  # for the traces of the point before on the same devices to be closed
_BACKLOG = 128


class Server:
    """Serves connections, a thread each, until its own commands end."""

    def __init__(self, settings: Settings, watch: NodeWatch) -> None:
        self._settings, self._watch = settings, watch
        self._locks = {uuid: threading.Lock() for uuid in watch.uuids}
        self._open: list[Commands] = []
        self._threads: list[threading.Thread] = []
        self._ended = False

    def run(self, listener: socket.socket, commands: Commands) -> None:
        """Accept connections; on return all their traces are closed."""
        accepting = threading.Thread(target=self._accept, args=[listener], daemon=True)
        accepting.start()
        while "end" not in (commands.wait(None) or {}):
            pass
        self._ended = True
        for one in list(self._open):
            one.end("SIGTERM")
        for thread in list(self._threads):
            thread.join()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            thread = threading.Thread(target=self._serve, args=[connection], daemon=True)
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        """Serve one point until its connection ends; an error is its last line."""
        commands = Commands(connection.fileno())
        self._open.append(commands)
        if self._ended:  # it came while the others were ended
            commands.end("SIGTERM")
        logs = _OwnLog()

        def reply(message: dict[str, Any]) -> None:
            with contextlib.suppress(OSError):  # it is gone
                connection.sendall(json.dumps(message).encode() + b"\n")

        try:
            hello = commands.wait(None) or {}
            if "end" not in hello:
                uuids = [str(uuid) for uuid in hello["devices"]]
                power, control = Power(**hello["power"]), Control(**hello["control"])
                settings = replace(self._settings, power=power, control=control)
                with self._taken(uuids):
                    parent = Parent(commands, reply, logs.to, lambda: self._window(uuids))
                    serve(settings, parent, uuids)
        except (
            WattflowError,
            OSError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            log.error("%s", error)  # noqa: TRY400 - the message is for people; a traceback adds nothing
            reply({"error": str(error)})
        finally:
            logs.close()
            self._open.remove(commands)
            commands.close()
            connection.close()

    def _window(self, uuids: Sequence[str]) -> Window:
        return self._watch.window(uuids)

    @contextlib.contextmanager
    def _taken(self, uuids: Sequence[str]) -> Iterator[None]:
        """Hold devices: two points on one GPU would each be billed for both; PowerError where another keeps one."""
        deadline_s = time.monotonic() + FREE_S
        with contextlib.ExitStack() as held:
            for uuid in sorted(uuids):
                if uuid not in self._locks:
                    raise PowerError(
                        f"{uuid} is none of this task's GPUs ({', '.join(sorted(self._locks))}): the points of a node "
                        "that run side by side must see the same GPUs. Look at how the profile asks for them."
                    )
                lock = self._locks[uuid]
                if not lock.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
                    raise PowerError(f"{uuid} is measured for another point of this node already.")
                held.callback(lock.release)
            yield


class _OwnLog(logging.Handler):
    """What the thread of a connection logs, in the log of the attempt that it records."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self._path: Path | None = None
        self.setFormatter(logging.Formatter("%(asctime)s sidecar: %(message)s"))
        logging.getLogger().addHandler(self)

    def to(self, path: Path) -> None:
        """Write to this file from now on."""
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line, if it is this thread's."""
        if record.thread == self._thread and self._path is not None:
            with contextlib.suppress(OSError, WattflowError), open_append(self._path) as file:
                file.write(self.format(record).encode() + b"\n")

    def close(self) -> None:
        """Take no more lines."""
        logging.getLogger().removeHandler(self)
        super().close()


def listen(settings: Settings, slots: int) -> None:
    """Serve until stdin ends or SIGTERM comes."""
    commands = Commands(sys.stdin.fileno())
    commands.take_signals()
    job = check_name(os.environ.get("SLURM_JOB_ID", "local"), "job")
    with only_one(settings.spool, job, settings.node):
        call("nvmlInit")
        watch = NodeWatch(find_gpus(), slots)
        watch.start()
        try:
            with reachable(settings.spool) as name, socket.socket(socket.AF_UNIX) as listener:
                with contextlib.suppress(FileNotFoundError):  # of one that was killed
                    os.unlink(name)  # noqa: PTH108 - a name below /proc
                listener.bind(name)
                listener.listen(_BACKLOG)
                report({"listening": True})
                Server(settings, watch).run(listener, commands)
        finally:
            watch.stop()
            call_or_none("nvmlShutdown")


def main() -> int:
    """Serve until a command ends it; 0, or 1 with the reason on stdout and in the log."""
    argument = json.loads(sys.argv[1])
    settings = Settings.parse(json.dumps({"power": {}, "control": {}, **argument}))
    die_with_parent(settings.parent_pid)
    logging.basicConfig(
        format=f"%(asctime)s sidecar {settings.node}: %(message)s", level=logging.WARNING
    )
    try:
        settings.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        listen(settings, int(argument["slots"]))
    except (WattflowError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - as above
        report({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)
