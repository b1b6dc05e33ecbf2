# Triton writes compile-time constants in capitals, reads annotations as code, and a kernel takes what it takes:
# ruff: noqa: N803, ANN001, ANN202, PLR0917
# Triton has no types, and is absent where torch was built without CUDA:
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, no-untyped-def, import-not-found, unused-ignore"
"""Norm, SwiGLU and rotation in Triton: each goes over the values of a token once."""

import torch
import triton
import triton.language as tl

from wattflow.engine.kernels.launch import Launch, wait

# --- norm ---


@triton.jit
def _add_norm(
    stream,
    delta,
    weight,
    out,
    eps,
    width,
    HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    gain = tl.load(weight + at, mask=inside, other=0.0)
    wait(EARLY)
    x = tl.load(stream + row + at, mask=inside, other=0.0)
    if HAS_DELTA:
        added = tl.load(delta + row + at, mask=inside, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + added).to(stream.dtype.element_ty)
        tl.store(stream + row + at, x, mask=inside)
    y = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(y * y, axis=0) / width + eps)
    normed = (y * scale).to(out.dtype.element_ty)
    tl.store(out + row + at, normed * gain, mask=inside)


def add_norm(
    stream: torch.Tensor, delta: torch.Tensor | None, norm: torch.Tensor, eps: float
) -> torch.Tensor:
    """As ops.add_norm, in one kernel."""
    tokens, width = stream.shape
    out = torch.empty_like(stream)
    block = triton.next_power_of_2(width)
    _add_norm[(tokens,)](
        stream,
        stream if delta is None else delta,
        norm,
        out,
        eps,
        width,
        HAS_DELTA=delta is not None,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
        **Launch.options(),
    )
    return out


# --- SwiGLU ---


@triton.jit
def _swiglu(gate_up, out, width, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    wait(EARLY)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + token * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * width + width + at, mask=inside, other=0.0)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty)
    tl.store(out + token * width + at, silu * up, mask=inside)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """As ops.swiglu, in one kernel."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((tokens, width))
    grid = tokens, triton.cdiv(width, 1024)
    _swiglu[grid](gate_up, out, width, BLOCK=1024, num_warps=4, **Launch.options())
    return out


# --- rotation, and the write to the cache ---


@triton.jit
def _rotate_store(
    qkv,
    rotary,
    positions,
    query,
    keys,
    values,
    per_row,
    length,
    row_stride,
    heads,
    kv_heads,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait(EARLY)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    all_heads = heads + 2 * kv_heads
    at = tl.arange(0, HALF)
    position = tl.load(positions + token)
    cosine = tl.load(rotary + position * HALF + at)[None, :]
    sine = tl.load(rotary + (length + position) * HALF + at)[None, :]
    place = (head[:, None] * (2 * HALF)) + at[None, :]
    real = (head < all_heads)[:, None]
    source = qkv + token * all_heads * (2 * HALF) + place
    first_raw = tl.load(source, mask=real, other=0.0)
    second_raw = tl.load(source + HALF, mask=real, other=0.0)
    first, second = first_raw.to(tl.float32), second_raw.to(tl.float32)
    kind = query.dtype.element_ty
    turned_first = (first * cosine - second * sine).to(kind)
    turned_second = (second * cosine + first * sine).to(kind)

    is_query = (head < heads)[:, None]
    target = query + token * heads * (2 * HALF) + place
    tl.store(target, turned_first, mask=is_query)
    tl.store(target + HALF, turned_second, mask=is_query)

    slot = (token // per_row) * row_stride + position * (2 * HALF)
    is_key = ((head >= heads) & (head < heads + kv_heads))[:, None]
    target = keys + slot + (head - heads)[:, None] * length * (2 * HALF) + at[None, :]
    tl.store(target, turned_first, mask=is_key)
    tl.store(target + HALF, turned_second, mask=is_key)

    is_value = ((head >= heads + kv_heads) & (head < all_heads))[:, None]
    target = values + slot + (head - heads - kv_heads)[:, None] * length * (2 * HALF) + at[None, :]
    tl.store(target, first_raw, mask=is_value)
    tl.store(target + HALF, second_raw, mask=is_value)


def rotate_store(
    qkv: torch.Tensor,
    rotary: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    per_row: int,
) -> torch.Tensor:
    """As ops.rotate_store, in one kernel; keys and values are views of one cache, equally laid out."""
    _, kv_heads, length, width = keys.shape
    assert keys.stride() == values.stride()
    assert keys.stride()[1:] == (length * width, width, 1)
    tokens = qkv.shape[0]
    heads = qkv.shape[1] // width - 2 * kv_heads
    query = qkv.new_empty((tokens, heads, width))
    block = 8
    _rotate_store[(tokens, triton.cdiv(heads + 2 * kv_heads, block))](
        qkv,
        rotary,
        positions,
        query,
        keys,
        values,
        per_row,
        length,
        keys.stride(0),
        heads,
        kv_heads,
        HALF=width // 2,
        HEADS=block,
        num_warps=2,
        **Launch.options(),
    )
    return query
