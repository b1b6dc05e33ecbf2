"""Reading a Prometheus server over HTTP: samples as they were scraped, with their own stamps.

An instant query of a range selector, `metric{...}[60s]`, returns the samples that are stored; a range query would
return others in their place, made at even steps.
"""

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np

from wattflow.energy.curve import Floats, Ints
from wattflow.errors import RefusedError, SiteError
from wattflow.store.files import read_given
from wattflow.store.sources import SECOND_NS

TIMEOUT_S = 30.0
MOST_BYTES = 2**28  # of an answer
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
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._open = urllib.request.build_opener(_NoRedirect).open

    def names(self, start_ns: int, end_ns: int) -> set[str]:
        """Return the names of the metrics that have samples in some time."""
        names = self._get("label/__name__/values", start=_stamp(start_ns), end=_stamp(end_ns))
        return {str(name) for name in names}

    def samples(self, selector: str, start_ns: int, end_ns: int) -> list[Series]:
        """Return all stored samples of the series that a selector chooses, from one time to another."""
        seconds = -(-(end_ns - start_ns) // SECOND_NS) + 1
        found = self._get("query", query=f"{selector}[{seconds}s]", time=_stamp(end_ns))
        try:
            return [_series(one) for one in found["result"]]
        except (KeyError, TypeError, ValueError) as error:
            raise SiteError(f"{self.url}: an answer of no known form to {selector}.") from error

    def _get(self, what: str, **parameters: str) -> Any:
        """Return the data of an answer; SiteError where there is none in time, or an error in its place."""
        request = urllib.request.Request(  # noqa: S310 (http and https alone, see __init__)
            f"{self.url}/api/v1/{what}?{urlencode(parameters)}", headers=self._headers
        )
        try:
            with self._open(request, timeout=self._timeout_s) as answer:
                text = answer.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                why_not = _refusal(error)
            raise SiteError(f"{self.url}: {why_not}") from error
        except TimeoutError as error:
            raise SiteError(
                f"{self.url}: no answer within {self._timeout_s:g} s. Is it the server's URL?"
            ) from error
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            why = getattr(error, "reason", None) or error
            raise SiteError(
                f"{self.url}: does not answer ({why}). Is it the server's URL?"
            ) from error
        if len(text) > MOST_BYTES:
            raise SiteError(f"{self.url}: an answer of more than {MOST_BYTES} bytes.")
        try:
            document = json.loads(text)
            if document["status"] != "success":
                raise SiteError(f"{self.url}: {document.get('error', document['status'])}")
            return document["data"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SiteError(
                f"{self.url}: answers, but not as a Prometheus server does. Its API has to lie at {self.url}/api/v1."
            ) from error


def _refusal(error: urllib.error.HTTPError) -> str:
    """Return what a refusal says, in one line."""
    if error.code in (401, 403):
        return f"refused ({error.code}): it wants a token, by --token-file."
    if 300 <= error.code < 400:
        return f"moved ({error.code}): give the URL that it leads to."
    text = ""
    try:
        text = str(json.loads(error.read(2**16))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        text = str(error.reason)
    return f"HTTP {error.code}: {' '.join(text.split())[:300]}"


def _stamp(time_ns: int) -> str:
    return f"{time_ns / SECOND_NS:.3f}"


def _series(found: dict[str, Any]) -> Series:
    stamps = np.array([float(stamp) for stamp, _ in found["values"]], dtype=np.float64)
    values = np.array([float(value) for _, value in found["values"]], dtype=np.float64)
    labels = {str(key): str(value) for key, value in found["metric"].items()}
    return Series(labels, np.rint(stamps * 1e3).astype(np.int64) * 1_000_000, values)


def selector(metric: str, label: str, values: list[str]) -> str:
    """Return the selector of a metric's series whose label is one of some values."""
    either = "|".join(re.escape(value) for value in sorted(values))
    return f"{metric}{{{label}=~{json.dumps(either)}}}"


def read_token(path: str | None) -> str | None:
    """Return the token in a file, else in WATTFLOW_PROMETHEUS_TOKEN, else null; RefusedError for an unreadable file."""
    if path is None:
        return os.environ.get("WATTFLOW_PROMETHEUS_TOKEN") or None
    try:
        return read_given(Path(path).expanduser()).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(
            f"--token-file {path}: cannot be read ({type(error).__name__})."
        ) from None
