"""A Prometheus server that refuses, is none, or answers."""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest
from site_monitoring import prometheus, served
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.analysis.prometheus import Prometheus, selector
from wattflow.cli.app import main
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError, SiteError


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["wattflow", "crosscheck", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.mark.prometheus
def test_a_query_that_is_none(tmp_path):
    """The server's own words come back in one line."""
    with prometheus(tmp_path, []) as url, pytest.raises(SiteError, match="parse error"):
        Prometheus(url).samples("{", 0, 10**9)


def ask(url, token=None, **over):
    return Prometheus(url, token, **over).names(0, 10**9)


def test_nobody_answers():
    """A port at which nobody listens, and a server that takes its time: one line each, with what to look at."""
    with pytest.raises(SiteError, match=r"does not answer .*refused"):
        ask("http://127.0.0.1:9")

    def slow(_):
        time.sleep(0.6)
        return 200, {}, b"{}"

    with served(slow) as url, pytest.raises(SiteError, match=r"no answer within 0\.2 s"):
        ask(url, timeout_s=0.2)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((200, {}, b"<html>"), "not as a Prometheus server does"),
        ((200, {}, b"[1]"), "not as a Prometheus server does"),
        ((200, {}, b'{"status": "error", "error": "too busy"}'), "too busy"),
        ((401, {}, b""), "wants a token, by --token-file"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "moved"),
        ((500, {}, b"oh"), "HTTP 500"),
        ((422, {}, b'{"error": "query timed\\n out"}'), "HTTP 422: query timed out"),
    ],
)
def test_answers_that_are_none(answer, why):
    """What is no Prometheus, and what refuses, is told in one line."""
    with served(lambda _: answer) as url, pytest.raises(SiteError, match=why) as error:
        ask(url)
    assert "\n" not in str(error.value)


SAMPLES = b'{"status": "success", "data": {"resultType": "matrix", "result": %s}}'
ODD = [
    b"[1]",
    b"{}",
    b"1",
    b'"text"',
    b"null",
    b"[null]",
    b'[{"metric": {}}]',
    b'[{"metric": [], "values": [[1, "2"]]}]',
    b'[{"metric": null, "values": []}]',
    b'[{"metric": {}, "values": [1]}]',
    b'[{"metric": {}, "values": [[1, "2", 3]]}]',
    b'[{"metric": {}, "values": [[1, "many"]]}]',
    b'[{"metric": {}, "values": [[1, "1_0"]]}]',
    b'[{"metric": {}, "values": [[1, null]]}]',
    b'[{"metric": {}, "values": [[1, true]]}]',
    b'[{"metric": {}, "values": [[1, "1.2.3"]]}]',
    b'[{"metric": {}, "values": [["NaN", "2"]]}]',
    b'[{"metric": {}, "values": [[1e300, "2"]]}]',
    b'[{"metric": {}, "values": [[-5, "2"]]}]',
    b'[{"metric": {}, "values": [[1%s, "2"]]}]' % (b"0" * 400),
    b'[{"metric": {}, "values": {"a": 1}}]',
]


@pytest.mark.parametrize("result", ODD)
def test_odd_samples_are_refused_in_one_line(result):
    """JSON of another form than Prometheus has is a SiteError, and no traceback."""
    with (
        served(lambda _: (200, {}, SAMPLES % result)) as url,
        pytest.raises(SiteError, match=r"of no known form|not as a Prometheus") as error,
    ):
        Prometheus(url).samples("up", 0, 10**9)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"1", b"null", b'"names"', b'{"a": 1}'])
def test_odd_names_are_refused(data):
    """The names of metrics are a list; what else stands in it is no name."""
    with (
        served(lambda _: (200, {}, b'{"status": "success", "data": %s}' % data)) as url,
        pytest.raises(SiteError, match="of no known form"),
    ):
        ask(url)
    body = b'{"status": "success", "data": ["up", 1, null, {"a": 1}]}'
    with served(lambda _: (200, {}, body)) as url:
        assert ask(url) == {"up"}


def test_values_that_prometheus_writes():
    """Those that are no numbers are passed on, as their time is a gap."""
    result = b'[{"metric": {"a": "b"}, "values": [[1.5, "2.5e-1"], [2, "NaN"], [3, "+Inf"]]}]'
    with served(lambda _: (200, {}, SAMPLES % result)) as url:
        (one,) = Prometheus(url).samples("up", 0, 10**9)
    assert one.time_ns.tolist() == [1_500_000_000, 2_000_000_000, 3_000_000_000]
    assert np.array_equal(one.values, [0.25, np.nan, np.inf], equal_nan=True)


@contextlib.contextmanager
def dripping(first):
    """A server that sends some bytes at once, and then a space each 50 ms for ever; its URL."""
    ended = threading.Event()

    def serve(listener):
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(first)
                while not ended.wait(0.05):
                    connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    "first",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 Oh\r\n\r\n"],
)
def test_a_byte_at_a_time_is_no_answer_in_time(first):
    """The time is for all of an answer, be it the status, a header, the body, or that of a refusal."""
    start_s = time.monotonic()
    with dripping(first) as url, pytest.raises(SiteError, match=r"no answer within 0\.5 s"):
        ask(url, timeout_s=0.5)
    assert time.monotonic() - start_s < 3


def test_an_answer_that_is_too_large(monkeypatch):
    """It is read no further than its limit, which the error names."""
    monkeypatch.setattr("wattflow.analysis.prometheus.MOST_BYTES", 2**20)
    with (
        served(lambda _: (200, {}, b" " * 2**22)) as url,
        pytest.raises(SiteError, match="an answer of more than 1 MiB"),
    ):
        ask(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9090", "http://localhost:9", "http://[::1]:9", "https://site"]
)
def test_a_token_crosses_no_network_in_the_clear(url):
    """It may go to this machine, and by https; not by http to another, nor to a name that only looks like this one."""
    Prometheus(url, "hush")
    for other in (
        "http://site:9090",
        "http://10.0.0.1",
        "http://localhost.site",
        "http://127.0.0.1.site",
    ):
        with pytest.raises(RefusedError, match="could read a token over http") as error:
            Prometheus(other, "hush")
        assert "hush" not in str(error.value)
        Prometheus(other)


def test_the_token_goes_into_the_header_and_nowhere_else(tmp_path, monkeypatch, capsys):
    """A token from a file or the environment reaches the server, follows no redirect, and stands in no message."""
    seen = []

    def answer(request):
        seen.append(request.headers.get("Authorization"))
        return 302, {"Location": f"http://127.0.0.1:{request.server.server_port}/stolen"}, b""

    secret = tmp_path / "token"
    secret.write_text("hush-hush\n")
    point = choices()
    directory = make_sweep(tmp_path / "s", [point])
    make_attempt(directory, point, Made([Gpu("GPU-a")]))
    collect(directory)
    with served(answer) as url:
        words = [directory.path, "--prometheus", url, "--no-sacct"]
        assert run(monkeypatch, *words, "--token-file", secret) == 1
        monkeypatch.setenv("WATTFLOW_PROMETHEUS_TOKEN", "other")
        assert run(monkeypatch, *words) == 1
    shown = capsys.readouterr()
    assert seen == ["Bearer hush-hush", "Bearer other"]
    assert "hush" not in shown.out + shown.err
    assert "moved (302)" in shown.err


@pytest.mark.parametrize(
    ("url", "token", "why"),
    [
        ("ftp://site", None, "no http or https URL"),
        ("prometheus:9090", None, "no http or https URL"),
        ("https://me:hush@site", None, "without user, password"),
        ("https://me:hush@[site", None, "no http or https URL"),
        ("https://site:port", None, "no http or https URL"),
        ("https://site/caf\xe9", None, "no http or https URL"),
        ("https://site", "two words", "no header may hold"),
        ("https://site", "a\r\nb", "no header may hold"),
    ],
)
def test_what_is_refused(url, token, why):
    """Another scheme, a password in the URL, a token that would break the header; none is repeated."""
    with pytest.raises(RefusedError, match=why) as error:
        Prometheus(url, token)
    assert "hush" not in str(error.value)


def test_a_token_file_that_is_not_there(tmp_path, monkeypatch, capsys):
    """It is refused before the server is asked."""
    words = ["--prometheus", "http://127.0.0.1:9", "--token-file", tmp_path / "none"]
    assert run(monkeypatch, tmp_path, *words) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_names_are_quoted():
    """A name with signs of its own stays a name."""
    assert selector("up", "UUID", ['a"b', "c.d"]) == 'up{UUID=~"a\\"b|c\\\\.d"}'
