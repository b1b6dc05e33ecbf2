"""The fast engine's model: equal to the paper's step by step, in any group of rows, and its draws."""

from dataclasses import replace

import engine_ranks as tools
import pytest
import torch
from fast_engine import choices, some_prompts, wide_model

from wattflow.engine.checks import DTYPES
from wattflow.engine.fused import FusedLlama, draw
from wattflow.engine.ops import EAGER
from wattflow.engine.weights import reader


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model whose greedy outputs differ."""
    torch.set_num_threads(1)
    return wide_model(tmp_path_factory.mktemp("fast"))


def test_step_by_step_equals_one_pass(model):
    """Logits after a prefill of 7 and single steps equal the other model's over the whole text, within 1e-12."""
    text = torch.tensor(some_prompts([19, 19, 19]))
    llama = tools.build_llama(model, "meta", tools.ALONE)
    whole = tools.all_logits(llama, model, 1, text, [])
    fused = FusedLlama(model, tools.ALONE, reader(model, "meta", "cpu"), dtype=DTYPES["fp64"])
    fused = fused.with_cache(rows=4, length=24)
    with torch.inference_mode():
        last = fused.prefill(text[:, :7].tolist(), EAGER)
        seen = [fused.logits(last, None, EAGER)]
        for place in range(7, 19):
            positions = torch.full((3,), place)
            seen.append(fused.step(text[:, place].contiguous(), positions, 24, EAGER))
    assert (torch.stack(seen, dim=1) - whole[:, 6:]).abs().max() < 1e-12 * whole.abs().max()


def test_rows_of_a_long_prefill_are_read_in_groups(model, monkeypatch):
    """However many tokens are read at a time, the hidden states are the same."""
    monkeypatch.setattr("wattflow.engine.fused.PREFILL_TOKENS", 25)
    chosen, asked = choices(model), some_prompts([10, 4, 12, 7, 1])
    few = tools.generate(chosen, tools.ALONE, asked).tokens
    monkeypatch.undo()
    assert few == tools.generate(chosen, tools.ALONE, asked).tokens


def test_swapped_shards_fail(tmp_path, model):
    """A rank that holds another rank's part of one matrix gives other logits: the equality of shards can fail."""
    whole = tools.random_weights(model)
    name = "layers.0.attention.wo.weight"
    whole[name] = torch.cat(whole[name].chunk(2, dim=1)[::-1], dim=1)
    swapped = replace(model, path=str(tmp_path))
    tools.save_meta(tmp_path, swapped, whole, 1)
    asked = some_prompts([9, 5])
    assert (
        tools.generate(choices(swapped), tools.ALONE, asked).tokens
        != tools.generate(choices(model), tools.ALONE, asked).tokens
    )


def test_drawing_follows_the_probabilities():
    """Of 4000 draws from 0.6, 0.3, 0.1 the shares agree to 3 %; top_p 0.7 leaves two; temperature 0.5 squares."""
    scores = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).log().repeat(4000, 1)
    for temperature, top_p, expected in (
        (1.0, 1.0, [0.1, 0.6, 0.3]),
        (1.0, 0.7, [0.0, 2 / 3, 1 / 3]),
        (0.5, 1.0, [0.01 / 0.46, 0.36 / 0.46, 0.09 / 0.46]),
    ):
        generator = torch.Generator().manual_seed(0)
        counts = torch.bincount(draw(scores, temperature, top_p, generator), minlength=3)
        assert (counts / 4000).tolist() == pytest.approx(expected, abs=0.03)
