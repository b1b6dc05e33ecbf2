"""Signals that a test sends to its own process."""

import contextlib
import os
import signal
from collections.abc import Iterator

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@contextlib.contextmanager
def own_handlers() -> Iterator[None]:
    """Put the handlers of this process back afterwards."""
    before = {signum: signal.getsignal(signum) for signum in HANDLED}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def send(signum: int) -> None:
    """Send this process a signal; its handler has run when this returns."""
    os.kill(os.getpid(), signum)
    signal.getsignal(signum)  # Python runs handlers between two of its own instructions
