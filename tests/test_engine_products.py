"""Products in plain numbers and in fp8: biases, scales, and how far fp8 is off."""

import pytest
import torch

from wattflow.engine.products import LARGEST, Rows8, Weight, product, quantised, rows8


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def off(made, right):
    """Return how far a tensor is off, as a share of the right one's norm."""
    return float((made.double() - right.double()).norm() / right.double().norm())


def test_a_bias_is_added_wherever_the_product_is_written():
    """1 x 3 + 2 x 4 + 5 is 16."""
    x, weight = (
        torch.tensor([[1.0, 2.0]]),
        Weight(torch.tensor([[3.0, 4.0]]), bias=torch.tensor([5.0])),
    )
    out = torch.zeros(1, 1)
    assert product(x, weight).tolist() == [[16.0]]
    assert product(x, weight, out) is out
    assert out.tolist() == [[16.0]]


def test_each_output_has_the_scale_of_its_own_weights():
    """Weights of 1 and of 1000 both reach fp8's largest, and come back exactly; so do zeros."""
    weight = quantised(torch.tensor([[1.0, -0.5], [1000.0, 250.0], [0.0, 0.0]]))
    assert weight.values.float()[:2].abs().amax(dim=1).tolist() == [LARGEST, LARGEST]
    assert (weight.values.float() * weight.scales.t()).tolist() == [
        [1.0, -0.5],
        [1000.0, 250.0],
        [0.0, 0.0],
    ]


def test_each_token_has_a_scale_of_its_own():
    """A token a million times another is not its ruin."""
    x = normal(2, 512) * torch.tensor([[1.0], [1e6]])
    made = rows8(x)
    back = made.values.float() * made.scales
    assert off(back[0], x[0]) < 0.03
    assert off(back[1], x[1]) < 0.03


@pytest.mark.parametrize("width", [256, 4096])
def test_fp8_is_off_by_less_than_four_percent(width):
    """Normal weights and activations: three bits of mantissa round each by 2.6 %, both by 3.7 %; and not by nothing."""
    x, matrix, bias = (
        normal(64, width, seed=1),
        normal(384, width) * 0.02,
        normal(384, seed=2) * 0.1,
    )
    right = x.double() @ matrix.double().t() + bias.double()
    made = product(x, quantised(matrix, bias))
    assert 0.01 < off(made, right) < 0.04


def test_a_scale_for_the_whole_matrix_would_be_worse():
    """With one output a million times the others, a scale each keeps the small ones; a common one loses them."""
    x, matrix = normal(64, 256, seed=1), normal(384, 256) * 0.02
    matrix[0] *= 1e6
    right = x @ matrix.t()
    assert off(product(x, quantised(matrix))[:, 1:], right[:, 1:]) < 0.04
    common = matrix.abs().max() / LARGEST
    whole = Weight((matrix / common).to(torch.float8_e4m3fn), common.expand(1, 384))
    assert off(product(x, whole)[:, 1:], right[:, 1:]) > 0.1


def test_activations_that_came_quantised_are_taken_as_they_are():
    x, weight = normal(8, 64), quantised(normal(16, 64))
    made = rows8(x)
    assert torch.equal(product(made, weight), product(x, weight))
    doubled = Rows8(made.values, made.scales * 2, made.dtype)
    assert torch.allclose(product(doubled, weight), 2 * product(x, weight))


def test_ranks_that_share_outputs_quantise_as_one_does():
    """Each output's scale is its own, so parts by output are the whole's, bit by bit."""
    x, matrix = normal(8, 256, seed=1), normal(64, 256)
    whole = product(x, quantised(matrix))
    parts = [product(x, quantised(part)) for part in matrix.chunk(2)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_ranks_that_share_inputs_add_up_to_the_product():
    """Parts by input have scales of their own: their sum is as near to the product as the whole is."""
    x, matrix = normal(8, 256, seed=1), normal(64, 256)
    parts = zip(x.chunk(4, dim=1), matrix.chunk(4, dim=1), strict=True)
    made = sum(product(a, quantised(b)) for a, b in parts)
    assert 0.01 < off(made, x @ matrix.t()) < 0.04
