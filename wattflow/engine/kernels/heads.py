# Triton writes compile-time constants in capitals, reads annotations as code, and a kernel takes what it takes:
# ruff: noqa: N803, ANN001, ANN201, ANN202, PLR0917
# Triton has no types, and is absent where torch was built without CUDA:
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, no-untyped-def, import-not-found, unused-ignore"
"""Queries and keys before attention, in Triton: normed where a model norms them, turned by position, stored."""

import torch
import triton
import triton.language as tl

from wattflow.engine.kernels.launch import Launch, wait
from wattflow.engine.ops import HeadNorms


@triton.jit
def turned(vector, at, real, cosine, sine, gain, eps, WIDTH: tl.constexpr, NORM: tl.constexpr):
    """Return heads' vectors [heads, WIDTH], normed where NORM and turned: each half takes its part of the other."""
    kind = vector.dtype.element_ty
    across = (at + WIDTH // 2) % WIDTH
    here = tl.load(vector + at, mask=real, other=0.0)
    there = tl.load(vector + across, mask=real, other=0.0)
    if NORM:
        wide = here.to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=1) / WIDTH + eps)[:, None]
        here = (wide * scale).to(kind) * tl.load(gain + at)
        there = (there.to(tl.float32) * scale).to(kind) * tl.load(gain + across)
    sign = tl.where(at < WIDTH // 2, -1.0, 1.0)
    return (here.to(tl.float32) * cosine + sign * there.to(tl.float32) * sine).to(kind)


@triton.jit
def _rotate_store(
    qkv,
    gains,
    rotary,
    rows,
    positions,
    keys,
    values,
    eps,
    length,
    row_stride,
    heads,
    kv_heads,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    NORM: tl.constexpr,
    EARLY: tl.constexpr,
):
    # by halves of heads, so that no thread reads what another writes
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, HALF)[None, :]
    position = tl.load(positions + token)
    cosine = tl.load(rotary + position * HALF + at)
    sine = tl.load(rotary + (length + position) * HALF + at)
    slot = tl.load(rows + token) * row_stride + position * (2 * HALF)
    wait(EARLY)
    all_heads = heads + 2 * kv_heads
    is_key = ((head >= heads) & (head < heads + kv_heads))[:, None]
    is_value = ((head >= heads + kv_heads) & (head < all_heads))[:, None]
    is_turned = (head < heads + kv_heads)[:, None]
    source = qkv + (token * all_heads + head)[:, None] * (2 * HALF) + at
    first_raw = tl.load(source, mask=(head < all_heads)[:, None], other=0.0)
    second_raw = tl.load(source + HALF, mask=(head < all_heads)[:, None], other=0.0)
    first, second = first_raw, second_raw
    kind = qkv.dtype.element_ty
    if NORM:
        squares = first.to(tl.float32) * first.to(tl.float32) + second.to(tl.float32) * second.to(
            tl.float32
        )
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / (2 * HALF) + eps)[:, None]
        gain = gains + tl.where(is_key, 2 * HALF, 0) + at
        first = (first.to(tl.float32) * scale).to(kind) * tl.load(gain)
        second = (second.to(tl.float32) * scale).to(kind) * tl.load(gain + HALF)
    first, second = first.to(tl.float32), second.to(tl.float32)
    turned_first = (first * cosine - second * sine).to(kind)
    turned_second = (second * cosine + first * sine).to(kind)
    tl.store(source, turned_first, mask=is_turned)
    tl.store(source + HALF, turned_second, mask=is_turned)
    target = keys + slot + (head - heads)[:, None] * length * (2 * HALF) + at
    tl.store(target, turned_first, mask=is_key)
    tl.store(target + HALF, turned_second, mask=is_key)
    target = values + slot + (head - heads - kv_heads)[:, None] * length * (2 * HALF) + at
    tl.store(target, first_raw, mask=is_value)
    tl.store(target + HALF, second_raw, mask=is_value)


def rotate_store(
    qkv: torch.Tensor,
    norms: HeadNorms | None,
    rotary: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """As ops.rotate_store, in one kernel; keys and values are views of one cache, equally laid out."""
    _, kv_heads, length, width = keys.shape
    assert keys.stride() == values.stride()
    assert keys.stride()[1:] == (length * width, width, 1)
    tokens = qkv.shape[0]
    heads = qkv.shape[1] // width - 2 * kv_heads
    block = 8
    _rotate_store[(tokens, triton.cdiv(heads + 2 * kv_heads, block))](
        qkv,
        qkv if norms is None else norms.gains,
        rotary,
        rows,
        positions,
        keys,
        values,
        0.0 if norms is None else norms.eps,
        length,
        keys.stride(0),
        heads,
        kv_heads,
        HALF=width // 2,
        HEADS=block,
        NORM=norms is not None,
        num_warps=2,
        **Launch.options(),
    )
