"""Ends a rank that hangs: in a collective that never comes, on a GPU that does not answer, at a disk that went away.

    moved ... moved ... nothing for limit_s: the stacks of all threads go to stderr
                        and GRACE_S later: `end`, then the process is ended, whatever it waits in

The stacks are written by a thread of the interpreter's own that needs no lock of Python's, so that they come out in any
case. Ranks hang together, each in its own place, so all of them write before the first one ends.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from typing import Self

from wattflow.config.choices import Config
from wattflow.errors import WattflowError
from wattflow.run.place import Progress

GRACE_S = 5.0
END_S = 30.0  # for `end`

_STDERR = 2  # the rank's log, also where sys.stderr is something else


class HungError(WattflowError, RuntimeError):
    """Nothing moved for longer than sweep.hang_s."""


def hang_limit_s(config: Config) -> float:
    """How long nothing may move: sweep.hang_s beside the longest time that a phase waits on purpose; 0 for ever."""
    waits_s = max(config.power.idle_s, config.sweep.reference_s)
    return config.sweep.hang_s and config.sweep.hang_s + waits_s


class Watchdog:
    """Watches from its making to `stop`; a `limit_s` of 0 watches nothing."""

    def __init__(self, limit_s: float, end: Callable[[Progress], None]) -> None:
        """`end` is called once with the last progress, from another thread, before the process ends with code 1."""
        self._limit_s = limit_s
        self._end = end
        self._stopped = threading.Event()
        self.moved(Progress("its start"))
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if limit_s:
            self._thread.start()

    def __enter__(self) -> Self:
        """The watchdog, which watches already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self.stop()

    def moved(self, progress: Progress) -> None:
        """Start the limit anew, as something moved."""
        self._progress, self._moved_s = progress, time.monotonic()
        if self._limit_s:
            faulthandler.dump_traceback_later(self._limit_s, file=_STDERR)

    def stop(self) -> None:
        """Stop watching; on return `end` was not called and will not be."""
        self._stopped.set()
        if self._limit_s:
            faulthandler.cancel_dump_traceback_later()
            self._thread.join()

    def _watch(self) -> None:
        while True:
            left_s = self._moved_s + self._limit_s + GRACE_S - time.monotonic()
            if left_s <= 0.0:
                break
            if self._stopped.wait(left_s):
                return
        # a disk that went away would keep this thread too
        ending = threading.Thread(target=self._end, args=[self._progress], daemon=True)
        ending.start()
        ending.join(END_S)
        os._exit(1)
