"""A Prometheus server that refuses, is none, or answers."""

import time

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
