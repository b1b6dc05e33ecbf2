"""A node's common sidecar as the task that starts it sees it: kept alive until the task's last point has ended."""

import contextlib
import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

from wattflow import process
from wattflow.errors import PowerError
from wattflow.power.sidecar_process import child_environment
from wattflow.store.files import open_append, read_own

START_S = 60.0
END_S = 60.0  # for traces to be closed
_MOST_FAILURES = 5  # in a row
_STEADY_S = 10.0


class CommonSidecar:
    """A context manager; the process is started again when it dies, and points connect to the new one.

    Points may be started before it listens: they wait for it, and meanwhile all come up together.
    """

    def __init__(self, node: str, spool: Path, slots: int, parent_pid: int) -> None:
        """Nothing is started yet. Messages go to spool/sidecar.log."""
        self._settings = {
            "node": node,
            "spool": str(spool),
            "parent_pid": parent_pid,
            "slots": slots,
        }
        self._spool, self._log = spool, spool / "sidecar.log"
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._listens = False
        self._ending = False
        self._lost: str | None = None
        self._watcher = threading.Thread(target=self._watch, name="common-sidecar", daemon=True)

    def __enter__(self) -> Self:
        """Begin to start it."""
        self._spool.mkdir(mode=0o700, exist_ok=True)
        self._began_s = time.monotonic()
        self._watcher.start()
        return self

    def check(self) -> None:
        """Raise PowerError where it has never come to listen, and will not any more."""
        with self._changed:
            late = time.monotonic() - self._began_s > START_S
            why = self._lost or (f"not ready after {START_S:g} s." if late else None)
            if not self._listens and why is not None:
                raise PowerError(f"the common sidecar of {self._settings['node']}: {why}")

    def __exit__(self, *_: object) -> None:
        """End it, once all traces are closed."""
        with self._changed:
            self._ending = True
            one = self._process
        if one is not None:
            with contextlib.suppress(OSError):
                assert one.stdin is not None
                one.stdin.close()
            try:
                one.wait(END_S)
            except subprocess.TimeoutExpired:
                one.kill()
        self._watcher.join()

    def _watch(self) -> None:
        """Keep it alive; the kernel's parent-death signal follows this thread, which lives as long as the task."""
        failures = 0
        while True:
            born_s = time.monotonic()
            with self._changed:
                if self._ending:
                    return
                self._process = one = self._start()
            why = self._listen(one)
            code = one.wait()
            for pipe in (one.stdin, one.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            failures = 1 if time.monotonic() - born_s > _STEADY_S else failures + 1
            with self._changed:
                if not self._listens or failures > _MOST_FAILURES:
                    self._lost = why or f"ended with code {code}. {self._last_words()}"
                self._changed.notify_all()
                if self._lost is not None or self._ending:
                    return
            time.sleep(0.1 * (failures - 1))

    def _start(self) -> "subprocess.Popen[bytes]":
        with open_append(self._log) as log:
            return subprocess.Popen(
                process.python("-m", "wattflow.power.sidecar_server", json.dumps(self._settings)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**child_environment(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    def _listen(self, one: "subprocess.Popen[bytes]") -> str | None:
        """Take its messages until it ends; the error that it reported, if any."""
        error = None
        for line in one.stdout or ():
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                error = message.get("error", error)
                if message.get("listening"):
                    with self._changed:
                        self._listens = True
                        self._changed.notify_all()
        return error

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = read_own(self._log).decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""
