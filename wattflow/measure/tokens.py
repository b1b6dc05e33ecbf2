"""Count the tokens that a measured command reports on its output or in a file."""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wattflow.errors import RefusedError
from wattflow.measure.request import CommandRun, Place, Request
from wattflow.measure.timeline import MOST_TOKENS
from wattflow.nullable import known_sum
from wattflow.store.files import read_given

STDOUT = "-"  # --tokens-json: the lines of the command's own output
LONGEST_LINE = 2**24  # bytes of a line of the output that is read for tokens
DRAIN_S = 0.5  # for the last lines of an output that a daemon may hold open


class BadCountError(ValueError):
    """What stands at the tokens' key is no count of tokens, so that their sum is unknown."""


class Output:
    """Passes the command's output on, and counts the tokens in those of its lines that are JSON."""

    def __init__(self, process: subprocess.Popen[bytes], key: str) -> None:
        assert process.stdout is not None
        self.fault: str | None = None  # why the tokens are unknown, where a line has the key
        self._pipe, self._key = process.stdout, key
        self._counts: list[int | None] = []
        self._line = bytearray()  # the last one, as far as it came
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def _pass_on(self) -> None:
        while data := os.read(self._pipe.fileno(), 65536):
            with contextlib.suppress(OSError):  # a reader that went away, as `head` does
                _write_all(1, data)
            first, *others = data.split(b"\n")
            self._extend(first)
            for part in others:
                self._count()
                self._extend(part)
        self._count()

    def _extend(self, part: bytes) -> None:
        """Add to the line, up to a byte more than one may have."""
        self._line += part[: LONGEST_LINE + 1 - len(self._line)]

    def _count(self) -> None:
        """Count the tokens in the line, which has come to its end."""
        line, self._line = bytes(self._line), bytearray()
        try:
            self._counts.append(_tokens_in_line(line, self._key))
        except BadCountError as error:
            self.fault = self.fault or str(error)

    def tokens(self) -> int | None:
        """The sum over the lines that hold the key; null where none does, or one holds what is no count."""
        self._thread.join(DRAIN_S)
        return None if self.fault else known_sum(list(self._counts))


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _tokens_in_line(line: bytes, key: str, *, strict: bool = False) -> int | None:
    """The tokens in a line; null where it is no JSON or lacks the key; BadCountError for what is no count.

    `strict`: what begins as JSON has to be JSON.
    """
    if not line.lstrip().startswith(b"{"):
        return None
    if len(line) > LONGEST_LINE:
        raise BadCountError(f"a line of more than {LONGEST_LINE // 2**20} MiB was not read")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        if strict:
            raise BadCountError(f"a line that is no whole JSON: {line[:40]!r}") from error
        return None
    return _tokens_at(value, key)


def _tokens_at(value: Any, key: str) -> int | None:
    """The whole number at a dotted key of a JSON value, summed over a list of values; null where none has it.

    BadCountError where something else stands there, since a sum without it would be too small. null is nothing.
    """
    if isinstance(value, list):
        return known_sum([_tokens_at(each, key) for each in value])
    first, _, rest = key.partition(".")
    if not isinstance(value, dict) or first not in value:
        return None
    inner = value[first]
    if rest:
        return _tokens_at(inner, rest)
    return known_sum([_counted(each) for each in (inner if isinstance(inner, list) else [inner])])


def _counted(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        raise BadCountError(f"{str(value)[:40]!r} is no count of tokens")
    return value


def _tokens_in_file(path: Path, key: str, start_ns: int) -> tuple[int | None, str | None]:
    """The tokens in a file of JSON or JSON lines that the command wrote, or the reason why they are unknown."""
    try:
        # the kernel stamps files by a clock that may be a tick behind
        if path.stat().st_mtime_ns < start_ns - 20_000_000:
            return None, f"{path}: is older than the command, which did not write it."
        text = read_given(path)
    except RefusedError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{path}: {error.strerror}."
    try:
        tokens = _tokens_in_text(text, key)
    except BadCountError as error:
        return None, f"{path}: {error} (at {key}), so the tokens are unknown."
    return tokens, None if tokens is not None else f"{path}: no whole number at {key}."


def _tokens_in_text(text: bytes, key: str) -> int | None:
    """The tokens in one JSON document, else in lines of JSON; BadCountError for what is no count."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return known_sum([_tokens_in_line(line, key, strict=True) for line in text.splitlines()])
    return _tokens_at(document, key)


def count_tokens(
    request: Request, place: Place, run: CommandRun, warn: Callable[[str], None]
) -> int | None:
    """Count the tokens in JSON of the command's output, or of a file: nodes may share it, so task 0 alone reads it."""
    if request.tokens_json is None or request.tokens_key is None:
        return None
    if request.tokens_json == STDOUT:
        if run.tokens_fault is not None:
            warn(f"{run.tokens_fault} (at {request.tokens_key}), so the tokens are unknown.")
        elif run.tokens_out is None:
            warn(f"no line of the output is JSON with a whole number at {request.tokens_key}.")
        return run.tokens_out
    if place.task != 0:
        return None
    tokens, reason = _tokens_in_file(Path(request.tokens_json), request.tokens_key, run.start_ns)
    if reason is not None:
        warn(reason)
    return tokens
