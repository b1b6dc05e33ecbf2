"""A page in headless Chromium, as tests of pages open it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

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
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
    "--v=0",
]


def in_browser(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page as Chromium renders it, and what its console said."""
    if BROWSER is None:
        if "chromium" in os.environ.get("WATTFLOW_REQUIRE", ""):
            pytest.fail("WATTFLOW_REQUIRE asks for Chromium, and none is on the PATH")
        pytest.skip("no Chromium on the PATH")
    done = subprocess.run(
        bound(BROWSER, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"file://{page}"),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    dom = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    return dom, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
