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

ENVIRONMENT = "WATTFLOW_SPANS"


@dataclass
class SpanTokens:
    """What a span worked on; a program may set it inside the span, once it knows."""

    tokens_in: int | None = None
    tokens_out: int | None = None


class Span:
    """Times one phase of a program: a context manager that tells its edges to `wattflow measure`, if that watches."""

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
        """The span's tokens, to be set where they become known inside it."""
        if ENVIRONMENT in os.environ:
            self._start_ns = self._edge()
        return self._tokens

    def __exit__(self, kind: object, *_: object) -> None:
        """Tell the span; one that raises is dropped."""
        if self._start_ns is None or kind is not None:
            return
        told = {
            "phase": self._phase,
            "start_ns": self._start_ns,
            "end_ns": self._edge(),
            "pid": os.getpid(),
            "tid": threading.get_ident(),
            **vars(self._tokens),
        }
        _report(json.dumps(told))

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
    """A phase of the program that runs: `with wattflow.span("decode", tokens_out=32): ...`; see Span."""
    return Span(phase, tokens_in=tokens_in, tokens_out=tokens_out, sync=sync)


def _report(line: str) -> None:
    """Add a line to the node's file. Opened anew each time, as a daemon closes what it inherits; never raises.

    The file is never made here: what outlives its measurement tells nobody.
    """
    with contextlib.suppress(OSError, KeyError):
        path = os.environ[ENVIRONMENT]
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)


def tells(pid: int, path: str) -> bool | None:
    """Whether a process inherited a file of spans, as those of a measured command do, daemons too; null if unknown."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except FileNotFoundError:
        return None  # it ended, or its number is that of another pid namespace
    except OSError:
        return False  # somebody else's
    return f"{ENVIRONMENT}={path}".encode() in environment.split(b"\0")
