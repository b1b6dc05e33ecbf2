"""When a measured command was stopped, as by Ctrl-Z: the time then is none of the command's."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

_LOOK_S = 0.5
_GAP_S = 2.5  # a thread that is not scheduled for so long, by a process that was continued meanwhile, was stopped

Interval = tuple[int, int]  # unix ns


class Stops:
    """The times at which the command, or this process with the sidecar, stood still."""

    def __init__(self) -> None:
        self._intervals: list[Interval] = []
        self._since_ns: int | None = None
        self._continued = False

    def intervals(self) -> list[Interval]:
        """Return them in order; one that has not ended does so now."""
        self.end()
        return sorted(self._intervals)

    def begin(self) -> None:
        """Note that the command was stopped, unless it is known."""
        if self._since_ns is None:
            self._since_ns = time.time_ns()

    def end(self) -> None:
        """Note that it goes on."""
        if self._since_ns is not None:
            self._intervals.append((self._since_ns, time.time_ns()))
            self._since_ns = None

    @contextlib.contextmanager
    def watched(self, group: int) -> Iterator[None]:
        """Within, stop the command too where this process is stopped, and see where it was so by force."""
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        before = {
            signal.SIGCONT: signal.signal(signal.SIGCONT, self._note_continued),
            signal.SIGTSTP: signal.getsignal(signal.SIGTSTP),
        }
        if before[signal.SIGTSTP] is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, lambda *_: self._suspend(group))
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _note_continued(self, *_: object) -> None:
        self._continued = True

    def _suspend(self, group: int) -> None:
        """Ctrl-Z where the command has not the terminal: it stops, then this process, and both go on together."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGSTOP)
        self.begin()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.end()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)

    def _watch(self, ended: threading.Event) -> None:
        """See SIGSTOP, which no handler sees: the command may have ended meanwhile, and nothing was sampled."""
        last_s = time.monotonic()
        while not ended.wait(_LOOK_S):
            now_s = time.monotonic()
            gap_s = now_s - last_s
            if gap_s > _GAP_S and self._continued:
                now_ns = time.time_ns()
                self._intervals.append((now_ns - round(gap_s * 1e9), now_ns))
            last_s, self._continued = now_s, False
