"""Readings of one GPU's sensors, by a driver whose values are known."""

import threading
import time

import pytest
from fake_nvml import curves

from wattflow.power.gpus import find_gpus
from wattflow.power.nvml_calls import call, call_or_none
from wattflow.power.nvml_sensors import sources
from wattflow.power.sensor_reads import GpuReads

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.fixture
def reads(fake_driver, monkeypatch):
    """The first GPU, at 70 W."""
    monkeypatch.setenv("FAKE_NVML_CURVE", "constant:70")
    call("nvmlInit")
    gpu = find_gpus()[0]
    yield GpuReads(gpu, None, sources(gpu.handle))
    call_or_none("nvmlShutdown")


@pytest.mark.fake_nvml
class TestFakeDriver:
    """A driver that tells what it was asked for."""

    def test_a_reading_lies_between_its_two_stamps(self, reads):
        """Power now by field and by call, 70 W each, in the step that was given, and between the clock's readings."""
        before_ns = time.time_ns()
        reads.power_now(3)
        after_ns = time.time_ns()
        assert reads.gpu.device["uuid"] == curves.uuid("n1", 0)
        assert {row[1] for row in reads.rows} == {"nvml_instant", "nvml_average", "nvml_usage_mean"}
        for step, _, start_ns, end_ns, _, value in reads.rows:
            assert (step, value) == (3, 70.0)
            assert before_ns <= start_ns <= end_ns <= after_ns

    def test_the_buffer_is_read_once(self, reads):
        """Each stamp comes once, in order, however often the buffer is drained."""
        reads.drain(0)
        time.sleep(0.1)  # five samples more
        reads.drain(0)
        stamps = [row[4] for row in reads.rows]
        assert len(stamps) > 119
        assert stamps == sorted(set(stamps))

    def test_failures_are_counted_by_sensor(self, reads, monkeypatch):
        """A counter that may not be read leaves no row, and is counted."""
        monkeypatch.setenv("FAKE_NVML_DENY", "nvmlDeviceGetTotalEnergyConsumption")
        reads.count(0)
        reads.count(0)
        assert reads.rows == []
        assert reads.failed == {"nvml_counter": 2}

    def test_each_sensor_is_read_alone(self, reads):
        """Two rounds: the counter by call and by field, all conditions, and each sensor of power."""
        reads.each_alone(0, times=2)
        names = [row[1] for row in reads.rows if row[1] != "nvml_buffer"]
        assert {name: names.count(name) for name in names} == {
            "nvml_instant": 2,
            "nvml_average": 2,
            "nvml_usage_mean": 2,
            "nvml_counter": 2,
            "nvml_counter_field": 2,
            "nvml_conditions": 2,
        }

    def test_silence_is_the_counter_at_both_ends(self, reads):
        """Where a step ends early, the counter is read at its start and at its end all the same."""
        stop = threading.Event()
        stop.set()
        reads.silently(0, time.time_ns() + 3600 * 10**9, stop)
        assert [row[1] for row in reads.rows].count("nvml_counter") == 2
