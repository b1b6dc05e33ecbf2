"""Spans that a program tells of itself while `wattflow measure` watches it, and what they make of the measured time.

import wattflow
with wattflow.span("decode", tokens_out=n):
    ...

A program that is not under `measure` tells nothing. One that is finds the file of its node in WATTFLOW_SPANS and adds a
line of JSON when a span ends, in one write: threads, forked children and other processes may share the file.

    {"phase": "decode", "start_ns": ..., "end_ns": ..., "pid": ..., "tid": ..., "tokens_in": null, "tokens_out": 32}

This module imports nothing heavy, as it runs in other people's programs.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from wattflow.nullable import known_sum
from wattflow.store.phases import AROUND, COMMAND, MIXED, OUTSIDE, RESERVED

LONGEST_NAME = 64


# --- what `measure` makes of them -----------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One span as a program told it."""

    phase: str
    start_ns: int
    end_ns: int
    teller: tuple[int, int]  # pid, thread
    tokens_in: int | None = None
    tokens_out: int | None = None


@dataclass(frozen=True)
class Piece:
    """A stretch of a node's time in one phase, with the tokens of the spans that ended in it; pieces never overlap."""

    phase: str
    start_ns: int
    end_ns: int
    tokens_in: int | None = None
    tokens_out: int | None = None


def parse(lines: Iterable[bytes]) -> tuple[list[Told], int]:
    """The spans in a file's lines, and how many lines were none."""
    spans, bad = [], 0
    for line in lines:
        try:
            spans.append(_parsed(json.loads(line)))
        except (ValueError, TypeError, LookupError, RecursionError):
            bad += 1
    return spans, bad


def _parsed(told: dict[str, object]) -> Told:
    phase, start_ns, end_ns = told["phase"], told["start_ns"], told["end_ns"]
    tokens_in, tokens_out = told.get("tokens_in"), told.get("tokens_out")
    numbers = [start_ns, end_ns, *(n for n in (tokens_in, tokens_out) if n is not None)]
    if not isinstance(phase, str) or not phase:
        raise ValueError("a span without a phase")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62 for n in numbers):
        raise ValueError("a span whose stamps or tokens are no whole numbers")
    assert isinstance(start_ns, int)
    assert isinstance(end_ns, int)
    if end_ns < start_ns:
        raise ValueError("a span that ends before it starts")
    name = phase[:LONGEST_NAME]
    return Told(
        phase=f"{name}_" if name in RESERVED else name,
        start_ns=start_ns,
        end_ns=end_ns,
        teller=(int(str(told.get("pid", 0))), int(str(told.get("tid", 0)))),
        tokens_in=tokens_in if isinstance(tokens_in, int) else None,
        tokens_out=tokens_out if isinstance(tokens_out, int) else None,
    )


def pieces(spans: Iterable[Told], start_ns: int, end_ns: int) -> list[Piece]:
    """A command's time from start to end as pieces in order, each instant in one phase.

    Of nested spans of one thread the inner one tells the phase; where threads or processes are in different phases it
    is `mixed`. The measured window runs from the first start to the last end of spans that are not AROUND it; time in
    it without a piece is `other`. Outside the window there are AROUND phases and `outside`. Without a span that makes
    a window, all is one piece: `command`.
    """
    known = [
        replace(one, start_ns=max(one.start_ns, start_ns), end_ns=min(one.end_ns, end_ns))
        for one in spans
        if one.end_ns >= start_ns and one.start_ns <= end_ns
    ]
    within = [one for one in known if one.phase not in AROUND]
    made = _merged(_stretches(within))
    if not made:
        return [
            Piece(
                COMMAND,
                start_ns,
                end_ns,
                known_sum(one.tokens_in for one in known),
                known_sum(one.tokens_out for one in known),
            )
        ]
    around = [one for one in known if one.phase in AROUND]
    return [
        *_outside(_stretches(around), start_ns, made[0].start_ns),
        *_with_tokens(made, within),
        *_outside(_stretches(around), made[-1].end_ns, end_ns),
    ]


def _stretches(spans: list[Told]) -> Iterator[Piece]:
    """Between each two edges the phase that all tellers agree on, else `mixed`; nothing where no span is open."""
    edges = [(one.start_ns, 1, i) for i, one in enumerate(spans)]
    edges += [(one.end_ns, 0, i) for i, one in enumerate(spans)]
    open_by: dict[tuple[int, int], list[int]] = {}  # what each teller has open, the inner ones last
    phases: Counter[str] = Counter()  # the inner phase of each teller
    before_ns = 0
    for at_ns, opens, i in sorted(edges):
        if at_ns > before_ns and phases:
            yield Piece(next(iter(phases)) if len(phases) == 1 else MIXED, before_ns, at_ns)
        before_ns = at_ns
        mine = open_by.setdefault(spans[i].teller, [])
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


def _merged(stretches: Iterable[Piece]) -> list[Piece]:
    """The same with stretches of one phase that touch made one."""
    out: list[Piece] = []
    for one in stretches:
        if out and out[-1].phase == one.phase and out[-1].end_ns == one.start_ns:
            out[-1] = replace(out[-1], end_ns=one.end_ns)
        else:
            out.append(one)
    return out


def _outside(stretches: Iterable[Piece], start_ns: int, end_ns: int) -> list[Piece]:
    """All time between two instants outside the window: what was told of it, and `outside`."""
    out: list[Piece] = []
    at_ns = start_ns
    for one in _merged(stretches):
        first_ns, last_ns = max(one.start_ns, start_ns), min(one.end_ns, end_ns)
        if first_ns >= last_ns:
            continue
        if first_ns > at_ns:
            out.append(Piece(OUTSIDE, at_ns, first_ns))
        phase = OUTSIDE if one.phase == MIXED else one.phase
        out.append(Piece(phase, first_ns, last_ns))
        at_ns = last_ns
    if end_ns > at_ns:
        out.append(Piece(OUTSIDE, at_ns, end_ns))
    return out


def _with_tokens(made: list[Piece], spans: list[Told]) -> list[Piece]:
    """The pieces with the tokens of each span, which the piece has that holds the span's end."""
    by_piece: dict[int, list[Told]] = {}
    at = 0
    for one in sorted(spans, key=lambda one: one.end_ns):
        while at < len(made) - 1 and made[at].end_ns < one.end_ns:
            at += 1
        by_piece.setdefault(at, []).append(one)
    return [
        replace(
            piece,
            tokens_in=known_sum(one.tokens_in for one in by_piece.get(i, [])),
            tokens_out=known_sum(one.tokens_out for one in by_piece.get(i, [])),
        )
        for i, piece in enumerate(made)
    ]
