"""What `wattflow doctor` finds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_nvml import curves
from node_counters import Cray, make_hwmon

from wattflow import doctor
from wattflow.config.choices import Power
from wattflow.doctor import examine

pytest_plugins = ("fake_nvml.fixtures",)


def test_works_without_a_gpu(monkeypatch):
    """Without a visible GPU the findings say so, and which meter would be taken."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = {finding.check: finding for finding in examine()}
    assert found.get("GPUs", found["NVML"]).status == "missing"
    assert found["meter"].status == "note"
    assert found["meter"].detail.startswith("simulated")
    assert found["torch"].status == "ok"
    assert found["spool folder"].status == "ok"


def test_does_not_import_torch():
    """Examining looks for torch without loading it."""
    code = (
        "import sys; from wattflow.doctor import examine; examine(); print('torch' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "False"


@pytest.mark.fake_nvml
def test_maps_ordinals_to_uuids(fake_driver, monkeypatch):
    """Each CUDA ordinal is told with its UUID and bus id."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = {finding.check: finding for finding in examine()}
    assert found["cuda:0"].detail.startswith(f"{curves.uuid('n1', 1)}, 00000000:11:00.0")
    assert "cuda:1" not in found


@pytest.mark.fake_nvml
def test_tells_what_is_missing_and_what_is_denied(fake_driver, monkeypatch):
    """A sensor that does not answer is missing, and a right that the user lacks is told."""
    monkeypatch.setenv(
        "FAKE_NVML_MISSING", "nvmlDeviceGetSamples,nvmlDeviceGetTotalEnergyConsumption"
    )
    monkeypatch.setenv("FAKE_NVML_DENY", "nvmlGpmSampleGet")
    found = {finding.check: finding for finding in examine()}
    assert found["cuda:1 sample buffer"].status == "missing"
    assert found["cuda:1 field 186, instant"].status == "ok"
    assert found["cuda:1 energy counter"].status == "missing"
    assert found["cuda:1 GPM"].detail == "nvmlGpmSampleGet: Insufficient Permissions."
    assert found["meter"].detail.startswith("nvml, source nvml_instant")


@pytest.mark.fake_nvml
@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        ("null", "ok", "computes on 2 GPUs"),
        ('"torch 2.9 is built without CUDA"', "missing", "built without CUDA, so that points with"),
        ("", "missing", "importing torch fails"),
    ],
)
def test_a_torch_that_cannot_use_the_gpus_is_said_before(
    fake_driver, monkeypatch, answer, status, detail
):
    """Points with engine.device=auto would fail: the finding says why, and both ways out."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "2")
    real = subprocess.run

    def run(command, **options):
        if command[-1] == "wattflow.engine.device":
            return subprocess.CompletedProcess(command, 0, answer, "")
        return real(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    found = {finding.check: finding for finding in examine()}["torch on GPUs"]
    assert found.status == status
    assert detail in found.detail


@pytest.mark.fake_nvml
@pytest.mark.skipif(torch.version.cuda is not None, reason="a torch for CUDA is here")
def test_this_torch_on_these_gpus(fake_driver):
    """By a real process: a torch for CPUs alone."""
    found = {finding.check: finding for finding in examine()}["torch on GPUs"]
    assert (found.status, found.detail.partition(" is ")[0]) == (
        "missing",
        f"torch {torch.__version__}",
    )


@pytest.mark.fake_nvml
@pytest.mark.parametrize(
    ("scopes", "status"), [("", "ok"), ("ignored", "missing")], ids=["known", "ignored"]
)
def test_a_superchip_and_its_node_are_said(fake_driver, monkeypatch, tmp_path, scopes, status):
    """What of module, Grace sockets and the node's controller answers, and which of them is recorded."""
    monkeypatch.setenv("FAKE_NVML_MODULE_W", "80")
    monkeypatch.setenv("FAKE_NVML_NAME", "NVIDIA GH200 480GB")
    monkeypatch.setenv("FAKE_NVML_SCOPES", scopes)
    power = Power(hwmon_dir=str(make_hwmon(tmp_path)))
    found = {finding.check: finding for finding in examine(power)}
    assert found["cuda:0 power scopes"].status == status
    assert found["cuda:0 field 186, instant, of the module"].status == status
    assert found["cuda:0 energy counter of the module"].status == "ok"
    assert "cuda:0 sample buffer" not in found
    assert found["ACPI power, grace 0"].detail == "96.5 W, in host_energy_j"
    assert found["ACPI power, module 0"].detail == "560.0 W, not recorded"
    assert found["pm_counters, node_energy_j"].status == "note"


def test_a_crays_counters_are_said(tmp_path):
    """Of a node with two accelerators both columns that they fill; of one without the node's alone."""
    for count, statuses in ((2, ["ok", "ok"]), (0, ["ok", "note"])):
        folder = tmp_path / str(count)
        folder.mkdir()
        power = Power(cray_dir=str(Cray(folder, accelerators=count).folder))
        found = list(doctor._cray(power))
        assert [finding.status for finding in found] == statuses
        assert found[0].detail == "node: a scan each 100 ms"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 s"),
        (12.34, "12.3 s"),
        (59.96, "60 s"),
        (320.0, "5 min 20 s"),
        (25_500.0, "7 h 5 min"),
        (266_400.0, "3 d 2 h"),
    ],
)
def test_a_time_is_said_in_words(seconds, words):
    """As that under the power cap, which the driver counts in nanoseconds."""
    assert doctor._duration(seconds) == words
