"""A point computes where it is measured: no CPU run is billed to a GPU beside it."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from local_runs import SMALL, call

import wattflow
from wattflow.config.choices import Config, Engine, Power
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError, PowerError
from wattflow.run.device_choice import refuse_fallback

pytest_plugins = ("fake_nvml.fixtures",)
pytestmark = [
    pytest.mark.fake_nvml,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
]

POINT = ["submit", *SMALL, "engine=paper", "sweep=here", "sweep.repeats=1", "shards=1", "--wait"]


@pytest.fixture
def beside_gpus(nvml_path, monkeypatch):
    """A node whose NVML shows two GPUs, and a torch that cannot compute on them."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "2")


def ranks(why_cpu):
    return Ranks(0, 1, 0, "n1", "cpu", "cpu", None, why_cpu)


@pytest.mark.parametrize("meter", ["auto", "nvml", "simulated"])
def test_auto_that_comes_to_the_cpu_beside_gpus_fails_the_attempt(beside_gpus, tmp_path, meter):
    """Whatever the meter: the record has the reason and both ways out, and no row counts."""
    call(*POINT, f"power.meter={meter}", cwd=tmp_path, code=1)
    sweep = tmp_path / "sweeps" / "here"
    (record,) = [json.loads(path.read_text()) for path in sweep.rglob("record.json")]
    assert record["status"] == "failed"
    assert "engine.device=auto: rank 0 on" in record["error"]
    assert "on the CPU beside 1 GPUs" in record["error"]  # a point of one shard sees one
    assert "is built without CUDA" in record["error"]
    assert "set engine.device=cpu" in record["error"]
    assert not wattflow.open_sweep(sweep).attempts["counts"].any()


def test_the_cpu_when_asked_for_is_measured_by_the_host(beside_gpus, tmp_path):
    """The row counts, and neither its device nor its joules are a GPU's."""
    call(*POINT, "engine.device=cpu", cwd=tmp_path)
    sweep = tmp_path / "sweeps" / "here"
    (row,) = wattflow.open_sweep(sweep).points.filter(pl.col("counts")).to_dicts()
    assert row["boundary"] == "host"
    assert row["power_source"] in ("rapl", "simulated")
    assert "NVIDIA" not in str(row["gpu_name"])
    (record,) = [json.loads(path.read_text()) for path in sweep.rglob("record.json")]
    assert [rank["gpu_uuid"] for rank in record["ranks"]] == [f"host-{record['nodes'][0]['node']}"]


def test_gpus_that_the_job_hides_are_not_beside_it(beside_gpus, tmp_path, monkeypatch):
    """CUDA_VISIBLE_DEVICES= is a choice of the CPU too."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    call(*POINT, cwd=tmp_path)
    assert wattflow.open_sweep(tmp_path / "sweeps" / "here").points["boundary"].to_list() == [
        "host"
    ]


def test_the_synthetic_engine_computes_nowhere(fake_driver):
    """It may stand beside any meter."""
    config = Config(engine=Engine(name="synthetic"), power=Power(meter="nvml"))
    refuse_fallback(config, ranks("torch is built without CUDA"))


def test_a_driver_that_fails_is_the_reason(fake_driver):
    """What CUDA says stands in the error."""
    with pytest.raises(EngineError, match=r"beside 2 GPUs \(.*since cannot use CUDA: Error 802"):
        refuse_fallback(Config(), ranks("cannot use CUDA: Error 802"))


def test_a_gpu_that_computes_is_no_fallback(fake_driver):
    """Nor is a CPU that was asked for."""
    refuse_fallback(Config(), ranks(None))


def test_a_meter_of_gpus_is_refused_for_the_cpu(tmp_path):
    """As a point that cannot run, and once more where an older grid asks for it."""
    config = Config(engine=Engine(device="cpu"), power=Power(meter="nvml"))
    with pytest.raises(PowerError, match=r"engine\.device=cpu: power\.meter=nvml measures GPUs"):
        refuse_fallback(config, ranks(None))
    done = call("plan", *SMALL, "engine.device=cpu", "power=dcgm", cwd=Path(tmp_path))
    assert "power.meter=dcgm measures GPUs" in done.stdout
