"""Spans that a program reports while `wattflow measure` watches it.

Imports nothing heavy, as it runs in other people's programs.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "WATTFLOW_SPANS"  # names the file to which spans are added


@dataclass
class SpanTokens:
    """The tokens that a span works on; a program may set them inside the span, once it knows them."""

    tokens_in: int | None = None
    tokens_out: int | None = None


class Span:
    """Times one phase of a program: a context manager that reports its edges to `wattflow measure`, if that watches."""

    def __init__(
        self,
        phase: str,
        *,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        sync: Callable[[], object] | None = None,
    ) -> None:
        """`sync` is called at both edges under `measure`, such as torch.cuda.synchronize."""
        self._phase, self._sync = phase, sync
        self._tokens = SpanTokens(tokens_in, tokens_out)
        self._start_ns: int | None = None

    def __enter__(self) -> SpanTokens:
        """Start the span; its tokens come back, to be set where they become known inside it."""
        if ENVIRONMENT in os.environ:
            self._start_ns = self._edge()
        return self._tokens

    def __exit__(self, kind: object, *_: object) -> None:
        """End and report the span; one that raises is dropped."""
        if self._start_ns is None or kind is not None:
            return
        fields = {
            "phase": self._phase,
            "start_ns": self._start_ns,
            "end_ns": self._edge(),
            "pid": os.getpid(),
            "tid": threading.get_ident(),
            **vars(self._tokens),
        }
        _report(json.dumps(fields))

    def _edge(self) -> int:
        if self._sync is not None:
            self._sync()
        return time.time_ns()


def span(
    phase: str,
    *,
    tokens_in: int | None = None,
    tokens_out: int | None = None,
    sync: Callable[[], object] | None = None,
) -> Span:
    """Time a phase of this program: `with wattflow.span("decode", tokens_out=32): ...`; see Span."""
    return Span(phase, tokens_in=tokens_in, tokens_out=tokens_out, sync=sync)


# without O_NONBLOCK a FIFO in its place would stop the program
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def _report(line: str) -> None:
    """Add a line to the node's file; never raises. The file is opened each time, as a daemon closes what it inherits.

    It is never made here: what a process does after its measurement ended is not recorded.
    """
    with contextlib.suppress(OSError, KeyError):
        path = os.environ[ENVIRONMENT]
        descriptor = os.open(path, _FLAGS)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)


def reports_to(pid: int, path: str) -> bool | None:
    """Whether a process inherited this file of spans, as all of a measured command do, daemons too; null if unknown."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except FileNotFoundError:
        return None  # it ended, or its number is that of another pid namespace
    except OSError:
        return False  # somebody else's
    return f"{ENVIRONMENT}={path}".encode() in environment.split(b"\0")
