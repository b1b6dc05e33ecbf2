"""What every engine on torch refuses: shards, logits that are not finite, a lack of memory."""

import re
from dataclasses import replace

import engine_ranks as tools
import pytest
import torch

from wattflow.config import choices as config_choices
from wattflow.engine.checks import memory_explained
from wattflow.engine.paper import Paper
from wattflow.errors import EngineError, RefusedError
from wattflow.workload.model import memory


def test_logits_that_are_not_finite_stop_the_run(tmp_path):
    """Weights of 1e39 overflow float32, and the engine says so instead of drawing from NaN."""
    model = tools.tiny(path=str(tmp_path))
    whole = {name: 1e39 * tensor for name, tensor in tools.random_weights(model).items()}
    tools.save_meta(tmp_path, model, whole, 1)
    chosen = tools.choices(model, weights="meta", precision="fp32")
    with pytest.raises(EngineError, match="not finite"):
        tools.generate(chosen, tools.ALONE, [[1, 2]])


def test_shards_that_do_not_divide_are_refused_before_the_load():
    """Three shards of an eight-headed model raise RefusedError with the counts that work."""
    three = replace(tools.ALONE, world=3)
    with pytest.raises(RefusedError, match="these work: 1, 2, 4, 8"):
        Paper(tools.choices(tools.tiny(), shards=3), three, eos_ids=(), pad_id=0)


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
