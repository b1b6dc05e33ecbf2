"""A page in headless Chromium: as it renders, and as a person uses it, by Chromium's DevTools protocol over pipes."""

import base64
import contextlib
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import bound

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_S = 60.0  # a busy machine is slow


def in_browser(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page as Chromium renders it, and what its console said."""
    flags = [*FLAGS, "--virtual-time-budget=10000", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run(
        bound(_browser(), *flags, f"--user-data-dir={profile}", "--dump-dom", f"file://{page}"),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    dom = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    return dom, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def _browser() -> str:
    if BROWSER is None:
        if "chromium" in os.environ.get("WATTFLOW_REQUIRE", ""):
            pytest.fail("WATTFLOW_REQUIRE asks for Chromium, and none is on the PATH")
        pytest.skip("no Chromium on the PATH")
    return BROWSER


class Tab:
    """A page that a person looks at: what they do, and what comes of it."""

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of = to, of
        self._numbers = itertools.count(1)
        self._read = b""
        self._session: str | None = None
        self.console: list[str] = []  # errors, warnings and refusals of the page's policy
        self.requests: list[str] = []  # addresses that it asked for

    def open(self, address: str, width: int, height: int) -> None:
        """Open a page in a window of that size, and wait until its script says that it is ready."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.navigate", url=address)
        self.until("document.documentElement?.dataset.ready === 'yes'")

    def resize(self, width: int, height: int) -> None:
        """Give the window another size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, as JSON; AssertionError where it throws."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end_s = time.monotonic() + PATIENCE_S
        while not self.evaluate(expression):
            assert time.monotonic() < end_s, f"never true: {expression}; {self.console}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Press the left button of the mouse in the middle of an element, as a person does."""
        at = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        where = {"x": at[0], "y": at[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def write(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        self.click(selector)
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose the option of a menu that has a value."""
        self.evaluate(
            f"(() => {{ const menu = document.querySelector({json.dumps(selector)});"
            f" menu.value = {json.dumps(value)};"
            " if (menu.selectedIndex < 0) throw new Error('no such option');"
            " menu.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Keep what is seen, or the whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """The page as a printer gets it, as PDF."""
        done = self.call("Page.printToPDF", preferCSSPageSize=True)
        return base64.b64decode(done["data"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer of a method of the protocol; AssertionError where it is an error."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": params}
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._of], [], [], PATIENCE_S)
            read = os.read(self._of, 1 << 20) if ready else b""
            assert read, "Chromium ended, or said nothing"
            self._read += read
        line, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.console.append(" ".join(str(arg.get("value", arg)) for arg in params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@contextlib.contextmanager
def opened(page: Path | str, *, width: int = 1280, height: int = 800) -> Iterator[Tab]:
    """A page, a file or an address, in a window of that size; Chromium ends with the block."""
    address = f"file://{page}" if isinstance(page, Path) else page
    theirs, to = os.pipe()
    of, their_answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads from 3 and answers on 4
        script = f'exec 3<&{theirs} 4>&{their_answers}; exec "$@"'
        flags = [*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(
            bound("bash", "-c", script, "bash", _browser(), *flags),
            pass_fds=(theirs, their_answers),
            stderr=subprocess.DEVNULL,
        ) as process:
            os.close(theirs)
            os.close(their_answers)
            try:
                tab = Tab(to, of)
                tab.open(address, width, height)
                yield tab
            finally:
                process.kill()
                os.close(to)
                os.close(of)
