"""What the signals of a job do to a rank that is alone, and to one of several."""

import signal
import time

import pytest
from own_signals import own_handlers, send
from processes import until

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


@pytest.mark.parametrize(
    ("limit_min", "ran_s", "signum", "why"),
    [
        (60, 100.0, signal.SIGUSR2, r"preempted \(SIGUSR2\)"),
        (60, 3511.0, signal.SIGUSR2, r"near its time limit of 60 min, cluster\.time_min \(SIGUSR2"),
        (1, 46.0, signal.SIGUSR2, "near its time limit of 1 min"),
        (1, 61.0, signal.SIGTERM, r"at its time limit of 1 min, cluster\.time_min \(SIGTERM\)"),
        (60, 61.0, signal.SIGTERM, r"asked to end \(SIGTERM\)"),
    ],
)
def test_a_signal_is_explained_by_the_time_that_the_task_ran(
    limit_min, ran_s, signum, why, monkeypatch
):
    """A preemption early, the time limit late: status advises by it."""
    with own_handlers():
        handled = Signals(limit_min)
        handled.install()
        monkeypatch.setattr(handled, "_began_s", time.monotonic() - ran_s)
        with pytest.raises(InterruptedRunError, match=why):
            send(signum)


@pytest.mark.parametrize("together", [False, True])
def test_a_warning_that_comes_early_waits_until_it_is_due(together, monkeypatch):
    """Slurm warned tasks of one minute at their very start, and each of their points ended as preempted."""
    with own_handlers():
        handled = Signals(1)
        handled.together = together
        handled.install()
        monkeypatch.setattr(
            handled, "_began_s", time.monotonic() - 44.7
        )  # of 45 s before the warning
        send(signal.SIGUSR2)
        assert not handled.received
        if together:
            until(lambda: handled.received)
        else:
            with pytest.raises(InterruptedRunError, match="near its time limit of 1 min") as caught:
                until(lambda: handled.received)
            assert caught.value.signum == signal.SIGUSR2
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_cancel_while_a_warning_waits_is_a_cancel():
    """It ends the rank at once, and no timer is left."""
    with own_handlers():
        handled = Signals(1)
        handled.install()
        send(signal.SIGUSR2)
        with pytest.raises(InterruptedRunError, match=r"asked to end \(SIGTERM\)"):
            send(signal.SIGTERM)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
