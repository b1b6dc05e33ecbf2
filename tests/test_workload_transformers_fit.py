"""Which points fit engine=transformers: shards that its plans split, lengths, and memory by shapes and by folders."""

import json

import pytest
from sweeps import resolved
from test_workload_folder import GATED, SMALL
from test_workload_vllm_fit import LLAMA_8B

from wattflow.config.choices import Model
from wattflow.workload import folder as folders
from wattflow.workload import transformers_fit

OPT = {**SMALL, "model_type": "opt", "ffn_dim": 128, "max_position_embeddings": 600}


def point(**over):
    """Choices of engine=transformers."""
    chosen = {
        "engine__name": "transformers",
        "model": LLAMA_8B,
        "max_seq_len": 1024,
        "batch_size": 8,
    }
    return resolved(**{**chosen, **over})


def at(tmp_path, values, **over):
    """Choices over a folder with a config.json."""
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = folders.model_of(folders.read(tmp_path), Model(name="m", path=str(tmp_path)))
    return point(model=model, **over)


def test_weights_and_the_whole_cache_fit_or_do_not():
    """8.03 B parameters in bf16 are 15.0 GiB, 8 rows of 1,024 tokens 1.0 GiB: on 24 GiB they fit, 64 rows do not."""
    assert transformers_fit.why_not(point(), 24) is None
    assert transformers_fit.why_not(point(), None) is None
    why = transformers_fit.why_not(point(batch_size=64), 24)
    assert "15.0 GiB weights + 8.0 GiB cache" in why
    assert "0.92 x 24 GiB a GPU; take a smaller batch" in why


def test_shards_divide_weights_and_cache():
    """Two ranks hold half of each; 3 and 16 do not divide the heads."""
    assert transformers_fit.why_not(point(shards=2), 12) is None
    assert "32 heads, which 3 shards" in transformers_fit.why_not(point(shards=3), None)
    assert "8 KV heads, which 16 shards" in transformers_fit.why_not(point(shards=16), None)


def test_a_family_without_a_plan_has_one_shard(tmp_path):
    """OPT runs on one GPU, and is refused on two."""
    assert transformers_fit.why_not(at(tmp_path, OPT, max_seq_len=600), 80) is None
    why = transformers_fit.why_not(at(tmp_path, OPT, max_seq_len=600, shards=2), 80)
    assert why == (
        "shards=2: transformers has no tensor-parallel plan for a opt; take shards=1, or engine=vllm"
    )


def test_a_row_is_no_longer_than_the_models_positions(tmp_path):
    """Learned positions end."""
    why = transformers_fit.why_not(at(tmp_path, OPT, max_seq_len=601), None)
    assert why == f"max_seq_len=601: {tmp_path.name} has 600 positions"


def test_an_unknown_family_is_left_to_the_engine(tmp_path):
    """What it needs is unknown, and said so where a GPU ran out of memory."""
    config = at(tmp_path, {**GATED, "model_type": "mamba9"}, weights="dummy")
    assert transformers_fit.why_not(config, 1) is None
    assert "not known here" in transformers_fit.memory_in_words(config, 1)


@pytest.mark.parametrize(("precision", "gib"), [("fp32", 29.9), ("bf16", 15.0)])
def test_a_checkpoint_takes_what_its_precision_does(precision, gib):
    """Whatever the files hold."""
    words = transformers_fit.memory_in_words(point(precision=precision), 80)
    assert f"needs {gib} GiB weights" in words


def test_a_quantised_checkpoint_is_left_to_vllm(tmp_path):
    """What would be widened in silence is refused; its shapes alone, with dummy weights, are not."""
    quantised = {**OPT, "quantization_config": {"quant_method": "mxfp4"}}
    why = transformers_fit.why_not(at(tmp_path, quantised, max_seq_len=600, weights="hf"), None)
    assert why is not None
    assert "quantised (mxfp4)" in why
    assert transformers_fit.why_not(at(tmp_path, quantised, max_seq_len=600), None) is None
