"""The model's numbers: against transformers, against itself step by step, and rows against each other."""

from pathlib import Path

import engine_ranks as tools
import pytest
import torch

from wattflow.config.choices import RopeScaling
from wattflow.engine import llama as llama_module
from wattflow.engine.llama import rotary_table, rotated


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def hf_model(model, whole):
    """transformers' model of the same weights, in float64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": model.rope_scaling.factor,
            "low_freq_factor": model.rope_scaling.low_freq_factor,
            "high_freq_factor": model.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": model.rope_scaling.original_max_position,
        }
    hf = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=model.dim,
            num_hidden_layers=model.n_layers,
            num_attention_heads=model.n_heads,
            num_key_value_heads=model.n_kv_heads,
            intermediate_size=model.ffn_dim,
            vocab_size=model.vocab_size,
            rms_norm_eps=model.norm_eps,
            rope_parameters=rope,
            tie_word_embeddings=model.tied_embeddings,
            attn_implementation="sdpa",  # eager casts its softmax to float32
        )
    ).double()
    state = {m.hf_name: whole[m.name] for m in tools.matrices(model)}
    if model.tied_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    hf.load_state_dict(state)
    return hf.eval()


def save_hf(folder: Path, hf, **options) -> None:
    hf.save_pretrained(folder, **options)


def double_norm(norm, hidden):
    """RMSNorm without transformers' cast to float32."""
    scaled = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * scaled


def double_rotary(model):
    """transformers' cosines and sines without its cast to float32."""

    def forward(self, x, position_ids):
        table = rotary_table(model, int(position_ids.max()) + 1, torch.float64, "cpu")
        cosine, sine = table[:, position_ids]
        return torch.cat((cosine, cosine), -1), torch.cat((sine, sine), -1)

    return forward


TOKENS = torch.randint(0, 251, (3, 19), generator=torch.Generator().manual_seed(1))

SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16
)


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied_embeddings": True}, {"rope_scaling": SCALING, "rope_theta": 500.0}],
    ids=["plain", "tied", "stretched"],
)
def test_logits_equal_those_of_transformers(tmp_path, changes, monkeypatch):
    """In float64 within 5e-6 of LlamaForCausalLM as it is, and 1e-13 relative without its casts to float32."""
    model = tools.tiny(path=str(tmp_path), **changes)
    hf = hf_model(model, tools.random_weights(model))
    save_hf(tmp_path, hf)
    ours = tools.all_logits(tools.build_llama(model, "hf", tools.ALONE), model, 1, TOKENS, [])
    with torch.no_grad():
        theirs = hf(TOKENS).logits
        assert (ours - theirs).abs().max() < 5e-6 * theirs.abs().max()
        if model.rope_scaling is None:
            from transformers.models.llama import modeling_llama

            monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", double_norm)
            monkeypatch.setattr(
                modeling_llama.LlamaRotaryEmbedding, "forward", double_rotary(model)
            )
            exact = hf(TOKENS).logits
            assert (ours - exact).abs().max() < 1e-13 * exact.abs().max()


def test_greedy_text_equals_that_of_transformers(tmp_path):
    """A ragged batch makes the tokens that transformers makes of each prompt alone."""
    model = tools.tiny(path=str(tmp_path))
    hf = hf_model(model, tools.random_weights(model))
    save_hf(tmp_path, hf)
    prompts = [[5, 9, 200], [7] * 11, [1, 2, 3, 4, 5, 6]]
    ours = tools.generate(tools.choices(model, weights="hf"), tools.ALONE, prompts).tokens
    for prompt, made in zip(prompts, ours, strict=True):
        text = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(6):
                text = torch.cat((text, hf(text).logits[:, -1:].argmax(-1)), dim=1)
        assert made == text[0, len(prompt) :].tolist()


@pytest.fixture
def checkpoint(tmp_path):
    """A model whose random weights lie in Meta's format in two files."""
    model = tools.tiny(path=str(tmp_path / "meta"))
    tools.save_meta(tmp_path / "meta", model, tools.random_weights(model), 2)
    return model


def test_step_by_step_equals_one_pass(checkpoint):
    """Feeding a prompt whole, in pieces, or token by token gives the same logits at every position."""
    llama = tools.build_llama(checkpoint, "meta", tools.ALONE)
    whole = tools.all_logits(llama, checkpoint, 1, TOKENS, [])
    for cuts in ([7], [1, 2, 12], list(range(1, 19))):
        pieces = tools.all_logits(llama, checkpoint, 1, TOKENS, cuts)
        assert (pieces - whole).abs().max() < 1e-12 * whole.abs().max()


def test_a_position_off_by_one_is_seen(checkpoint, monkeypatch):
    """Negative control: rotating from the second piece on by one position too many moves the logits."""
    llama = tools.build_llama(checkpoint, "meta", tools.ALONE)
    whole = tools.all_logits(llama, checkpoint, 1, TOKENS, [])
    table = rotary_table(checkpoint, 20, torch.float64, "cpu")
    monkeypatch.setattr(
        llama_module,
        "rotated",
        lambda x, here: rotated(x, here if x.shape[1] == 7 else table[:, 8:20]),
    )
    pieces = tools.all_logits(llama, checkpoint, 1, TOKENS, [7])
    assert (pieces[:, :7] - whole[:, :7]).abs().max() < 1e-12
    assert (pieces[:, 7:] - whole[:, 7:]).abs().max() > 1e-3


def test_a_row_does_not_depend_on_its_batch(checkpoint):
    """Each row of a ragged batch makes the tokens that it makes alone, and at least 100 tokens differ in all."""
    generator = torch.Generator().manual_seed(3)
    lengths = [3, 17, 8, 1, 12, 5, 9, 20]
    prompts = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]
    chosen = tools.choices(checkpoint, weights="meta", max_gen_len=40, max_seq_len=64)
    together = tools.generate(chosen, tools.ALONE, prompts).tokens
    assert len({token for row in together for token in row}) >= 100
    for prompt, made in zip(prompts, together, strict=True):
        assert tools.generate(chosen, tools.ALONE, [prompt]).tokens == [made]
