"""The sidecar as its parent sees it: started by local rank 0 of each node, watched, and started again when it dies.

sidecar = Sidecar(config.power, node, spool)
ready = sidecar.start(attempt)      # the first sample of every device lies on disk
sidecar.mark()                      # the measured window starts
...                                 # phases, stamped by the same clock
sidecar.mark()                      # and ends
info = sidecar.stop()               # every trace lies in the attempt
"""

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from wattflow.config.choices import Control, Power
from wattflow.errors import PowerError
from wattflow.power.sidecar_connection import Common, SidecarConnection
from wattflow.power.sidecar_process import SidecarProcess
from wattflow.store.files import read_own

if TYPE_CHECKING:  # they load pyarrow, and after `warm` there is time for that
    from wattflow.store.layout import AttemptDir
    from wattflow.store.schema import Beside, EnergySoFar, MeterInfo, NodeInfo

MOST_FAILURES = 5  # restarts in a row that came to nothing
STEADY_S = 10.0  # a sidecar that lived this long did not fail at once
CLOSE_TIMEOUT_S = 60.0  # for the last copy to a slow shared file system


class Sidecar:
    """Records this node's power for one attempt at a time; a context manager that leaves no process behind."""

    def __init__(
        self,
        power: Power,
        node: str,
        spool: Path,
        control: Control | None = None,
        *,
        ready_timeout_s: float = 60.0,
        common: Common | None = None,
    ) -> None:
        """`control`: limits and clocks that the sidecar sets on its GPUs and puts back; None leaves them as found.

        `common` names a sidecar that serves several points of this node; by default one is started.
        """
        self._power = power
        self._control = Control() if control is None else control
        self._node = node
        self._spool = spool
        self._common = common
        self._ready_timeout_s = ready_timeout_s
        self._changed = threading.Condition()
        self._watcher: threading.Thread | None = None
        self._process: SidecarProcess | SidecarConnection | None = None
        self._warm: SidecarProcess | SidecarConnection | None = (
            None  # started before there is an attempt to record
        )
        self._forget()

    def _forget(self) -> None:
        self._ready: MeterInfo | None = None
        self._restarts = 0
        self._stopping = False
        self._keep = False
        self._closed = False
        self._lost: str | None = None
        self._so_far: EnergySoFar | None = None
        self._beside: Beside | None = None
        self._before_j = 0.0  # by processes of this attempt that died

    def __enter__(self) -> Self:
        """The sidecar itself, not yet started."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, if one is left."""
        self.close()

    @property
    def pid(self) -> int | None:
        """The process that records now, or None."""
        return None if self._process is None else self._process.pid

    @property
    def restarts(self) -> int:
        """How often the process was started again during this attempt."""
        return self._restarts

    def warm(self) -> None:
        """Start the process before it is known where its traces will lie; `start` then waits that much less."""
        self._warm = self._spawn(self._spool / "sidecar.log")

    def start(self, attempt: "AttemptDir") -> "MeterInfo":
        """Start recording; returns what is measured once the first sample of every device lies on disk.

        PowerError, with the log's path and last line, when that takes too long or the sidecar cannot measure.
        """
        if self._watcher is not None:
            raise PowerError(f"the sidecar of {self._node} is recording already: stop it first.")
        self._forget()
        self._log_path = attempt.sidecar_log_path(self._node)
        if self._warm is not None and self._warm.is_dead:  # died between attempts
            self._end_warm()
        with contextlib.suppress(OSError):  # the watching thread reports it
            self._warm = self._warm or self._spawn(self._log_path)
        self._watcher = threading.Thread(
            target=self._watch, args=(attempt,), name="sidecar-watch", daemon=True
        )
        self._watcher.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._lost, self._ready_timeout_s)
            ready, lost = self._ready, self._lost
        if ready is None or lost is not None:
            self.close()
            fault = lost or f"not ready after {self._ready_timeout_s:g} s."
            raise _error(self._node, fault, self._log_path, self._lost)
        return ready

    def mark(self) -> None:
        """Have the energy counters read densely now, at an edge of the measured window; returns at once."""
        with self._changed:
            if self._process is not None:
                self._process.send({"mark": True})

    def so_far(self) -> "EnergySoFar | None":
        """Return the energy of this node's devices since the first sample, some seconds old; null at first."""
        with self._changed:
            return self._so_far

    def check(self) -> None:
        """PowerError when the sidecar is lost for good, so that the attempt's energy is unknown."""
        with self._changed:
            lost = self._lost
        if lost is not None:
            raise _error(self._node, lost, self._log_path, lost)

    def stop(self, timeout_s: float = CLOSE_TIMEOUT_S, *, keep: bool = False) -> "NodeInfo":
        """End recording; returns what measured this node once every trace lies in the attempt; PowerError if lost.

        `keep` leaves the process to the next `start`, if that is what `start` itself began.
        """
        with self._changed:
            if self._watcher is None or self._ready is None:
                raise PowerError(f"the sidecar of {self._node} was not started.")
            self._stopping, self._keep = True, keep and self._restarts == 0
            if self._process is not None:
                self._process.send({"close": True})
            self._changed.wait_for(lambda: self._closed or self._lost, timeout_s)
            if not (self._closed or self._lost):
                self._lost = f"did not close its traces within {timeout_s:g} s."
            ready, so_far = self._ready, self._so_far
            goes_on = self._keep and self._closed and self._lost is None
        if goes_on:
            self._watcher.join()
            self._watcher = None
            _drop_if_empty(self._log_path)
        else:
            self.close()
        self.check()
        return _closed(ready, self._restarts, so_far, self._beside)

    def close(self) -> None:
        """End the process whatever it is doing; what it recorded stays readable. Never raises for a dead one."""
        self._end_warm()
        if self._watcher is None:
            return
        with self._changed:
            self._stopping = True
            closed = self._closed
            process = self._process
            if not closed and self._lost is None:
                self._lost = "ended before its traces were closed."
        if process is not None:
            if closed:
                process.hang_up()
            else:
                process.end()
        self._watcher.join()
        self._watcher = None
        self._process = None
        _drop_if_empty(self._log_path)

    def _end_warm(self) -> None:
        if self._warm is not None:
            self._warm.end_idle()
            self._warm = None

    def _spawn(self, log_path: Path) -> SidecarProcess | SidecarConnection:
        if self._common is not None:
            return SidecarConnection(self._common, self._power, self._control)
        return SidecarProcess(self._node, self._spool, self._power, self._control, log_path)

    # ---- the watching thread ----

    def _watch(self, attempt: "AttemptDir") -> None:
        """Keep a sidecar alive until its traces are closed.

        What it starts it outlives, since the kernel's parent-death signal follows the thread. The first process is
        begun by `start`, so that it may go on after this thread.
        """
        failures = 0
        while True:
            born_s = time.monotonic()
            try:
                process, self._warm = self._warm or self._spawn(self._log_path), None
            except OSError as error:
                with self._changed:
                    self._lost = f"could not be started ({error})."
                    self._changed.notify_all()
                return
            with self._changed:
                self._process = process
                if self._lost:  # closed while no process was there to be killed
                    process.kill()
                process.send(
                    {
                        "open": str(attempt.path),
                        "log": str(self._log_path),
                        "point_id": attempt.point_id,
                        "attempt": attempt.number,
                    }
                )
                if self._stopping:
                    process.send({"close": True})
            reported = self._listen(process)
            with self._changed:
                if self._closed and self._keep and not self._lost:
                    self._warm, self._process = process, None
                    return
            code = process.wait()
            with self._changed:
                if self._closed or self._lost:
                    return
                fault = reported or f"ended with code {code}."
                failures = 1 if time.monotonic() - born_s > STEADY_S else failures + 1
                if self._ready is None or failures > MOST_FAILURES:
                    times = "" if self._ready is None else f"died {failures} times in a row. "
                    self._lost = f"{times}{fault}"
                    self._changed.notify_all()
                    return
                self._restarts += 1
                self._before_j = 0.0 if self._so_far is None else self._so_far["energy_j"]
            # the first restart is at once: the buffer holds 2.36 s
            time.sleep(0.1 * (failures - 1))

    def _listen(self, process: SidecarProcess | SidecarConnection) -> str | None:
        """Handle a process's replies until it closes its end; returns the error that it reported, if any."""
        error = None
        for line in process.replies():
            with self._changed:
                if "ready" in line:
                    self._set_ready(line["ready"])
                elif "so_far" in line:
                    so_far: EnergySoFar = line["so_far"]
                    self._so_far = {**so_far, "energy_j": self._before_j + so_far["energy_j"]}
                elif "beside" in line:
                    self._beside = line["beside"]
                elif "closed" in line:
                    self._closed = True
                    if not self._stopping:
                        self._lost = f"ended by {line['closed']} while it was needed."
                    elif self._keep:
                        self._changed.notify_all()
                        return None
                elif "error" in line:
                    error = str(line["error"])
                self._changed.notify_all()
        return error

    def _set_ready(self, ready: "MeterInfo") -> None:
        """Keep the first answer; a later one must measure the same things by the same sensor."""
        if self._ready is None:
            self._ready = ready
        elif (now := _measured(ready)) != (before := _measured(self._ready)):
            self._lost = f"measures {now} after a restart, and before it measured {before}."
            if self._process is not None:
                self._process.kill()


def _closed(
    ready: "MeterInfo", restarts: int, so_far: "EnergySoFar | None", beside: "Beside | None"
) -> "NodeInfo":
    energy_j = None if so_far is None else so_far["energy_j"]
    return {**ready, "sidecar_restarts": restarts, "energy_j": energy_j, "beside": beside}


def _error(node: str, fault: str, log_path: Path, lost: str | None) -> PowerError:
    return PowerError(f"the sidecar of {node}: {fault} {_log_hint(log_path, lost)}")


def _drop_if_empty(log_path: Path) -> None:
    with contextlib.suppress(OSError):
        if log_path.stat().st_size == 0:
            log_path.unlink()


def _log_hint(log_path: Path, lost: str | None) -> str:
    """Where a sidecar's log lies, and its last line unless that is why it was lost."""
    try:
        lines = read_own(log_path).decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    if not lines:
        return "Its log is empty. Run `wattflow doctor` on that node."
    if lost is not None and lost in lines[-1]:
        return f"Its log is {log_path}."
    return f"Its log is {log_path}; the last line: {lines[-1]}"


def _measured(ready: "MeterInfo") -> str:
    """Return what a sidecar measures, by which sensors."""
    host = ready.get("host")
    what = [f"{ready['source']} of {', '.join(device['uuid'] for device in ready['devices'])}"]
    return " and ".join(what if host is None else [*what, f"{host['source']} of {host['uuid']}"])
