"""The signals that end a job: a preemption, a time limit that comes near, a cancel, Ctrl-C.

A single rank is interrupted at once; a warning of the time limit that comes early waits until it is due. Several ranks
that are warned (SIGUSR2) continue to the next edge between two batches and end there together, as one that left alone
would leave the others waiting in a collective. SIGTERM comes when there is no more time, and interrupts each rank where
it is, as does Ctrl-C.
"""

import signal
import time
from types import FrameType

from wattflow.errors import WattflowError
from wattflow.slurm.sbatch import warned_before_s

EARLY_S = 65.0  # Slurm may warn of a limit a minute before it was asked to
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class InterruptedRunError(WattflowError, RuntimeError):
    """The job was asked to end: a time limit, a preemption, a cancel, or Ctrl-C."""

    def __init__(self, text: str, signum: int = signal.SIGTERM) -> None:
        """With the signal that came first."""
        super().__init__(text)
        self.signum = signum


class Signals:
    """The signals that this rank received, and how it ends by them."""

    def __init__(self, time_min: int | None = None, ran_s: float = 0.0) -> None:
        """`time_min` is the time limit of the task, which has run for `ran_s`; null where there is none."""
        self._time_min = time_min
        self._began_s = time.monotonic() - ran_s
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
        early_s = self._early_s() if signum == signal.SIGUSR2 and self._first is None else 0.0
        if early_s > 0:
            signal.signal(signal.SIGALRM, self._take_late)
            signal.setitimer(signal.ITIMER_REAL, early_s)
            return
        self._interrupt(signum)

    def _take_late(self, _signum: int, _frame: FrameType | None) -> None:
        """Take a warning that came early, now that it is due."""
        if self._first is None:
            self._interrupt(signal.SIGUSR2)

    def _interrupt(self, signum: int) -> None:
        self._first = self._first or signum
        if self.together and signum == signal.SIGUSR2:  # perhaps twice: by Slurm, and by its srun
            return
        self.stop()

    def stop(self) -> None:
        """Raise InterruptedRunError, also where only another rank was signalled; later signals are ignored."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        first = self._first or signal.SIGUSR2
        why = self._why(first)
        raise InterruptedRunError(
            f"the job was {why} ({signal.Signals(first).name}). `wattflow resume` runs the point again "
            "unless Slurm does.",
            first,
        )

    @property
    def _left_s(self) -> float:
        """How long the task may still run."""
        assert self._time_min is not None
        return self._time_min * 60 - (time.monotonic() - self._began_s)

    def _early_s(self) -> float:
        """How much too early a warning of the time limit comes; 0 for one of a preemption."""
        if self._time_min is None:
            return 0.0
        early_s = self._left_s - warned_before_s(self._time_min)
        return early_s if early_s <= EARLY_S else 0.0

    def _why(self, signum: int) -> str:
        """Why a signal came, by the time that the task ran."""
        warned = signum == signal.SIGUSR2
        if self._time_min is None:
            return "preempted, or near its time limit" if warned else "asked to end"
        if self._left_s <= (warned_before_s(self._time_min) + EARLY_S if warned else 0.0):
            return f"{'near' if warned else 'at'} its time limit of {self._time_min} min, cluster.time_min"
        return "preempted" if warned else "asked to end"
