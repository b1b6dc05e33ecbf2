"""What NVML's sensors read on one GPU, in our units."""

import time

import pytest
from fake_nvml import curves
from traces import rows_of

from wattflow.errors import PowerError
from wattflow.power.nvml_calls import pynvml
from wattflow.power.nvml_sensors import buffer, polled_power_w

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.mark.fake_nvml
class TestFakeDriver:
    """A driver whose values are known, and which lacks some of them."""

    @pytest.mark.parametrize(
        ("missing", "source"),
        [
            ("", "nvml_buffer"),
            ("nvmlDeviceGetSamples", "nvml_instant"),
            ("nvmlDeviceGetSamples,186", "nvml_average"),
            ("nvmlDeviceGetSamples,186,185", "nvml_usage_mean"),
            ("nvmlDeviceGetSamples,nvmlDeviceGetFieldValues", "nvml_usage_mean"),
        ],
    )
    def test_source_is_the_best_that_answers(self, open_meter, monkeypatch, missing, source):
        """Without the buffer the next sensor is taken, and every row names it."""
        monkeypatch.setenv("FAKE_NVML_MISSING", missing)
        monkeypatch.setenv("FAKE_NVML_CURVE", "constant:70")
        meter = open_meter()
        rows = [row for _, row in meter.finish() if row.get("power_w") is not None]
        assert meter.source == source
        assert {row["source"] for row in rows} == {source}
        assert {row["power_w"] for row in rows} == {70.0}

    def test_denied_buffer_falls_back(self, open_meter, monkeypatch):
        """A buffer that the user may not read counts as none."""
        monkeypatch.setenv("FAKE_NVML_DENY", "nvmlDeviceGetSamples")
        assert open_meter().source == "nvml_instant"

    def test_no_sensor_is_an_error(self, open_meter, monkeypatch):
        """A GPU without any power sensor is named, and not measured as 0 W."""
        monkeypatch.setenv(
            "FAKE_NVML_MISSING", "nvmlDeviceGetSamples,186,185,nvmlDeviceGetPowerUsage"
        )
        with pytest.raises(PowerError, match=f"{curves.uuid('n1', 0)}: none.*wattflow doctor"):
            open_meter()

    @pytest.mark.parametrize(
        ("architecture", "name", "source"),
        [
            ("5", "Tesla V100-SXM2-32GB", "nvml_usage"),
            ("7", "NVIDIA A100-SXM4-80GB", "nvml_usage"),
            ("7", "NVIDIA A10", "nvml_usage_mean"),
            ("9", "NVIDIA H100 80GB HBM3", "nvml_usage_mean"),
        ],
    )
    def test_power_usage_is_named_for_what_it_is(
        self, open_meter, monkeypatch, architecture, name, source
    ):
        """PowerUsage is instantaneous on a V100 and an A100, and a mean over 1 s on an A10 and an H100."""
        monkeypatch.setenv("FAKE_NVML_MISSING", "nvmlDeviceGetSamples,186,185")
        monkeypatch.setenv("FAKE_NVML_ARCHITECTURE", architecture)
        monkeypatch.setenv("FAKE_NVML_NAME", name)
        assert open_meter().source == source

    def test_conditions_in_units(self, open_meter):
        """Conditions come in MHz, C, percent, bytes, W and ns."""
        row = rows_of(open_meter().read(), "nvml_conditions", curves.uuid("n1", 1))[0]
        expected = {
            "sm_clock_mhz": 1980,
            "memory_clock_mhz": 2619,
            "temperature_c": 41,
            "gpu_activity_pct": 90,
            "memory_activity_pct": 35,
            "memory_used_bytes": 16 * 2**30,
            "power_limit_w": 700.0,
            "throttle_reasons": 4,
            "under_cap_ns": 5_000_000_000,
        }
        assert {key: row[key] for key in expected} == expected

    @pytest.mark.parametrize(("bits", "told"), [("", None), ("0", ""), ("0x88", "3,7")])
    def test_power_profiles_in_force(self, open_meter, monkeypatch, bits, told):
        """At a trace's ends the ids of the workload power profiles in force; null where the driver knows of none."""
        monkeypatch.setenv("FAKE_NVML_PROFILES", bits)
        rows = rows_of(open_meter().finish(), "nvml_conditions", curves.uuid("n1", 0))
        assert [row["power_profiles"] for row in rows if "power_profiles" in row] == [told]

    def test_missing_conditions_are_null(self, open_meter, monkeypatch):
        """A field that fails by its own return code is null, and the limit then comes from the older call."""
        monkeypatch.setenv("FAKE_NVML_MISSING", "190,74,nvmlDeviceGetTemperature")
        row = rows_of(open_meter().read(), "nvml_conditions")[0]
        assert (row["under_cap_ns"], row["temperature_c"]) == (None, None)
        assert row["power_limit_w"] == 700.0

    @pytest.mark.parametrize(
        "curve", ["constant:0", "constant:-1", "constant:1e6", "constant:5001"]
    )
    @pytest.mark.parametrize("missing", ["", "nvmlDeviceGetSamples,186,185"])
    def test_a_sensor_with_values_of_no_board_is_none(
        self, open_meter, monkeypatch, curve, missing
    ):
        """A driver that answers with 0 W, -1 or megawatts has no power sensor."""
        monkeypatch.setenv("FAKE_NVML_CURVE", curve)
        monkeypatch.setenv("FAKE_NVML_MISSING", missing)
        with pytest.raises(PowerError, match="no power sensor answers"):
            open_meter()

    def test_a_sensor_that_turns_absurd_is_a_gap(self, open_meter, monkeypatch):
        """Watts of a poll that no board draws are a row without watts, marked as a gap."""
        monkeypatch.setenv("FAKE_NVML_MISSING", "nvmlDeviceGetSamples")
        monkeypatch.setenv("FAKE_NVML_CURVE", "constant:70")
        meter = open_meter()
        uuid = meter.devices[0]["uuid"]
        monkeypatch.setenv("FAKE_NVML_CURVE", "constant:1e6")
        rows = rows_of(meter.finish(), meter.source, uuid)
        assert [(row.get("power_w"), row["gap"]) for row in rows] == [(None, True)]

    def test_stamps_of_a_time_to_come_are_none(self, open_meter, monkeypatch):
        """Else all later samples would be older than what was read, and lost."""
        open_meter()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        kind, samples = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_TOTAL_POWER_SAMPLES, 0)
        samples[3].timeStamp += 3_600_000_000
        monkeypatch.setattr(pynvml, "nvmlDeviceGetSamples", lambda *_: (kind, samples))
        found = buffer(handle, 0)
        assert len(found) == len(samples) - 1
        assert [stamp for stamp, _ in found] == sorted(stamp for stamp, _ in found)

    def test_a_field_whose_stamp_rests_is_not_read_again(self, open_meter, monkeypatch):
        """A value of minutes ago is not the power of now."""
        open_meter()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        assert polled_power_w(handle, "nvml_instant") > 0
        (answer,) = pynvml.nvmlDeviceGetFieldValues(handle, [186])
        answer.timestamp = time.time_ns() // 1000 - 60_000_000
        monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", lambda *_: [answer])
        with pytest.raises(PowerError, match="field 186 was read 60 s ago"):
            polled_power_w(handle, "nvml_instant")
