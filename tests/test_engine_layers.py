"""FairScale's layers on one rank: plain products and look-ups, of the rank's own size."""

import pytest
import torch
from engine_ranks import ALONE

from wattflow.engine.layers import Column, Embedding, Row, apply, share_among


@pytest.fixture(autouse=True)
def _alone():
    share_among(ALONE)
    yield
    share_among(None)


@pytest.mark.parametrize("layer", [Column(2, 1), Row(2, 1)], ids=["column", "row"])
def test_a_linear_is_a_product(layer):
    """1 x 3 + 2 x 4 is 11."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
    assert apply(layer, torch.tensor([[1.0, 2.0]])).tolist() == [[11.0]]


def test_an_embedding_gives_the_token_s_row():
    """Token 2 of a table whose row k is (k, 10 k)."""
    layer = Embedding(3, 2, rank=0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]]))
    assert apply(layer, torch.tensor([2])).tolist() == [[2.0, 20.0]]


def test_a_rank_allocates_its_own_part():
    """The third of four ranks holds rows 6 to 8 of a table of 12, and nothing on the meta device at all."""
    with torch.device("meta"):
        layer = Embedding(3, 2, rank=2)
    assert layer.weight.shape == (3, 2)
    assert layer.weight.is_meta
    assert (layer.vocab_start_index, layer.vocab_end_index) == (6, 9)
