"""What the signals of a job do to a rank that is alone, and to one of several."""

import signal

import pytest
from own_signals import own_handlers, send

from wattflow.run.signals import InterruptedRunError, Signals


@pytest.fixture
def signals():
    with own_handlers():
        handled = Signals()
        handled.install()
        yield handled


@pytest.mark.parametrize(
    ("signum", "why"),
    [
        (signal.SIGUSR2, r"preempted, or near its time limit \(SIGUSR2\)"),
        (signal.SIGTERM, r"asked to end \(SIGTERM\)"),
        (signal.SIGINT, r"asked to end \(SIGINT\)"),
    ],
)
def test_a_single_rank_is_interrupted_at_once(signals, signum, why):
    """The message says why, and the error keeps the signal; later signals change nothing."""
    with pytest.raises(InterruptedRunError, match=why) as caught:
        send(signum)
    assert caught.value.signum == signum
    assert signals.received
    send(signal.SIGTERM)  # ignored: files are being closed


def test_one_of_several_ranks_waits_for_the_others_when_it_is_warned(signals):
    """SIGUSR2 is only noted; `stop` then ends the rank at an edge that all take together."""
    signals.together = True
    send(signal.SIGUSR2)
    assert signals.received
    with pytest.raises(InterruptedRunError, match="near its time limit"):
        signals.stop()


def test_sigterm_interrupts_one_of_several_where_it_is(signals):
    """There is no more time; what came first, the warning, stays the reason."""
    signals.together = True
    send(signal.SIGUSR2)
    with pytest.raises(InterruptedRunError) as caught:
        send(signal.SIGTERM)
    assert caught.value.signum == signal.SIGUSR2


def test_a_rank_that_received_nothing_stops_with_the_others(signals):
    """Another rank was warned: this one ends as if it had been."""
    assert not signals.received
    with pytest.raises(InterruptedRunError, match="SIGUSR2"):
        signals.stop()
