"""Drives a load through a server that speaks OpenAI's API, as the command that `wattflow measure --serve` measures.

    python -m wattflow.measure.driver LOAD.yaml -- CMD...

    load     the server starts, until it answers     warmup   a few requests     decode   the load

Only the load is in the measured window. Tokens are those that the responses' usage has. Requests are sent by a clock or
so many at a time, as `workload.mode=open` and `closed` are, each by a thread that waits for its stream.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml

from wattflow import span
from wattflow.config.checks import check_value
from wattflow.config.choices import Config, Dataset, Workload
from wattflow.engine.serving import Feed, serve
from wattflow.errors import RefusedError, WattflowError, printable
from wattflow.measure.request import FORWARDED
from wattflow.store.files import read_given
from wattflow.store.sources import SECOND_NS
from wattflow.workload import arrivals

_WARM_UP = 4  # requests
_POLL_S = 0.002  # while requests are in work
_ANSWER_S = 600.0  # longest wait for the next byte of a stream
_MOST_BYTES = 2**26  # of one stream
_TAKEN_S = 5.0  # longest wait for another server at the address
_LARGEST = arrivals.MOST_TOKENS  # of the numbers of a load file


@dataclass(frozen=True)
class LoadFile:
    """What LOAD.yaml may say."""

    model: str  # as the server names it
    requests: int = 100
    url: str = "http://127.0.0.1:8000"
    rate_per_s: float | None = None  # else `concurrency`, or the times of `trace`
    burstiness: float = 1.0
    concurrency: int | None = None
    trace: str | None = None
    tokens_in: int = 128  # of a request without a trace
    tokens_out: int = 128
    most_tokens: int = 8192  # of prompt and output, by a trace
    vocabulary: int = 32000
    seed: int = 0
    ready_s: float = 600.0  # how long the server may take to answer


@dataclass
class Answer:
    """What became of one request; unix ns."""

    due_ns: int
    sent_ns: int = 0
    first_ns: int = 0
    end_ns: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    error: str | None = "no answer"  # null once all of it has come
    chunk_ns: list[int] = field(default_factory=list)


def read_load(path: Path) -> LoadFile:
    """Return a load file's values; RefusedError names file, key and fault."""
    try:
        found = yaml.safe_load(read_given(path))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}: cannot be read as YAML ({error}).") from error
    known = {one.name: one.type for one in fields(LoadFile)}
    if not isinstance(found, dict) or not found.get("model"):
        raise RefusedError(f"{path}: says no model, such as `model: llama`.")
    for key, value in found.items():
        if key not in known:
            raise RefusedError(f"{path}: {key} is none of {', '.join(known)}.")
        kind = getattr(known[key], "__name__", str(known[key]))
        fits = isinstance(value, str) if "str" in kind else isinstance(value, int | float)
        if not fits or isinstance(value, bool) or ("int" in kind and not isinstance(value, int)):
            raise RefusedError(f"{path}: {key}: {value!r} is no {kind}.")
        if key == "seed" and value < 0:
            raise RefusedError(f"{path}: seed: {value} is below 0.")
        if not isinstance(value, str) and key != "seed" and not 0 < value <= _LARGEST:
            raise RefusedError(f"{path}: {key}: {value} is not above 0 and at most {_LARGEST}.")
    load = LoadFile(**found)
    if not _is_address(load.url):
        raise RefusedError(f"{path}: url: {load.url!r} is not http://HOST:PORT.")
    if (load.concurrency is None) == (load.rate_per_s is None and load.trace is None):
        raise RefusedError(f"{path}: either concurrency, or rate_per_s or a trace.")
    return load


def _is_address(url: str) -> bool:
    """Whether a URL is of a server alone, without a user or a path."""
    try:
        found = urlsplit(url)
        port = found.port
    except ValueError:  # no number, or half an IPv6 address
        return False
    more = (found.username, found.path.rstrip("/"), found.query, found.fragment)
    is_whole = found.scheme in ("http", "https") and bool(found.hostname) and port != 0
    return is_whole and not any(more)


def requests_of(load: LoadFile) -> tuple[arrivals.Load, list[list[int]], list[int]]:
    """Return the arrivals of a load, its prompts and how many tokens each may answer."""
    mode = "open" if load.concurrency is None else "closed"
    workload = Workload(
        mode=mode,
        concurrency=load.concurrency,
        rate_per_s=load.rate_per_s,
        burstiness=load.burstiness,
        trace=load.trace,
    )
    config = Config(
        workload=workload,
        dataset=Dataset(on_bad="skip"),
        n_prompts=load.requests,
        max_gen_len=load.most_tokens,
        max_seq_len=load.most_tokens,
        seed=load.seed,
    )
    check_value("workload.burstiness", load.burstiness)
    wanted = arrivals.load(config)
    lengths = wanted.tokens_in or [load.tokens_in] * load.requests
    answers = wanted.tokens_out or [load.tokens_out] * load.requests
    return wanted, arrivals.ids(lengths, load.vocabulary, load.seed), answers


class Server:
    """The server's process and its address."""

    def __init__(self, command: Sequence[str], url: str) -> None:
        """Start it, in a process group of its own; RefusedError where it cannot be, or its address is taken."""
        self._address = urlsplit(url)
        self._check_free()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise RefusedError(f"--serve: {command[0]}: {error.strerror}.") from error

    def _check_free(self) -> None:
        """Raise RefusedError where another server listens: it would answer, and this one's joules be measured."""
        address = self._address
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), _TAKEN_S).close()
        except OSError:
            return
        raise RefusedError(
            f"{address.geturl()}: something listens there already, so that what answers would not be the server of "
            "--serve. End it, or give the server another port and the load file its url."
        )

    def connection(self, timeout_s: float = _ANSWER_S) -> http.client.HTTPConnection:
        """Return a new connection to it."""
        kind = (
            http.client.HTTPSConnection
            if self._address.scheme == "https"
            else http.client.HTTPConnection
        )
        return kind(self._address.netloc, timeout=timeout_s)

    def check_alive(self) -> None:
        """Raise WattflowError where it has ended."""
        code = self._process.poll()
        if code is not None:
            raise WattflowError(
                f"the server ended by itself with exit code {code}: its output says why."
            )

    def wait_ready(self, seconds: float) -> None:
        """Return once it lists its models; WattflowError where it ends, or takes longer."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.check_alive()
            try:
                with contextlib.closing(self.connection(left_s)) as connection:
                    connection.request("GET", "/v1/models")
                    if connection.getresponse().status == http.client.OK:
                        return
            except (OSError, http.client.HTTPException):
                pass  # not yet
            time.sleep(0.1)
        raise WattflowError(
            f"the server did not answer at {self._address.geturl()} within {seconds:g} s (ready_s)."
        )

    def stop(self) -> None:
        """End its process group, also where a signal comes meanwhile, or its first process has ended."""
        group = self._process.pid
        try:
            if self._process.poll() is None:
                os.killpg(group, signal.SIGTERM)
                self._process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self._process.wait()


class Driver:
    """Sends requests, each from a thread of its own."""

    def __init__(
        self, server: Server, model: str, prompts: list[list[int]], most: list[int]
    ) -> None:
        """`prompts` are token ids, and `most` what each may answer."""
        self._server, self._model, self._prompts, self._most = server, model, prompts, most
        self._running: set[threading.Thread] = set()
        self.answers: dict[int, Answer] = {}

    @property
    def in_work(self) -> int:
        """Requests that were sent and are not done."""
        self._running = {one for one in self._running if one.is_alive()}
        return len(self._running)

    def send(self, number: int, due_ns: int) -> None:
        """Send one request."""
        answer = self.answers[number] = Answer(due_ns)
        thread = threading.Thread(target=self._ask, args=(number, answer), daemon=True)
        self._running.add(thread)
        thread.start()

    def step(self) -> None:
        """Wait a moment for streams; WattflowError where the server ended."""
        self._server.check_alive()
        time.sleep(_POLL_S)

    def idle(self) -> None:
        """See that the server lives while nothing is in work."""
        self._server.check_alive()

    def _ask(self, number: int, answer: Answer) -> None:
        body = {
            "model": self._model,
            "prompt": self._prompts[number],
            "max_tokens": self._most[number],
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            with contextlib.closing(self._server.connection()) as connection:
                answer.sent_ns = time.time_ns()
                connection.request(
                    *("POST", "/v1/completions", json.dumps(body)),
                    {"Content-Type": "application/json"},
                )
                answer.error = _read(connection.getresponse(), answer)
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        finally:
            answer.end_ns = time.time_ns()


def _read(response: http.client.HTTPResponse, answer: Answer) -> str | None:
    """Read a stream to its end, and return what is wrong with it; ValueError for what is no event of the API."""
    if response.status != http.client.OK:
        return f"status {response.status}: {response.read(300).decode(errors='replace')}"
    left = _MOST_BYTES
    while line := response.readline(left + 1):
        left -= len(line)
        if left < 0:
            return f"a stream of more than {_MOST_BYTES} bytes"
        _take(line, answer)
    return "the stream ended without usage" if answer.tokens_out is None else None


def _take(line: bytes, answer: Answer) -> None:
    """Take one line of a stream of server-sent events."""
    text = line.strip()
    if not text.startswith(b"data:") or text.endswith(b"[DONE]"):
        return
    event = json.loads(text.removeprefix(b"data:"))
    now_ns = time.time_ns()
    if not isinstance(event, dict):
        raise ValueError("an event that is no JSON object")  # noqa: TRY004 - the server's fault
    if event.get("choices"):
        answer.first_ns = answer.first_ns or now_ns
        answer.chunk_ns.append(now_ns)
    if usage := event.get("usage"):
        answer.tokens_in = _count(usage, "prompt_tokens")
        answer.tokens_out = _count(usage, "completion_tokens")


def _count(usage: Any, name: str) -> int:
    found = usage.get(name) if isinstance(usage, dict) else None
    if type(found) is not int or not 0 <= found <= arrivals.MOST_TOKENS:
        raise ValueError(f"usage has no count of {name}")
    return found


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Return counts and percentiles of a load, times from the moment at which each request was meant to be sent."""
    good = [one for one in answers if one.error is None]
    ttft_s = [(one.first_ns - one.due_ns) / SECOND_NS for one in good if one.first_ns]
    e2e_s = [(one.end_ns - one.due_ns) / SECOND_NS for one in good]
    gaps_s = [gap / SECOND_NS for one in good for gap in np.diff(one.chunk_ns).tolist()]
    found: dict[str, Any] = {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "seconds": seconds,
        "tokens_in": sum(one.tokens_in or 0 for one in good),
        "tokens_out": sum(one.tokens_out or 0 for one in good),
        "late_s": max(((one.sent_ns - one.due_ns) / SECOND_NS for one in good), default=None),
    }
    for name, values in (("ttft", ttft_s), ("itl", gaps_s), ("e2e", e2e_s)):
        for q in (50, 90, 95, 99):
            found[f"{name}_p{q}_s"] = float(np.percentile(values, q)) if values else None
    return found


def drive(load: LoadFile, command: Sequence[str], labels: Mapping[str, str]) -> dict[str, Any]:
    """Start the server, drive the load and stop it; WattflowError where the server ends or requests fail."""
    wanted, prompts, most = requests_of(load)
    with span("load"):
        server = Server(command, load.url)
        try:
            server.wait_ready(load.ready_s)
        except BaseException:
            server.stop()
            raise
    try:
        warm = min(_WARM_UP, len(prompts))
        with span("warmup"):
            _through(Driver(server, load.model, prompts, most), Feed(warm, None, warm), warm)
        driver = Driver(server, load.model, prompts, most)
        feed = Feed(len(prompts), wanted.due_s, load.concurrency if wanted.due_s is None else None)
        began_s = time.monotonic()
        with span("decode") as tokens:
            answers = _through(driver, feed, len(prompts))
            tokens.tokens_in = sum(one.tokens_in or 0 for one in answers)
            tokens.tokens_out = sum(one.tokens_out or 0 for one in answers)
        return {
            "labels": dict(labels),
            "load": asdict(load),
            "skipped": wanted.skipped,
            **summary(answers, time.monotonic() - began_s),
        }
    finally:
        server.stop()


def _through(driver: Driver, feed: Feed, count: int) -> list[Answer]:
    """Drive all of a feed; WattflowError where a request failed."""
    serve(driver, feed, lambda turn: turn)
    answers = [driver.answers[number] for number in range(count)]
    failed = [one.error for one in answers if one.error is not None]
    if failed:
        raise WattflowError(f"{len(failed)} of {count} requests failed, the first by {failed[0]}.")
    return answers


def main(words: Sequence[str]) -> int:
    """Run `LOAD.yaml [KEY=VALUE ...] -- CMD...` and print what came of it as one line of JSON; the exit code."""
    for one in FORWARDED:
        if signal.getsignal(one) is not signal.SIG_IGN:
            signal.signal(one, lambda signum, _: sys.exit(128 + signum))  # ends the server too
    ours, command = list(words[: words.index("--")]), list(words[words.index("--") + 1 :])
    labels = dict(word.split("=", 1) for word in ours[1:])
    try:
        print(json.dumps(drive(read_load(Path(ours[0])), command, labels)), flush=True)
    except WattflowError as error:
        print(f"wattflow: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, RefusedError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
