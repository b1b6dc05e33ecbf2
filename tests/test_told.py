"""Spans that a program tells: what reaches the file, and how they part a command's time into phases."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wattflow
from wattflow.measure.timeline import Piece, Told, parse, pieces
from wattflow.span import ENVIRONMENT, tells
from wattflow.store.phases import AROUND, MIXED, OUTSIDE

ROOT = Path(__file__).parent.parent


def one(phase, start_ns, end_ns, pid=1, tokens_out=None):
    return Told(phase, start_ns, end_ns, (pid, 0), None, tokens_out)


def shown(spans, start_ns=0, end_ns=100):
    """The pieces as (phase, start, end)."""
    return [(p.phase, p.start_ns, p.end_ns) for p in pieces(spans, start_ns, end_ns)]


@pytest.fixture
def spans_file(tmp_path, monkeypatch):
    """The file of a measured program's spans, which the environment names."""
    path = tmp_path / "spans.jsonl"
    path.touch()
    monkeypatch.setenv(ENVIRONMENT, str(path))
    return path


def read(path):
    spans, bad = parse(path.read_bytes().splitlines())
    assert bad == 0
    return spans


# --- the program's side ---


def test_a_span_tells_its_edges_and_tokens(spans_file):
    """The stamps lie around what ran inside, in unix ns, with the tokens given."""
    before_ns = time.time_ns()
    with wattflow.span("decode", tokens_out=7):
        time.sleep(0.01)
    (told,) = read(spans_file)
    assert before_ns <= told.start_ns <= told.end_ns - 10_000_000
    assert told.end_ns <= time.time_ns()
    assert (told.phase, told.tokens_out, told.tokens_in) == ("decode", 7, None)
    assert told.teller[0] == os.getpid()


def test_tokens_may_be_set_inside_the_span(spans_file):
    """A program that knows its tokens only afterwards sets them on what `with` gives."""
    with wattflow.span("decode") as told:
        told.tokens_out, told.tokens_in = 5, 3
    assert [(s.tokens_in, s.tokens_out) for s in read(spans_file)] == [(3, 5)]


def test_sync_is_called_at_both_edges_and_only_under_measure(spans_file, monkeypatch):
    """`sync` waits for a device where that matters, and is left alone otherwise."""
    calls = []
    with wattflow.span("decode", sync=lambda: calls.append("sync")):
        calls.append("work")
    assert calls == ["sync", "work", "sync"]
    monkeypatch.delenv(ENVIRONMENT)
    with wattflow.span("decode", sync=lambda: calls.append("no")):
        pass
    assert "no" not in calls


def test_without_measure_nothing_is_told(spans_file, monkeypatch):
    """Without the variable a span is a no-op that takes less than 20 us."""
    monkeypatch.delenv(ENVIRONMENT)
    taken = []
    for _ in range(200):
        start = time.perf_counter()
        with wattflow.span("decode", tokens_out=1):
            pass
        taken.append(time.perf_counter() - start)
    assert spans_file.read_bytes() == b""
    assert min(taken) < 20e-6


def test_a_span_that_raises_is_dropped_and_raises_on(spans_file):
    """What failed is no phase; the program's own error goes its way."""
    with pytest.raises(ZeroDivisionError), wattflow.span("decode"):
        1 / 0  # noqa: B018 (it raises)
    assert read(spans_file) == []


def test_a_file_that_is_gone_hurts_nobody(spans_file):
    """A daemon that outlives its measurement tells nobody, makes no file and goes on."""
    spans_file.unlink()
    with wattflow.span("decode"):
        pass
    assert not spans_file.exists()


def test_lines_of_threads_and_forked_children_stay_whole(spans_file):
    """8 threads and 4 forked children tell 100 spans each: 1,200 lines, none torn."""

    def tell():
        for _ in range(100):
            with wattflow.span("decode", tokens_out=1):
                pass

    code = (
        "import os, wattflow\n"
        "children = [os.fork() for _ in range(2)]\n"  # 2 forks in a row make 4 processes
        "for _ in range(100):\n"
        "    with wattflow.span('decode', tokens_out=1): pass\n"
        "for pid in children:\n"
        "    if pid: os.waitpid(pid, 0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    threads = [threading.Thread(target=tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.wait() == 0
    spans = read(spans_file)
    assert len(spans) == 1200
    assert len({span.teller for span in spans}) >= 5


def test_import_is_light():
    """`import wattflow` and a span load none of the heavy libraries."""
    code = (
        "import sys, wattflow\n"
        "with wattflow.span('decode', tokens_out=1): pass\n"
        "print([m for m in ('numpy', 'pyarrow', 'polars', 'torch', 'typer') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_process_is_known_by_what_it_inherited(spans_file):
    """A child that inherited the file's name belongs to the command, another file's does not, no process is unknown."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        deadline = time.monotonic() + 5  # between fork and exec it has its parent's environment
        while not tells(child.pid, str(spans_file)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert tells(child.pid, str(spans_file)) is True
        assert tells(child.pid, "/another") is False
    finally:
        child.kill()
        child.wait()
    assert tells(child.pid, str(spans_file)) is None


# --- what measure makes of them ---


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


def test_a_phase_of_ours_is_told_apart_from_the_programs():
    """A program that calls a phase `other` or `command` gets another name, so that sums stay what they are."""
    spans, _ = parse(
        json.dumps({"phase": name, "start_ns": 1, "end_ns": 2}).encode()
        for name in ("other", "command", "prefill")
    )
    assert [s.phase for s in spans] == ["other_", "command_", "prefill"]


def test_without_spans_the_whole_command_is_one_piece():
    """No span: the window is the command."""
    assert pieces([], 5, 95) == [Piece("command", 5, 95)]


def test_the_window_runs_from_the_first_to_the_last_span():
    """Load and warm-up lie before it, what is told nowhere outside it is `outside`, gaps within are left to `other`."""
    spans = [
        one("load", 5, 20),
        one("prefill", 30, 40),
        one("decode", 40, 60, tokens_out=8),
        one("decode", 70, 80, tokens_out=4),
    ]
    assert pieces(spans, 0, 100) == [
        Piece(OUTSIDE, 0, 5),
        Piece("load", 5, 20),
        Piece(OUTSIDE, 20, 30),
        Piece("prefill", 30, 40),
        Piece("decode", 40, 60, None, 8),
        Piece("decode", 70, 80, None, 4),
        Piece(OUTSIDE, 80, 100),
    ]


def test_of_nested_spans_the_inner_one_tells_the_phase():
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
    assert pieces(spans, 10, 70) == [Piece("decode", 10, 70, None, 11)]


def test_processes_in_different_phases_are_mixed():
    """Joules of a time in which one process prefills and another decodes belong to neither phase alone."""
    spans = [one("prefill", 0, 60, 1), one("decode", 40, 100, 2)]
    assert shown(spans) == [("prefill", 0, 40), (MIXED, 40, 60), ("decode", 60, 100)]


def test_idle_told_inside_the_window_stays_in_it():
    """A pause between two batches is part of the window, as `other`; the window's joules do not lose it."""
    spans = [one("decode", 0, 40), one("idle", 40, 60), one("decode", 60, 100)]
    assert shown(spans) == [("decode", 0, 40), ("decode", 60, 100)]


def test_only_spans_around_make_no_window():
    """A program that told its load alone is measured whole, and its tokens are kept."""
    assert pieces([one("load", 10, 20, tokens_out=3)], 0, 100) == [
        Piece("command", 0, 100, None, 3)
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
def test_pieces_never_overlap_and_fill_the_command_but_for_gaps_in_the_window(spans):
    """In order, inside the command, none twice; outside the window every instant has a phase."""
    found = pieces(spans, 0, 100)
    assert all(0 <= p.start_ns < p.end_ns <= 100 for p in found)
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(found))
    within = [p for p in found if p.phase not in {*AROUND, OUTSIDE}]
    gaps = sum(b.start_ns - a.end_ns for a, b in itertools.pairwise(within))
    assert sum(p.end_ns - p.start_ns for p in found) + gaps == 100


@given(SPANS)
def test_no_token_of_the_window_is_lost_or_doubled(spans):
    """The tokens of all pieces are those of the spans inside the command."""
    inside = [s for s in spans if s.end_ns >= 0 and s.start_ns <= 100]
    window = [s for s in inside if s.phase not in AROUND]
    if any(min(s.end_ns, 100) > max(s.start_ns, 0) for s in window):
        inside = window
    assert sum(p.tokens_out or 0 for p in pieces(spans, 0, 100)) == sum(
        s.tokens_out for s in inside
    )
