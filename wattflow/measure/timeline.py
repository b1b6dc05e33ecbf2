"""The phases of a measured command's time, made from the spans that the program itself reports.

    process 1   load |  prefill  |       decode       |
    process 2        |           prefill       |     decode     |
    segments    load |  prefill  |    mixed    |     decode     | outside
                     ^ the measured window starts          ends ^

A program reports a span by `wattflow.span`, which adds one line of JSON to the file that WATTFLOW_SPANS names:

    {"phase": "decode", "start_ns": ..., "end_ns": ..., "pid": ..., "tid": ..., "tokens_in": null, "tokens_out": 32}
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from wattflow.nullable import known_sum
from wattflow.store.phases import AROUND, COMMAND, MIXED, OUTSIDE, RESERVED

LONGEST_NAME = 64
MOST_TOKENS = 10**12  # of one span, or one line: a count beyond that is none


@dataclass(frozen=True)
class ReportedSpan:
    """One span as a program reported it."""

    phase: str
    start_ns: int
    end_ns: int
    thread: tuple[int, int]  # pid, thread id
    tokens_in: int | None = None
    tokens_out: int | None = None


@dataclass(frozen=True)
class Segment:
    """A stretch of a node's time in one phase, with the tokens of the spans that end in it; segments never overlap."""

    phase: str
    start_ns: int
    end_ns: int
    tokens_in: int | None = None
    tokens_out: int | None = None


def parse(lines: Iterable[bytes]) -> tuple[list[ReportedSpan], int]:
    """Return the spans in a file's lines, and the number of lines that are not spans."""
    spans, bad = [], 0
    for line in lines:
        try:
            spans.append(_parsed(json.loads(line)))
        except (ValueError, TypeError, LookupError, RecursionError):
            bad += 1
    return spans, bad


def _parsed(fields: dict[str, object]) -> ReportedSpan:
    phase, start_ns, end_ns = fields["phase"], fields["start_ns"], fields["end_ns"]
    tokens_in, tokens_out = fields.get("tokens_in"), fields.get("tokens_out")
    numbers = [start_ns, end_ns, *(n for n in (tokens_in, tokens_out) if n is not None)]
    if not isinstance(phase, str) or not phase:
        raise ValueError("a span without a phase")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62 for n in numbers):
        raise ValueError("a span whose stamps or tokens are not whole numbers")
    if any(isinstance(n, int) and n > MOST_TOKENS for n in (tokens_in, tokens_out)):
        raise ValueError("a span of more tokens than there can be")
    assert isinstance(start_ns, int)
    assert isinstance(end_ns, int)
    if end_ns < start_ns:
        raise ValueError("a span that ends before it starts")
    name = phase[:LONGEST_NAME]
    return ReportedSpan(
        phase=f"{name}_" if name in RESERVED else name,
        start_ns=start_ns,
        end_ns=end_ns,
        thread=(int(str(fields.get("pid", 0))), int(str(fields.get("tid", 0)))),
        tokens_in=tokens_in if isinstance(tokens_in, int) else None,
        tokens_out=tokens_out if isinstance(tokens_out, int) else None,
    )


def segments(spans: Iterable[ReportedSpan], start_ns: int, end_ns: int) -> list[Segment]:
    """Split a command's time from start to end into segments in order, each instant in one phase.

    Of nested spans of one thread the innermost gives the phase; where threads are in different phases it is `mixed`.
    The measured window runs from the first start to the last end of spans whose phase is not one of AROUND; time in it
    without a segment is `other`. Outside the window lie AROUND phases and `outside`. Without a span that makes a
    window, the whole time is one segment: `command`.
    """
    known = [
        replace(span, start_ns=max(span.start_ns, start_ns), end_ns=min(span.end_ns, end_ns))
        for span in spans
        if span.end_ns >= start_ns and span.start_ns <= end_ns
    ]
    within = [span for span in known if span.phase not in AROUND]
    window = _merged(_between_edges(within))
    if not window:
        tokens_in = known_sum(span.tokens_in for span in known)
        tokens_out = known_sum(span.tokens_out for span in known)
        return [Segment(COMMAND, start_ns, end_ns, tokens_in, tokens_out)]
    around = _merged(_between_edges([span for span in known if span.phase in AROUND]))
    return [
        *_outside(around, start_ns, window[0].start_ns),
        *_with_tokens(window, within),
        *_outside(around, window[-1].end_ns, end_ns),
    ]


def _between_edges(spans: list[ReportedSpan]) -> Iterator[Segment]:
    """Between each two edges the phase that all threads agree on, else `mixed`; nothing where no span is open."""
    edges = [(span.start_ns, 1, i) for i, span in enumerate(spans)]
    edges += [(span.end_ns, 0, i) for i, span in enumerate(spans)]
    open_by: dict[tuple[int, int], list[int]] = {}  # the open spans of each thread, innermost last
    phases: Counter[str] = Counter()  # the innermost phase of each thread
    before_ns = 0
    for at_ns, opens, i in sorted(edges):
        if at_ns > before_ns and phases:
            yield Segment(next(iter(phases)) if len(phases) == 1 else MIXED, before_ns, at_ns)
        before_ns = at_ns
        mine = open_by.setdefault(spans[i].thread, [])
        if mine:
            phases -= Counter([spans[mine[-1]].phase])
        if opens and spans[i].end_ns > at_ns:
            mine.append(i)
            # of two that start at once the longer is the outer one
            mine.sort(key=lambda k: (spans[k].start_ns, -spans[k].end_ns))
        elif not opens and i in mine:
            mine.remove(i)
        if mine:
            phases[spans[mine[-1]].phase] += 1


def _merged(parts: Iterable[Segment]) -> list[Segment]:
    """Join segments of one phase that touch."""
    out: list[Segment] = []
    for one in parts:
        if out and out[-1].phase == one.phase and out[-1].end_ns == one.start_ns:
            out[-1] = replace(out[-1], end_ns=one.end_ns)
        else:
            out.append(one)
    return out


def _outside(around: list[Segment], start_ns: int, end_ns: int) -> list[Segment]:
    """All time between two instants outside the window: the phases reported there, and `outside` between them."""
    out: list[Segment] = []
    at_ns = start_ns
    for one in around:
        first_ns, last_ns = max(one.start_ns, start_ns), min(one.end_ns, end_ns)
        if first_ns >= last_ns:
            continue
        if first_ns > at_ns:
            out.append(Segment(OUTSIDE, at_ns, first_ns))
        phase = OUTSIDE if one.phase == MIXED else one.phase
        out.append(Segment(phase, first_ns, last_ns))
        at_ns = last_ns
    if end_ns > at_ns:
        out.append(Segment(OUTSIDE, at_ns, end_ns))
    return out


def _with_tokens(window: list[Segment], spans: list[ReportedSpan]) -> list[Segment]:
    """The segments with the tokens of each span, counted in the segment that holds the span's end."""
    ending: dict[int, list[ReportedSpan]] = {}
    at = 0
    for span in sorted(spans, key=lambda span: span.end_ns):
        while at < len(window) - 1 and window[at].end_ns < span.end_ns:
            at += 1
        ending.setdefault(at, []).append(span)
    return [
        replace(
            segment,
            tokens_in=known_sum(span.tokens_in for span in ending.get(i, [])),
            tokens_out=known_sum(span.tokens_out for span in ending.get(i, [])),
        )
        for i, segment in enumerate(window)
    ]
