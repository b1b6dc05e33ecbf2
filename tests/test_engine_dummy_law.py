"""The law of dummy weights: normal with deviation 0.02, a seed a tensor, which parameter is a norm's scale."""

import pytest
import torch

from wattflow.engine import dummy_law


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_tensor_is_normal_and_its_name_is_its_seed(dtype):
    """Deviation 0.02 around 0, also in 8 bits; the same name draws the same, another name others."""
    first, again, other = (torch.zeros((256, 256), dtype=dtype) for _ in range(3))
    for tensor, name in ((first, "a"), (again, "a"), (other, "b")):
        dummy_law.fill(tensor, name)
    assert float(first.float().std()) == pytest.approx(0.02, rel=0.03)
    assert abs(float(first.float().mean())) < 5e-4
    assert torch.equal(first.float(), again.float())
    assert not torch.equal(first.float(), other.float())


@pytest.mark.parametrize(
    ("kind", "name", "dimensions", "expected"),
    [
        ("LlamaRMSNorm", "weight", 1, True),
        ("LayerNorm", "weight", 1, True),
        ("LayerNorm", "bias", 1, False),
        ("Linear", "weight", 2, False),
        ("NormGate", "weight", 2, False),
    ],
)
def test_a_norms_scale_is_a_vector_named_weight(kind, name, dimensions, expected):
    """Its bias is drawn as all else is."""
    assert dummy_law.is_norm_weight(kind, name, dimensions) is expected
