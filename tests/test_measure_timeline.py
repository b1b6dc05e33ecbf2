"""How the spans that a program reports split a command's time into phases."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattflow.measure.timeline import ReportedSpan, Segment, parse, segments
from wattflow.store.phases import AROUND, MIXED, NOT_WITHIN, OUTSIDE


def one(phase, start_ns, end_ns, pid=1, tokens_out=None):
    return ReportedSpan(phase, start_ns, end_ns, (pid, 0), None, tokens_out)


def shown(spans, start_ns=0, end_ns=100):
    """The segments as (phase, start, end)."""
    return [(p.phase, p.start_ns, p.end_ns) for p in segments(spans, start_ns, end_ns)]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"phase": 3, "start_ns": 1, "end_ns": 2}',
        b'{"phase": "", "start_ns": 1, "end_ns": 2}',
        b'{"phase": "decode", "start_ns": 2, "end_ns": 1}',
        b'{"phase": "decode", "start_ns": 1.5, "end_ns": 2}',
        b'{"phase": "decode", "start_ns": true, "end_ns": 2}',
        b'{"phase": "decode", "start_ns": 1, "end_ns": 2, "tokens_out": -1}',
        b'{"phase": "decode", "start_ns": 1, "end_ns": 2, "tokens_out": "8"}',
        b'{"phase": "decode", "start_ns": 1, "end_ns": 2, "pid": "x"}',
        b'{"phase": "decode", "start_ns": 1}',
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_span_is_counted_and_passed_over(line):
    """What another writer put into the file costs that line alone."""
    good = b'{"phase": "decode", "start_ns": 1, "end_ns": 2}'
    spans, bad = parse([line, good])
    assert ([s.phase for s in spans], bad) == (["decode"], 1)


def test_a_reserved_phase_name_of_the_program_is_changed():
    """A program that calls a phase `other` or `command` gets another name, so that sums stay what they are."""
    spans, _ = parse(
        json.dumps({"phase": name, "start_ns": 1, "end_ns": 2}).encode()
        for name in ("other", "command", "prefill")
    )
    assert [s.phase for s in spans] == ["other_", "command_", "prefill"]


def test_without_spans_the_whole_command_is_one_segment():
    """No span: the window is the command."""
    assert segments([], 5, 95) == [Segment("command", 5, 95)]


def test_the_window_runs_from_the_first_to_the_last_span():
    """Load and warm-up lie before it, unreported time outside it is `outside`, gaps within are left to `other`."""
    spans = [
        one("load", 5, 20),
        one("prefill", 30, 40),
        one("decode", 40, 60, tokens_out=8),
        one("decode", 70, 80, tokens_out=4),
    ]
    assert segments(spans, 0, 100) == [
        Segment(OUTSIDE, 0, 5),
        Segment("load", 5, 20),
        Segment(OUTSIDE, 20, 30),
        Segment("prefill", 30, 40),
        Segment("decode", 40, 60, None, 8),
        Segment("decode", 70, 80, None, 4),
        Segment(OUTSIDE, 80, 100),
    ]


def test_of_nested_spans_the_inner_one_gives_the_phase():
    """A request that holds a prefill and a decode keeps what is in neither."""
    spans = [one("prefill", 10, 30), one("decode", 40, 90), one("request", 10, 100)]
    assert shown(spans) == [
        (OUTSIDE, 0, 10),
        ("prefill", 10, 30),
        ("request", 30, 40),
        ("decode", 40, 90),
        ("request", 90, 100),
    ]


def test_processes_in_one_phase_share_it_and_their_tokens_add_up():
    """Two processes that decode at once make one decode from the first start to the last end."""
    spans = [one("decode", 10, 60, 1, 5), one("decode", 20, 70, 2, 6)]
    assert segments(spans, 10, 70) == [Segment("decode", 10, 70, None, 11)]


def test_processes_in_different_phases_are_mixed():
    """Joules of a time in which one process prefills and another decodes belong to neither phase alone."""
    spans = [one("prefill", 0, 60, 1), one("decode", 40, 100, 2)]
    assert shown(spans) == [("prefill", 0, 40), (MIXED, 40, 60), ("decode", 60, 100)]


def test_idle_reported_inside_the_window_stays_in_it():
    """A pause between two batches is part of the window, as `other`; the window's joules do not lose it."""
    spans = [one("decode", 0, 40), one("idle", 40, 60), one("decode", 60, 100)]
    assert shown(spans) == [("decode", 0, 40), ("decode", 60, 100)]


def test_only_spans_around_make_no_window():
    """A program that reports its load alone is measured whole, and its tokens are kept."""
    assert segments([one("load", 10, 20, tokens_out=3)], 0, 100) == [
        Segment("command", 0, 100, None, 3)
    ]


def test_spans_are_cut_at_the_commands_edges():
    """A forked child whose clock or life goes beyond the command adds nothing beyond it."""
    assert shown([one("decode", 50, 500), one("train", 700, 900, 2)]) == [
        (OUTSIDE, 0, 50),
        ("decode", 50, 100),
    ]


NAMES = st.sampled_from(["prefill", "decode", "train", *AROUND])
SPANS = st.lists(
    st.builds(
        lambda phase, start, length, pid, tokens: one(phase, start, start + length, pid, tokens),
        NAMES,
        st.integers(-20, 120),
        st.integers(0, 60),
        st.integers(1, 3),
        st.integers(0, 9),
    ),
    max_size=12,
)


@given(SPANS)
def test_segments_never_overlap_and_fill_the_command_but_for_gaps_in_the_window(spans):
    """In order, inside the command, none twice; outside the window every instant has a phase."""
    found = segments(spans, 0, 100)
    assert all(0 <= p.start_ns < p.end_ns <= 100 for p in found)
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(found))
    within = [p for p in found if p.phase not in NOT_WITHIN]
    gaps = sum(b.start_ns - a.end_ns for a, b in itertools.pairwise(within))
    assert sum(p.end_ns - p.start_ns for p in found) + gaps == 100


@given(SPANS)
def test_no_token_of_the_window_is_lost_or_doubled(spans):
    """The tokens of all segments are those of the spans inside the command."""
    inside = [s for s in spans if s.end_ns >= 0 and s.start_ns <= 100]
    window = [s for s in inside if s.phase not in AROUND]
    if any(min(s.end_ns, 100) > max(s.start_ns, 0) for s in window):
        inside = window
    assert sum(p.tokens_out or 0 for p in segments(spans, 0, 100)) == sum(
        s.tokens_out for s in inside
    )
