"""What choices make of vLLM's arguments, and what is said where vLLM is missing, old or another device's."""

import json
import sys
import types

import engine_ranks as tools
import fake_vllm
import pytest

from wattflow.config.choices import Engine, RopeScaling, Vllm
from wattflow.engine import vllm_library
from wattflow.errors import EngineError, RefusedError
from wattflow.run.resources import _key


def config(**changes):
    """Choices of engine=vllm."""
    engine = Engine(name="vllm", device="cpu", vllm=changes.pop("vllm", Vllm()))
    return tools.choices(
        changes.pop("model", tools.tiny()), engine=engine, **{"precision": "bf16", **changes}
    )


def test_a_vllm_of_another_device_is_refused(monkeypatch):
    """vLLM for CUDA computes on no CPU."""
    fake_vllm.install(monkeypatch, device="cuda")
    with pytest.raises(EngineError, match=r"engine.device=cpu: the vLLM .* computes on cuda alone"):
        vllm_library.start(config(), tools.ALONE, "0.32.0")


def test_arguments_follow_from_the_choices(tmp_path):
    """Batch, length, precision, ranks and seed; options that are null stay vLLM's own."""
    options = Vllm(enforce_eager=True, kv_cache_memory_bytes=2**30, more={"swap_space": 0})
    found = vllm_library.arguments(
        config(vllm=options, weights="hf", seed=3, shards=2, pipeline=3), tmp_path
    )
    assert (found["max_num_seqs"], found["max_model_len"], found["dtype"]) == (8, 40, "bfloat16")
    assert (found["seed"], found["load_format"]) == (3, "auto")
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (2, 3)
    assert (found["enforce_eager"], found["kv_cache_memory_bytes"]) == (True, 2**30)
    assert found["swap_space"] == 0
    assert "quantization" not in found
    assert found["distributed_executor_backend"] == "external_launcher"


def test_one_start_serves_batches_up_to_its_most_requests(tmp_path):
    """max_num_seqs is the engine's own where it is given, and then batches share a start; else the batch is."""
    wide = Vllm(max_num_seqs=64)
    found = [vllm_library.arguments(config(vllm=wide, batch_size=n), tmp_path) for n in (1, 64)]
    assert [one["max_num_seqs"] for one in found] == [64, 64]
    keys = [_key(config(vllm=wide, batch_size=n)) for n in (1, 64)]
    assert keys[0] == keys[1]
    assert _key(config(batch_size=1)) != _key(config(batch_size=64))


def test_shapes_alone_become_a_folder_with_a_config_json():
    """Llama 3.1's rotary frequencies are carried over; the folder goes with its use."""
    model = tools.tiny(rope_scaling=RopeScaling(factor=4.0), tied_embeddings=True)
    with vllm_library.model_folder(config(model=model)) as folder:
        found = json.loads((folder / "config.json").read_text())
    assert not folder.exists()
    assert found["rope_scaling"]["factor"] == 4.0
    assert found["rope_scaling"]["rope_type"] == "llama3"
    assert (found["hidden_size"], found["num_key_value_heads"], found["head_dim"]) == (64, 2, 8)
    assert found["tie_word_embeddings"]


def test_a_folder_without_a_config_json_is_refused(tmp_path):
    """Meta's folders have none."""
    model = tools.tiny(path=str(tmp_path))
    with (
        pytest.raises(RefusedError, match=r"no config\.json there"),
        vllm_library.model_folder(config(model=model)),
    ):
        pass


def test_one_rank_meets_nobody_but_itself():
    """It gets an address on this machine; several ranks have met already."""
    alone = vllm_library.environment(config(), tools.ALONE)
    assert (alone["MASTER_ADDR"], alone["VLLM_ENABLE_V1_MULTIPROCESSING"]) == ("127.0.0.1", "0")
    assert alone["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_shared_memory_of_cpu_ranks_bears_the_runs_own_name(monkeypatch):
    """vLLM's name for a group of ranks, then the run's: two runs on a machine do not meet."""

    class Shared:
        @staticmethod
        def make_group_name(communicator):
            return f"-{communicator}-cpushm"

    module = types.ModuleType("cpu_communicator")
    module._CPUSHMDistributed = Shared
    for name in ("vllm", "vllm.distributed", "vllm.distributed.device_communicators"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    parent = sys.modules["vllm.distributed.device_communicators"]
    monkeypatch.setattr(parent, "cpu_communicator", module, raising=False)
    vllm_library._name_shared_memory("a1b2")
    assert Shared.make_group_name("tp:0") == "-tp:0-cpushm-a1b2"
