# Triton writes compile-time constants in capitals, reads annotations as code, and a kernel takes what it takes:
# ruff: noqa: N803, ANN001, ANN202, PLR0917
# Triton has no types, and is absent where torch was built without CUDA:
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, no-untyped-def, import-not-found, unused-ignore"
"""Norm, SwiGLU and quantisation in Triton: each goes over the values of a token once."""

import torch
import triton
import triton.language as tl

from wattflow.engine.kernels.launch import Launch, wait
from wattflow.engine.products import E4M3, LARGEST, LEAST, Rows8


@triton.jit
def _store(
    out,
    scales,
    token,
    at,
    inside,
    width,
    y,
    FP8: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
):
    # as they are, or in fp8 with the scale that takes the largest of them to the largest of fp8
    place = token.to(tl.int64) * width + at
    if FP8:
        y = y.to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(y), axis=0), LEAST) / LARGEST
        tl.store(scales + token, scale)
        y = tl.minimum(tl.maximum(y / scale, -LARGEST), LARGEST)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


def _rows8(like: torch.Tensor, width: int) -> Rows8:
    tokens = like.shape[0]
    values = torch.empty((tokens, width), dtype=E4M3, device=like.device)
    scales = torch.empty((tokens, 1), dtype=torch.float32, device=like.device)
    return Rows8(values, scales, like.dtype)


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


# --- norm ---


@triton.jit
def _add_norm(
    stream,
    delta,
    weight,
    out,
    scales,
    eps,
    width,
    HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
    FP8: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    EARLY: tl.constexpr,
):
    token = tl.program_id(0)
    row = token.to(tl.int64) * width
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
    normed = (y * scale).to(stream.dtype.element_ty) * gain
    _store(out, scales, token, at, inside, width, normed, FP8, LARGEST, LEAST)


def add_norm(
    stream: torch.Tensor, delta: torch.Tensor | None, norm: torch.Tensor, eps: float
) -> torch.Tensor:
    """As ops.add_norm, in one kernel."""
    out = torch.empty_like(stream)
    _launch_norm(stream, delta, norm, eps, out, out)
    return out


def add_norm_rows8(
    stream: torch.Tensor, delta: torch.Tensor | None, norm: torch.Tensor, eps: float
) -> Rows8:
    """As products.rows8 of ops.add_norm, in one kernel."""
    out = _rows8(stream, stream.shape[1])
    _launch_norm(stream, delta, norm, eps, out.values, out.scales)
    return out


def _launch_norm(
    stream: torch.Tensor,
    delta: torch.Tensor | None,
    norm: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    scales: torch.Tensor,
) -> None:
    tokens, width = stream.shape
    block = triton.next_power_of_2(width)
    _add_norm[(tokens,)](
        stream,
        stream if delta is None else delta,
        norm,
        out,
        scales,
        eps,
        width,
        HAS_DELTA=delta is not None,
        BLOCK=block,
        FP8=out.dtype == E4M3,
        LARGEST=LARGEST,
        LEAST=LEAST,
        num_warps=_warps(block),
        **Launch.options(),
    )


# --- SwiGLU ---


@triton.jit
def _swiglu(
    gate_up,
    out,
    scales,
    width,
    BLOCK: tl.constexpr,
    FP8: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait(EARLY)
    token = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    row = gate_up + token.to(tl.int64) * 2 * width
    gate = tl.load(row + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + width + at, mask=inside, other=0.0)
    silu = (gate / (1.0 + tl.exp(-gate))).to(gate_up.dtype.element_ty)
    _store(out, scales, token, at, inside, width, silu * up, FP8, LARGEST, LEAST)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """As ops.swiglu, in one kernel."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((tokens, width))
    _launch_swiglu(gate_up, out, out, 1024, 4)
    return out


def swiglu_rows8(gate_up: torch.Tensor) -> Rows8:
    """As products.rows8 of ops.swiglu, in one kernel."""
    width = gate_up.shape[1] // 2
    out = _rows8(gate_up, width)
    block = triton.next_power_of_2(width)
    _launch_swiglu(gate_up, out.values, out.scales, block, _warps(block))
    return out


def _launch_swiglu(
    gate_up: torch.Tensor, out: torch.Tensor, scales: torch.Tensor, block: int, warps: int
) -> None:
    tokens, width = out.shape
    _swiglu[(tokens, triton.cdiv(width, block))](
        gate_up,
        out,
        scales,
        width,
        BLOCK=block,
        FP8=out.dtype == E4M3,
        LARGEST=LARGEST,
        LEAST=LEAST,
        num_warps=warps,
        **Launch.options(),
    )


# --- quantisation ---


@triton.jit
def _quantise(
    x,
    out,
    scales,
    width,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait(EARLY)
    token = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    y = tl.load(x + token.to(tl.int64) * width + at, mask=inside, other=0.0)
    _store(out, scales, token, at, inside, width, y, True, LARGEST, LEAST)


def rows8(x: torch.Tensor) -> Rows8:
    """As products.rows8, in one kernel."""
    tokens, width = x.shape
    assert x.is_contiguous()
    out = _rows8(x, width)
    block = triton.next_power_of_2(width)
    _quantise[(tokens,)](
        x,
        out.values,
        out.scales,
        width,
        BLOCK=block,
        LARGEST=LARGEST,
        LEAST=LEAST,
        num_warps=_warps(block),
        **Launch.options(),
    )
    return out
