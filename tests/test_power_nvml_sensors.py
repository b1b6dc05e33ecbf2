"""What NVML's sensors read on one GPU, in our units."""

import time

import pytest
from fake_nvml import curves
from traces import rows_of

from wattflow.errors import PowerError
from wattflow.power.nvml_calls import pynvml
from wattflow.power.nvml_sensors import buffer, energy_counter, polled_power_w, sources
from wattflow.store.sources import SOURCES

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


@pytest.fixture
def superchip(nvml_path, monkeypatch):
    """A superchip of 70 W whose module takes 80 W more; the driver is a fake, as no such chip is at hand."""
    monkeypatch.setenv("FAKE_NVML_MODULE_W", "80")
    monkeypatch.setenv("FAKE_NVML_NAME", "NVIDIA GH200 480GB")
    monkeypatch.setenv("FAKE_NVML_CURVE", "constant:70")


@pytest.fixture
def handle(fake_driver):
    """The first GPU of the fake driver."""
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()


@pytest.mark.fake_nvml
class TestSuperchip:
    """What covers the GPU, and what its module with the CPU."""

    @pytest.mark.parametrize(
        ("scope", "source", "power_w"),
        [("gpu", "nvml_instant", 70.0), ("module", "nvml_module_instant", 150.0)],
    )
    def test_power_is_of_the_scope_that_is_asked_for(
        self, superchip, open_meter, scope, source, power_w
    ):
        """Neither the buffer, which cannot be asked for its scope, nor the counter of the module is mixed in."""
        meter = open_meter(scope=scope)
        rows = [row for _, row in meter.finish() if row.get("power_w") is not None]
        assert (meter.source, meter.boundary) == (source, scope)
        assert {(row["source"], row["power_w"]) for row in rows} == {(source, power_w)}

    @pytest.mark.parametrize("scope", ["gpu", "module"])
    def test_the_counter_is_the_modules(self, superchip, open_meter, scope):
        """Whatever power is read, its joules stand under a name that no GPU's power is checked by."""
        readings = open_meter(scope=scope).finish()
        assert rows_of(readings, "nvml_counter") == []
        (row,) = rows_of(readings, "nvml_module_counter", curves.uuid("n1", 0))
        seconds = row["time_ns"] / 1e9 - 1_600_000_000
        assert row["counter_mj"] == pytest.approx(150e3 * seconds, abs=150e3 * 0.2)

    @pytest.mark.parametrize(
        ("name", "power_w"), [("nvml_counter", 70.0), ("nvml_module_counter", 150.0)]
    )
    def test_a_field_that_knows_scopes_counts_what_it_is_asked_for(
        self, superchip, handle, monkeypatch, name, power_w
    ):
        """Where field 83 answers both scopes apart, each counter checks power of its own."""
        monkeypatch.setenv("FAKE_NVML_COUNTER_SCOPES", "1")
        counter = energy_counter(handle, SOURCES[name].boundary)
        seconds = time.time() - 1_600_000_000
        assert counter.source == name
        assert counter.read_mj(handle) == pytest.approx(power_w * 1e3 * seconds, rel=1e-6)

    @pytest.mark.parametrize("answers", ["ignored", "0"])
    def test_a_driver_that_knows_no_scopes_is_not_believed(
        self, superchip, handle, monkeypatch, answers
    ):
        """One that answers all alike, or by a scope that nobody asked for: a superchip by name has no sensor."""
        monkeypatch.setenv("FAKE_NVML_SCOPES", answers)
        assert (sources(handle), sources(handle, "module")) == ([], [])
        assert energy_counter(handle, "gpu").source == "nvml_module_counter"

    def test_a_superchip_without_scopes_is_an_error_that_says_so(
        self, superchip, open_meter, monkeypatch
    ):
        """Its watts may be the GPU's or the module's: it is not measured by guess."""
        monkeypatch.setenv("FAKE_NVML_SCOPES", "ignored")
        with pytest.raises(PowerError, match="On a superchip the driver has to know the scope"):
            open_meter()

    def test_a_board_whose_driver_ignores_scopes_is_no_superchip(self, handle, monkeypatch):
        """An H100 that answers the module's scope with its own watts is measured as ever."""
        monkeypatch.setenv("FAKE_NVML_SCOPES", "ignored")
        monkeypatch.setenv("FAKE_NVML_NAME", "NVIDIA H100 80GB HBM3")
        assert sources(handle)[0] == "nvml_buffer"
        assert energy_counter(handle, "gpu").source == "nvml_counter"

    def test_a_board_has_no_module(self, open_meter):
        """power.scope=module on a plain GPU is refused with what it is for."""
        with pytest.raises(PowerError, match=r"power\.scope=module is for superchips"):
            open_meter(scope="module")

    @pytest.mark.parametrize("shared", ["0,0", "missing"])
    def test_a_module_is_not_counted_for_each_of_its_gpus(
        self, superchip, open_meter, monkeypatch, shared
    ):
        """Two GPUs beside one CPU, as on GB200, or where the driver does not say: no sum of modules."""
        if shared == "missing":
            monkeypatch.setenv("FAKE_NVML_MISSING", "nvmlDeviceGetMemoryAffinity")
        monkeypatch.setenv("FAKE_NVML_SOCKETS", "0,0")
        with pytest.raises(PowerError, match=r"power.scope=module: .*Take power.scope=gpu"):
            open_meter(scope="module")
        assert open_meter(scope="gpu").source == "nvml_instant"
