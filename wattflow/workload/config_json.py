"""config.json of a model's shapes, as Hugging Face writes it: conf/model/ is planned and run as a folder would be."""

from typing import Any

from wattflow.config.choices import Model

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "opt": "OPTForCausalLM",
    "bloom": "BloomForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "falcon": "FalconForCausalLM",
}


def values(model: Model) -> dict[str, Any]:
    """Return what config.json says of shapes: the choices by their names there, and model.more as it is."""
    kind = model.architecture
    named: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
    }
    if kind == "opt":
        named["ffn_dim"] = model.ffn_dim
    elif kind == "bloom":
        named |= {"n_layer": model.n_layers, "n_head": model.n_heads}
        named["layer_norm_epsilon"] = model.norm_eps
    else:
        named["intermediate_size"] = model.ffn_dim
        named["num_key_value_heads"] = model.n_kv_heads
        named |= {"rms_norm_eps": model.norm_eps, "rope_theta": model.rope_theta}
        named |= {"rope_scaling": _rope_scaling(model), "hidden_act": "silu"}
    if kind == "llama":
        named["head_dim"] = model.dim // model.n_heads
    return {**named, **model.more}


def _rope_scaling(model: Model) -> dict[str, Any] | None:
    scaling = model.rope_scaling
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position,
    }


def document(model: Model, dtype: str, length: int) -> dict[str, Any]:
    """Return a whole config.json for dummy weights: with the class, torch's name of the type, and enough positions."""
    found = values(model)
    positions = "seq_length" if model.architecture == "bloom" else "max_position_embeddings"
    found.setdefault(positions, max(length, 2048))
    known = _CLASSES.get(model.architecture)
    return {**({"architectures": [known]} if known else {}), **found, "torch_dtype": dtype}
