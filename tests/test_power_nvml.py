"""The NVML meter against the fake libnvidia-ml, through the real pynvml."""

import time

import numpy as np
import pytest
from fake_nvml import curves
from traces import rows_of

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.mark.fake_nvml
class TestFakeDriver:
    """What the meter makes of a driver whose truth is known."""

    @pytest.mark.parametrize("curve", ["constant:70", "ramp", "square:50:200:0.3"])
    def test_samples_are_the_curve(self, open_meter, monkeypatch, curve):
        """Every sample is the curve's watts at the driver's own stamp, to the milliwatt."""
        monkeypatch.setenv("FAKE_NVML_CURVE", curve)
        meter = open_meter()
        readings = meter.read()
        for index in range(2):
            uuid = curves.uuid("n1", index)
            rows = rows_of(readings, "nvml_buffer", uuid)
            told = [row["power_w"] for row in rows]
            truth = curves.curve(uuid).watts([row["time_ns"] for row in rows])
            assert len(rows) == 119
            assert np.abs(told - truth).max() <= 0.0005001

    @pytest.mark.parametrize(("gpus", "index"), [("8", 5), ("16", 10)])
    def test_gpus_of_others_are_not_read(self, open_meter, monkeypatch, gpus, index):
        """A GPU of the node that is not visible has no rows; GPU 10 is not taken for GPU 1."""
        monkeypatch.setenv("FAKE_NVML_GPUS", gpus)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(index))
        assert {uuid for uuid, _ in open_meter().finish()} == {curves.uuid("n1", index)}

    def test_drains_neither_repeat_nor_skip(self, open_meter):
        """Drains one after another give every stamp once, in order, and no gap."""
        meter = open_meter()
        uuid = curves.uuid("n1", 0)
        rows = rows_of(meter.read(), "nvml_buffer", uuid)
        for _ in range(5):
            time.sleep(0.07)
            rows += rows_of(meter.finish(), "nvml_buffer", uuid)
        spacing_ms = np.diff([row["time_ns"] for row in rows]) / 1e6
        assert len(rows) > 130
        assert spacing_ms.min() >= 14
        assert spacing_ms.max() <= 26
        assert not any(row["gap"] for row in rows)

    @pytest.mark.parametrize("missing", ["", "nvmlDeviceGetSamples"])
    def test_lost_gpu_is_a_gap(self, open_meter, monkeypatch, missing):
        """A GPU that is lost gives one row without watts, marked as a gap; its first sample afterwards is a gap too."""
        monkeypatch.setenv("FAKE_NVML_MISSING", missing)
        meter = open_meter()
        uuid = curves.uuid("n1", 1)
        meter.finish()
        monkeypatch.setenv("FAKE_NVML_LOST", "1@0")
        lost = rows_of(meter.finish() + meter.finish(), meter.source, uuid)
        monkeypatch.delenv("FAKE_NVML_LOST")
        time.sleep(0.06)
        back = rows_of(meter.finish(), meter.source, uuid)
        assert [(row.get("power_w"), row["gap"]) for row in lost] == [(None, True)]
        assert back[0]["gap"]
        assert back[0]["power_w"] > 0
        assert not any(row["gap"] for row in back[1:])

    def test_history_that_was_lost_is_a_gap(self, open_meter):
        """A trace that goes on 5 s after its last sample has a gap, as the buffer reaches back 2.36 s."""
        meter = open_meter()
        uuid = curves.uuid("n1", 0)
        meter.begin({uuid: time.time_ns() - 5_000_000_000})
        rows = rows_of(meter.read(), "nvml_buffer", uuid)
        assert [row["gap"] for row in rows] == [True] + [False] * (len(rows) - 1)

    def test_history_that_is_there_is_no_gap(self, open_meter):
        """A trace that goes on 1 s after its last sample fetches that second from the driver."""
        meter = open_meter()
        uuid = curves.uuid("n1", 0)
        rows = rows_of(meter.read(), "nvml_buffer", uuid)
        last_ns = rows[-50]["time_ns"]
        meter.begin({uuid: last_ns})
        again = rows_of(meter.read(), "nvml_buffer", uuid)
        assert again[0]["time_ns"] == rows[-49]["time_ns"]
        assert not any(row["gap"] for row in again)

    def test_counter_is_the_true_energy(self, open_meter):
        """The counter's rows are the exact millijoules up to the last tick of 100 ms."""
        meter = open_meter()
        uuid = curves.uuid("n1", 0)
        row = rows_of(meter.read(), "nvml_counter", uuid)[0]
        loaded_ns, tick_ns = 1_600_000_000_000_000_000, 100_000_000
        truths = [
            curves.curve(uuid).joules(loaded_ns, (row["time_ns"] // tick_ns + step) * tick_ns) * 1e3
            for step in (-1, 0)  # the tick may fall between the call and the stamp
        ]
        assert min(abs(row["counter_mj"] - truth) for truth in truths) < 1

    def test_counter_is_read_seldom(self, open_meter):
        """Within a second the slow counter is read once, while power and conditions are due again."""
        meter = open_meter()
        assert len(rows_of(meter.read(), "nvml_counter")) == 2
        assert 0 < meter.due_ns() - time.monotonic_ns() <= 1_000_000_000
        assert rows_of(meter.read(), "nvml_counter") == []

    def test_a_mark_catches_the_counters_next_tick(self, open_meter):
        """After a mark the counter is due each 15 ms until it ticked once, and then seldom again."""
        meter = open_meter()
        uuid = curves.uuid("n1", 0)
        meter.read()
        meter.mark()
        began_ns = time.monotonic_ns()
        readings, waits_ns = [], []
        while time.monotonic_ns() - began_ns < 400_000_000:
            waits_ns.append(meter.due_ns() - time.monotonic_ns())
            time.sleep(max(0, waits_ns[-1]) / 1e9)
            readings += [row["counter_mj"] for row in rows_of(meter.read(), "nvml_counter", uuid)]
        assert len(readings) >= 2
        assert readings[-2] != readings[-1]
        assert len(set(readings[:-1])) == 1
        assert max(waits_ns[: len(readings)]) <= 15_000_000
        assert meter.due_ns() - time.monotonic_ns() > 100_000_000

    def test_processes_are_counted_at_the_ends_alone(self, open_meter, monkeypatch):
        """The list of processes, which is slow, is read at the first reading and at the last."""
        monkeypatch.setenv("FAKE_NVML_PROCESSES", "3")
        meter = open_meter()
        uuid = curves.uuid("n1", 0)
        counts = []
        for read in (meter.read, meter.read, meter.finish):
            rows = rows_of(read(), "nvml_conditions", uuid)
            counts.append([row["processes"] for row in rows if "processes" in row])
        assert counts == [[3], [], [3]]

    def test_missing_counter_is_no_row(self, open_meter, monkeypatch):
        """A GPU without the counter has no counter rows, and its power is measured all the same."""
        monkeypatch.setenv("FAKE_NVML_MISSING", "nvmlDeviceGetTotalEnergyConsumption")
        readings = open_meter().finish()
        assert rows_of(readings, "nvml_counter") == []
        assert len(rows_of(readings, "nvml_buffer")) > 100

    def test_rows_carry_both_clocks(self, open_meter):
        """Conditions carry one instant by both clocks, so that a step of either shows."""
        row = rows_of(open_meter().read(), "nvml_conditions")[0]
        apart_ns = time.time_ns() - time.monotonic_ns()
        assert abs(row["time_ns"] - row["monotonic_ns"] - apart_ns) < 5_000_000
