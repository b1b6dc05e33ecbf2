"""What is known of each sensor: how its samples lie in time, and that each meter and name is described once."""

import pytest

from wattflow.config import checks
from wattflow.store import sources


@pytest.mark.parametrize(
    ("source", "period_ms", "longest_ms"),
    [
        ("nvml_buffer", 20.0, 100),
        ("nvml_instant", 50.0, 250),
        ("dcgm", 50.0, 250),
        ("simulated", 50.0, 250),
    ],
)
def test_longest_spacing(source, period_ms, longest_ms):
    """100 ms for the 20 ms buffer, three periods and 100 ms of slack for polls."""
    assert sources.longest_spacing_ns(source, period_ms) == longest_ms * sources.MS


@pytest.mark.parametrize(
    ("source", "period_ms", "lag_ms"),
    [
        ("nvml_buffer", 20.0, 20),
        ("nvml_instant", 50.0, 100),
        ("nvml_instant", 200.0, 200),
        ("nvml_average", 50.0, 1000),
        ("dcgm", 50.0, 150),
        ("dcgm_mean", 100.0, 1100),
        ("simulated", 50.0, 50),
    ],
)
def test_lag(source, period_ms, lag_ms):
    """A polled stamp may lie off by its period or the sensor's renewal; that of a cached value by both in a row."""
    assert sources.lag_ns(source, period_ms) == lag_ms * sources.MS


def test_a_sensor_of_a_later_version_is_taken_for_a_polled_one():
    """Of a name that is not known here nothing is assumed but polls: 250 ms are no gap at 20 Hz, and it is of a GPU."""
    unknown = sources.source_of("nvml_later")
    assert (unknown.description, unknown.boundary, unknown.kind) == ("nvml_later", "gpu", "power")
    assert sources.longest_spacing_ns("nvml_later", 50.0) == 250 * sources.MS


def test_a_meter_that_may_be_chosen_has_sensors_of_power():
    """power.meter takes auto and the six meters, each of which has a sensor of power."""
    assert checks._ALLOWED["power.meter"] == ("auto", *sources.METERS)
    found = {
        meter: {sources.SOURCES[name].boundary for name in sources.of_kind("power", meter)}
        for meter in sources.METERS
    }
    assert found == {
        "nvml": {"gpu", "module"},
        "dcgm": {"gpu"},
        "rapl": {"host"},
        "hwmon": {"host"},
        "cray": {"node", "accelerator"},
        "simulated": {"host"},
    }


@pytest.mark.parametrize(
    ("source", "counters"),
    [
        ("nvml_buffer", ("nvml_counter", "nvml_counter_field", "dcgm_counter")),
        ("nvml_module_instant", ("nvml_module_counter", "dcgm_module_counter")),
        ("cray_node", ("cray_counter",)),
        ("nvml_counter", ("nvml_counter",)),
        ("rapl", ()),
    ],
)
def test_a_counter_checks_power_of_its_own_boundary_alone(source, counters):
    """That of a superchip's module says nothing of its GPU's power, nor a node's of its accelerators'."""
    assert sources.counters_beside(source) == counters


@pytest.mark.parametrize(
    ("source", "most_w"),
    [("nvml_buffer", 1400.0), ("nvml_module_instant", 5000.0), ("cray_node", 1e5), ("rapl", 1e5)],
)
def test_a_gpus_limit_bounds_its_own_watts_alone(source, most_w):
    """A module takes more than twice its GPU's limit of 700 W at times, and a node any amount."""
    assert sources.most_w(source, 700.0) == most_w
    assert (sources.least_w(source) > 0) == (source != "rapl")


def test_sensors_come_best_first():
    """NVML's sensors of power in the order in which its meter tries them."""
    assert sources.of_kind("power", "nvml") == (
        *("nvml_buffer", "nvml_instant", "nvml_average", "nvml_usage", "nvml_usage_mean"),
        *("nvml_module_instant", "nvml_module_average"),
    )


@pytest.mark.parametrize(
    ("source", "gpu", "polled_ms", "expected"),
    [
        ("nvml_buffer", "NVIDIA H100 80GB HBM3", 20.0, (20.0, 13.7, "exponential")),
        ("nvml_buffer", "NVIDIA H200", 20.0, (20.0, 13.7, "exponential")),
        ("nvml_buffer", "NVIDIA B200", 20.0, (20.0, 0.0, "box")),
        ("nvml_usage", "NVIDIA A100-SXM4-80GB", 50.0, (100.0, 25.0, "box")),
        ("nvml_usage", "NVIDIA A100-SXM4-80GB", 130.0, (130.0, 25.0, "box")),
        ("dcgm", "NVIDIA A30", 50.0, (100.0, 25.0, "box")),
        ("nvml_usage", "Tesla V100-SXM2-16GB", 10.0, (20.0, 10.0, "box")),
        ("nvml_usage", "Tesla T4", 50.0, (100.0, 100.0, "box")),
        ("nvml_usage", "Tesla K40m", 10.0, (15.0, 53.0, "exponential")),
        ("nvml_instant", "NVIDIA RTX A5000", 50.0, (100.0, 100.0, "box")),
        ("nvml_instant", "NVIDIA GH200 480GB", 50.0, (100.0, 20.0, "box")),
        ("nvml_instant", "NVIDIA RTX A3000", 50.0, (100.0, 100.0, "box")),
        ("nvml_instant", "somebody's GPU", 50.0, (100.0, 25.0, "box")),
        ("nvml_usage_mean", "NVIDIA GH200 480GB", 50.0, (100.0, 1000.0, "box")),
        ("dcgm_mean", "NVIDIA H100 PCIe", 100.0, (100.0, 1000.0, "box")),
        ("rapl", "", 50.0, (50.0, 50.0, "box")),
    ],
)
def test_what_a_sensor_averages_by_gpu(source, gpu, polled_ms, expected):
    """Period, window and shape as measured of a family; of a GPU that nobody measured the least that was seen."""
    found = sources.response_of(source, gpu, polled_ms)
    assert (found.period_ms, found.window_ms, found.shape) == expected


def test_only_what_a_passport_measured_is_corrected_by_it():
    """The lag of H100's and H200's buffer is known, that of no other sensor."""
    measured = {
        (source, gpu)
        for source in sources.of_kind("power")
        for gpu in ("NVIDIA H100 PCIe", "NVIDIA H200", "NVIDIA A100-PCIE-40GB", "Tesla K40m", "")
        if sources.response_of(source, gpu, 20.0).lag_u_ms is not None
    }
    assert measured == {("nvml_buffer", "NVIDIA H100 PCIe"), ("nvml_buffer", "NVIDIA H200")}
