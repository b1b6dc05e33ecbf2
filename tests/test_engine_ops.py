"""The operations of a layer in plain torch, against numbers worked out by hand."""

import pytest
import torch

from wattflow.engine import ops
from wattflow.engine.ops import EAGER
from wattflow.engine.products import Weight


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_sum_stays_in_the_stream_and_its_norm_comes_back():
    """3 and 4 after 1 and 1 were added: root of (9 + 16) / 2; weights 1 and 2."""
    stream = tensor([2.0, 3.0])
    normed = ops.add_norm(stream, tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]).double(), 0.0)
    assert stream.tolist() == [[3.0, 4.0]]
    root = (25 / 2) ** 0.5
    assert normed.tolist()[0] == pytest.approx([3 / root, 8 / root])


def test_swiglu_gates_the_second_half():
    """SiLU of 0 is 0 and of 2 is 2 / (1 + e^-2); the other half is 5 and 7."""
    (out,) = ops.swiglu(tensor([0.0, 2.0, 5.0, 7.0])).tolist()
    assert out == pytest.approx([0.0, 7 * 2 / (1 + 2.718281828459045**-2)])


def test_a_product_is_written_where_it_is_wanted():
    """1 x 3 + 2 x 4 is 11, in a new tensor or in the given one."""
    x, weight, out = tensor([1.0, 2.0]), tensor([3.0, 4.0]), tensor([0.0])
    weight = Weight(weight)
    assert EAGER.linear(x, weight, None).tolist() == [[11.0]]
    assert EAGER.linear(x, weight, out) is out
    assert out.tolist() == [[11.0]]


def test_a_quarter_turn_swaps_the_halves_of_a_head():
    """At an angle of 90 degrees (1, 2) becomes (-2, 1); the value is stored as it is, at the row's position."""
    rotary = torch.zeros(2, 3, 1, dtype=torch.float64)
    rotary[1, 2] = 1.0  # position 2: cosine 0, sine 1
    keys, values = torch.zeros(2, 1, 1, 3, 2, dtype=torch.float64)
    qkv = tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    row, position = torch.tensor([0]), torch.tensor([2])
    ops.rotate_store(qkv, None, rotary, row, position, keys, values)
    assert qkv.tolist() == [[-2.0, 1.0, -4.0, 3.0, 5.0, 6.0]]
    assert keys[0, 0].tolist() == [[0.0, 0.0], [0.0, 0.0], [-4.0, 3.0]]
    assert values[0, 0, 2].tolist() == [5.0, 6.0]


def test_attention_reads_up_to_its_own_position():
    """With a zero query all keys weigh alike: the mean of values 1 and 3, and never the 100 behind them."""
    rotary = torch.zeros(2, 3, 1, dtype=torch.float64)
    rotary[0] = 1.0  # no turn
    keys, values = torch.zeros(2, 1, 1, 3, 2, dtype=torch.float64)
    values[0, 0] = tensor([1.0, 1.0], [0.0, 0.0], [100.0, 100.0])
    qkv = tensor([0.0, 0.0, 9.0, 9.0, 3.0, 3.0])
    read = ops.attend(qkv, None, rotary, keys, values, torch.tensor([1]), 3)
    assert read.tolist()[0] == pytest.approx([2.0, 2.0])


def test_queries_and_keys_are_normed_before_they_turn():
    """3, 4 over the root of 12.5 times gains 1 and 2, then a quarter turn; the value is left alone."""
    rotary = torch.zeros(2, 1, 1, dtype=torch.float64)
    rotary[1] = 1.0
    keys, values = torch.zeros(2, 1, 1, 1, 2, dtype=torch.float64)
    qkv = tensor([3.0, 4.0, 3.0, 4.0, 3.0, 4.0])
    norms = ops.HeadNorms(tensor([1.0, 1.0], [1.0, 2.0]), 0.0)
    place = torch.tensor([0])
    ops.rotate_store(qkv, norms, rotary, place, place, keys, values)
    root = 12.5**0.5
    assert qkv[0].tolist() == pytest.approx([-4 / root, 3 / root, -8 / root, 3 / root, 3.0, 4.0])
    assert keys.flatten().tolist() == pytest.approx([-8 / root, 3 / root])
