"""Folders of Hugging Face: parameters as transformers counts them, caches by layer kind, identity, and bad ones."""

import json
import shutil

import pytest
from sweeps import resolved

from wattflow.config.choices import Model
from wattflow.config.identity import point_id
from wattflow.errors import RefusedError
from wattflow.workload import folder as folders

transformers = pytest.importorskip("transformers")
import torch  # noqa: E402

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 300}
GATED = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 96}
MLA = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}
FAMILIES = [
    ("LlamaConfig", GATED),
    (
        "LlamaConfig",
        {**GATED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    ("MistralConfig", GATED),
    ("MixtralConfig", {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("Qwen2Config", GATED),
    ("Qwen3Config", {**GATED, "head_dim": 16}),
    ("Qwen2MoeConfig", {**GATED, **EXPERTS, "shared_expert_intermediate_size": 40}),
    ("Qwen3MoeConfig", {**GATED, **EXPERTS, "head_dim": 16, "mlp_only_layers": [1]}),
    ("GptOssConfig", {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
    ("DeepseekV2Config", {**GATED, **MLA, "q_lora_rank": None, "topk_method": "greedy"}),
    ("DeepseekV3Config", {**GATED, **MLA, "q_lora_rank": 24}),
    ("OPTConfig", {**SMALL, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    (
        "OPTConfig",
        {**SMALL, "ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    ("BloomConfig", {"hidden_size": 64, "n_layer": 3, "n_head": 8, "vocab_size": 300}),
    ("GPT2Config", {"n_embd": 64, "n_layer": 3, "n_head": 8, "vocab_size": 300}),
    ("GPTNeoXConfig", {**SMALL, "intermediate_size": 256}),
    ("FalconConfig", {**SMALL, "multi_query": True}),
    ("FalconConfig", {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2}),
]


def saved(tmp_path, values):
    """A folder with a config.json."""
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize(("name", "keys"), FAMILIES)
def test_parameters_are_those_of_transformers(tmp_path, name, keys):
    """Each family's tiny model, made on no device, has exactly the parameters that its config gives."""
    config = getattr(transformers, name)(**keys)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    found = folders.read(tmp_path)
    assert found.counts is not None
    assert found.counts.parameters == sum(p.numel() for p in model.parameters())
    assert found.counts.active <= found.counts.parameters
    assert sum(cache.layers for cache in found.counts.caches) == 3


def test_known_models_have_their_published_sizes(tmp_path):
    """Qwen3-30B-A3B: 30.5 B parameters, 3.3 B of them active, 98,304 bytes a cached token in 16 bit."""
    values = {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "head_dim": 128,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    found = folders.read(saved(tmp_path, values))
    assert found.counts.parameters == pytest.approx(30.53e9, rel=1e-3)
    assert found.counts.active == pytest.approx(3.35e9, rel=1e-2)
    assert folders.cache_bytes(found, 1, 1, 2) == 98304
    assert found.precision == "bf16"


def test_a_window_bounds_what_a_row_keeps(tmp_path):
    """gpt-oss: half of the layers keep 128 tokens at most."""
    values = {
        **GATED,
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "sliding_window": 128,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    found = folders.read(saved(tmp_path, values))
    per_token = 2 * 2 * 16 * 2
    assert folders.cache_bytes(found, 1, 100, 2) == 4 * per_token * 100
    assert folders.cache_bytes(found, 1, 1000, 2) == 2 * per_token * (1000 + 128)
    assert folders.cache_bytes(found, 2, 100, 2) == 4 * per_token * 100 // 2
    assert folders.cache_bytes(found, 8, 100, 2) == 4 * per_token * 100 // 2  # heads repeat


def test_a_latent_cache_is_whole_on_every_rank(tmp_path):
    """DeepSeek's 32 + 8 values a token and layer, at any number of shards."""
    values = {**GATED, **MLA, "model_type": "deepseek_v3", "q_lora_rank": 24}
    found = folders.read(saved(tmp_path, values))
    assert folders.cache_bytes(found, 4, 10, 2) == 3 * 40 * 10 * 2


def test_an_unknown_family_has_no_counts(tmp_path):
    """It may run all the same."""
    found = folders.read(saved(tmp_path, {**GATED, "model_type": "mamba9"}))
    assert found.counts is None
    assert folders.cache_bytes(found, 1, 10, 2) is None
    assert folders.weight_bytes(found, "bf16", of_files=False) is None
    assert (found.n_heads, found.vocab_size) == (8, 300)


def test_weights_are_the_files_where_there_are_some(tmp_path):
    """Quantised bytes count as they lie there."""
    found = folders.read(saved(tmp_path, {**GATED, "model_type": "llama"}))
    assert folders.weight_bytes(found, "bf16", of_files=True) == 2 * found.counts.parameters
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    assert folders.weight_bytes(folders.read(tmp_path), "bf16", of_files=True) == 1000


def test_two_checkpoints_of_one_shape_are_two(tmp_path):
    """The identity is that of config.json and of the index."""
    first = folders.read(saved(tmp_path, {**GATED, "model_type": "llama"})).sha256
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert folders.read(tmp_path).sha256 != first


def checkpoint(folder, weights, index=None):
    """A folder with one file of weights, whose header is that of all checkpoints of its shape."""
    folder.mkdir(parents=True)
    saved(folder, {**GATED, "model_type": "llama"})
    (folder / "model.safetensors").write_bytes(b"header" * 1000 + weights)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(index)
    return folder


@pytest.mark.parametrize("index", [None, '{"weight_map": {}}'])
def test_two_weights_of_one_shape_are_two_models(tmp_path, index):
    """Fine-tuning changes neither config.json nor the index, and folders may have one name: weights differ."""
    first = folders.read(checkpoint(tmp_path / "a" / "final", b"1" * 10**5, index))
    second = folders.read(checkpoint(tmp_path / "b" / "final", b"2" * 10**5, index))
    assert first.name == second.name
    assert first.sha256 != second.sha256
    models = [folders.model_of(found, Model(name="m")) for found in (first, second)]
    ids = {point_id(resolved(model=model, engine__name="vllm")) for model in models}
    assert len(ids) == 2


def test_a_moved_folder_is_the_same_model(tmp_path):
    """Its path and its times are no part of it; a copy is the same too, its name is."""
    before = folders.read(checkpoint(tmp_path / "a" / "final", b"1" * 10**5))
    shutil.copytree(tmp_path / "a" / "final", tmp_path / "copy" / "final")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert folders.read(tmp_path / "moved" / "final") == before
    assert folders.read(tmp_path / "copy" / "final") == before
    (tmp_path / "moved" / "final").rename(tmp_path / "moved" / "renamed")
    renamed = folders.read(tmp_path / "moved" / "renamed")
    assert (renamed.name, renamed.sha256) == ("renamed", before.sha256)


def test_a_link_is_what_it_leads_to(tmp_path):
    """`latest` is the step that it names today, and another model once it names another."""
    steps = [checkpoint(tmp_path / f"step-{n}", f"{n}".encode() * 10**5) for n in (1, 2)]
    latest = tmp_path / "latest"
    for step in steps:
        latest.unlink(missing_ok=True)
        latest.symlink_to(step)
        assert folders.read(latest) == folders.read(step)
        assert folders.read(latest).name == step.name


def test_a_snapshot_in_the_cache_is_called_after_its_model(tmp_path):
    """Hugging Face's cache: models--ORG--NAME/snapshots/COMMIT, whose files are links to blobs."""
    checkpoint(tmp_path / "blobs", b"1" * 10**5)
    snapshot = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(file)
    found = folders.read(snapshot)
    assert found.name == "Qwen3-8B"
    assert found.sha256 == folders.read(tmp_path / "blobs").sha256


QUANTISED = {**GATED, "model_type": "llama", "tie_word_embeddings": False}
TABLES = 2 * 300 * 64


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 64}}},
            },
            4.25,
        ),
    ],
)
def test_quantised_bytes_follow_from_the_method(tmp_path, method, bits):
    """Scales included; the embedding and the head stay in 16 bit."""
    found = folders.read(saved(tmp_path, {**QUANTISED, "quantization_config": method}))
    narrow = found.counts.parameters - TABLES
    expected = narrow * bits / 8 + TABLES * 2
    assert folders.weight_bytes(found, "bf16", of_files=False) == pytest.approx(expected, abs=1)


def test_mxfp4_narrows_experts_alone(tmp_path):
    """gpt-oss: 4.25 bits a weight of an expert, 16 bits for all else."""
    values = {
        **GATED,
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    found = folders.read(saved(tmp_path, values))
    assert found.counts.experts == 3 * 4 * 3 * 64 * 96
    rest = found.counts.parameters - found.counts.experts
    expected = found.counts.experts * 4.25 / 8 + 2 * rest
    assert folders.weight_bytes(found, "bf16", of_files=False) == pytest.approx(expected, abs=1)


def test_an_unknown_method_is_left_to_the_engine(tmp_path):
    """Nobody here knows its bytes, but those of its files."""
    values = {**QUANTISED, "quantization_config": {"quant_method": "new"}}
    found = folders.read(saved(tmp_path, values))
    assert folders.weight_bytes(found, "bf16", of_files=False) is None
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    assert folders.weight_bytes(folders.read(tmp_path), "bf16", of_files=True) == 1000


def test_files_of_another_precision_count_by_the_one_that_runs(tmp_path):
    """float32 files in bf16 are half as large; in fp8 while loading, a quarter but for the embedding and the head."""
    saved(tmp_path, {**QUANTISED, "torch_dtype": "float32"})
    (tmp_path / "model.safetensors").write_bytes(b"x" * 400_000)
    found = folders.read(tmp_path)
    assert folders.weight_bytes(found, "fp32", of_files=True) == 400_000
    assert folders.weight_bytes(found, "bf16", of_files=True) == 200_000
    expected = (100_000 - TABLES) + 2 * TABLES
    assert folders.weight_bytes(found, "fp8", of_files=True) == expected


def test_quantisation_of_a_checkpoint_is_seen(tmp_path):
    """As its quantization_config says."""
    values = {**GATED, "model_type": "llama", "quantization_config": {"quant_method": "awq"}}
    assert folders.read(saved(tmp_path, values)).quantization == "awq"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing"),
        ("{", "not a JSON document"),
        ("[]", "has no model_type"),
        ('{"model_type": "llama"}', "a shape of a llama is missing or wrong"),
        ('{"model_type": "llama", "num_attention_heads": "x"}', "missing or wrong"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path, text, message):
    """One sentence with the file and what is wrong."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(RefusedError, match=message):
        folders.read(tmp_path)


def test_shards_must_divide_heads(tmp_path):
    """8 heads over 2 KV heads: 4 shards repeat KV heads, 3 do not divide."""
    found = folders.read(saved(tmp_path, {**GATED, "model_type": "llama"}))
    assert folders.why_not_shards(found, 4) is None
    assert "which 3 shards do not divide" in folders.why_not_shards(found, 3)


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "gptq", "bits": 3}, None),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, None),
        ({"quant_method": "new"}, None),
        *(
            (
                {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"g": {"weights": {"num_bits": bits, "type": kind}}},
                },
                named,
            )
            for bits, kind, named in ((8, "int", "int8"), (8, "float", "fp8"), (4, "float", None))
        ),
    ],
)
def test_precisions_of_quantised_checkpoints(tmp_path, method, named):
    """Integers of four and eight bits and floats of eight have a name as a precision."""
    found = folders.read(saved(tmp_path, {**QUANTISED, "quantization_config": method}))
    assert found.quantised_in == named
