"""The NVML meter against the fake libnvidia-ml, through the real pynvml."""

import time

import numpy as np
import pytest
from fake_nvml import curves

from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.power.gpus import visible
from wattflow.power.open import choose

pytest_plugins = ("fake_nvml.fixtures",)

A, B, C = "GPU-aaaa1111-0000", "GPU-aaaa2222-0000", "GPU-bbbb3333-0000"
UUIDS = [A, B, C, *(f"GPU-{i:08x}-0000" for i in range(3, 12))]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, list(range(12))),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("10", [10]),
        ("0,-1,1", [0]),
        ("0,99,1", [0]),
        ("0,0", []),
        ("1,x,0", [1]),
        (A, [0]),
        (f"{C},{A}", [2, 0]),
        ("GPU-bbbb", [2]),
        ("GPU-aaaa", []),
        ("GPU-bbbb,GPU-aaaa,GPU-aaaa1", [2]),
        ("GPU-bbbb,GPU-bbbb3333", []),
        (f"0,{B}", [0]),
        (f"{B},0", [1]),
        ("nonsense", []),
    ],
)
def test_visible_devices_follow_cuda(setting, expected):
    """Each form of CUDA_VISIBLE_DEVICES gives the NVML indices that CUDA shows, in CUDA's order."""
    assert visible(setting, UUIDS) == expected


def test_mig_entries_are_refused():
    """A MIG slice has no power of its own, so its name is refused rather than taken for a GPU."""
    with pytest.raises(PowerError, match="whole board"):
        visible("MIG-1234", UUIDS)


def test_auto_is_simulated_without_nvml(monkeypatch):
    """Where NVML shows no GPU, auto takes the simulated meter, and says so."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    meter = choose(Power(meter="auto"), "n1")
    assert (meter.source, meter.boundary, meter.devices[0]["uuid"]) == (
        "simulated",
        "host",
        "host-n1",
    )


def test_nvml_asked_for_and_absent_says_what_to_do(monkeypatch):
    """power.meter=nvml without a GPU is an error with a way out."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(PowerError, match=r"power.meter=nvml on n1: .*power.meter=simulated"):
        choose(Power(meter="nvml"), "n1")


@pytest.fixture
def opened(fake_driver):
    """A function that opens the meter of the fake driver; it is closed after the test."""
    meters = []

    def open_meter(**power):
        meters.append(choose(Power(**{"meter": "nvml", **power}), "n1"))
        return meters[-1]

    yield open_meter
    for meter in meters:
        meter.close()


def rows_of(readings, source, uuid=None):
    return [
        row for who, row in readings if row["source"] == source and (uuid is None or who == uuid)
    ]


@pytest.mark.fake_nvml
class TestFakeDriver:
    """What the meter makes of a driver whose truth is known."""

    @pytest.mark.parametrize("curve", ["constant:70", "ramp", "square:50:200:0.3"])
    def test_samples_are_the_curve(self, opened, monkeypatch, curve):
        """Every sample is the curve's watts at the driver's own stamp, to the milliwatt."""
        monkeypatch.setenv("FAKE_NVML_CURVE", curve)
        meter = opened()
        readings = meter.read()
        for index in range(2):
            uuid = curves.uuid("n1", index)
            rows = rows_of(readings, "nvml_buffer", uuid)
            told = [row["power_w"] for row in rows]
            truth = curves.curve(uuid).watts([row["time_ns"] for row in rows])
            assert len(rows) == 119
            assert np.abs(told - truth).max() <= 0.0005001

    def test_devices_by_ordinal(self, opened, monkeypatch):
        """Devices are listed by CUDA ordinal with UUID, bus id and name, what is set on them and their limits."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
        fixed = {
            "ecc": True,
            "persistence": True,
            "power_limit_default_w": 700.0,
            "power_limit_min_w": 200.0,
            "power_limit_max_w": 700.0,
        }
        assert opened().devices == [
            {
                "ordinal": 0,
                "uuid": curves.uuid("n1", 1),
                "bus_id": "00000000:11:00.0",
                "name": "NVIDIA Fake 80GB",
                **fixed,
            },
            {
                "ordinal": 1,
                "uuid": curves.uuid("n1", 0),
                "bus_id": "00000000:10:00.0",
                "name": "NVIDIA Fake 80GB",
                **fixed,
            },
        ]

    @pytest.mark.parametrize(("gpus", "index"), [("8", 5), ("16", 10)])
    def test_gpus_of_others_are_not_read(self, opened, monkeypatch, gpus, index):
        """A GPU of the node that is not visible has no rows; GPU 10 is not taken for GPU 1."""
        monkeypatch.setenv("FAKE_NVML_GPUS", gpus)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(index))
        assert {uuid for uuid, _ in opened().finish()} == {curves.uuid("n1", index)}

    def test_drains_neither_repeat_nor_skip(self, opened):
        """Drains one after another give every stamp once, in order, and no gap."""
        meter = opened()
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
    def test_source_is_the_best_that_answers(self, opened, monkeypatch, missing, source):
        """Without the buffer the next sensor is taken, and every row names it."""
        monkeypatch.setenv("FAKE_NVML_MISSING", missing)
        monkeypatch.setenv("FAKE_NVML_CURVE", "constant:70")
        meter = opened()
        rows = [row for _, row in meter.finish() if row.get("power_w") is not None]
        assert meter.source == source
        assert {row["source"] for row in rows} == {source}
        assert {row["power_w"] for row in rows} == {70.0}

    def test_denied_buffer_falls_back(self, opened, monkeypatch):
        """A buffer that the user may not read counts as none."""
        monkeypatch.setenv("FAKE_NVML_DENY", "nvmlDeviceGetSamples")
        assert opened().source == "nvml_instant"

    def test_no_sensor_is_an_error(self, opened, monkeypatch):
        """A GPU without any power sensor is named, and not measured as 0 W."""
        monkeypatch.setenv(
            "FAKE_NVML_MISSING", "nvmlDeviceGetSamples,186,185,nvmlDeviceGetPowerUsage"
        )
        with pytest.raises(PowerError, match=f"{curves.uuid('n1', 0)}: none.*wattflow doctor"):
            opened()

    def test_errors_name_the_call(self, opened, monkeypatch):
        """An NVML error becomes a PowerError with the call's name."""
        monkeypatch.setenv("FAKE_NVML_DENY", "nvmlDeviceGetUUID")
        with pytest.raises(PowerError, match="nvmlDeviceGetUUID: Insufficient Permissions"):
            opened()

    @pytest.mark.parametrize("missing", ["", "nvmlDeviceGetSamples"])
    def test_lost_gpu_is_a_gap(self, opened, monkeypatch, missing):
        """A GPU that is lost gives one row without watts, marked as a gap; its first sample afterwards is a gap too."""
        monkeypatch.setenv("FAKE_NVML_MISSING", missing)
        meter = opened()
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

    def test_history_that_was_lost_is_a_gap(self, opened):
        """A trace that goes on 5 s after its last sample has a gap, as the buffer reaches back 2.36 s."""
        meter = opened()
        uuid = curves.uuid("n1", 0)
        meter.begin({uuid: time.time_ns() - 5_000_000_000})
        rows = rows_of(meter.read(), "nvml_buffer", uuid)
        assert [row["gap"] for row in rows] == [True] + [False] * (len(rows) - 1)

    def test_history_that_is_there_is_no_gap(self, opened):
        """A trace that goes on 1 s after its last sample fetches that second from the driver."""
        meter = opened()
        uuid = curves.uuid("n1", 0)
        rows = rows_of(meter.read(), "nvml_buffer", uuid)
        last_ns = rows[-50]["time_ns"]
        meter.begin({uuid: last_ns})
        again = rows_of(meter.read(), "nvml_buffer", uuid)
        assert again[0]["time_ns"] == rows[-49]["time_ns"]
        assert not any(row["gap"] for row in again)

    def test_counter_is_the_true_energy(self, opened):
        """The counter's rows are the exact millijoules up to the last tick of 100 ms."""
        meter = opened()
        uuid = curves.uuid("n1", 0)
        row = rows_of(meter.read(), "nvml_counter", uuid)[0]
        loaded_ns, tick_ns = 1_600_000_000_000_000_000, 100_000_000
        truths = [
            curves.curve(uuid).joules(loaded_ns, (row["time_ns"] // tick_ns + step) * tick_ns) * 1e3
            for step in (-1, 0)  # the tick may fall between the call and the stamp
        ]
        assert min(abs(row["counter_mj"] - truth) for truth in truths) < 1

    def test_counter_is_read_seldom(self, opened):
        """Within a second the slow counter is read once, while power and conditions are due again."""
        meter = opened()
        assert len(rows_of(meter.read(), "nvml_counter")) == 2
        assert 0 < meter.due_ns() - time.monotonic_ns() <= 1_000_000_000
        assert rows_of(meter.read(), "nvml_counter") == []

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
        self, opened, monkeypatch, architecture, name, source
    ):
        """PowerUsage is instantaneous on a V100 and an A100, and a mean over 1 s on an A10 and an H100."""
        monkeypatch.setenv("FAKE_NVML_MISSING", "nvmlDeviceGetSamples,186,185")
        monkeypatch.setenv("FAKE_NVML_ARCHITECTURE", architecture)
        monkeypatch.setenv("FAKE_NVML_NAME", name)
        assert opened().source == source

    def test_a_mark_catches_the_counters_next_tick(self, opened):
        """After a mark the counter is due each 15 ms until it ticked once, and then seldom again."""
        meter = opened()
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

    def test_activity_is_the_mean_since_the_row_before(self, opened):
        """GPM's rows at two marks 0.5 s apart hold the mean over that time; a metric that fails alone is null."""
        meter = opened()
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

    def test_gpm_that_was_not_renewed_is_null(self, opened, monkeypatch):
        """Two readings within one renewal of the counters have nothing between them: null, and no NaN."""
        monkeypatch.setenv("FAKE_NVML_GPM_MS", "100000000")
        meter = opened()
        rows = rows_of(meter.finish(), "nvml_gpm", curves.uuid("n1", 0))
        assert [(row["sm_activity_pct"], row["dram_activity_pct"]) for row in rows] == [
            (None, None)
        ]

    @pytest.mark.parametrize("kind", ["DENY", "MISSING"])
    def test_gpm_that_is_not_permitted_is_no_row(self, opened, monkeypatch, kind):
        """Where a site keeps GPM for admins, or the GPU has none, there are no such rows and all else goes on."""
        call = {"DENY": "nvmlGpmSampleGet", "MISSING": "nvmlGpmQueryDeviceSupport"}[kind]
        monkeypatch.setenv(f"FAKE_NVML_{kind}", call)
        readings = opened().finish()
        assert rows_of(readings, "nvml_gpm") == []
        assert len(rows_of(readings, "nvml_buffer")) > 100

    def test_processes_are_counted_at_the_ends_alone(self, opened, monkeypatch):
        """The list of processes, which is slow, is read at the first reading and at the last."""
        monkeypatch.setenv("FAKE_NVML_PROCESSES", "3")
        meter = opened()
        uuid = curves.uuid("n1", 0)
        counts = []
        for read in (meter.read, meter.read, meter.finish):
            rows = rows_of(read(), "nvml_conditions", uuid)
            counts.append([row["processes"] for row in rows if "processes" in row])
        assert counts == [[3], [], [3]]

    def test_missing_counter_is_no_row(self, opened, monkeypatch):
        """A GPU without the counter has no counter rows, and its power is measured all the same."""
        monkeypatch.setenv("FAKE_NVML_MISSING", "nvmlDeviceGetTotalEnergyConsumption")
        readings = opened().finish()
        assert rows_of(readings, "nvml_counter") == []
        assert len(rows_of(readings, "nvml_buffer")) > 100

    def test_conditions_in_units(self, opened):
        """Conditions come in MHz, C, percent, bytes, W and ns."""
        row = rows_of(opened().read(), "nvml_conditions", curves.uuid("n1", 1))[0]
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
    def test_power_profiles_in_force(self, opened, monkeypatch, bits, told):
        """At a trace's ends the ids of the workload power profiles in force; null where the driver knows of none."""
        monkeypatch.setenv("FAKE_NVML_PROFILES", bits)
        rows = rows_of(opened().finish(), "nvml_conditions", curves.uuid("n1", 0))
        assert [row["power_profiles"] for row in rows if "power_profiles" in row] == [told]

    def test_missing_conditions_are_null(self, opened, monkeypatch):
        """A field that fails by its own return code is null, and the limit then comes from the older call."""
        monkeypatch.setenv("FAKE_NVML_MISSING", "190,74,nvmlDeviceGetTemperature")
        row = rows_of(opened().read(), "nvml_conditions")[0]
        assert (row["under_cap_ns"], row["temperature_c"]) == (None, None)
        assert row["power_limit_w"] == 700.0

    def test_mig_mode_is_refused(self, opened, monkeypatch):
        """A GPU in MIG mode is refused, also by auto: its power is the whole board's."""
        monkeypatch.setenv("FAKE_NVML_MIG", "1")
        with pytest.raises(PowerError, match="MIG mode"):
            opened(meter="auto")

    def test_no_visible_gpu(self, opened, monkeypatch):
        """With CUDA_VISIBLE_DEVICES empty, auto is simulated and nvml is an error."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert opened(meter="auto").name == "simulated"
        with pytest.raises(PowerError, match="no GPU is visible"):
            opened()

    def test_mixed_gpus_need_an_order(self, opened, monkeypatch):
        """With GPUs of two kinds an ordinal is refused unless CUDA counts by bus, as NVML does."""
        monkeypatch.setenv("FAKE_NVML_NAME", "Old,New")
        with pytest.raises(PowerError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
            opened()
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        assert [device["name"] for device in opened().devices] == ["Old", "New"]

    def test_rows_carry_both_clocks(self, opened):
        """Conditions carry one instant by both clocks, so that a step of either shows."""
        row = rows_of(opened().read(), "nvml_conditions")[0]
        apart_ns = time.time_ns() - time.monotonic_ns()
        assert abs(row["time_ns"] - row["monotonic_ns"] - apart_ns) < 5_000_000
