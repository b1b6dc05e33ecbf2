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
from wattflow.nullable import known_sum
from wattflow.store.files import read_given

STDOUT = "-"  # --tokens-json: the lines of the command's own output
DRAIN_S = 0.5  # for the last lines of an output that a daemon may hold open


class Output:
    """Passes the command's output on, and counts the tokens in those of its lines that are JSON."""

    def __init__(self, process: subprocess.Popen[bytes], key: str) -> None:
        assert process.stdout is not None
        self._pipe, self._key = process.stdout, key
        self._counts: list[int | None] = []
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def _pass_on(self) -> None:
        rest = b""
        while data := os.read(self._pipe.fileno(), 65536):
            with contextlib.suppress(OSError):  # a reader that went away, as `head` does
                _write_all(1, data)
            *lines, rest = (rest + data).split(b"\n")
            self._counts += [_tokens_in_line(line, self._key) for line in lines]
        self._counts.append(_tokens_in_line(rest, self._key))

    def tokens(self) -> int | None:
        """The sum over the lines that hold the key; null where none does."""
        self._thread.join(DRAIN_S)
        return known_sum(list(self._counts))


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _tokens_in_line(line: bytes, key: str) -> int | None:
    if not line.lstrip().startswith(b"{"):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return _tokens_at(json.loads(line), key)
    return None


def _tokens_at(value: Any, key: str) -> int | None:
    """The whole number at a dotted key of a JSON value, summed over a list of values; null where none has it."""
    if isinstance(value, list):
        return known_sum([_tokens_at(each, key) for each in value])
    first, _, rest = key.partition(".")
    if not isinstance(value, dict) or first not in value:
        return None
    inner = value[first]
    if rest:
        return _tokens_at(inner, rest)
    if isinstance(inner, list):
        return known_sum([n if isinstance(n, int) else None for n in inner])
    return inner if isinstance(inner, int) and not isinstance(inner, bool) else None


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
        tokens = _tokens_at(json.loads(text), key)
    except (ValueError, RecursionError):
        tokens = known_sum([_tokens_in_line(line, key) for line in text.splitlines()])
    return tokens, None if tokens is not None else f"{path}: no whole number at {key}."


def count_tokens(
    request: Request, place: Place, run: CommandRun, warn: Callable[[str], None]
) -> int | None:
    """Count the tokens in JSON of the command's output, or of a file: nodes may share it, so task 0 alone reads it."""
    if request.tokens_json is None or request.tokens_key is None:
        return None
    if request.tokens_json == STDOUT:
        if run.tokens_out is None:
            warn(f"no line of the output is JSON with a whole number at {request.tokens_key}.")
        return run.tokens_out
    if place.task != 0:
        return None
    tokens, reason = _tokens_in_file(Path(request.tokens_json), request.tokens_key, run.start_ns)
    if reason is not None:
        warn(reason)
    return tokens
