"""The steps of a calibration and the edges of its loads."""

import itertools

from wattflow.power.calibration_steps import ALIAS_MS, Step, plan, wave


def test_the_planned_load_is_half_on():
    """A step of 104.8 ms has whole periods, on for 52.4 ms each; one of 2 s differs each time."""
    exact = wave(Step("a", 10.0, "dense", period_ms=104.8), 0, "x")
    assert len(exact) == 2 * int(10_000 / 104.8)
    assert {off - on for on, off in zip(exact[::2], exact[1::2], strict=True)} == {52_400_000}
    slow = wave(Step("slow", 48.0, "dense", half_s=2.0), 0, "x")
    lengths = [b - a for a, b in itertools.pairwise(slow)]
    assert len(slow) % 2 == 0
    assert slow[-1] < 48e9
    assert all(1.8e9 <= length <= 2.2e9 for length in lengths)
    assert len(set(lengths)) == len(lengths)
    assert wave(Step("context", 5.0, "silent"), 0, "x") == []


def test_the_periods_go_from_5_to_200_ms():
    """The aliasing steps of any length cover them."""
    assert (min(ALIAS_MS), max(ALIAS_MS)) == (5, 200)
    assert [step.period_ms for step in plan(2) if step.period_ms] == list(ALIAS_MS)
