"""The paper's loop: its step counts and kept tokens against brute force, sampling, and narrow precisions."""

import json
from dataclasses import replace

import engine_ranks as tools
import pytest
import torch

from wattflow.engine.paper import Paper
from wattflow.errors import EngineError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of wide random weights, whose greedy outputs differ."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    made = tools.tiny(path=str(folder))
    tools.save_meta(folder, made, tools.random_weights(made), 1)
    return made


def brute_force(model, prompts, max_gen_len, max_seq_len):
    """Meta's loop written once more without a cache: the whole text is read anew for every token.

    Returns all rows in full and the number of forward passes.
    """
    llama = tools.build_llama(model, "meta", tools.ALONE)
    longest, shortest = max(map(len, prompts)), min(map(len, prompts))
    total = min(max_seq_len, max_gen_len + longest)
    rows = [list(prompt) for prompt in prompts]
    passes = 0
    for place in range(shortest, total):
        text = torch.tensor([row[:place] for row in rows])
        logits = tools.all_logits(llama, model, 1, text, [])[:, -1]
        passes += 1
        for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
            if len(row) == place:
                row.append(token)
    return rows, passes


@pytest.mark.parametrize(
    ("lengths", "max_gen_len", "max_seq_len"),
    [([4], 6, 30), ([2, 9, 5], 6, 30), ([2, 9, 5], 6, 12), ([3, 3], 1, 4), ([1, 11], 4, 12)],
    ids=["one", "ragged", "capped", "one-token", "full"],
)
def test_the_loop_is_that_of_the_brute_force(model, lengths, max_gen_len, max_seq_len):
    """Kept tokens, reasons and computed tokens equal a reference that knows no cache.

    Passes = min(max_seq_len, max_gen_len + longest) - shortest: the first is the prefill of the shortest's length.
    """
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]
    chosen = tools.choices(
        model, weights="meta", max_gen_len=max_gen_len, max_seq_len=max_seq_len, stop="length"
    )
    made = tools.generate(chosen, tools.ALONE, prompts)
    rows, passes = brute_force(model, prompts, max_gen_len, max_seq_len)
    assert passes == min(max_seq_len, max_gen_len + max(lengths)) - min(lengths)
    expected = [row[n : n + max_gen_len] for row, n in zip(rows, lengths, strict=True)]
    assert made.tokens == expected
    assert made.stop_reasons == [
        "length" if len(row) == max_gen_len else "max_seq_len" for row in expected
    ]
    assert made.prefill_tokens_computed == len(lengths) * min(lengths)
    assert made.decode_tokens_computed == len(lengths) * (passes - 1)


def test_rows_are_cut_at_eos_but_computed_in_full(model):
    """With stop=eos a row ends before its EOS; the steps are those of stop=length."""
    prompts = [[1, 2, 3], [9, 8, 7, 6]]
    chosen = tools.choices(model, weights="meta", max_gen_len=10)
    free = tools.generate(chosen, tools.ALONE, prompts)
    eos_id = free.tokens[0][4]
    cut = tools.generate(replace(chosen, stop="eos"), tools.ALONE, prompts, eos_ids=(eos_id,))
    first = free.tokens[0].index(eos_id)
    assert cut.tokens[0] == free.tokens[0][:first]
    assert cut.stop_reasons[0] == "eos"
    assert cut.decode_tokens_computed == free.decode_tokens_computed
    ignored = tools.generate(chosen, tools.ALONE, prompts, eos_ids=(eos_id,))
    assert ignored.tokens == free.tokens
    assert ignored.stop_reasons == ["length", "length"]


def test_a_partial_batch_after_a_full_one(model):
    """The last batch of a run may be smaller, and what an earlier batch left in the cache is never read."""
    chosen = tools.choices(model, weights="meta", batch_size=4)
    engine = Paper(chosen, tools.ALONE, eos_ids=(), pad_id=-1)
    engine.load()
    engine.prefill([[n, n + 1, n + 2, n + 3, n + 4] for n in range(4)])
    engine.decode()
    engine.prefill([[5, 6]])
    second = engine.decode().tokens
    engine.close()
    assert second == tools.generate(chosen, tools.ALONE, [[5, 6]]).tokens


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "batch of 0"),
        ([[1]] * 9, "batch of 9 prompts, but the cache holds 8"),
        ([[1], []], "row 1 of the batch has 0 tokens"),
        ([[1] * 40], "1 to 39 can be taken"),
        ([[1, 256]], "token 256, beyond the model's vocabulary of 256"),
    ],
)
def test_batches_that_cannot_run_are_named(model, prompts, words):
    """Too many rows, empty and over-long prompts, and foreign tokens raise EngineError before any work."""
    with pytest.raises(EngineError, match=words):
        tools.generate(tools.choices(model, weights="meta"), tools.ALONE, prompts)


def test_the_seed_alone_decides_what_is_drawn(model):
    """The same seed draws the same tokens, another seed others."""
    chosen = tools.choices(model, weights="meta", temperature=1.0, top_p=0.9)
    first, again, other = (
        tools.generate(replace(chosen, seed=seed), tools.ALONE, [[1, 2, 3]]).tokens
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 6e-2), ("fp16", 1e-2)])
def test_narrow_precisions_stay_near_float64(model, precision, bound):
    """First logits of each precision lie within a bound of those in float64, relative to the largest."""

    def first_logits(chosen):
        engine = Paper(chosen, tools.ALONE, eos_ids=(), pad_id=0)
        engine.load()
        engine.prefill([tools.TOKENS[0]])
        with torch.inference_mode():
            logits = engine._step(18, 19)
        engine.close()
        return logits.double()

    chosen = tools.choices(model, weights="meta", batch_size=1)
    exact = first_logits(chosen)
    error = (first_logits(replace(chosen, precision=precision)) - exact).abs().max()
    assert 0 < error < bound * exact.abs().max()


def test_info_tells_what_lies_on_the_device():
    """The bytes in `info` are those of the arithmetic: dummy weights in bf16, cache for the whole batch."""
    from wattflow.workload import model as arithmetic

    model = tools.tiny()
    chosen = tools.choices(model, precision="bf16")
    engine = Paper(chosen, tools.ALONE, eos_ids=(), pad_id=0)
    engine.load()
    assert engine.info["parameters"] == arithmetic.parameters(model)
    assert engine.info["weight_bytes"] == arithmetic.memory(chosen).weights
    assert engine.info["kv_cache_bytes"] == arithmetic.memory(chosen).cache
    assert json.loads(json.dumps(engine.info)) == engine.info
    engine.close()
