"""The roofline's columns: worked out by hand for a small model, and what both engines report of their work."""

import engine_ranks as tools
import pytest

from wattflow.collect import roofline
from wattflow.collect.ratios import ratios
from wattflow.store.columns import POINT

# dim 64, 8 heads of 8 over 2 KV heads, ffn 96, 2 layers, 256 tokens: a layer has
# 2 x 64 x 64 + 2 x 64 x 16 + 3 x 64 x 96 = 28,672 weights, the head 16,384; a cached position
# 2 x 2 layers x 2 heads x 8 = 64 values
LAYERS, HEAD, CACHED = 2 * 28672, 16384, 64
CEILINGS = {"copy_bytes_per_s": 1e9, "product_flops_per_s": 1e12, "source": "by hand"}


def choices(**changes):
    """Choices of the small model in float32."""
    return tools.choices(tools.tiny(), precision="fp32", **changes)


def reached(work, seconds=(1.0, 2.0), **changes):
    """The columns of one piece of work."""
    return columns(choices(**changes), work, CEILINGS, seconds, changes.get("us"))


def columns(*of):
    """The columns of a roofline by name."""
    return vars(roofline.roofline(*of))


def test_a_step_reads_weights_and_cache():
    """10 steps of 3 rows at mean length 20: 4 x (73,728 + 3 x 20 x 64) bytes each, moved in 2 s / 10."""
    work = {"decode_steps": 10, "decode_rows": 30, "decode_positions": 600}
    work |= {"prefills": 1, "prefill_tokens": 30, "prefill_squares": 300}
    row = reached(work)
    step = 4 * (LAYERS + HEAD + 3 * 20 * CACHED)
    assert row["step_bytes"] == step
    assert row["step_flops"] == 2 * (LAYERS + HEAD) * 3 + 4 * 3 * 20 * 2 * 64
    assert row["decode_bytes_per_s"] == pytest.approx(step * 10 / 2.0)
    assert row["decode_roofline_share"] == pytest.approx(step / 1e9 / 0.2)
    assert row["decode_steps"] == 10
    assert row["ceilings_source"] == "by hand"


def test_prefills_compute_by_each_length():
    """Prompts of 10 and 20 tokens: 2 operations a weight for 30 tokens, attention by 10^2 + 20^2; no head."""
    work = {"decode_steps": 0, "decode_rows": 0, "decode_positions": 0}
    work |= {"prefills": 1, "prefill_tokens": 30, "prefill_squares": 500}
    made = roofline.all_prefills(choices(), work)
    assert made.flops == 2 * LAYERS * 30 + 2 * 500 * 2 * 64
    assert made.read_bytes == 4 * LAYERS
    row = reached(work, seconds=(0.5, 0.0))
    assert row["prefill_roofline_share"] == pytest.approx(4 * LAYERS / 1e9 / 0.5)
    assert row["decode_roofline_share"] is None


def test_shards_share_the_work_and_communicate():
    """Two shards halve the bytes of weights; two sums of 10 us in each of 2 layers take 40 us a step, 400 us of 2 s."""
    work = {"decode_steps": 10, "decode_rows": 30, "decode_positions": 600}
    work |= {"prefills": 1, "prefill_tokens": 30, "prefill_squares": 300}
    row = columns(choices(shards=2), work, CEILINGS, (1.0, 2.0), 10.0)
    assert row["step_bytes"] == 4 * (LAYERS + HEAD + 3 * 20 * CACHED) / 2
    assert row["allreduces_per_step"] == 4
    assert row["communication_s"] == pytest.approx(400e-6)
    shares = ratios({**dict.fromkeys(POINT.names), **row, "decode_s": 2.0})
    assert shares["communication_share"] == pytest.approx(200e-6)


def test_what_is_not_known_is_null():
    """Without work there are ceilings alone; without ceilings bytes and FLOPs, and no shares."""
    row = columns(choices(), None, CEILINGS, (1.0, 2.0), None)
    assert row["copy_bytes_per_s"] == 1e9
    assert row["step_bytes"] is None
    work = {"decode_steps": 1, "decode_rows": 1, "decode_positions": 1}
    work |= {"prefills": 1, "prefill_tokens": 1, "prefill_squares": 1}
    row = columns(choices(), work, None, (1.0, 2.0), None)
    assert row["copy_bytes_per_s"] is None
    assert row["decode_roofline_share"] is None
    assert row["step_bytes"] > 0
