"""The GPUs that a job may use, in CUDA's order."""

import re

import pytest
from fake_nvml import curves

from wattflow.errors import PowerError
from wattflow.power import gpus
from wattflow.power.gpus import gpus_in_words, visible

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


LOST_C = [A, B, None]  # the third GPU does not answer


@pytest.mark.parametrize(
    ("setting", "uuids", "expected"),
    [
        (None, LOST_C, [0, 1]),
        ("0", LOST_C, [0]),
        ("1,0", LOST_C, [1, 0]),
        (B, [None, B, C], [1]),
        ("GPU-bbbb", [A, None, C], [2]),
        ("1", [None, B], [1]),  # one that CUDA did not count would leave none with this ordinal
        ("-1", LOST_C, []),
        ("", LOST_C, []),
        ("7", LOST_C, []),
    ],
)
def test_only_gpus_in_use_must_answer(setting, uuids, expected):
    """A GPU of the node that does not answer hides none of those that a job was given."""
    assert visible(setting, uuids) == expected


@pytest.mark.parametrize(
    ("setting", "uuids"),
    [("2", LOST_C), ("0,2", LOST_C), (C, LOST_C), ("1", [None, B, C]), ("0", [None, B])],
)
def test_a_gpu_in_use_that_does_not_answer_is_an_error(setting, uuids):
    """The job's own GPU, or one that may be another for CUDA than for NVML, is never passed over."""
    with pytest.raises(PowerError, match="nvidia-smi -L"):
        visible(setting, uuids)


def test_mig_entries_are_refused():
    """A MIG slice has no power of its own, so its name is refused rather than taken for a GPU."""
    with pytest.raises(PowerError, match="whole board"):
        visible("MIG-1234", UUIDS)


@pytest.mark.fake_nvml
class TestFakeDriver:
    """What the fake driver shows, by CUDA ordinal."""

    def test_devices_by_ordinal(self, open_meter, monkeypatch):
        """Devices are listed by CUDA ordinal with UUID, bus id and name, what is set on them and their limits."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
        fixed = {
            "ecc": True,
            "persistence": True,
            "power_limit_default_w": 700.0,
            "power_limit_min_w": 200.0,
            "power_limit_max_w": 700.0,
        }
        assert open_meter().devices == [
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

    def test_mig_mode_is_refused(self, open_meter, monkeypatch):
        """A GPU in MIG mode is refused, also by auto: its power is the whole board's."""
        monkeypatch.setenv("FAKE_NVML_MIG", "1")
        with pytest.raises(PowerError, match="MIG mode"):
            open_meter(meter="auto")

    def test_mixed_gpus_need_an_order(self, open_meter, monkeypatch):
        """With GPUs of two kinds an ordinal is refused unless CUDA counts by bus, as NVML does."""
        monkeypatch.setenv("FAKE_NVML_NAME", "Old,New")
        with pytest.raises(PowerError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
            open_meter()
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        assert [device["name"] for device in open_meter().devices] == ["Old", "New"]


# --- whether a point that computes on the CPU stands beside GPUs ---


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (None, r"2 GPUs \(NVIDIA .*\)"),
        ("1", r"1 GPUs \(NVIDIA .*\)"),
        ("9", r"GPUs, though no GPU is visible \(CUDA_VISIBLE_DEVICES=9, 2 by NVML\)\."),
        ("MIG-x", "GPUs, though .* MIG slice.*"),
    ],
)
def test_gpus_beside_a_job_in_words(fake_driver, monkeypatch, setting, words):
    """How many it may use; those that it named wrongly, or as slices, are there too."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "2")
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    found = gpus_in_words()
    assert found is not None
    assert re.fullmatch(words, found), found


@pytest.mark.parametrize("setting", ["", " ", "-1", "NoDevFiles"])
def test_hidden_gpus_are_none(fake_driver, monkeypatch, setting):
    """Slurm and people hide all of them so."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert gpus_in_words() is None


@pytest.mark.parametrize(
    ("count", "environment"),
    [
        (2, {}),
        (0, {}),
        (None, {"SLURM_JOB_ID": "1"}),  # a job that asked for none
        (2, {"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0,1"}),
    ],
)
def test_a_driver_whose_nvml_fails(nvml_path, tmp_path, monkeypatch, count, environment):
    """As after an update of the driver without a restart: the kernel still lists the GPUs."""
    for k in range(2 if count is None else count):
        (tmp_path / f"0000:{k}").mkdir()
    monkeypatch.setattr(gpus, "KERNEL_LISTS", tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def fails(name, *_):
        raise PowerError(f"{name}: Driver/library version mismatch.")

    monkeypatch.setattr(gpus, "call", fails)
    found = gpus_in_words()
    assert (found is not None) == bool(count)
    assert found is None or found.startswith(
        "2 GPUs, though NVML does not answer (nvmlInit: Driver"
    )


@pytest.mark.fake_nvml
class TestLostGpus:
    """A driver that lost one GPU of two, or both."""

    @pytest.mark.parametrize("lost", ["1@0", "0@0"])
    @pytest.mark.parametrize("by_uuid", [True, False])
    def test_another_gpu_that_is_lost_is_no_fault(self, open_meter, monkeypatch, lost, by_uuid):
        """With one of two GPUs off the bus the other is measured, by whichever name the job was given it."""
        own = 1 - int(lost[0])
        monkeypatch.setenv("FAKE_NVML_LOST", lost)
        name = curves.uuid("n1", own) if by_uuid else str(own)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        assert [device["uuid"] for device in open_meter().devices] == [curves.uuid("n1", own)]

    def test_no_gpu_that_answers_is_an_error_and_no_host(self, open_meter, monkeypatch):
        """Where all GPUs are lost, `auto` does not measure the host in their place."""
        monkeypatch.setenv("FAKE_NVML_LOST", "0@0,1@0")
        with pytest.raises(PowerError, match="GPU is lost"):
            open_meter(meter="auto")

    def test_the_jobs_own_gpu_is_lost(self, open_meter, monkeypatch):
        """Nor where the job's own one is."""
        monkeypatch.setenv("FAKE_NVML_LOST", "1@0")
        for name in ("1", curves.uuid("n1", 1)):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
            with pytest.raises(PowerError, match=r"not answer|of this node do not"):
                open_meter(meter="auto")
