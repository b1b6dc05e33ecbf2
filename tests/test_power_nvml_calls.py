"""Calls of NVML."""

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
