"""A Hugging Face folder, read without torch: shapes, parameters, bytes of weights and of cached tokens, its identity.

Families of today and of the paper's time are known; of another model_type the parameters are unknown, and whether it
fits is left to the engine. Shapes of conf/model/ are read as a folder that holds nothing but their config.json.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from wattflow.config.choices import BYTES_PER_VALUE, QUANTISED, Model, plain
from wattflow.errors import RefusedError
from wattflow.store.files import open_given, read_given
from wattflow.workload.config_json import values as values_of

_INDEX = "model.safetensors.index.json"
_SAMPLES, _SAMPLE_BYTES = 64, 4096  # of the files of weights, evenly spread, in each two at least
_QUANTISED_BITS = {"fp8": 8.0}  # of a weight that an engine quantises while it loads
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Cache:
    """What one kind of layers keeps of a token, over all of them."""

    layers: int
    values: int  # a token and layer
    window: int | None = None  # tokens that a layer keeps at most
    splits: int | None = None  # over how many ranks at most; null: over none, each has all


@dataclass(frozen=True)
class Counts:
    """Parameters of a model: all, those that one token uses, and its caches."""

    parameters: int
    active: int
    caches: tuple[Cache, ...]
    tables: int  # of these, the embedding and the head, which engines do not quantise
    experts: int = 0  # of these, experts' matrices


@dataclass(frozen=True)
class Folder:
    """What config.json and the files beside it say; null for what they do not."""

    name: str
    model_type: str
    n_layers: int
    width: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int | None
    vocab_size: int
    tied_embeddings: bool
    max_positions: int | None
    precision: str | None
    quantization: str | None
    quantised_in: str | None  # fp8, int8 or int4, by which `precision` names it; null: neither
    bits: (
        float | None
    )  # of a quantised weight, its share of scales included; null where that is unknown
    counts: Counts | None
    file_bytes: int | None  # of all safetensors; null where there are none
    sha256: str  # of config.json and the weights' index


def read(folder: Path) -> Folder:
    """Return what a folder holds; RefusedError where config.json is missing or is none of a causal language model."""
    path = folder / "config.json"
    try:
        data = read_given(path)
        values = json.loads(data)
    except FileNotFoundError as error:
        raise RefusedError(
            f"{path}: missing. A folder of Hugging Face's is wanted; Meta's are weights=meta."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: not a JSON document ({error}).") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise RefusedError(f"{path}: has no model_type, so it is no model's.")
    text = values.get("text_config")
    values = {**values, **text} if isinstance(text, dict) else values
    files = sorted(folder.glob("*.safetensors"))
    return replace(
        _typed(values, str(path)),
        name=_name(folder.resolve()),
        file_bytes=sum(file.stat().st_size for file in files) or None,
        sha256=_identity(data, folder, files),
    )


def of_shapes(model: Model) -> Folder:
    """Return what a folder of a model's shapes would say; RefusedError where its family lacks one of its own."""
    return _of_text(json.dumps(values_of(model)), model.name)


@lru_cache(maxsize=64)
def _of_text(config: str, name: str) -> Folder:
    """Return what a config.json's text says; the points of a sweep share a few, and ask several times each."""
    return replace(_typed(json.loads(config), f"model {name}"), name=name)


def _typed(values: dict[str, Any], source: str) -> Folder:
    try:
        return _folder(values)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise RefusedError(
            f"{source}: {type(error).__name__}: {error}: a shape of a {values['model_type']} is missing or wrong."
        ) from error


def _name(folder: Path) -> str:
    """Return a folder's name; of a snapshot in Hugging Face's cache, models--ORG--NAME/snapshots/COMMIT, NAME."""
    cached = folder.parents[1].name if folder.parent.name == "snapshots" else ""
    return cached.rpartition("--")[2] if cached.startswith("models--") else folder.name


def _identity(config: bytes, folder: Path, files: Sequence[Path]) -> str:
    """Return the sha256 of config.json, the weights' index, and samples of each file of weights.

    Two checkpoints of one shape have the same config.json and the same index: only their weights differ.
    """
    digest = hashlib.sha256(config)
    index = folder / _INDEX
    if index.is_file():
        digest.update(read_given(index))
    samples = max(2, _SAMPLES // max(1, len(files)))
    for file in files:
        with open_given(file) as held:
            size = held.seek(0, os.SEEK_END)
            digest.update(f"{file.name}:{size}".encode())
            for number in range(samples):
                held.seek(size * number // samples)
                digest.update(held.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _folder(values: dict[str, Any]) -> Folder:
    kind = values["model_type"]
    heads = int(_first(values, "num_attention_heads", "n_head"))
    quantised = values.get("quantization_config")
    counter = _FAMILIES.get(kind)
    return Folder(
        name="",
        model_type=kind,
        n_layers=_layers(values),
        width=_width(values),
        n_heads=heads,
        n_kv_heads=_kv_heads(values, heads),
        ffn_dim=values.get("intermediate_size", values.get("ffn_dim")),
        vocab_size=int(values["vocab_size"]),
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        max_positions=values.get("max_position_embeddings", values.get("n_positions")),
        precision=_PRECISIONS.get(str(values.get("dtype") or values.get("torch_dtype"))),
        quantization=quantised.get("quant_method") if isinstance(quantised, dict) else None,
        quantised_in=_precision_of(quantised) if isinstance(quantised, dict) else None,
        bits=_bits(quantised) if isinstance(quantised, dict) else None,
        counts=None if counter is None else counter(values),
        file_bytes=None,
        sha256="",
    )


def _first(values: Values, *names: str, default: Any = None) -> Any:
    for name in names:
        if values.get(name) is not None:
            return values[name]
    if default is None:
        raise KeyError(names[0])
    return default


def _layers(values: Values) -> int:
    return int(_first(values, "num_hidden_layers", "n_layer"))


def _width(values: Values) -> int:
    return int(_first(values, "hidden_size", "n_embd", "n_embed"))


def _kv_heads(values: Values, heads: int) -> int:
    if values["model_type"] == "falcon":
        if values.get("new_decoder_architecture"):
            return int(_first(values, "num_kv_heads", default=heads))
        return 1 if values.get("multi_query", True) else heads
    return int(_first(values, "num_key_value_heads", default=heads))


# --- parameters -----------------------------------------------------------------------------------


def _gated(values: Values) -> Counts:
    """Count a decoder of grouped heads, rotary positions, RMS norms and a gated feed-forward, dense or of experts."""
    kind, width, layers = values["model_type"], _width(values), _layers(values)
    heads = int(values["num_attention_heads"])
    kv_heads = _kv_heads(values, heads)
    head = int(_first(values, "head_dim", default=width // heads))
    q, kv = heads * head, kv_heads * head
    attention = width * (2 * q + 2 * kv)
    biased = {"qwen2": True, "qwen2_moe": True}.get(kind, values.get("attention_bias", False))
    attention += (q + 2 * kv) * bool(biased)
    attention += width * (kind in ("llama", "gpt_oss") and bool(values.get("attention_bias")))
    if kind.startswith("qwen3"):
        attention += 2 * head  # norms of queries and keys
    if kind == "gpt_oss":
        attention += heads  # sinks
    dense, active = 0, 0
    for layer in range(layers):
        one, used = _feed_forward(values, layer)
        dense, active = dense + one, active + used
    tables = _tables(values, width)
    rest = layers * (attention + 2 * width) + width + tables
    caches = _windowed(values, layers, 2 * kv, kv_heads)
    return Counts(rest + dense, rest + active, caches, tables, _experts(values))


def _tables(values: Values, width: int) -> int:
    tied = values.get("tie_word_embeddings", False)
    return (1 if tied else 2) * int(values["vocab_size"]) * width


def _feed_forward(values: Values, layer: int) -> tuple[int, int]:
    """Return the parameters of one layer's feed-forward, and those that a token uses."""
    kind, width = values["model_type"], _width(values)
    inner = int(values["intermediate_size"])
    dense = 3 * width * inner
    if kind == "mixtral":
        experts, used = int(values["num_local_experts"]), int(values["num_experts_per_tok"])
        gate = width * experts
        return experts * dense + gate, used * dense + gate
    if kind == "gpt_oss":
        experts = int(values["num_local_experts"])
        used = int(_first(values, "num_experts_per_tok", "experts_per_token"))
        one, gate = dense + 2 * inner + width, (width + 1) * experts
        return experts * one + gate, used * one + gate
    if kind in ("qwen2_moe", "qwen3_moe") and _is_sparse(values, layer):
        experts = int(_first(values, "num_experts", "num_local_experts"))
        one, used = 3 * width * int(values["moe_intermediate_size"]), values["num_experts_per_tok"]
        gate = width * experts
        if kind == "qwen2_moe":
            gate += 3 * width * int(values["shared_expert_intermediate_size"]) + width
        return experts * one + gate, used * one + gate
    if kind.startswith("deepseek") and layer >= int(
        _first(values, "first_k_dense_replace", default=0)
    ):
        experts, used = int(values["n_routed_experts"]), int(values["num_experts_per_tok"])
        one = 3 * width * int(values["moe_intermediate_size"])
        gate = width * experts + one * int(_first(values, "n_shared_experts", default=0))
        return experts * one + gate, used * one + gate
    biases = (2 * inner + width) * (kind == "llama" and bool(values.get("mlp_bias")))
    return dense + biases, dense + biases


def _is_sparse(values: Values, layer: int) -> bool:
    step = int(_first(values, "decoder_sparse_step", default=1))
    return layer not in (values.get("mlp_only_layers") or ()) and (layer + 1) % step == 0


def _experts(values: Values) -> int:
    """Return the parameters of all experts' matrices, without gates, biases and what all tokens use."""
    several = _first(values, "num_local_experts", "num_experts", "n_routed_experts", default=0)
    inner = int(_first(values, "moe_intermediate_size", "intermediate_size"))
    skipped = int(_first(values, "first_k_dense_replace", default=0))
    sparse = sum(_is_sparse(values, layer) for layer in range(skipped, _layers(values)))
    return sparse * int(several) * 3 * _width(values) * inner


def _windowed(values: Values, layers: int, per_token: int, kv_heads: int) -> tuple[Cache, ...]:
    """Return the caches of a model whose layers see all tokens, or some of them a window."""
    window, kinds = values.get("sliding_window"), values.get("layer_types")
    if (
        kinds is None and values["model_type"] == "gpt_oss"
    ):  # transformers' default: every other layer
        kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    elif kinds is None:
        every = window is not None and values["model_type"] in ("mistral", "mixtral")
        kinds = ["sliding_attention" if every else "full_attention"] * layers
    sliding = sum(kind == "sliding_attention" for kind in kinds) if window is not None else 0
    found = (
        Cache(layers - sliding, per_token, None, kv_heads),
        Cache(sliding, per_token, None if window is None else int(window), kv_heads),
    )
    return tuple(cache for cache in found if cache.layers)


def _latent(values: Values) -> Counts:
    """Count DeepSeek's decoder, whose cache is one latent vector a token that every rank holds."""
    width, layers, heads = _width(values), _layers(values), int(values["num_attention_heads"])
    nope, rope = int(values["qk_nope_head_dim"]), int(values["qk_rope_head_dim"])
    latent, value = int(values["kv_lora_rank"]), int(values["v_head_dim"])
    queries = values.get("q_lora_rank")
    out = heads * (nope + rope)
    attention = width * out if queries is None else queries * (width + 1 + out)
    attention += width * (latent + rope) + latent + latent * heads * (nope + value)
    attention += heads * value * width
    total, active = 0, 0
    for layer in range(layers):
        one, used = _feed_forward(values, layer)
        total, active = total + one, active + used
    tables = _tables(values, width)
    rest = layers * (attention + 2 * width) + width + tables
    cache = Cache(layers, latent + rope)
    return Counts(rest + total, rest + active, (cache,), tables, _experts(values))


def _plain(values: Values) -> Counts:
    """Count a decoder of the years before: two matrices a feed-forward, biases, layer norms with two vectors."""
    kind, width, layers = values["model_type"], _width(values), _layers(values)
    heads = int(_first(values, "num_attention_heads", "n_head"))
    kv = _kv_heads(values, heads) * (width // heads)
    inner = int(
        _first(
            values, "ffn_dim", "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * width
        )
    )
    biased = values.get("bias", False) if kind == "falcon" else True
    matrices = width * (2 * width + 2 * kv) + 2 * width * inner
    layer = matrices + (2 * width + 2 * kv + inner + width) * bool(biased) + 4 * width
    vocabulary = int(values["vocab_size"])
    table = vocabulary * width
    rest = 2 * width  # the last norm
    if kind == "opt":
        projected = int(_first(values, "word_embed_proj_dim", default=width))
        table = vocabulary * projected + (2 * projected * width if projected != width else 0)
        rest = (int(values["max_position_embeddings"]) + 2) * width
        rest += 2 * width * bool(values.get("do_layer_norm_before", True))
    elif kind == "bloom":
        rest += 2 * width  # a norm after the embedding
    elif kind == "gpt2":
        rest += int(_first(values, "n_positions", "max_position_embeddings")) * width
    elif kind == "gpt_neox":
        table *= 1 if values.get("tie_word_embeddings", False) else 2
    elif kind == "falcon":
        parallel = values.get("parallel_attn", True)
        if not values.get("new_decoder_architecture") and parallel:
            layer -= 2 * width  # one norm for both branches
        if not values.get("tie_word_embeddings", True):
            table *= 2
    total = table + rest + layers * layer
    return Counts(total, total, (Cache(layers, 2 * kv, None, _kv_heads(values, heads)),), table)


_FAMILIES: dict[str, Callable[[Values], Counts]] = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gpt_oss"),
        _gated,
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _latent),
    **dict.fromkeys(("opt", "bloom", "gpt2", "gpt_neox", "falcon"), _plain),
}


def model_of(found: Folder, model: Model) -> Model:
    """Return a model with the folder's name, shapes and identity; what engines of others do not need stays."""
    return replace(
        model,
        name=found.name,
        architecture=found.model_type,
        dim=found.width,
        n_layers=found.n_layers,
        n_heads=found.n_heads,
        n_kv_heads=found.n_kv_heads,
        ffn_dim=found.ffn_dim or model.ffn_dim,
        vocab_size=found.vocab_size,
        tied_embeddings=found.tied_embeddings,
        revision=model.revision or found.sha256[:12],
    )


def why_not_this(found: Folder, model: Model) -> str | None:
    """Return which shape of a chosen model the folder does not have; null where they are one."""
    other = model_of(found, model)
    for field in ("architecture", "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size"):
        own, theirs = getattr(model, field), getattr(other, field)
        if own != theirs:
            return f"its {field} is {theirs}, and model {model.name} has {own}"
    return None


# --- memory ---------------------------------------------------------------------------------------


def weight_bytes(folder: Folder, precision: str, *, of_files: bool) -> int | None:
    """Return the bytes of all weights as an engine holds them; null where nobody can compute them.

    Files that are read count as they lie there, in another precision than theirs by its width. Engines that quantise
    while they load leave the embedding and the head alone; MXFP4 has experts alone.
    """
    value = BYTES_PER_VALUE[plain(precision)]
    bits = _QUANTISED_BITS.get(precision) if folder.quantization is None else folder.bits
    counts = folder.counts
    if of_files and folder.file_bytes is not None:
        held = folder.file_bytes
        if folder.quantization is not None:
            return held
        if folder.precision is not None:
            held = held * value // BYTES_PER_VALUE[folder.precision]
        if bits is None:
            return held
        tables = 2 * folder.vocab_size * folder.width if counts is None else counts.tables
        return int((held / value - tables) * bits / 8) + tables * value
    if counts is None or (folder.quantization is not None and bits is None):
        return None
    if bits is None:
        return counts.parameters * value
    narrow = counts.experts if folder.quantization == "mxfp4" else counts.parameters - counts.tables
    return int(narrow * bits / 8) + (counts.parameters - narrow) * value


def _bits(quantised: Values) -> float | None:
    """Return the bits of a weight by a quantization_config, with its share of scales; null for an unknown method."""
    method = quantised.get("quant_method")
    if method == "mxfp4":
        return 4 + 8 / 32  # a scale of 8 bits for 32 weights
    if method == "fp8":
        rows, columns = quantised.get("weight_block_size") or (0, 0)
        return 8 + (32 / (rows * columns) if rows else 0.0)
    if method in ("awq", "gptq"):
        bits = float(_first(quantised, "bits", "w_bit", default=4))
        group = int(_first(quantised, "group_size", "q_group_size", default=128))
        return bits + ((16 + bits) / group if group > 0 else 0.0)
    if method == "compressed-tensors":
        groups = quantised.get("config_groups") or {}
        weights = [one["weights"] for one in groups.values() if one.get("weights")]
        found = {(one["num_bits"], one.get("group_size")) for one in weights}
        if len(found) != 1:
            return None
        bits, group = found.pop()
        return float(bits) + (16 / group if group else 0.0)
    return None


def _precision_of(quantised: Values) -> str | None:
    """Return the precision of weights by a quantization_config; null for another, or several."""
    bits, method = _bits(quantised), quantised.get("quant_method")
    if bits is None:
        return None
    kind = "int"
    if method == "compressed-tensors":
        groups = quantised["config_groups"].values()
        kinds = {one["weights"].get("type", "int") for one in groups if one.get("weights")}
        kind = "fp" if kinds == {"float"} else "".join(kinds)
    elif method not in ("awq", "gptq"):
        kind = "fp"
    name = f"{kind}{int(bits)}"
    return name if name in QUANTISED else None


def cache_bytes(folder: Folder, shards: int, length: int, bytes_per_value: int) -> int | None:
    """Return the bytes that one rank keeps for one row of a length; null for an unknown family."""
    if folder.counts is None:
        return None
    total = 0
    for cache in folder.counts.caches:
        tokens = length if cache.window is None else min(length, cache.window)
        share = 1 if cache.splits is None else min(shards, cache.splits)
        total += cache.layers * cache.values * tokens * bytes_per_value // share
    return total


def why_not_shards(folder: Folder, shards: int) -> str | None:
    """Return why a model cannot be split into that many shards; null where it can."""
    if folder.n_heads % shards:
        return f"{folder.name} has {folder.n_heads} heads, which {shards} shards do not divide"
    if folder.n_kv_heads % shards and shards % folder.n_kv_heads:
        return (
            f"{folder.name} has {folder.n_kv_heads} KV heads, which {shards} shards do not divide"
        )
    return None
