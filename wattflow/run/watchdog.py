"""Ends a rank that hangs: in a collective that never comes, on a GPU that does not answer, at a disk that went away.

    tell ... tell ... nothing for limit_s: the stacks of all threads go to stderr
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

GRACE_S = 5.0
LAST_WORDS_S = 30.0  # for `end`

_STDERR = 2  # the rank's log, also where sys.stderr is something else


class Watchdog:
    """Watches from its making to `stop`; `limit_s` of 0 watches nothing."""

    def __init__(self, limit_s: float, end: Callable[[], None]) -> None:
        """`end` is called once, from another thread, before the process ends with code 1."""
        self._limit_s = limit_s
        self._end = end
        self._stopped = threading.Event()
        self.tell()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if limit_s:
            self._thread.start()

    def __enter__(self) -> Self:
        """The watchdog, which watches already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        self.stop()

    def tell(self) -> None:
        """Say that something moved."""
        self._moved_s = time.monotonic()
        if self._limit_s:
            faulthandler.dump_traceback_later(self._limit_s, file=_STDERR)

    def stop(self) -> None:
        """Watch no more; on return `end` was not called and will not be."""
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
        last_words = threading.Thread(target=self._end, daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_S)
        os._exit(1)
