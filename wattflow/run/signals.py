"""The signals that end a job: a preemption, a time limit that comes near, a cancel, Ctrl-C.

A single rank is interrupted at once. Several ranks that are warned (SIGUSR2) continue to the next edge between two
batches and end there together, as one that left alone would leave the others waiting in a collective. SIGTERM comes
when there is no more time, and interrupts each rank where it is, as does Ctrl-C.
"""

import signal
from types import FrameType

from wattflow.errors import WattflowError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class InterruptedRunError(WattflowError, RuntimeError):
    """The job was asked to end: a time limit, a preemption, a cancel, or Ctrl-C."""

    def __init__(self, text: str, signum: int = signal.SIGTERM) -> None:
        """With the signal that came first."""
        super().__init__(text)
        self.signum = signum


class Signals:
    """The signals that this rank received, and how it ends by them."""

    def __init__(self) -> None:
        self.together = False  # set where there are other ranks to stop with
        self._first: int | None = None

    def install(self) -> None:
        """Handle the signals from now on: the first interrupts what runs, and files are closed whatever comes later."""
        for signum in _SIGNALS:
            signal.signal(signum, self._take)

    @property
    def received(self) -> bool:
        """Whether a signal asked this rank to end."""
        return self._first is not None

    def _take(self, signum: int, _frame: FrameType | None) -> None:
        is_first, self._first = self._first is None, self._first or signum
        if self.together and is_first and signum == signal.SIGUSR2:
            return
        self.stop()

    def stop(self) -> None:
        """Raise InterruptedRunError, also where only another rank was signalled; later signals are ignored."""
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        first = self._first or signal.SIGUSR2
        why = "preempted, or near its time limit" if first == signal.SIGUSR2 else "asked to end"
        raise InterruptedRunError(
            f"the job was {why} ({signal.Signals(first).name}). `wattflow resume` runs the point again "
            "unless Slurm does.",
            first,
        )
