"""The signals that end a job: a preemption, a time limit that comes near, a cancel, Ctrl-C.

One rank alone is interrupted at once. Several ranks that are warned (SIGUSR2) go on to the next edge between two
batches, which all of them take together, as one that left alone would leave the others waiting in a collective; SIGTERM
comes when there is no more time, and interrupts each where it is, as does Ctrl-C.
"""

import signal
from types import FrameType

from wattflow.errors import WattflowError

_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class InterruptedRunError(WattflowError, RuntimeError):
    """The job was told to end: a time limit, a preemption, a cancel, or Ctrl-C."""

    def __init__(self, text: str, signum: int = signal.SIGTERM) -> None:
        """By which signal it was told first."""
        super().__init__(text)
        self.signum = signum


class Signals:
    """What the job's signals asked of this rank so far."""

    def __init__(self) -> None:
        self.together = False  # set where there are other ranks to stop with
        self._first: int | None = None

    def heed(self) -> None:
        """From now on signals interrupt what runs; further ones do not disturb the closing of files."""
        for signum in _HEEDED:
            signal.signal(signum, self._take)

    @property
    def asked(self) -> bool:
        """Whether this rank was told to end."""
        return self._first is not None

    def _take(self, signum: int, _frame: FrameType | None) -> None:
        is_first, self._first = self._first is None, self._first or signum
        if self.together and is_first and signum == signal.SIGUSR2:
            return
        self.stop()

    def stop(self) -> None:
        """Raise InterruptedRunError, also where another rank alone was told; later signals are passed over."""
        for each in _HEEDED:
            signal.signal(each, signal.SIG_IGN)
        first = self._first or signal.SIGUSR2
        why = "preempted, or near its time limit" if first == signal.SIGUSR2 else "told to end"
        raise InterruptedRunError(
            f"the job was {why} ({signal.Signals(first).name}). `wattflow resume` runs the point again "
            "unless Slurm does.",
            first,
        )
