"""The fast engine: equal to `paper` token by token, ragged, sharded, ended as defined."""

from dataclasses import replace

import engine_ranks as tools
import pytest
import torch
from fast_engine import FAST, choices, some_prompts, wide_model

from wattflow.config import choices as config_choices
from wattflow.engine.fast import Fast, batch_bucket, length_buckets, why_no_graphs
from wattflow.errors import EngineError, RefusedError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model whose greedy outputs differ."""
    torch.set_num_threads(1)
    return wide_model(tmp_path_factory.mktemp("fast"))


def loaded(chosen, eos_ids=()):
    """A loaded engine."""
    engine = Fast(chosen, tools.ALONE, eos_ids=eos_ids)
    engine.load()
    return engine


def paper(chosen):
    """The same choices for the paper engine."""
    return replace(chosen, engine=config_choices.Engine(device="cpu"))


def test_greedy_float32_tokens_equal_those_of_paper(model):
    """Eight prompts of 1 to 30 tokens, 30 new ones each, more than 100 of them distinct."""
    chosen = choices(model, precision="fp32", max_gen_len=30, max_seq_len=64)
    asked = some_prompts([1, 30, 7, 12, 3, 22, 9, 16])
    fast = tools.generate(chosen, tools.ALONE, asked)
    assert fast.tokens == tools.generate(paper(chosen), tools.ALONE, asked).tokens
    assert len({token for row in fast.tokens for token in row}) >= 100


@pytest.mark.parametrize(
    ("lengths", "max_gen_len", "max_seq_len"),
    [
        ([4], 6, 30),
        ([2, 9, 5], 6, 30),
        ([2, 9, 5], 6, 12),
        ([3, 3], 1, 4),
        ([1, 11], 4, 12),
        ([120, 3], 20, 150),
    ],
    ids=["one", "ragged", "capped", "one-token", "full", "two-buckets"],
)
def test_limits_are_those_of_paper(model, lengths, max_gen_len, max_seq_len):
    """Kept tokens and reasons equal the paper engine's where rows end by length or at the sequence's end."""
    chosen = choices(model, max_gen_len=max_gen_len, max_seq_len=max_seq_len)
    asked = some_prompts(lengths)
    fast = tools.generate(chosen, tools.ALONE, asked)
    slow = tools.generate(paper(chosen), tools.ALONE, asked)
    assert (fast.tokens, fast.stop_reasons) == (slow.tokens, slow.stop_reasons)


def test_what_is_computed(model):
    """Three rows of 2, 9 and 5 tokens: prefill reads these 16; decode makes 6 - 1 steps of 4 rows, a power of two."""
    made = tools.generate(choices(model), tools.ALONE, some_prompts([2, 9, 5]))
    assert made.prefill_tokens_computed == 16
    assert made.decode_tokens_computed == 4 * 5


def test_a_ragged_batch_equals_each_row_alone(model):
    """In float64 no row sees its neighbours or its padding."""
    chosen = choices(model, max_gen_len=12)
    asked = some_prompts([1, 17, 6, 11, 2])
    together = tools.generate(chosen, tools.ALONE, asked).tokens
    alone = [tools.generate(chosen, tools.ALONE, [prompt]).tokens[0] for prompt in asked]
    assert together == alone


@pytest.mark.parametrize("step", [1, 3])
def test_negative_controls_change_the_text(model, step):
    """Positions off, a forgotten cache, or the next row's tokens: each gives other tokens."""
    chosen, asked = choices(model, max_gen_len=20), some_prompts([9, 5, 7, 8])
    right = tools.generate(chosen, tools.ALONE, asked).tokens
    for spoil in (
        lambda engine: engine._state.positions.add_(step),
        lambda engine: engine._llama.cache[:, :, :, :, :step].zero_(),
        lambda engine: engine._state.tokens.copy_(engine._state.tokens.roll(step)),
    ):
        engine = loaded(chosen)
        engine.prefill(asked)
        with torch.inference_mode():
            spoil(engine)
        assert engine.decode().tokens != right


@pytest.mark.parametrize("tied", [False, True])
def test_shards_make_the_same_tokens(tmp_path, tied):
    """2 and 4 ranks, with repeated KV heads and a padded vocabulary, give one rank's tokens, greedy and drawn."""
    shapes = {"path": str(tmp_path / "model"), "vocab_size": 250, "tied_embeddings": tied}
    made = tools.tiny(**shapes)
    tools.save_meta(tmp_path / "model", made, tools.random_weights(made), 2)
    greedy = {"engine": "fast", "weights": "meta", "max_gen_len": 12}
    sampled = {**greedy, "temperature": 0.9, "top_p": 0.9}
    ask = {
        "prompts": [[1, 2, 3], [200, 100, 50, 25, 12], [7]],
        "tokens": [[1, 2, 3, 4, 5, 6]],
        "models": {},
        "generations": {"greedy": [shapes, greedy], "sampled": [shapes, sampled]},
    }
    expected = {
        name: tools.generate(
            tools.choices(made, **{**changes, "engine": FAST}), tools.ALONE, ask["prompts"]
        ).tokens
        for name, changes in (("greedy", greedy), ("sampled", sampled))
    }
    assert expected["greedy"] != expected["sampled"]
    for world in (2, 4):
        for told in tools.spawn(world, tmp_path / str(world), ask):
            assert told["made"] == expected


def test_rows_end_at_eos_and_the_batch_when_all_have(model):
    """Rows are cut as the paper engine cuts them; after the last row's EOS decode stops at the next look."""
    chosen = choices(model, max_gen_len=100, max_seq_len=128)
    asked = some_prompts([4])
    free = tools.generate(chosen, tools.ALONE, asked)
    eos_id = free.tokens[0][20]
    first = free.tokens[0].index(eos_id)
    cut = tools.generate(replace(chosen, stop="eos"), tools.ALONE, asked, eos_ids=(eos_id,))
    assert cut.tokens == [free.tokens[0][:first]]
    assert cut.stop_reasons == ["eos"]
    # token k is made by step k; the look before step 16 m sees it
    assert cut.decode_tokens_computed == -(-first // 16) * 16
    assert free.decode_tokens_computed == 99


def test_one_row_that_goes_on_keeps_the_batch_running(model):
    """A row without EOS makes all its tokens though its neighbour ended, and a row at its limit holds up nobody."""
    chosen = choices(model, max_gen_len=60, max_seq_len=72)
    asked = some_prompts([4, 50])
    free = tools.generate(chosen, tools.ALONE, asked)
    eos_id = next(t for t in free.tokens[1] if t not in free.tokens[0])
    both = tools.generate(replace(chosen, stop="eos"), tools.ALONE, asked, eos_ids=(eos_id,))
    assert both.tokens[0] == free.tokens[0]
    assert both.stop_reasons == ["length", "eos"]
    full = tools.generate(
        replace(chosen, stop="eos"),
        tools.ALONE,
        asked[1:],
        eos_ids=(498 if eos_id != 498 else 497,),
    )
    assert full.stop_reasons[0] in {"max_seq_len", "eos"}
    assert full.decode_tokens_computed <= 21


def test_a_partial_batch_after_a_full_one(model):
    """The last batch may be smaller: it runs in its own bucket, and what the earlier one left is never read."""
    chosen = choices(model, batch_size=4)
    engine = loaded(chosen)
    engine.prefill(some_prompts([9, 9, 9, 9]))
    engine.decode()
    for asked in (some_prompts([2], seed=1), some_prompts([3, 6, 2], seed=2)):
        engine.prefill(asked)
        assert engine.decode().tokens == tools.generate(chosen, tools.ALONE, asked).tokens
    engine.close()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "batch of 0"),
        ([[1]] * 9, "batch of 9 prompts, but the cache holds 8"),
        ([[1], []], "row 1 of the batch has 0 tokens"),
        ([[1] * 40], "1 to 39 can be taken"),
        ([[1, 499]], "token 499, beyond the model's vocabulary of 499"),
    ],
)
def test_batches_that_cannot_run_are_named(model, asked, words):
    """Too many rows, empty and over-long prompts, and foreign tokens raise EngineError before any work."""
    with pytest.raises(EngineError, match=words):
        tools.generate(choices(model), tools.ALONE, asked)


def test_the_seed_alone_decides_what_is_drawn(model):
    """The same seed draws the same tokens, another seed others."""
    chosen = choices(model, temperature=1.0, top_p=0.9)
    first, again, other = (
        tools.generate(replace(chosen, seed=seed), tools.ALONE, some_prompts([3])).tokens
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_info_says_what_ran_and_what_it_moved(model):
    """On a CPU: eager, with the reason; bytes of a step are weights read and the mean length's keys and values."""
    engine = loaded(choices(model, precision="fp32"))
    engine.prefill(some_prompts([4, 8]))
    engine.decode()
    assert engine.info["path"] == "eager"
    assert engine.info["path_reason"] == "no GPU"
    assert engine.info["kernels"] == "eager"
    assert engine.info["graphs"] == []
    read = 2 * (2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 96) + 499 * 64
    # 6 tokens of prompt in the mean, and 5 steps: the first reads one more, the last five more
    cached = 2 * (6 + 3) * (2 * 2 * 16)
    assert engine.info["last_batch"]["bytes_per_step"] == 4 * (read + cached)
    assert engine.info["weight_bytes"] == 4 * (read + 499 * 64 + 5 * 64)


def test_buckets():
    """Rows go up to the next power of two or the batch; lengths by halves of powers of two up to the sequence's."""
    assert [batch_bucket(n, 48) for n in (1, 2, 3, 5, 32, 33, 48)] == [1, 2, 4, 8, 32, 48, 48]
    assert length_buckets(768) == [128, 192, 256, 384, 512, 768]
    assert length_buckets(20) == [20]
    assert why_no_graphs("cpu", drawn=False) == "no GPU"


def test_kernels_change_over_one_load():
    """Other kernels over the same weights make the same tokens, and what was taken before is kept."""
    chosen = tools.choices(
        tools.tiny(), precision="fp32", engine=config_choices.Engine(name="fast", device="cpu")
    )
    engine = Fast(chosen, tools.ALONE, eos_ids=())
    engine.load()
    made = []
    for name in ("auto", "eager", "auto"):
        engine.use_kernels(name)
        engine.prefill([[1, 2, 3], [4, 5]])
        made.append(engine.decode().tokens)
    assert made[0] == made[1] == made[2]
    with pytest.raises(RefusedError, match="multiplies one row, and batch_size is 8"):
        engine.use_kernels("triton")
    engine.close()
