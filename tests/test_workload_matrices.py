"""The parts of a model's matrices that ranks keep."""

import engine_ranks as tools
import pytest
import torch

from wattflow.workload.matrices import matrices
from wattflow.workload.model import parameters, rank_parameters


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("vocab_size", [256, 251])
def test_a_rank_holds_what_the_arithmetic_says(shards, vocab_size):
    """The elements of a rank's tensors are rank_parameters, padding and repeated KV heads included."""
    model = tools.tiny(vocab_size=vocab_size)
    found = tools.load_parts(model, "dummy", shards - 1, shards)
    assert sum(t.numel() for t in found.values()) == rank_parameters(model, shards)
    assert sum(torch.Size(m.shape).numel() for m in matrices(model)) == parameters(model)


def test_padding_after_the_vocabulary_is_zero():
    """251 rows over 8 ranks: 32 a rank, of which the last has 27 and five rows of zeros."""
    last = tools.load_parts(tools.tiny(vocab_size=251), "dummy", 7, 8)["output.weight"]
    assert last.shape == (32, 64)
    assert not last[27:].any()
    assert last[:27].all()
