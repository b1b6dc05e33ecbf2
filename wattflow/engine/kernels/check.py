# Triton is absent where torch was built without CUDA:
# mypy: disable-error-code="import-not-found, unused-ignore"
"""Whether the Triton kernels give on this device what plain torch gives."""

import logging
from collections.abc import Callable, Iterator

import torch
import triton

from wattflow.engine import ops, products
from wattflow.engine.kernels import attention
from wattflow.engine.kernels.attention import attend
from wattflow.engine.kernels.gemv import gemv
from wattflow.engine.kernels.heads import rotate_store
from wattflow.engine.kernels.launch import Launch
from wattflow.engine.kernels.rowwise import add_norm, add_norm_rows8, rows8, swiglu, swiglu_rows8
from wattflow.engine.llama import wide
from wattflow.engine.ops import HeadNorms
from wattflow.engine.products import Rows8, Weight, product, quantised

_NARROWEST = 16  # head that a product of tensor cores takes
_log = logging.getLogger(__name__)


def why_not(
    cache: torch.Tensor, rotary: torch.Tensor, heads: int, norms: HeadNorms | None
) -> str | None:
    """Return why these kernels cannot serve a cache [layers, 2, rows, KV heads, length, head_dim]; None if they can.

    They run once as that cache's batches have them run, on fewer rows, and are compared with ops.py. Each variant takes
    a compiler seconds, so no others are tried.
    """
    if cache.dtype == torch.float64:
        return "the fused kernels compute in float32"
    width = cache.shape[-1]
    if width & (width - 1) or width < _NARROWEST:
        return f"heads are {width} wide, which is no power of two from {_NARROWEST} on"
    reason = _why_wrong(cache, rotary, heads, norms)
    if reason is not None and Launch.early:
        _log.warning("kernels are not launched early: %s", reason)
        Launch.early = False
        reason = _why_wrong(cache, rotary, heads, norms)
    return reason


def _why_wrong(
    cache: torch.Tensor, rotary: torch.Tensor, heads: int, norms: HeadNorms | None
) -> str | None:
    try:
        worst = _disagreement(cache, rotary, heads, norms)
    except Exception as error:  # noqa: BLE001 - a compiler or driver fails as it likes, and plain torch can still run
        return f"Triton {triton.__version__} failed: {str(error).partition(chr(10))[0]}"
    allowed = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(cache.dtype, 1e-4)
    return None if worst <= allowed else f"they differ from plain torch by {worst:.1e}"


def _disagreement(
    cache: torch.Tensor, rotary: torch.Tensor, heads: int, norms: HeadNorms | None
) -> float:
    """Return the largest relative difference between these kernels and ops.py on random inputs."""
    dtype = cache.dtype
    width = heads * cache.shape[-1]
    pairs = [*_attention(cache, rotary, heads, norms), *_rows(dtype, cache.device, width)]
    return max(
        float((a.to(wide(dtype)) - b.to(wide(dtype))).norm() / b.to(wide(dtype)).norm())
        for a, b in pairs
    )


Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]


def _random(dtype: torch.dtype, device: torch.device) -> Callable[..., torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return lambda *shape: torch.randn(shape, device=device, generator=generator).to(dtype)


def _attention(
    cache: torch.Tensor, rotary: torch.Tensor, heads: int, norms: HeadNorms | None
) -> Pairs:
    """Yield what attention and the writes before it give, ours and theirs, for a whole batch's scan and one row's."""
    device = cache.device
    batch, kv_heads, length, width = cache.shape[2:]
    random = _random(cache.dtype, device)
    positions = torch.tensor([length - 1, length // 2, 0], device=device)
    caches = random(2, 3, kv_heads, length, width)
    ours, theirs = caches.clone(), caches.clone()
    qkv = random(3, (heads + 2 * kv_heads) * width)
    right = ops.attend(qkv.clone(), norms, rotary, theirs[0], theirs[1], positions, length)
    for rows in {1, batch}:
        scan = attention.scan_for(rows * kv_heads, cache)
        splits = attention.splits_for(rows * kv_heads, length, scan, device)
        yield attend(qkv, norms, rotary, ours[0], ours[1], positions, scan, splits), right
        yield ours, theirs
    packed, each = qkv.clone(), torch.tensor([0, 0, 2], device=device)
    places = torch.tensor([0, 1, 0], device=device)
    rotate_store(packed, norms, rotary, each, places, *ours)
    ops.rotate_store(qkv, norms, rotary, each, places, *theirs)
    yield packed, qkv
    yield ours, theirs


def _rows(dtype: torch.dtype, device: torch.device, width: int) -> Pairs:
    """Yield what norms, SwiGLU and products of one row give, ours and theirs."""
    random = _random(dtype, device)
    stream, delta, norm = random(3, width), random(3, width), random(width)
    yield (
        add_norm(stream.clone(), delta, norm, 1e-5),
        ops.add_norm(stream.clone(), delta, norm, 1e-5),
    )
    yield swiglu(delta), ops.swiglu(delta)
    matrix = Weight(random(96, width), bias=random(96))
    normed = ops.add_norm(stream[:1], None, norm, 1e-5)
    yield gemv(stream[:1], matrix, norm=norm, eps=1e-5), product(normed, matrix)
    matrix = Weight(matrix.values)
    yield (
        gemv(stream[:1], matrix, norm=norm, eps=1e-5, gate=True),
        ops.swiglu(product(normed, matrix)),
    )


def why_not_fp8(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why the kernels that write or read fp8 cannot serve; None where they give what products.py gives."""
    random = _random(dtype, device)
    stream, delta, norm = random(3, 256), random(3, 256), random(256)
    plain = random(96, 256)
    matrix = quantised(plain, random(96))
    assert matrix.scales is not None
    as_rows = Weight((matrix.values.float() * matrix.scales.t()).to(dtype), bias=matrix.bias)
    normed = ops.add_norm(stream.clone(), delta, norm, 1e-5)
    try:
        pairs = [
            (_wide(rows8(stream)), _wide(products.rows8(stream))),
            (
                _wide(add_norm_rows8(stream.clone(), delta, norm, 1e-5)),
                _wide(products.rows8(normed)),
            ),
            (_wide(swiglu_rows8(stream)), _wide(products.rows8(ops.swiglu(stream)))),
            (gemv(stream[:1], matrix), product(stream[:1], as_rows)),
        ]
    except Exception as error:  # noqa: BLE001 - as above
        return f"Triton {triton.__version__} failed: {str(error).partition(chr(10))[0]}"
    # a value between two of fp8 may fall to either, by the last bit of its scale
    worst = max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)
    return None if worst < 1e-2 else f"they differ from plain torch by {worst:.1e}"


def _wide(rows: Rows8) -> torch.Tensor:
    return rows.values.float() * rows.scales
