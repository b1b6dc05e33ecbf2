"""The fast engine: equal to `paper` token by token, ragged, sharded, ended as defined; its kernels."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import engine_ranks as tools
import pytest
import torch

from wattflow.config import choices as config_choices
from wattflow.engine.checks import DTYPES, memory_explained
from wattflow.engine.fast import Fast, batch_bucket, length_buckets, why_no_graphs
from wattflow.engine.fused import FusedLlama, draw
from wattflow.engine.ops import EAGER
from wattflow.engine.weights import reader
from wattflow.errors import EngineError, RefusedError
from wattflow.workload.model import memory

FAST = config_choices.Engine(name="fast", device="cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of wide random weights over 499 tokens, whose greedy outputs differ."""
    folder = tmp_path_factory.mktemp("fast")
    made = tools.tiny(path=str(folder), vocab_size=499)
    tools.save_meta(folder, made, tools.random_weights(made), 1)
    return made


def choices(model, **changes):
    """Choices of the fast engine over the saved weights."""
    return tools.choices(model, **{"weights": "meta", "engine": FAST, **changes})


def prompts(lengths, seed=5):
    """Random prompts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 499, (n,), generator=generator).tolist() for n in lengths]


def loaded(chosen, eos_id=None):
    """A loaded engine."""
    engine = Fast(chosen, tools.ALONE, eos_id=eos_id)
    engine.load()
    return engine


def paper(chosen):
    """The same choices for the paper engine."""
    return replace(chosen, engine=config_choices.Engine(device="cpu"))


def test_greedy_float32_tokens_equal_those_of_paper(model):
    """Eight prompts of 1 to 30 tokens, 30 new ones each, more than 100 of them distinct."""
    chosen = choices(model, precision="fp32", max_gen_len=30, max_seq_len=64)
    asked = prompts([1, 30, 7, 12, 3, 22, 9, 16])
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
    asked = prompts(lengths)
    fast = tools.generate(chosen, tools.ALONE, asked)
    slow = tools.generate(paper(chosen), tools.ALONE, asked)
    assert (fast.tokens, fast.stop_reasons) == (slow.tokens, slow.stop_reasons)


def test_what_is_computed(model):
    """Three rows of at most 9 tokens: prefill pads to 27; decode makes 6 - 1 steps of the next power of two, 4 rows."""
    made = tools.generate(choices(model), tools.ALONE, prompts([2, 9, 5]))
    assert made.prefill_tokens_computed == 27
    assert made.decode_tokens_computed == 4 * 5


def test_a_ragged_batch_equals_each_row_alone(model):
    """In float64 no row sees its neighbours or its padding."""
    chosen = choices(model, max_gen_len=12)
    asked = prompts([1, 17, 6, 11, 2])
    together = tools.generate(chosen, tools.ALONE, asked).tokens
    alone = [tools.generate(chosen, tools.ALONE, [prompt]).tokens[0] for prompt in asked]
    assert together == alone


def test_step_by_step_equals_one_pass(model):
    """Logits after a prefill of 7 and single steps equal the other model's over the whole text, within 1e-12."""
    text = torch.tensor(prompts([19, 19, 19]))
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
    chosen, asked = choices(model), prompts([10, 4, 12, 7, 1])
    few = tools.generate(chosen, tools.ALONE, asked).tokens
    monkeypatch.undo()
    assert few == tools.generate(chosen, tools.ALONE, asked).tokens


@pytest.mark.parametrize("step", [1, 3])
def test_negative_controls_change_the_text(model, step):
    """Positions off, a forgotten cache, or the next row's tokens: each gives other tokens."""
    chosen, asked = choices(model, max_gen_len=20), prompts([9, 5, 7, 8])
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


def test_swapped_shards_fail(tmp_path, model):
    """A rank that holds another rank's part of one matrix gives other logits: the equality of shards can fail."""
    whole = tools.random_weights(model)
    name = "layers.0.attention.wo.weight"
    whole[name] = torch.cat(whole[name].chunk(2, dim=1)[::-1], dim=1)
    swapped = replace(model, path=str(tmp_path))
    tools.save_meta(tmp_path, swapped, whole, 1)
    asked = prompts([9, 5])
    assert (
        tools.generate(choices(swapped), tools.ALONE, asked).tokens
        != tools.generate(choices(model), tools.ALONE, asked).tokens
    )


def test_rows_end_at_eos_and_the_batch_when_all_have(model):
    """Rows are cut as the paper engine cuts them; after the last row's EOS decode stops at the next look."""
    chosen = choices(model, max_gen_len=100, max_seq_len=128)
    asked = prompts([4])
    free = tools.generate(chosen, tools.ALONE, asked)
    eos_id = free.tokens[0][20]
    first = free.tokens[0].index(eos_id)
    cut = tools.generate(replace(chosen, stop="eos"), tools.ALONE, asked, eos_id=eos_id)
    assert cut.tokens == [free.tokens[0][:first]]
    assert cut.stop_reasons == ["eos"]
    # token k is made by step k; the look before step 16 m sees it
    assert cut.decode_tokens_computed == -(-first // 16) * 16
    assert free.decode_tokens_computed == 99


def test_one_row_that_goes_on_keeps_the_batch_running(model):
    """A row without EOS makes all its tokens though its neighbour ended, and a row at its limit holds up nobody."""
    chosen = choices(model, max_gen_len=60, max_seq_len=72)
    asked = prompts([4, 50])
    free = tools.generate(chosen, tools.ALONE, asked)
    eos_id = next(t for t in free.tokens[1] if t not in free.tokens[0])
    both = tools.generate(replace(chosen, stop="eos"), tools.ALONE, asked, eos_id=eos_id)
    assert both.tokens[0] == free.tokens[0]
    assert both.stop_reasons == ["length", "eos"]
    full = tools.generate(
        replace(chosen, stop="eos"), tools.ALONE, asked[1:], eos_id=498 if eos_id != 498 else 497
    )
    assert full.stop_reasons[0] in {"max_seq_len", "eos"}
    assert full.decode_tokens_computed <= 21


def test_a_partial_batch_after_a_full_one(model):
    """The last batch may be smaller: it runs in its own bucket, and what the earlier one left is never read."""
    chosen = choices(model, batch_size=4)
    engine = loaded(chosen)
    engine.prefill(prompts([9, 9, 9, 9]))
    engine.decode()
    for asked in (prompts([2], seed=1), prompts([3, 6, 2], seed=2)):
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


def test_the_seed_alone_decides_what_is_drawn(model):
    """The same seed draws the same tokens, another seed others."""
    chosen = choices(model, temperature=1.0, top_p=0.9)
    first, again, other = (
        tools.generate(replace(chosen, seed=seed), tools.ALONE, prompts([3])).tokens
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_info_says_what_ran_and_what_it_moved(model):
    """On a CPU: eager, with the reason; bytes of a step are weights read and the mean length's keys and values."""
    engine = loaded(choices(model, precision="fp32"))
    engine.prefill(prompts([4, 8]))
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


def test_kernels_that_cannot_run_are_refused_by_name(model):
    """Kernels for a GPU on a CPU raise EngineError; those of one row refuse a batch before any work."""
    with pytest.raises(EngineError, match=r"engine\.kernels=cublas cannot run: no GPU"):
        loaded(choices(model, engine=replace(FAST, kernels="cublas")))
    with pytest.raises(RefusedError, match="multiplies one row, and batch_size is 8"):
        Fast(choices(model, engine=replace(FAST, kernels="triton")), tools.ALONE, eos_id=None)


def test_out_of_memory_is_one_line_with_the_batch_that_fits(monkeypatch):
    """7B, batch 512 x 2,048, 80 GiB: 12.6 GiB of weights, 512 GiB of cache; the batch told fits, one more does not."""
    gib = 2**30
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: (0, 80 * gib))
    chosen = tools.choices(
        config_choices.Model(name="llama-7b"), precision="bf16", batch_size=512, max_seq_len=2048
    )
    who = replace(tools.ALONE, device="cuda:0", device_name="NVIDIA H100 80GB HBM3")
    with (
        pytest.raises(EngineError) as told,
        memory_explained(chosen, who),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 GiB.")
    (line,) = str(told.value).splitlines()
    assert "rank 0 on here: NVIDIA H100 80GB HBM3 is out of memory" in line
    assert "12.6 GiB weights + 512.0 GiB cache" in line
    batch = int(re.search(r"the largest batch that fits is (\d+)", line)[1])
    need = [memory(replace(chosen, batch_size=n)).total for n in (batch, batch + 1)]
    assert need[0] <= 0.92 * 80 * gib < need[1]


def test_buckets():
    """Rows go up to the next power of two or the batch; lengths by halves of powers of two up to the sequence's."""
    assert [batch_bucket(n, 48) for n in (1, 2, 3, 5, 32, 33, 48)] == [1, 2, 4, 8, 32, 48, 48]
    assert length_buckets(768) == [128, 192, 256, 384, 512, 768]
    assert length_buckets(20) == [20]
    assert why_no_graphs("cpu", drawn=False) == "no GPU"


INTERPRETED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import engine_ranks as tools
from wattflow.config.choices import Model
from wattflow.engine.kernels import check
from wattflow.engine.kernels.sets import cublas, one_row
from wattflow.engine.fused import FusedLlama
from wattflow.engine.ops import EAGER
from wattflow.engine.weights import reader

torch.set_num_threads(1)
model = Model(name="t", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=97)
text = torch.randint(0, 97, (1, 90), generator=torch.Generator().manual_seed(0))

def scores(prefill, step):
    fused = FusedLlama(model, tools.ALONE, reader(model, "dummy", "cpu"), dtype=torch.float32).with_cache(1, 96)
    for layer in fused.layers:  # wider than dummy weights, so that attention matters
        for matrix in (layer.wqkv, layer.wo, layer.w13, layer.w2):
            matrix.mul_(8)
    with torch.inference_mode():
        out = [fused.logits(fused.prefill(text[:, :86].tolist(), prefill), None, prefill)]
        for place in range(86, 90):
            out.append(fused.step(text[:, place].contiguous(), torch.tensor([place]), 96, step))
    return torch.stack(out)

right = scores(EAGER, EAGER)
for step in (cublas(), one_row({})):
    print(step.name, float((scores(cublas(), step) - right).norm() / right.norm()))
for dtype in (torch.float32, torch.float16):  # the interpreter's products take bf16 for integers
    from wattflow.engine.llama import rotary_table
    rotary = rotary_table(model, 200, dtype, "cpu").contiguous()
    print(dtype, check.why_not(torch.zeros(1, 2, 1, 1, 200, 16, dtype=dtype), rotary))
"""


def test_kernels_compute_what_plain_torch_does():
    """Triton's interpreter runs all kernels on the CPU: logits of prefill and steps within 1e-5, in both sets."""
    pytest.importorskip("triton", reason="Triton comes with torch for GPUs alone")
    if tuple(map(int, __import__("numpy").__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("Triton's interpreter needs NumPy below 2.4")
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(here)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.rsplit(maxsplit=1) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[:2]] == ["cublas", "triton"]
    assert all(float(error) < 1e-5 for _, error in lines[:2])
    assert [reason for _, reason in lines[2:]] == ["None"] * 2


@pytest.mark.slow
def test_the_benchmark_runs_without_a_gpu(tmp_path):
    """In a dry run every stage ends without an error, each has its numbers, and the page can be made of them."""
    script = Path(__file__).parent / "benchmarks" / "engine.py"
    command = [sys.executable, str(script)]
    environment = {**os.environ, "DRY": "1", "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    told = json.loads((tmp_path / "engine.json").read_text())
    assert not [stage for stage in told.values() if "error" in stage]
    assert told["correctness"]["float32_tokens_equal_paper"] is True
    assert told["correctness"]["endings"]["cut_at_eos"] is True
    assert told["batch 64"]["j_per_token"] > 0
    assert told["against transformers"]["speed_ratio"] > 0
    maker = script.with_name("engine_page.py")
    page = subprocess.run(
        [sys.executable, str(maker), str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout
    assert page.startswith("# Performance")


def test_the_page_of_performance_is_what_was_measured():
    """docs/performance.md is, letter by letter, what its script makes of docs/measurements."""
    root = Path(__file__).parent.parent
    maker = root / "tests" / "benchmarks" / "engine_page.py"
    made = subprocess.run(
        [sys.executable, str(maker), str(root / "docs" / "measurements")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert (root / "docs" / "performance.md").read_text() == made
