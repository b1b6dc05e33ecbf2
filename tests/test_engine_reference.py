"""The reference load."""

import time

import engine_ranks as tools

from wattflow.engine import reference


def test_it_works_for_the_time_it_is_given():
    """0.2 s hold whole rounds of the load, and not much more than one round is begun before the end."""
    start_s = time.monotonic()
    rounds = reference.run(tools.ALONE, 0.2)
    assert rounds >= 1
    assert time.monotonic() - start_s >= 0.2


def test_no_time_is_no_round():
    """After 0 s nothing is begun."""
    assert reference.run(tools.ALONE, 0.0) == 0
