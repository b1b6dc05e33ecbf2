"""Prints at the end how many tests of each marker ran, so that a part left out is seen."""

import pytest

MARKERS = ("slurm", "chromium", "fake_nvml", "slow", "gpu")
_MARKERS_OF = pytest.StashKey[dict[str, list[str]]]()


def pytest_collection_finish(session):
    """Remember the markers of each test, as reports do not carry them in a lasting form."""
    session.config.stash[_MARKERS_OF] = {
        item.nodeid: [name for name in MARKERS if item.get_closest_marker(name)] or ["unmarked"]
        for item in session.items
    }


def pytest_terminal_summary(terminalreporter, config):
    """One line a marker: passed, failed, skipped."""
    markers_of = config.stash.get(_MARKERS_OF, {})
    counts = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            for name in markers_of.get(getattr(report, "nodeid", ""), []):
                row = counts.setdefault(name, dict.fromkeys(("passed", "failed", "skipped"), 0))
                row["failed" if outcome == "error" else outcome] += 1
    terminalreporter.section("tests by marker")
    for name in ("unmarked", *MARKERS):
        if name in counts:
            told = ", ".join(f"{n} {outcome}" for outcome, n in counts[name].items())
            terminalreporter.line(f"{name}: {told}")
