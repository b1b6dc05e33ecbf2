"""Spans that a program reports by `wattflow.span`: what reaches the file, and what a span costs."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import until

import wattflow
from wattflow.measure.timeline import parse
from wattflow.spans import ENVIRONMENT, reports_to

ROOT = Path(__file__).parent.parent


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


def test_a_span_reports_its_edges_and_tokens(spans_file):
    """The stamps lie around what ran inside, in unix ns, with the tokens given."""
    before_ns = time.time_ns()
    with wattflow.span("decode", tokens_out=7):
        time.sleep(0.01)
    (span,) = read(spans_file)
    assert before_ns <= span.start_ns <= span.end_ns - 10_000_000
    assert span.end_ns <= time.time_ns()
    assert (span.phase, span.tokens_out, span.tokens_in) == ("decode", 7, None)
    assert span.thread[0] == os.getpid()


def test_tokens_may_be_set_inside_the_span(spans_file):
    """A program that knows its tokens only afterwards sets them on what `with` gives."""
    with wattflow.span("decode") as tokens:
        tokens.tokens_out, tokens.tokens_in = 5, 3
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


def test_without_measure_nothing_is_reported(spans_file, monkeypatch):
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
    """A daemon that outlives its measurement reports nothing, makes no file and goes on."""
    spans_file.unlink()
    with wattflow.span("decode"):
        pass
    assert not spans_file.exists()


def test_lines_of_threads_and_forked_children_stay_whole(spans_file):
    """8 threads and 4 forked children report 100 spans each: 1,200 lines, none torn."""

    def report():
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
    threads = [threading.Thread(target=report) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.wait() == 0
    spans = read(spans_file)
    assert len(spans) == 1200
    assert len({span.thread for span in spans}) >= 5


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
    child = subprocess.Popen(["sleep", "600"])
    try:
        # between fork and exec it has its parent's environment
        assert until(lambda: reports_to(child.pid, str(spans_file))) is True
        assert reports_to(child.pid, "/another") is False
    finally:
        child.kill()
        child.wait()
    assert reports_to(child.pid, str(spans_file)) is None
