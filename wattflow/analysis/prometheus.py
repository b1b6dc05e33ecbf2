"""Reading a Prometheus server over HTTP: samples as they were scraped, with their own stamps.

An instant query of a range selector, `metric{...}[60s]`, returns the samples that are stored; a range query would
return others in their place, made at even steps.
"""

import http.client
import ipaddress
import json
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np

from wattflow.energy.curve import Floats, Ints
from wattflow.errors import RefusedError, SiteError
from wattflow.store.files import expanded, read_given
from wattflow.store.sources import SECOND_NS

TIMEOUT_S = 30.0
MOST_BYTES = (
    2**26
)  # of an answer: two million samples; what is made of it takes some 25 times as much
_PLAIN = re.compile(r"[\x21-\x7e]+")  # what may stand in a header or a URL


@dataclass(frozen=True)
class Series:
    """One series: its labels, and its samples in order of time."""

    labels: dict[str, str]
    time_ns: Ints  # unix time, to the millisecond
    values: Floats


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: it would take the token along to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Prometheus:
    """A server by its URL; `token` goes into the Authorization header and into no message."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """RefusedError for what is no http or https URL, or holds a password."""
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # brackets that do not close, a port that is none
            known = False
        if not known or not _PLAIN.fullmatch(url):
            raise RefusedError(
                "--prometheus: no http or https URL of a server, such as https://prometheus.site:9090."
            )
        if parts.username is not None or parts.query or parts.fragment:
            raise RefusedError(
                f"--prometheus: give {parts.scheme}://{parts.hostname} without user, password, query or fragment; a "
                "token goes into a file, by --token-file."
            )
        if token is not None and not _PLAIN.fullmatch(token):
            raise RefusedError("the token holds spaces or other signs that no header may hold.")
        local = _is_local(parts.hostname or "")
        if token is not None and parts.scheme == "http" and not local:
            raise RefusedError(
                f"--prometheus: everybody on the way to {parts.hostname} could read a token over http. Give an https "
                "URL, or that of a tunnel on this machine (`ssh -L 9090:HOST:9090`, http://127.0.0.1:9090)."
            )
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # of this machine no proxy knows; it would see the token, too
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._open = urllib.request.build_opener(_NoRedirect, *proxies).open

    def names(self, start_ns: int, end_ns: int) -> set[str]:
        """Return the names of the metrics that have samples in some time."""
        names = self._get("label/__name__/values", start=_stamp(start_ns), end=_stamp(end_ns))
        if not isinstance(names, list):
            raise SiteError(f"{self.url}: an answer of no known form to the metrics' names.")
        return {name for name in names if isinstance(name, str)}

    def samples(self, selector: str, start_ns: int, end_ns: int) -> list[Series]:
        """Return all stored samples of the series that a selector chooses, from one time to another."""
        seconds = -(-(end_ns - start_ns) // SECOND_NS) + 1
        found = self._get("query", query=f"{selector}[{seconds}s]", time=_stamp(end_ns))
        try:
            return [_series(one) for one in _listed(found["result"])]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise SiteError(f"{self.url}: an answer of no known form to {selector}.") from error

    def _get(self, what: str, **parameters: str) -> Any:
        """Return the data of an answer; SiteError where there is none in time, or an error in its place."""
        request = urllib.request.Request(  # noqa: S310 (http and https alone, see __init__)
            f"{self.url}/api/v1/{what}?{urlencode(parameters)}", headers=self._headers
        )
        text = self._in_time(request)
        if len(text) > MOST_BYTES:
            raise SiteError(
                f"{self.url}: an answer of more than {MOST_BYTES // 2**20} MiB. Its samples are denser, or its series "
                "more, than those of one attempt's GPUs should be."
            )
        try:
            document = json.loads(text)
            if document["status"] != "success":
                why = str(document.get("error", document["status"]))
                raise SiteError(f"{self.url}: {' '.join(why.split())[:300]}")
            return document["data"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, SiteError):
                raise
            raise SiteError(
                f"{self.url}: answers, but not as a Prometheus server does. Its API has to lie at {self.url}/api/v1."
            ) from error

    def _in_time(self, request: urllib.request.Request) -> bytes:
        """Return an answer's bytes, one more than MOST_BYTES at most; SiteError where they are not there in time.

        The limit is for all of it: a socket's own is anew for each byte, and names are looked up without any. So a
        thread asks, and is left behind when the time is up.
        """
        done: queue.SimpleQueue[bytes | SiteError] = queue.SimpleQueue()
        threading.Thread(target=lambda: done.put(self._ask(request)), daemon=True).start()
        try:
            answer = done.get(timeout=self._timeout_s)
        except queue.Empty:
            answer = self._too_late()
        if isinstance(answer, SiteError):
            raise answer
        return answer

    def _too_late(self) -> SiteError:
        return SiteError(
            f"{self.url}: no answer within {self._timeout_s:g} s. Is it the server's URL?"
        )

    def _ask(self, request: urllib.request.Request) -> bytes | SiteError:
        """Return an answer's bytes, or the error in its place."""
        end_s = time.monotonic() + self._timeout_s
        text = bytearray()
        try:
            with self._open(request, timeout=self._timeout_s) as answer:
                while len(text) <= MOST_BYTES and time.monotonic() < end_s:
                    part = answer.read1(2**20)
                    if not part:
                        return bytes(text)
                    text += part
            return bytes(text) if len(text) > MOST_BYTES else self._too_late()
        except urllib.error.HTTPError as error:
            with error:
                return SiteError(f"{self.url}: {_refusal(error)}")
        except TimeoutError:
            return self._too_late()
        # URLError is an OSError, what an odd name or header leads to a ValueError
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = getattr(error, "reason", None) or error
            return SiteError(f"{self.url}: does not answer ({why}). Is it the server's URL?")


def _is_local(host: str) -> bool:
    """Return whether a URL's host is this machine, so that what is sent to it crosses no network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refusal(error: urllib.error.HTTPError) -> str:
    """Return what a refusal says, in one line."""
    if error.code in (401, 403):
        return f"refused ({error.code}): it wants a token, by --token-file."
    if 300 <= error.code < 400:
        return f"moved ({error.code}): give the URL that it leads to."
    text = ""
    try:
        text = str(json.loads(error.read(2**16))["error"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError):
        text = str(error.reason)
    return f"HTTP {error.code}: {' '.join(text.split())[:300]}"


def _stamp(time_ns: int) -> str:
    return f"{time_ns / SECOND_NS:.3f}"


def _listed(found: Any) -> list[Any]:
    """Return a list that has to be one; TypeError for anything else, which may be empty or be gone through, too."""
    if not isinstance(found, list):
        raise TypeError("no list")
    return found


def _series(found: dict[str, Any]) -> Series:
    """Return a series; ValueError, or what odd JSON leads to, where it is none."""
    stamps = np.array([float(stamp) for stamp, _ in _listed(found["values"])], dtype=np.float64)
    values = np.array([_value(value) for _, value in found["values"]], dtype=np.float64)
    if not np.all((stamps >= 0) & (stamps < _LAST_S)):
        raise ValueError("a stamp that is no unix time of today's")
    labels = {str(key): str(value) for key, value in found["metric"].items()}
    return Series(labels, np.rint(stamps * 1e3).astype(np.int64) * 1_000_000, values)


_LAST_S = 2**33  # year 2242
_VALUE = re.compile(r"[+-]?([0-9.]+([eE][+-]?[0-9]+)?|[Ii]nf|NaN)")  # as Go prints a float


def _value(text: Any) -> float:
    """Return a sample's value, a number in text as Prometheus writes it; ValueError for any other."""
    if isinstance(text, bool) or not _VALUE.fullmatch(str(text)):
        raise ValueError("a value that is no number")
    return float(text)


def selector(metric: str, label: str, values: list[str]) -> str:
    """Return the selector of a metric's series whose label is one of some values."""
    either = "|".join(re.escape(value) for value in sorted(values))
    return f"{metric}{{{label}=~{json.dumps(either)}}}"


def read_token(path: str | None) -> str | None:
    """Return the token in a file, else in WATTFLOW_PROMETHEUS_TOKEN, else null; RefusedError for an unreadable file."""
    if path is None:
        return os.environ.get("WATTFLOW_PROMETHEUS_TOKEN") or None
    try:
        return read_given(expanded(path)).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(
            f"--token-file {path}: cannot be read ({type(error).__name__})."
        ) from None
