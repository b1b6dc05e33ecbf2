"""Calls of NVML."""

import os
import subprocess
import sys

import pytest

from wattflow.errors import PowerError
from wattflow.power.nvml_calls import call, call_or_none

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.mark.fake_nvml
class TestFakeDriver:
    """A driver that refuses a call."""

    def test_errors_name_the_call(self, open_meter, monkeypatch):
        """An NVML error becomes a PowerError with the call's name."""
        monkeypatch.setenv("FAKE_NVML_DENY", "nvmlDeviceGetUUID")
        with pytest.raises(PowerError, match="nvmlDeviceGetUUID: Insufficient Permissions"):
            open_meter()

    def test_a_missing_value_may_be_none(self, fake_driver, monkeypatch):
        """The same failure is None where that is allowed, and an answer is the same by both."""
        call("nvmlInit")
        handle = call("nvmlDeviceGetHandleByIndex", 0)
        assert call_or_none("nvmlDeviceGetUUID", handle) == call("nvmlDeviceGetUUID", handle)
        monkeypatch.setenv("FAKE_NVML_DENY", "nvmlDeviceGetUUID")
        assert call_or_none("nvmlDeviceGetUUID", handle) is None
        call("nvmlShutdown")


# what other packages and files of the name pynvml hold
OTHERS = {
    "an old package": ("pynvml/__init__.py", "class NVMLError(Exception): pass", "it lacks nvml"),
    "an empty file": ("pynvml.py", "", "it lacks NVMLError"),
    "Python 2": ("pynvml.py", "print 'nvml'", "cannot be imported"),
    "one that needs more": (
        "pynvml.py",
        "import no_such_module",
        "No module named 'no_such_module'",
    ),
    "one that fails": ("pynvml.py", "raise OSError('no driver')", "no driver"),
}


@pytest.mark.parametrize(("name", "text", "message"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(
    "verb", [["doctor"], ["measure", "--out", "m", "--", "true"], ["restore"]], ids=lambda v: v[0]
)
def test_another_module_of_the_name_is_named_in_one_line(tmp_path, name, text, message, verb):
    """One line names the file in the way of nvidia-ml-py, and no traceback; `doctor` goes on with its other checks."""
    path = tmp_path / "other" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "wattflow.cli", *verb],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{path.parents[name.count('/')]}", "COLUMNS": "500"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if "nvidia-ml-py" in line]
    assert "Traceback" not in done.stdout + done.stderr
    assert all(message in line for line in said), said
    assert len(said) == (2 if verb == ["doctor"] else 1)  # for NVML, and for the meter
    assert done.returncode == (0 if verb == ["doctor"] else 1)
