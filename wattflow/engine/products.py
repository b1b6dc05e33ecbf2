"""Products of activations with a layer's matrices: plain, with a bias, or of fp8 with one scale an output and a token.

fp8 is e4m3: four bits of exponent, three of mantissa, at most 448. A matrix is quantised once, when it is loaded, after
it was cut for its rank; activations are quantised at each product. Sums are in float32, outputs as wide as activations.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional

Tensor = torch.Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST = 1e-12  # of a row's largest value, so that a row of zeros has a scale


@dataclass(frozen=True)
class Weight:
    """A matrix [out, in] as it lies on the device, and the bias [out] of its product; fp8 with scales [1, out]."""

    values: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(x.nbytes for x in (self.values, self.scales, self.bias) if x is not None)


@dataclass(frozen=True)
class Rows8:
    """Activations in fp8 [tokens, in], their scales [tokens, 1] in float32, and the type of what they stand for."""

    values: Tensor
    scales: Tensor
    dtype: torch.dtype


def quantised(matrix: Tensor, bias: Tensor | None = None) -> Weight:
    """Return a matrix [out, in] in fp8, each output's weights scaled to the largest value that fp8 has."""
    rows = rows8(matrix)
    return Weight(rows.values, rows.scales.t().contiguous(), bias)


def rows8(x: Tensor) -> Rows8:
    """Return activations [tokens, in] in fp8, each token scaled to the largest value that fp8 has."""
    scales = x.abs().amax(dim=1, keepdim=True).float().clamp_min(LEAST) / LARGEST
    values = (x.float() / scales).clamp(-LARGEST, LARGEST).to(E4M3)
    return Rows8(values, scales, x.dtype)


def product(x: Tensor | Rows8, weight: Weight, out: Tensor | None = None) -> Tensor:
    """Return x [tokens, in] times a weight [out, in], plus its bias; written to `out` if given."""
    if weight.scales is None:
        assert isinstance(x, Tensor)
        if out is None:
            return functional.linear(x, weight.values, weight.bias)
        torch.mm(x, weight.values.t(), out=out)
    else:
        made = _scaled(x if isinstance(x, Rows8) else rows8(x), weight)
        out = made if out is None else out.copy_(made)
    return out if weight.bias is None else out.add_(weight.bias)


def _scaled(x: Rows8, weight: Weight) -> Tensor:
    assert weight.scales is not None
    if why_no_scaled(x.values.device) is not None:
        wide = torch.promote_types(x.dtype, torch.float32)
        made = functional.linear(x.values.to(wide), weight.values.to(wide))
        return (made * x.scales * weight.scales).to(x.dtype)
    return _scaled_mm(x, weight)


def _scaled_mm(x: Rows8, weight: Weight) -> Tensor:
    assert weight.scales is not None
    return torch._scaled_mm(  # noqa: SLF001 - the public name, torch.nn.functional.scaled_mm, is newer than 2.9
        x.values,
        weight.values.t(),
        scale_a=x.scales,
        scale_b=weight.scales,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )


@cache
def why_no_scaled(device: torch.device) -> str | None:
    """Return why a device has no product of fp8 with scales a row; None where it has and gives what it should."""
    if device.type != "cuda":
        return "the CPU multiplies fp8 as the numbers that it stands for"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        return f"compute capability {capability[0]}.{capability[1]} has no products of fp8: 8.9 and newer have"
    generator = torch.Generator(device).manual_seed(0)
    x, matrix = (
        torch.randn(64, 64, device=device, generator=generator).to(torch.bfloat16) for _ in range(2)
    )
    try:
        rows, weight = rows8(x), quantised(matrix)
        assert weight.scales is not None
        made = _scaled_mm(rows, weight)
    except (RuntimeError, TypeError, AttributeError) as error:
        return f"torch {torch.__version__}: {str(error).partition(chr(10))[0][:200]}"
    right = (rows.values.float() * rows.scales) @ (weight.values.float() * weight.scales.t()).t()
    off = float((made.float() - right).norm() / right.norm())
    return (
        None if off < 1e-2 else f"torch {torch.__version__}: its product of fp8 is off by {off:.1e}"
    )
