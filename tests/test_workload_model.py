"""Shapes, bytes, FLOPs and fits of the models in conf/model, against figures worked out by hand or published."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from wattflow.config.choices import Config, Model, RopeScaling
from wattflow.workload import model as arithmetic

CONF = Path(__file__).parent.parent / "conf" / "model"
GB = 1e9


def shipped(name: str) -> Model:
    keys = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    if keys.get("rope_scaling"):
        keys["rope_scaling"] = RopeScaling(**keys["rope_scaling"])
    return Model(**keys)


def choices(
    name: str, shards: int, batch: int, length: int = 512, precision: str = "fp16"
) -> Config:
    return Config(
        model=shipped(name),
        shards=shards,
        batch_size=batch,
        max_seq_len=length,
        precision=precision,
    )


def all_names() -> list[str]:
    return sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.mark.parametrize("name", all_names())
def test_a_model_file_carries_its_own_name_and_opens_with_a_comment(name):
    """Each file of conf/model starts with a comment and its `name` is the file's."""
    assert (CONF / f"{name}.yaml").read_text().startswith("# ")
    assert shipped(name).name == name


@pytest.mark.parametrize(
    ("name", "billions", "read_gb", "kv_bytes", "shards"),
    [
        ("llama-7b", 6.738, 13.21, 524_288, [1, 2, 4, 8, 16, 32]),
        ("llama-13b", 13.015, 25.70, 819_200, [1, 2, 4, 8]),
        ("llama-30b", 32.53, 64.63, 1_597_440, [1, 2, 4]),
        ("llama-65b", 65.28, 130.0, 2_621_440, [1, 2, 4, 8, 16, 32, 64]),
        ("llama-2-70b", 68.98, 137.4, 327_680, [1, 2, 4, 8, 16, 32, 64]),
        ("llama-3-70b", 70.55, 139.0, 327_680, [1, 2, 4, 8, 16, 32, 64]),
        ("llama-3.1-8b", 8.03, 15.01, 131_072, [1, 2, 4, 8, 16, 32]),
    ],
)
def test_known_models_have_their_published_sizes(name, billions, read_gb, kv_bytes, shards):
    """Parameters, bytes read a step, KV bytes a token and shard lists are those of the published models."""
    model = shipped(name)
    assert arithmetic.parameters(model) / 1e9 == pytest.approx(billions, abs=0.006)
    assert 2 * arithmetic.read_parameters(model) / GB == pytest.approx(read_gb, rel=4e-4)
    assert arithmetic.kv_bytes_per_token(model, "bf16") == kv_bytes
    assert arithmetic.valid_shards(model) == shards


def test_parameters_of_llama_7b_to_the_last_one():
    """LLaMA 7B has 6,738,415,616 parameters."""
    assert arithmetic.parameters(shipped("llama-7b")) == 6_738_415_616


def test_tied_embeddings_count_once():
    """SmolLM2-135M, whose head is its embedding, has 134,515,008 parameters."""
    assert arithmetic.parameters(shipped("smollm2-135m")) == 134_515_008


def test_the_tiny_model_is_big_enough_and_splits():
    """The demo's model has at least 5 M parameters and runs on 1, 2, 4 and 8 shards."""
    model = shipped("tiny")
    assert 5_000_000 <= arithmetic.parameters(model) <= 8_000_000
    assert arithmetic.valid_shards(model) == [1, 2, 4, 8]


def test_a_rank_of_one_shard_holds_the_model():
    """With one shard the rank's parameters are the model's."""
    for name in all_names():
        model = shipped(name)
        assert arithmetic.rank_parameters(model, 1) == arithmetic.parameters(model)


def test_kv_heads_are_repeated_above_their_number():
    """Llama 2 70B on 16 shards: eight KV heads, so each rank keeps one whole, twice the share of 8 shards' half."""
    model = shipped("llama-2-70b")
    cache_of_8 = arithmetic.kv_cache_bytes(model, 8, "fp16", 1, 1)
    assert cache_of_8 == 327_680 // 8
    assert arithmetic.kv_cache_bytes(model, 16, "fp16", 1, 1) == cache_of_8
    surplus = 16 * arithmetic.rank_parameters(model, 16) - arithmetic.parameters(model)
    norms = (2 * 80 + 1) * 8192
    assert surplus == 15 * norms + 8 * 80 * 2 * 8192 * 128


def test_a_wrong_shard_count_names_the_reason_and_what_works():
    """5 shards of LLaMA 13B fail at the feed-forward, 3 of 7B at the heads, and the message lists the others."""
    why = arithmetic.why_not_shards(shipped("llama-13b"), 5)
    assert why == (
        "llama-13b cannot be split into 5 shards: its feed-forward is 13824 wide; these work: 1, 2, 4, 8"
    )
    assert "32 heads" in (arithmetic.why_not_shards(shipped("llama-7b"), 3) or "")
    assert arithmetic.why_not_shards(shipped("llama-7b"), 32) is None


def test_shards_between_divisors_of_the_kv_heads_are_refused():
    """With 12 heads over 6 KV heads, 4 shards would cut a group of heads, 12 repeat each KV head."""
    model = Model(name="m", dim=96, n_heads=12, n_kv_heads=6, ffn_dim=48)
    assert "6 KV heads" in (arithmetic.why_not_shards(model, 4) or "")
    assert arithmetic.valid_shards(model) == [1, 2, 3, 6, 12]


def test_shapes_that_are_no_model_have_no_shards():
    """Heads that do not divide the width, or KV heads that do not divide the heads, are told as such."""
    odd = Model(name="odd", dim=100, n_heads=3, n_kv_heads=3)
    assert arithmetic.valid_shards(odd) == []
    assert "no even head width" in (arithmetic.why_not_shards(odd, 1) or "")
    uneven = Model(name="uneven", dim=64, n_heads=8, n_kv_heads=3)
    assert "3 KV heads" in (arithmetic.why_not_shards(uneven, 1) or "")


@pytest.mark.parametrize(
    ("name", "shards", "gib", "batch"),
    [
        ("llama-7b", 1, 32, 64),
        ("llama-13b", 2, 32, 64),
        ("llama-65b", 8, 32, 64),
        ("llama-13b", 1, 80, 64),
        ("llama-65b", 4, 80, 128),
    ],
)
def test_table_two_of_the_paper_is_what_fits(name, shards, gib, batch):
    """At max_seq_len 512 the paper's largest batches fit and twice as many rows do not."""
    assert arithmetic.why_too_big(choices(name, shards, batch), gib) is None
    assert arithmetic.why_too_big(choices(name, shards, 2 * batch), gib) is not None
    assert batch <= arithmetic.largest_batch(choices(name, shards, batch), gib) < 2 * batch


@pytest.mark.parametrize(
    ("name", "shards", "batch", "share"),
    [("llama-7b", 1, 64, 0.96), ("llama-13b", 2, 64, 0.83), ("llama-65b", 8, 64, 0.85)],
)
def test_weights_and_cache_fill_the_papers_v100s(name, shards, batch, share):
    """Weights and cache take the published shares of 32 GB boards."""
    need = arithmetic.memory(choices(name, shards, batch))
    assert (need.weights + need.cache) / (32 * GB) == pytest.approx(share, abs=0.006)


def test_too_big_tells_figures_and_a_way_out():
    """7B in fp16 on a 16 GiB GPU: 12.6 GiB of weights, and a batch that fits is named; 65B needs more shards."""
    why = arithmetic.why_too_big(choices("llama-7b", 1, 64), 16) or ""
    assert "12.6 GiB weights + 16.0 GiB cache" in why
    assert "of 0.92 x 16 GiB" in why
    batch = int(why.rsplit(" ", 1)[1])
    assert arithmetic.why_too_big(choices("llama-7b", 1, batch), 16) is None
    assert arithmetic.why_too_big(choices("llama-7b", 1, batch + 1), 16) is not None
    assert "more shards (4, 8, 16, 32, 64)" in (
        arithmetic.why_too_big(choices("llama-65b", 2, 1), 32) or ""
    )


def test_wider_numbers_take_more_bytes():
    """Weights and cache double from 16 to 32 bit and again to 64."""
    need = [arithmetic.memory(choices("tiny", 2, 4, 64, p)) for p in ("bf16", "fp32", "fp64")]
    assert [n.weights for n in need] == [need[0].weights * k for k in (1, 2, 4)]
    assert [n.cache for n in need] == [need[0].cache * k for k in (1, 2, 4)]


@pytest.mark.parametrize(
    ("bytes_per_s", "flops_per_s", "batch", "ms"),
    [
        (2.039e12, 312e12, 1, 6.6),
        (3.35e12, 989e12, 64, 9.1),
        (4.8e12, 989e12, 32, 4.5),
        (0.9e12, 125e12, 64, 33.8),
    ],
)
def test_decode_floors_of_7b(bytes_per_s, flops_per_s, batch, ms):
    """A step at 512 tokens takes at least these milliseconds on A100, H100, H200 and V100."""
    model = shipped("llama-7b")
    work = arithmetic.decode_work(model, 1, "bf16", batch, 512)
    assert work.roofline_s(bytes_per_s, flops_per_s) * 1e3 == pytest.approx(ms, abs=0.05)


def test_shards_share_the_bytes_of_a_step():
    """65B reads 130 GB of weights a step: each of 8 ranks an eighth of them, if nothing is cached."""
    work = arithmetic.decode_work(shipped("llama-65b"), 8, "bf16", 1, 0)
    assert work.read_bytes == pytest.approx(130.0e9 / 8, rel=1e-3)


def test_prefill_of_one_token_costs_two_flops_a_weight():
    """One token of one row: 2 FLOPs a matrix weight, and attention to itself; two shards halve it."""
    model = replace(shipped("llama-7b"), vocab_size=1)
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    work = arithmetic.prefill_work(model, 1, "bf16", 1, 1)
    assert work.flops == 2 * matrices + 2 * 32 * 4096
    assert arithmetic.prefill_work(model, 2, "bf16", 1, 1).flops == work.flops / 2


def test_long_rows_are_limited_by_the_cache():
    """At batch 64 and 512 tokens 7B reads 17.2 GB of cache, more than its 13.2 GB of weights."""
    model = shipped("llama-7b")
    both = arithmetic.decode_work(model, 1, "bf16", 64, 512).read_bytes
    weights = arithmetic.decode_work(model, 1, "bf16", 64, 0).read_bytes
    assert (both - weights) / GB == pytest.approx(17.18, abs=0.01)
    assert math.isclose(weights / GB, 13.21, abs_tol=0.01)
