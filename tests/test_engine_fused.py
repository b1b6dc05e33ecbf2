"""The fast engine's model: equal to the paper's step by step, in any group of rows, and its draws."""

from dataclasses import replace

import engine_ranks as tools
import pytest
import torch
from fast_engine import choices, some_prompts, wide_model

from wattflow.engine import packed
from wattflow.engine.checks import DTYPES
from wattflow.engine.fused import FusedLlama, draw
from wattflow.engine.ops import EAGER
from wattflow.engine.weights import reader
from wattflow.workload import model as arithmetic


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


def test_packed_prompts_are_each_alone_and_not_their_neighbours(model):
    """Hidden states of a packed batch are those of each prompt alone within 1e-12, and no row is another's."""
    fused = FusedLlama(model, tools.ALONE, reader(model, "meta", "cpu"), dtype=DTYPES["fp64"])
    fused = fused.with_cache(rows=5, length=24)
    asked = some_prompts([17, 1, 9, 23, 5])
    with torch.inference_mode():
        together = fused.prefill(asked, EAGER)
        cache = fused.cache.clone()
        for row, prompt in enumerate(asked):
            alone = fused.prefill([prompt], EAGER)[0]
            assert (together[row] - alone).abs().max() < 1e-12 * alone.abs().max()
            kept = cache[:, :, row, :, : len(prompt)]
            written = fused.cache[:, :, 0, :, : len(prompt)]
            assert (kept - written).abs().max() < 1e-12 * written.abs().max()
            other = together[(row + 1) % 5]
            assert (other - alone).abs().max() > 1e-2 * alone.abs().max()


def test_a_bound_that_is_one_off_is_seen(model, monkeypatch):
    """Negative control: where each prompt begins one token early, hidden states are others."""
    fused = FusedLlama(model, tools.ALONE, reader(model, "meta", "cpu"), dtype=DTYPES["fp64"])
    fused = fused.with_cache(rows=3, length=24)
    asked = some_prompts([7, 6, 9])
    with torch.inference_mode():
        right = fused.prefill(asked, EAGER)
        pack = packed.pack

        def shifted(prompts, first_row, device):
            made = pack(prompts, first_row, device)
            first, *middle, last = made.lengths
            return replace(made, lengths=(first - 1, *middle, last + 1))

        monkeypatch.setattr(packed, "pack", shifted)
        wrong = fused.prefill(asked, EAGER)
    assert (wrong[1:] - right[1:]).abs().max() > 1e-3 * right.abs().max()


def test_quantised_weights_move_logits_by_a_known_share(model):
    """fp8 in every product of two layers of wide weights: logits off by 17 %; head, norms and table are as they were.

    Each product is off by some 3.7 %. A weight takes one byte for four, and each output of the two layers four more.
    """
    read = reader(model, "meta", "cpu")
    logits, sizes = [], []
    for fp8 in (False, True):
        fused = FusedLlama(model, tools.ALONE, read, dtype=torch.float32, fp8=fp8)
        fused = fused.with_cache(rows=3, length=24)
        with torch.inference_mode():
            last = fused.prefill(some_prompts([9, 5, 12]), EAGER)
            first = fused.logits(last, None, EAGER)
            step = fused.step(torch.tensor([3, 4, 5]), torch.tensor([9, 5, 12]), 24, EAGER)
        logits.append(torch.cat([first, step]))
        sizes.append(fused.weight_bytes)
        assert fused.head.scales is None
    off = float((logits[1] - logits[0]).norm() / logits[0].norm())
    assert 0.05 < off < 0.25
    by_precision = {
        name: arithmetic.weight_bytes(model, 1, name) for name in ("fp32", "bf16", "fp8")
    }
    matrices = by_precision["bf16"] - by_precision["fp8"]
    outputs = 2 * (64 + 32 + 64 + 2 * 96 + 64)
    assert sizes == [by_precision["fp32"], by_precision["fp32"] - 3 * matrices + 4 * outputs]


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
