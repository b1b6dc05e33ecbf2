# Triton writes compile-time constants in capitals, reads annotations as code, and a kernel takes what it takes:
# ruff: noqa: N803, ANN001, ANN202, PLR0915, PLR0917
# Triton has no types, and is absent where torch was built without CUDA:
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, no-untyped-def, import-not-found, unused-ignore"
"""Attention of one query a row over the used length of its cache, in Triton."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from wattflow.engine.kernels.launch import Launch, wait

_LOWEST = -1.0e30  # below any score, and finite, so that the difference of two is 0 and not NaN


@triton.jit
def _turned(vector, at, cosine, sine, HALF: tl.constexpr, KIND: tl.constexpr):
    # a head's vector turned by its position: each half takes its part of the other
    here = tl.load(vector + at).to(tl.float32)
    there = tl.load(vector + (at + HALF) % (2 * HALF)).to(tl.float32)
    sign = tl.where(at < HALF, -1.0, 1.0)
    return (here * cosine + sign * there * sine).to(KIND)


@triton.jit
def _attend(
    qkv,
    rotary,
    keys,
    values,
    positions,
    out,
    sums,
    scale,
    length,
    row_stride,
    heads,
    kv_heads,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    LOWEST: tl.constexpr,
    EARLY: tl.constexpr,
):
    # One program a head and split. It turns its query, and the new key by itself: what the cache holds of this position
    # is written here, for later steps, and read by none of this one.
    wait(EARLY)
    which = tl.program_id(0)
    split = tl.program_id(1)
    row = (which // heads).to(tl.int64)
    head = which % heads
    group = heads // kv_heads
    kv_head = head // group
    at = tl.arange(0, WIDTH)
    kind = keys.dtype.element_ty
    cached = tl.load(positions + row)
    cosine = tl.load(rotary + cached * (WIDTH // 2) + at % (WIDTH // 2))
    sine = tl.load(rotary + (length + cached) * (WIDTH // 2) + at % (WIDTH // 2))
    source = qkv + row * (heads + 2 * kv_heads) * WIDTH
    query = _turned(source + head * WIDTH, at, cosine, sine, WIDTH // 2, kind)
    new_key = _turned(source + (heads + kv_head) * WIDTH, at, cosine, sine, WIDTH // 2, kind)
    new_value = tl.load(source + (heads + kv_heads + kv_head) * WIDTH + at)

    span = tl.cdiv(tl.cdiv(cached + 1, SPLITS), BLOCK) * BLOCK
    start = split * span
    stop = tl.minimum(cached, start + span)
    base = row * row_stride + kv_head * length * WIDTH
    has_new = (cached >= start) & (cached < start + span)
    if has_new & (head % group == 0):
        tl.store(keys + base + cached * WIDTH + at, new_key)
        tl.store(values + base + cached * WIDTH + at, new_value)

    new_score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32), axis=0) * scale
    lane = tl.arange(0, BLOCK)
    if TENSOR_CORES:
        # the least height of a product is 16: all rows are the same query
        tall = tl.broadcast_to(query[None, :], (16, WIDTH))
        most = tl.full((16,), LOWEST, tl.float32)
        total = tl.zeros((16,), tl.float32)
        read = tl.zeros((16, WIDTH), tl.float32)
        for first in range(start, stop, BLOCK):
            place = first + lane
            seen = place < stop
            there = base + place[:, None] * WIDTH + at[None, :]
            key = tl.load(keys + there, mask=seen[:, None], other=0.0)
            value = tl.load(values + there, mask=seen[:, None], other=0.0)
            score = tl.dot(tall, tl.trans(key)) * scale
            score = tl.where(seen[None, :], score, LOWEST)
            higher = tl.maximum(most, tl.max(score, axis=1))
            shrink = tl.exp2(most - higher)
            share = tl.exp2(score - higher[:, None])
            total = total * shrink + tl.sum(share, axis=1)
            read = read * shrink[:, None] + tl.dot(share.to(kind), value)
            most = higher
        # sixteen equal rows add up without rounding
        highest = tl.maximum(tl.max(most, axis=0), tl.where(has_new, new_score, LOWEST))
        shrink = tl.exp2(most - highest)
        whole = tl.sum(total * shrink, axis=0) / 16
        result = tl.sum(read * shrink[:, None], axis=0) / 16
    else:
        # BLOCK lanes each keep a softmax of their own over every BLOCK-th key, and meet only at the end: nothing
        # crosses warps inside the loop
        wide_query = query.to(tl.float32) * scale
        most = tl.full((BLOCK,), LOWEST, tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        read = tl.zeros((BLOCK, WIDTH), tl.float32)
        for first in range(start, stop, BLOCK):
            place = first + lane
            seen = place < stop
            there = base + place[:, None] * WIDTH + at[None, :]
            key = tl.load(keys + there, mask=seen[:, None], other=0.0).to(tl.float32)
            value = tl.load(values + there, mask=seen[:, None], other=0.0).to(tl.float32)
            score = tl.where(seen, tl.sum(key * wide_query[None, :], axis=1), LOWEST)
            higher = tl.maximum(most, score)
            shrink = tl.exp2(most - higher)
            share = tl.where(seen, tl.exp2(score - higher), 0.0)
            total = total * shrink + share
            read = read * shrink[:, None] + share[:, None] * value
            most = higher
        highest = tl.maximum(tl.max(most, axis=0), tl.where(has_new, new_score, LOWEST))
        shrink = tl.exp2(most - highest)
        whole = tl.sum(total * shrink, axis=0)
        result = tl.sum(read * shrink[:, None], axis=0)
    share_of_new = tl.where(has_new, tl.exp2(new_score - highest), 0.0)
    whole += share_of_new
    result += share_of_new * new_value.to(tl.float32)
    if SPLITS == 1:
        tl.store(out + which.to(tl.int64) * WIDTH + at, (result / whole).to(out.dtype.element_ty))
    else:
        part = which.to(tl.int64) * SPLITS + split
        tl.store(out + part * WIDTH + at, result)
        tl.store(sums + part * 2, highest)
        tl.store(sums + part * 2 + 1, whole)


@triton.jit
def _join(parts, sums, out, WIDTH: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr):
    wait(EARLY)
    which = tl.program_id(0).to(tl.int64)
    split = which * SPLITS + tl.arange(0, SPLITS)
    at = tl.arange(0, WIDTH)
    highest = tl.load(sums + split * 2)
    total = tl.load(sums + split * 2 + 1)
    read = tl.load(parts + split[:, None] * WIDTH + at[None, :])
    shrink = tl.exp2(highest - tl.max(highest, axis=0))
    whole = tl.sum(total * shrink, axis=0)
    joined = tl.sum(read * shrink[:, None], axis=0) / whole
    tl.store(out + which * WIDTH + at, joined.to(out.dtype.element_ty))


@dataclass(frozen=True)
class Scan:
    """How attention goes over the keys: so many at a time, by so many warps, loads so many blocks ahead."""

    block: int
    warps: int
    stages: int
    tensor_cores: bool
    programs: int = (
        512  # rows are split until there are so many, which keeps every multiprocessor busy
    )


PLAIN_SCAN = Scan(32, 4, 3, tensor_cores=False)
# for few programs and for many, as rows times heads make them; the best of tests/benchmarks/engine_search.py on an H100
SCANS = {
    "few": Scan(16, 1, 3, tensor_cores=True),
    "many": Scan(128, 4, 2, tensor_cores=True),
}


def _fitting(scan: Scan, width: int, dtype: torch.dtype) -> Scan:
    """Return the scan, or a plain one where tensor cores would round float32, or find heads too narrow."""
    if scan.tensor_cores and (width < 16 or dtype not in (torch.bfloat16, torch.float16)):
        return PLAIN_SCAN
    return scan


def attend(
    qkv: torch.Tensor,
    rotary: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scan: Scan | None = None,
) -> torch.Tensor:
    """As ops.attend, but reading only each row's used length; heads of a group read the same keys from the L2."""
    rows, kv_heads, length, width = keys.shape
    assert keys.stride() == values.stride()
    assert keys.stride()[1:] == (length * width, width, 1)
    heads = qkv.shape[1] // width - 2 * kv_heads
    if scan is None:
        scan = SCANS["few" if rows * heads < SCANS["few"].programs else "many"]
    scan = _fitting(scan, width, keys.dtype)
    splits = 1
    while rows * heads * splits < scan.programs and splits * 64 < length and splits < 16:
        splits *= 2
    out = qkv.new_empty((rows, heads * width))
    parts = sums = out
    if splits > 1:
        parts = torch.empty((rows * heads, splits, width), dtype=torch.float32, device=qkv.device)
        sums = torch.empty((rows * heads, splits, 2), dtype=torch.float32, device=qkv.device)
    _attend[(rows * heads, splits)](
        qkv,
        rotary,
        keys,
        values,
        positions,
        parts,
        sums,
        width**-0.5 * 1.4426950408889634,  # log2(e): the hardware's exponential is of base 2
        length,
        keys.stride(0),
        heads,
        kv_heads,
        WIDTH=width,
        SPLITS=splits,
        BLOCK=scan.block,
        TENSOR_CORES=scan.tensor_cores,
        LOWEST=_LOWEST,
        num_warps=scan.warps,
        num_stages=scan.stages,
        **Launch.options(),
    )
    if splits > 1:
        _join[(rows * heads,)](
            parts, sums, out, WIDTH=width, SPLITS=splits, num_warps=1, **Launch.options()
        )
    return out
