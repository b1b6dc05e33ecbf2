"""The program of a slot's step: what travels to it, and what it takes of the node."""

import os
from dataclasses import replace

import pytest
from fake_nvml import curves

from wattflow.errors import PowerError
from wattflow.power.sidecar_connection import Common
from wattflow.run.place import Place
from wattflow.run.step import StepJob, take_devices

pytest_plugins = ("fake_nvml.fixtures",)
JOB = {"job_id": "7_1", "array_task": "1", "restart": 0, "cluster": "site"}


def job_of(*devices: str, gpus: list[int]) -> StepJob:
    place = Place(0, 1, 0, "n1", "file:///s/r", "/s", JOB, Common("/s/sidecar", list(devices)))
    return StepJob("/sweeps/x", ["0123456789ab"], {"0123456789ab": 2}, place, gpus, [[0]], 10, 1e9)


def test_a_job_comes_back_from_its_json():
    """All of it, the place and its sidecar too."""
    job = job_of("GPU-a", gpus=[1])
    assert StepJob.from_json(job.text()) == job


@pytest.mark.fake_nvml
def test_a_slot_shows_its_own_gpus_alone(fake_driver, monkeypatch):
    """Of the four that Slurm shows as 4,5,6,7 the second slot of two has 6 and 7, which are those of its sidecar."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    mine = [curves.uuid("n1", 6), curves.uuid("n1", 7)]
    take_devices(replace(job_of(*mine, gpus=[2, 3]), cpus=[]), 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"


@pytest.mark.fake_nvml
def test_another_gpu_than_the_sidecars_is_refused(fake_driver, monkeypatch):
    """A step that Slurm shows other GPUs than its task measures would be billed for somebody else's joules."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(PowerError, match=r"must see the same GPUs"):
        take_devices(replace(job_of(curves.uuid("n1", 0), gpus=[0]), cpus=[]), 0)
