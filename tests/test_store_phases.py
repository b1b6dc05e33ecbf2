"""Phases lie around the measured window or within it, and the names that we give are no program's."""

from wattflow.store import phases
from wattflow.store.schema import PHASES


def test_each_phase_of_an_engine_lies_around_the_window_or_within_it():
    """Prefill and decode are measured; idle, load, warm-up, the reference load and the idle after are not."""
    assert {*PHASES} - {*phases.NOT_WITHIN} == {"prefill", "decode"}
    assert {*phases.AROUND} - {*phases.IN_JOB} == {"reference"}


def test_what_is_reserved_is_no_phase_of_an_engine():
    """A program's own span cannot take a name under which joules are added up."""
    assert not phases.RESERVED & {*PHASES}
    assert {"other", "window", "steady"} <= phases.RESERVED
