"""Deals test files to the workers, and prints how many tests of each marker ran, so that a part left out is seen.

Holds the fixture in which commands are measured.
"""

import os
import signal
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from hypothesis import HealthCheck, settings

from wattflow.store.layout import SweepDir

ROOT = Path(__file__).parent.parent
# cores are shared, and what is slow on a busy machine is no fault of the tested code
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# what nohup or a shell's `&` has its child ignore, the processes of tests would ignore too
for signum, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(signum) == signal.SIG_IGN:
        signal.signal(signum, handler)

MARKERS = ("slurm", "chromium", "fake_nvml", "prometheus", "vllm", "slow", "gpu")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """A file's tests, and those that share the session's Slurm, stay in one worker; those on Slurm come first.

    A test that names its group goes with that one.
    """
    for item in items:
        shares = "cluster" in getattr(item, "fixturenames", ())
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("slurm" if shares else item.path.name))
        # reports carry properties from a worker, and no markers
        names = [name for name in MARKERS if item.get_closest_marker(name)]
        item.user_properties += [("marker", name) for name in names or ["unmarked"]]
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)


def pytest_terminal_summary(terminalreporter):
    """One line a marker: passed, failed, skipped."""
    counts = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            for key, name in getattr(report, "user_properties", ()):
                if key == "marker":
                    row = counts.setdefault(name, dict.fromkeys(("passed", "failed", "skipped"), 0))
                    row["failed" if outcome == "error" else outcome] += 1
    terminalreporter.section("tests by marker")
    for name in ("unmarked", *MARKERS):
        if name in counts:
            numbers = ", ".join(f"{n} {outcome}" for outcome, n in counts[name].items())
            terminalreporter.line(f"{name}: {numbers}")


@pytest.fixture
def where(tmp_path, monkeypatch):
    """The folder in which commands run; no job and no GPU of this machine is seen, and wattflow is importable."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "CUDA_", "WATTFLOW_SPANS")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Slurm's commands on the PATH, as shell scripts over files of the test's folder."""
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


# --- one at a time --------------------------------------------------------------------------------


@pytest.fixture
def empty_sweep(tmp_path: Path) -> SweepDir:
    made = SweepDir(tmp_path / "demo")
    made.make()
    return made
