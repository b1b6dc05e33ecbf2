"""The paper's loop: its step counts and kept tokens against brute force, sampling, and the synthetic engine."""

from dataclasses import replace

import engine_ranks as tools
import pytest
import torch

from wattflow.config.choices import Engine
from wattflow.engine.build import build
from wattflow.engine.paper import Paper, choose
from wattflow.engine.protocol import kept
from wattflow.errors import EngineError, RefusedError

EOS = 7


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
    cut = tools.generate(replace(chosen, stop="eos"), tools.ALONE, prompts, eos_id=eos_id)
    first = free.tokens[0].index(eos_id)
    assert cut.tokens[0] == free.tokens[0][:first]
    assert cut.stop_reasons[0] == "eos"
    assert cut.decode_tokens_computed == free.decode_tokens_computed
    ignored = tools.generate(chosen, tools.ALONE, prompts, eos_id=eos_id)
    assert ignored.tokens == free.tokens
    assert ignored.stop_reasons == ["length", "length"]


@pytest.mark.parametrize(
    ("output", "eos_id", "tokens", "reason"),
    [
        ([1, 2, 3, 4, 5], None, [1, 2, 3], "length"),
        ([1, 2], None, [1, 2], "max_seq_len"),
        ([1, EOS, 3, 4], EOS, [1], "eos"),
        ([EOS], EOS, [], "eos"),
        ([1, 2, 3, EOS], EOS, [1, 2, 3], "length"),
        ([1, EOS, 3], None, [1, EOS, 3], "length"),
    ],
)
def test_what_a_row_keeps_of_three(output, eos_id, tokens, reason):
    """At most max_gen_len tokens and none from the first EOS on; an EOS after max_gen_len comes too late."""
    assert kept(output, 3, eos_id) == (tokens, reason)


def test_a_partial_batch_after_a_full_one(model):
    """The last batch of a run may be smaller, and what an earlier batch left in the cache is never read."""
    chosen = tools.choices(model, weights="meta", batch_size=4)
    engine = Paper(chosen, tools.ALONE, eos_id=None, pad_id=-1)
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


def test_sampling_follows_the_probabilities():
    """Of 4000 draws from 0.6, 0.3, 0.1 the shares agree to 3 %; top_p 0.7 leaves the first two, 2 to 1."""
    logits = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    shares = torch.bincount(choose(logits, 1.0, 1.0, generator), minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.03)
    shares = torch.bincount(choose(logits, 1.0, 0.7, generator), minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.0, 2 / 3, 1 / 3], abs=0.03)


def test_temperature_sharpens_and_zero_is_greedy():
    """Temperature 0.5 squares the odds (0.6 to 0.3 becomes 4 to 1); 0 takes the likeliest; a tiny top_p too."""
    logits = torch.tensor([0.6, 0.3], dtype=torch.float64).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    assert choose(logits, 0.5, 1.0, generator).double().mean().item() == pytest.approx(
        0.2, abs=0.03
    )
    assert not choose(logits, 0.0, 1.0, generator).any()
    assert not choose(logits, 1.0, 1e-9, generator).any()


def test_the_seed_alone_decides_what_is_drawn(model):
    """The same seed draws the same tokens, another seed others."""
    chosen = tools.choices(model, weights="meta", temperature=1.0, top_p=0.9)
    first, again, other = (
        tools.generate(replace(chosen, seed=seed), tools.ALONE, [[1, 2, 3]]).tokens
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_engines_are_chosen_by_name(model):
    """`paper`, `fast` and `synthetic` are built; another name is refused with the list."""
    chosen = tools.choices(model)
    assert build(chosen, tools.ALONE, eos_id=None, pad_id=0).info["engine"] == "paper"
    synthetic = replace(chosen, engine=Engine(name="synthetic"))
    assert build(synthetic, tools.ALONE, eos_id=None, pad_id=0).info["engine"] == "synthetic"
    fast = replace(chosen, engine=Engine(name="fast"))
    assert build(fast, tools.ALONE, eos_id=None, pad_id=0).info["engine"] == "fast"
    with pytest.raises(RefusedError, match="not one of paper, fast, synthetic"):
        build(replace(chosen, engine=Engine(name="slow")), tools.ALONE, eos_id=None, pad_id=0)


def test_the_synthetic_engine_takes_the_time_it_is_told():
    """Five tokens at 20 ms: one step in prefill and four in decode; tokens count up from the prompt's sum."""
    import time

    engine = Engine(name="synthetic", synthetic_ms_per_token=20.0)
    chosen = tools.choices(tools.tiny(), engine=engine, max_gen_len=5, max_seq_len=8, stop="eos")
    made = build(chosen, tools.ALONE, eos_id=14, pad_id=0)
    made.load()
    start = time.monotonic()
    made.prefill([[1, 2, 3], [10, 1, 1, 1, 1]])
    middle = time.monotonic()
    answer = made.decode()
    end = time.monotonic()
    assert middle - start >= 0.02
    assert end - middle >= 0.08
    assert answer.tokens == [[6, 7, 8, 9, 10], []]
    assert answer.stop_reasons == ["length", "eos"]
    assert (answer.prefill_tokens_computed, answer.decode_tokens_computed) == (8, 8)
