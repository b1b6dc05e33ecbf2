"""Which points fit vLLM: by its folder or by shapes, with shares of memory, windows and precisions."""

import json
from dataclasses import replace

import pytest
from sweeps import resolved
from test_workload_folder import EXPERTS, GATED

from wattflow.config.choices import Model
from wattflow.errors import RefusedError
from wattflow.workload import folder as folders
from wattflow.workload import vllm_fit

LLAMA_8B = Model(
    name="8b",
    dim=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    ffn_dim=14336,
    vocab_size=128256,
)


def point(**over):
    """Choices of engine=vllm."""
    return resolved(**{"engine__name": "vllm", "model": LLAMA_8B, "max_seq_len": 1024, **over})


def at(tmp_path, values, **over):
    """Choices over a folder with a config.json, of the model that it says."""
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = folders.model_of(folders.read(tmp_path), Model(name="m", path=str(tmp_path)))
    return point(model=replace(model, name="m"), **over)


def test_weights_and_one_row_fit_or_do_not():
    """8.03 B parameters in bf16 are 15.0 GiB: on 80 GiB they fit, on 16 GiB two shards do."""
    assert vllm_fit.why_not(point(), 80) is None
    why = vllm_fit.why_not(point(), 16)
    assert "15.0 GiB weights + 0.1 GiB for one row of 1024 tokens" in why
    assert "vLLM has 0.9 x 16 GiB a GPU" in why
    assert vllm_fit.why_not(point(shards=2), 16) is None


def test_a_batch_needs_no_cache_of_its_own():
    """Pages are shared, so 4,096 rows fit where one does; the share that a point asks for counts."""
    assert vllm_fit.why_not(point(batch_size=4096), 24) is None
    assert vllm_fit.why_not(point(engine__vllm__gpu_memory_utilization=0.5), 24) is not None


def test_fp8_halves_the_layers_alone():
    """The embedding and the head, 1.05 B parameters, stay in 16 bit; the cache too, unless asked."""
    plain, narrow = point(), point(precision="fp8")
    tables = 2 * 128256 * 4096 * 2
    whole = vllm_fit.weight_bytes(plain)
    assert vllm_fit.weight_bytes(narrow) == (whole - tables) // 2 + tables
    assert vllm_fit.row_bytes(narrow) == vllm_fit.row_bytes(plain)
    assert vllm_fit.row_bytes(point(kv_precision="fp8")) == vllm_fit.row_bytes(plain) // 2


def test_a_folder_says_what_its_model_takes(tmp_path):
    """A mixture of experts holds all of its parameters, of which a token uses some."""
    values = {**GATED, **EXPERTS, "model_type": "qwen3_moe"}
    config = at(tmp_path, values)
    found = vllm_fit.parameters(config)
    assert found["parameters"] > found["active_parameters"] > 0
    assert vllm_fit.weight_bytes(config) == 2 * found["parameters"]
    assert vllm_fit.why_not(config, 1) is None


def test_a_folder_that_changed_is_read_again(tmp_path):
    """By the time of its config.json."""
    import os

    config = at(tmp_path, {**GATED, "model_type": "llama"})
    before = vllm_fit.parameters(config)
    (tmp_path / "config.json").write_text(
        json.dumps({**GATED, "model_type": "llama", "num_hidden_layers": 6})
    )
    os.utime(tmp_path / "config.json", ns=(1, 1))
    assert vllm_fit.parameters(config) != before


def test_an_unknown_family_is_left_to_the_engine(tmp_path):
    """Nothing is refused for memory that nobody can compute."""
    config = at(tmp_path, {**GATED, "model_type": "mamba9"})
    assert vllm_fit.why_not(config, 0.001) is None
    assert vllm_fit.parameters(config) == {"parameters": None, "active_parameters": None}


def test_shards_and_length_are_the_folders(tmp_path):
    """Eight heads and 512 positions."""
    values = {**GATED, "model_type": "llama", "max_position_embeddings": 512}
    assert "which 3 shards do not divide" in vllm_fit.why_not(at(tmp_path, values, shards=3), None)
    assert "m has 512 positions" in vllm_fit.why_not(at(tmp_path, values), None)
    assert vllm_fit.why_not(at(tmp_path, values, max_seq_len=512), None) is None


def test_real_weights_need_files(tmp_path):
    """config.json alone is enough for dummy weights."""
    values = {**GATED, "model_type": "llama"}
    vllm_fit.check_folder(at(tmp_path, values))
    with pytest.raises(RefusedError, match="no safetensors files there"):
        vllm_fit.check_folder(at(tmp_path, values, weights="hf"))
    with pytest.raises(RefusedError, match=r"weights=hf needs model\.path"):
        vllm_fit.check_folder(point(weights="hf"))


def test_a_folder_of_another_model_is_refused(tmp_path):
    """A model that was chosen by name must be the folder's."""
    config = at(tmp_path, {**GATED, "model_type": "llama"})
    other = replace(config, model=replace(config.model, n_layers=5))
    with pytest.raises(RefusedError, match="its n_layers is 3, and model m has 5"):
        vllm_fit.check_folder(other)


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


def test_a_checkpoint_runs_in_the_precision_of_its_weights(tmp_path):
    """int4 is int4's alone: as bf16 it would be compared as what it is not, and plain weights are no int4."""
    four = {**GATED, "model_type": "llama", "quantization_config": AWQ}
    assert vllm_fit.why_not(at(tmp_path, four, precision="int4"), None) is None
    why = vllm_fit.why_not(at(tmp_path, four), None)
    assert why == "precision=bf16: m has weights in int4 (awq); precision=int4"
    other = {**four, "quantization_config": {"quant_method": "mxfp4"}}
    assert vllm_fit.why_not(at(tmp_path, other), None) is None
    assert "quantised otherwise (mxfp4)" in vllm_fit.why_not(
        at(tmp_path, other, precision="int8"), None
    )
    assert "8b is not quantised; name the folder" in vllm_fit.why_not(point(precision="int8"), 80)


def test_a_row_of_a_quantised_model_is_bf16(tmp_path):
    """Cache and workspace are those of bf16; the weights are not."""
    four = {**GATED, "model_type": "llama", "quantization_config": AWQ}
    narrow = at(tmp_path, four, precision="int4")
    narrow_bytes = vllm_fit.weight_bytes(narrow)
    plain = at(tmp_path, {**GATED, "model_type": "llama"})
    assert vllm_fit.row_bytes(narrow) == vllm_fit.row_bytes(plain)
    assert vllm_fit.workspace_bytes(narrow) == vllm_fit.workspace_bytes(plain)
    assert narrow_bytes < vllm_fit.weight_bytes(plain)
