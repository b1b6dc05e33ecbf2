"""GPM: the activity of a GPU's parts between two readings."""

import time

import pytest
from fake_nvml import curves
from traces import rows_of

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.mark.fake_nvml
class TestFakeDriver:
    """A driver whose activity rises with time."""

    def test_activity_is_the_mean_since_the_row_before(self, open_meter):
        """GPM's rows at two marks 0.5 s apart hold the mean over that time; a metric that fails alone is null."""
        meter = open_meter()
        uuid = curves.uuid("n1", 0)
        meter.read()
        rows = []
        for _ in range(2):
            time.sleep(0.5)
            meter.mark()
            rows += rows_of(meter.read(), "nvml_gpm", uuid)
        start_s, end_s = (row["time_ns"] / 1e9 for row in rows)
        risen = [500 * (at_s // 10) + 5 * (at_s % 10) ** 2 for at_s in (start_s, end_s)]
        mean = (risen[1] - risen[0]) / (
            end_s - start_s
        )  # it rises by 10 % a second from 0 to 100 %
        assert rows[1]["dram_activity_pct"] == pytest.approx(mean, abs=1.0)
        assert (rows[1]["sm_activity_pct"], rows[1]["tensor_activity_pct"]) == (2.0, 5.0)
        assert rows[1]["pcie_rx_mib_s"] is None

    def test_gpm_that_was_not_renewed_is_null(self, open_meter, monkeypatch):
        """Two readings within one renewal of the counters have nothing between them: null, and no NaN."""
        monkeypatch.setenv("FAKE_NVML_GPM_MS", "100000000")
        meter = open_meter()
        rows = rows_of(meter.finish(), "nvml_gpm", curves.uuid("n1", 0))
        assert [(row["sm_activity_pct"], row["dram_activity_pct"]) for row in rows] == [
            (None, None)
        ]

    @pytest.mark.parametrize("kind", ["DENY", "MISSING"])
    def test_gpm_that_is_not_permitted_is_no_row(self, open_meter, monkeypatch, kind):
        """Where a site keeps GPM for admins, or the GPU has none, there are no such rows and all else goes on."""
        call = {"DENY": "nvmlGpmSampleGet", "MISSING": "nvmlGpmQueryDeviceSupport"}[kind]
        monkeypatch.setenv(f"FAKE_NVML_{kind}", call)
        readings = open_meter().finish()
        assert rows_of(readings, "nvml_gpm") == []
        assert len(rows_of(readings, "nvml_buffer")) > 100
