"""Mistral, Qwen2 and Qwen3 in `paper` and `fast`: logits and greedy tokens are those of transformers, at any shards."""

import json
from dataclasses import replace
from pathlib import Path

import engine_ranks as tools
import pytest
import torch
from fast_engine import FAST

from wattflow.errors import RefusedError
from wattflow.workload import model as arithmetic
from wattflow.workload.checkpoint import check_header
from wattflow.workload.matrices import matrices

TOKENS = torch.randint(0, 251, (3, 19), generator=torch.Generator().manual_seed(1))
PROMPTS = [[5, 9, 200], [7] * 11, [1, 2, 3, 4, 5, 6]]
# what differs from LLaMA: the class in transformers, and wattflow's choices
FAMILIES = {
    "mistral": ("Mistral", {"more": {"head_dim": 12}}),  # 8 heads of 12 in a model of 64
    "qwen2": ("Qwen2", {"tied_embeddings": True, "norm_eps": 1e-6}),
    "qwen3": ("Qwen3", {"more": {"head_dim": 16}, "norm_eps": 1e-6, "rope_theta": 1e6}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def saved(folder: Path, family: str, **config):
    """A model of a family with random weights in a folder, and transformers' own of the same, in float64."""
    import transformers

    name, changes = FAMILIES[family]
    model = tools.tiny(path=str(folder), architecture=family, **changes)
    shapes = getattr(transformers, f"{name}Config")(
        hidden_size=model.dim,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        head_dim=arithmetic.head_dim(model),
        intermediate_size=model.ffn_dim,
        vocab_size=model.vocab_size,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tied_embeddings,
        attn_implementation="sdpa",
        **{"sliding_window": None, **config},
    )
    theirs = getattr(transformers, f"{name}ForCausalLM")(shapes).double()
    state = {m.hf_name: w for m, w in zip(matrices(model), random(model), strict=True)}
    if model.tied_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    theirs.load_state_dict(state)
    theirs.save_pretrained(folder)
    return model, theirs.eval()


def random(model):
    """The weights of a model in order; biases are as wide as what they are added to."""
    whole = tools.random_weights(model)
    return [w * 5 if name.endswith(".bias") else w for name, w in whole.items()]


def greedy(theirs, prompt, new=6):
    """What transformers makes of one prompt."""
    text = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(new):
            text = torch.cat((text, theirs(text).logits[:, -1:].argmax(-1)), dim=1)
    return text[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_are_those_of_transformers(tmp_path, family):
    """In float64 within 5e-6, as transformers casts norms and rotations to float32; both engines make its tokens."""
    model, theirs = saved(tmp_path, family)
    ours = tools.all_logits(tools.build_llama(model, "hf", tools.ALONE), model, 1, TOKENS, [])
    with torch.no_grad():
        right = theirs(TOKENS).logits
    assert (ours - right).abs().max() < 5e-6 * right.abs().max()
    expected = [greedy(theirs, prompt) for prompt in PROMPTS]
    for changes in ({}, {"engine": FAST}):
        chosen = tools.choices(model, weights="hf", **changes)
        assert tools.generate(chosen, tools.ALONE, PROMPTS).tokens == expected


@pytest.mark.parametrize("world", [2, 4])
def test_shards_make_one_rank_s_tokens(tmp_path, world):
    """2 ranks with a KV head each, and 4 with two copies of each, in both engines and all families."""
    generations, expected = {}, {}
    for family in FAMILIES:
        model, theirs = saved(tmp_path / family, family)
        shapes = {
            name: getattr(model, name)
            for name in (
                "path",
                "architecture",
                "tied_embeddings",
                "norm_eps",
                "rope_theta",
                "more",
            )
        }
        for engine in ("paper", "fast"):
            name = f"{family} {engine}"
            generations[name] = [shapes, {"engine": engine, "weights": "hf"}]
            expected[name] = [greedy(theirs, prompt) for prompt in PROMPTS]
    ask = {"prompts": PROMPTS, "tokens": [[1]], "models": {}, "generations": generations}
    for answer in tools.spawn(world, tmp_path / "ranks", ask):
        assert answer["made"] == expected


@pytest.mark.parametrize(
    ("family", "lost"),
    [
        ("qwen2", {"architecture": "llama"}),
        ("qwen3", {"architecture": "llama"}),
        ("qwen3", {"rope_theta": 1e4}),
        ("mistral", {"rope_theta": 5e3}),
    ],
)
def test_what_a_family_has_is_seen(tmp_path, family, lost):
    """Negative controls: without biases, norms of heads or the right frequencies the logits are others."""
    model, theirs = saved(tmp_path, family)
    whole = dict(zip((m.name for m in matrices(model)), random(model), strict=True))
    other = replace(model, path=str(tmp_path / "other"), **lost)
    kept = {m.name: whole[m.name] for m in matrices(other)}
    written = {"model_type": other.architecture, "sliding_window": None, **model.more}
    tools.save_hf(other, kept, 1, tie_word_embeddings=model.tied_embeddings, **written)
    ours = tools.all_logits(tools.build_llama(other, "hf", tools.ALONE), other, 1, TOKENS, [])
    with torch.no_grad():
        right = theirs(TOKENS).logits
    assert (ours - right).abs().max() > 1e-3 * right.abs().max()


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("mistral", {"sliding_window": 7}, "sliding_window is 7, but the chosen model has None"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7}, "use_sliding_window is True"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    ],
)
def test_a_checkpoint_that_would_be_computed_wrongly_is_refused(tmp_path, family, config, words):
    model, _ = saved_otherwise(tmp_path, family, config)
    with pytest.raises(RefusedError, match=words):
        check_header(model, "hf")


def saved_otherwise(folder, family, config):
    """A model of a family whose folder says something else of it."""
    model, theirs = saved(folder, family)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return model, theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [1, 4])
def test_parameters_are_counted(family, shards):
    """What the arithmetic says of a rank is what its matrices hold."""
    model = tools.tiny(architecture=family, **FAMILIES[family][1])
    held = 0
    for matrix in matrices(model):
        rows = 1 if matrix.split is None else matrix.rows_of_rank(shards)
        others = [
            n for dim, n in enumerate(matrix.shape) if matrix.split is None or dim != matrix.split
        ]
        held += rows * torch.tensor(others or [1]).prod().item()
    assert held == arithmetic.rank_parameters(model, shards)
