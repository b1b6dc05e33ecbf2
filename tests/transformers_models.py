"""Tiny models of transformers' families with random weights, and what its own `generate` makes of prompts."""

from functools import cache
from pathlib import Path

import engine_ranks as tools
import torch
import transformers

from wattflow.config.choices import Engine, Model, Transformers
from wattflow.workload import folder as folders

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 96}
OLD = {"n_layer": 2, "n_head": 4}
FAMILIES = {
    "llama": ("LlamaConfig", GATED),
    "opt": ("OPTConfig", {**SMALL, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("BloomConfig", {"hidden_size": 64, **OLD}),
    "qwen3": ("Qwen3Config", {**GATED, "head_dim": 16}),
    "mistral": ("MistralConfig", {**GATED, "sliding_window": 9}),
    "mixtral": (
        "MixtralConfig",
        {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_positions": 64, **OLD}),
    "falcon": ("FalconConfig", {**SMALL, "multi_query": True, "alibi": False}),
    "gpt_neox": ("GPTNeoXConfig", {**SMALL, "intermediate_size": 96}),
}
LENGTHS = (5, 13, 2)
# BLOOM's softmax in float32 makes NaN of float64's least value, which masks the padding; experts have no float64
FP32 = ("bloom", "mixtral")


def save(family: str, folder: Path) -> Path:
    """Write a checkpoint whose weights are wide enough that greedy outputs vary."""
    name, shapes = FAMILIES[family]
    no_ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = getattr(transformers, name)(vocab_size=300, **no_ends, **shapes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2, generator=generator)
    model.save_pretrained(folder)
    return folder


def prompts() -> list[list[int]]:
    """Three prompts of unlike lengths."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, 300, (n,), generator=generator).tolist() for n in LENGTHS]


def chosen(folder: Path, *, cache: str = "auto", **changes):
    """Resolved choices of a greedy float64 point on the CPU over a checkpoint."""
    model = folders.model_of(folders.read(folder), Model(path=str(folder)))
    engine = Engine(name="transformers", device="cpu", transformers=Transformers(cache=cache))
    sizes = {"batch_size": 3, "max_gen_len": 12, "max_seq_len": 40, "weights": "hf"}
    sizes["precision"] = "fp32" if model.architecture in FP32 else "fp64"
    return tools.choices(model, **{"engine": engine, **sizes, **changes})


@cache
def _reference(folder: Path) -> torch.nn.Module:
    dtype = torch.float32 if folders.read(folder).model_type in FP32 else torch.float64
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def greedy(folder: Path, batch: list[list[int]], new_tokens: int = 12) -> list[list[int]]:
    """What `generate` makes of each prompt alone."""
    model = _reference(folder)
    return [
        model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=new_tokens)[
            0, len(prompt) :
        ].tolist()
        for prompt in batch
    ]
