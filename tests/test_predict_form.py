"""The terms of the form, by hand."""

import pytest
from predictions import CEILINGS, MODELS, PROMPT, config

from wattflow.config.choices import Workload
from wattflow.errors import RefusedError
from wattflow.predict.form import Fabric, terms
from wattflow.workload.model import decode_work, prefill_work

RING = Fabric(latency_s=1e-6, bytes_per_s=1e9)


def test_a_memory_bound_point_takes_its_bytes_over_the_ceiling():
    """Two batches of one row, 63 steps each, and a prefill each."""
    point = config("7b", batch=1, length=64, prompts=2)
    found = terms(point, PROMPT, CEILINGS, RING)
    decode = decode_work(MODELS["7b"], 1, "bf16", 1, PROMPT + 32)
    prefill = prefill_work(MODELS["7b"], 1, "bf16", 1, 92)
    steps_s = 2 * 63 * decode.read_bytes / 4.0e12
    assert found.longest_s == pytest.approx(steps_s + 2 * prefill.read_bytes / 4.0e12)
    assert found.layers == 2 * 64 * 32
    assert found.batches == 2
    assert found.tokens == 128
    assert found.total_bytes == pytest.approx(2 * 63 * decode.read_bytes + 2 * prefill.read_bytes)
    assert found.communication_s == 0


def test_a_large_prefill_is_bound_by_its_operations():
    """With one token to make there is no decode step."""
    found = terms(config("7b", batch=64, length=1), PROMPT, CEILINGS, RING)
    work = prefill_work(MODELS["7b"], 1, "bf16", 64, 92)
    assert found.longest_s == pytest.approx(work.flops / 800e12)
    assert found.shortest_s == pytest.approx(work.read_bytes / 4.0e12)


def test_the_last_batch_may_be_smaller():
    """Five prompts in batches of four."""
    whole = terms(config("7b", batch=4, length=8, prompts=4), PROMPT, CEILINGS, RING)
    rest = terms(config("7b", batch=1, length=8, prompts=1), PROMPT, CEILINGS, RING)
    both = terms(config("7b", batch=4, length=8, prompts=5), PROMPT, CEILINGS, RING)
    assert both.longest_s == pytest.approx(whole.longest_s + rest.longest_s)
    assert both.batches == 2


def test_shards_share_the_work_and_sum_over_the_fabric():
    """Two sums a layer and step of a row of 4096 values in 2 bytes, over a ring of two."""
    one = terms(config("7b", batch=1, length=2, prompts=1), 1.0, CEILINGS, RING)
    two = terms(config("7b", batch=1, length=2, prompts=1, shards=2), 1.0, CEILINGS, RING)
    assert two.longest_s == pytest.approx(one.longest_s / 2)
    assert two.total_bytes == pytest.approx(one.total_bytes)
    a_sum = 2 * (1e-6 + 4096 * 2 / 2 / 1e9)
    assert two.communication_s == pytest.approx(2 * 32 * 2 * a_sum)
    assert (one.gpus, two.gpus) == (1, 2)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"stop": "eos"}, "stop=eos"),
        ({"pipeline": 2}, "pipeline"),
        ({"workload": Workload("offline")}, "workload.mode"),
    ],
)
def test_what_the_form_does_not_describe_is_refused(over, said):
    """Rather than predicted wrongly."""
    from dataclasses import replace

    with pytest.raises(RefusedError, match=said):
        terms(replace(config(), **over), PROMPT, CEILINGS, RING)
