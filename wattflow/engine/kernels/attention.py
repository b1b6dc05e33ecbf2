# Triton writes compile-time constants in capitals, reads annotations as code, and a kernel takes what it takes:
# ruff: noqa: N803, ANN001, ANN202, PLR0915, PLR0917
# Triton has no types, and is absent where torch was built without CUDA:
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, no-untyped-def, import-not-found, unused-ignore"
"""Attention of one query a row over the used length of its cache, in Triton.

A program takes one KV head of one row, reads its keys and values once for all query heads that share them, and splits
the length with others where rows and KV heads are too few to keep a GPU busy.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

from wattflow.engine.kernels.heads import turned
from wattflow.engine.kernels.launch import Launch, wait
from wattflow.engine.ops import HeadNorms

_LOWEST = -1.0e30  # below any score, and finite, so that the difference of two is 0 and not NaN
_MOST_SPLITS = 64


@triton.jit(do_not_specialize=["splits"])
def _attend(
    qkv,
    rotary,
    keys,
    values,
    positions,
    gains,
    out,
    sums,
    scale,
    eps,
    length,
    row_stride,
    kv_heads,
    splits,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    TALL: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    LOWEST: tl.constexpr,
    EARLY: tl.constexpr,
):
    # It turns its queries, and the new key by itself: what the cache holds of this position is written here, for later
    # steps, and read by none of this one. The least height of a product is 16: rows beyond the group are zeros, and
    # nothing of them is kept.
    which = tl.program_id(0)
    split = tl.program_id(1)
    row = (which // kv_heads).to(tl.int64)
    kv_head = which % kv_heads
    at = tl.arange(0, WIDTH)[None, :]
    member = tl.arange(0, TALL)
    real = (member < GROUP)[:, None]
    kind = keys.dtype.element_ty
    cached = tl.load(positions + row)
    cosine = tl.load(rotary + cached * (WIDTH // 2) + at % (WIDTH // 2))
    sine = tl.load(rotary + (length + cached) * (WIDTH // 2) + at % (WIDTH // 2))
    wait(EARLY)
    source = qkv + row * (GROUP + 2) * kv_heads * WIDTH
    asked = source + (kv_head * GROUP + member)[:, None] * WIDTH
    query = turned(asked, at, real, cosine, sine, gains, eps, WIDTH, NORM)
    source += (GROUP * kv_heads + kv_head) * WIDTH
    new_key = turned(source, at, at < WIDTH, cosine, sine, gains + WIDTH, eps, WIDTH, NORM)
    new_value = tl.load(source + kv_heads * WIDTH + at)

    span = tl.cdiv(tl.cdiv(cached + 1, splits), BLOCK) * BLOCK
    start = split * span
    stop = tl.minimum(cached, start + span)
    base = row * row_stride + kv_head * length * WIDTH
    has_new = (cached >= start) & (cached < start + span)
    if has_new:
        tl.store(keys + base + cached * WIDTH + at, new_key)
        tl.store(values + base + cached * WIDTH + at, new_value)

    lane = tl.arange(0, BLOCK)
    most = tl.full((TALL,), LOWEST, tl.float32)
    total = tl.zeros((TALL,), tl.float32)
    read = tl.zeros((TALL, WIDTH), tl.float32)
    for first in range(start, stop, BLOCK):
        place = first + lane
        seen = place < stop
        there = base + place[:, None] * WIDTH + at
        key = tl.load(keys + there, mask=seen[:, None], other=0.0)
        value = tl.load(values + there, mask=seen[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        score = tl.where(seen[None, :], score, LOWEST)
        higher = tl.maximum(most, tl.max(score, axis=1))
        shrink = tl.exp2(most - higher)
        share = tl.exp2(score - higher[:, None])
        total = total * shrink + tl.sum(share, axis=1)
        read = read * shrink[:, None] + tl.dot(share.to(kind), value, input_precision=PRECISION)
        most = higher

    new_score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32), axis=1) * scale
    highest = tl.maximum(most, tl.where(has_new, new_score, LOWEST))
    shrink = tl.exp2(most - highest)
    share_of_new = tl.where(has_new, tl.exp2(new_score - highest), 0.0)
    total = total * shrink + share_of_new
    read = read * shrink[:, None] + share_of_new[:, None] * new_value.to(tl.float32)
    part = (which.to(tl.int64) * splits + split) * GROUP + member
    if WHOLE:
        read = read / total[:, None]
    else:
        tl.store(sums + part * 2, highest, mask=member < GROUP)
        tl.store(sums + part * 2 + 1, total, mask=member < GROUP)
    tl.store(out + part[:, None] * WIDTH + at, read.to(out.dtype.element_ty), mask=real)


@triton.jit
def _join(
    parts,
    sums,
    out,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    # one program a query head
    wait(EARLY)
    head = tl.program_id(0).to(tl.int64)
    part = ((head // GROUP) * SPLITS + tl.arange(0, SPLITS)) * GROUP + head % GROUP
    at = tl.arange(0, WIDTH)
    highest = tl.load(sums + part * 2)
    total = tl.load(sums + part * 2 + 1)
    read = tl.load(parts + part[:, None] * WIDTH + at[None, :])
    shrink = tl.exp2(highest - tl.max(highest, axis=0))
    whole = tl.sum(total * shrink, axis=0)
    joined = tl.sum(read * shrink[:, None], axis=0) / whole
    tl.store(out + head * WIDTH + at, joined.to(out.dtype.element_ty))


@dataclass(frozen=True)
class Scan:
    """How attention goes over the keys: so many at a time, by so many warps, loads so many blocks ahead.

    Rows are split until there are `busy` programs a multiprocessor.
    """

    block: int
    warps: int
    stages: int
    busy: int


# from tests/benchmarks/engine_attention.py on an H200: of few rows times KV heads, of many, and of many short ones
FEW, MANY, SHORT = Scan(32, 2, 3, busy=1), Scan(64, 2, 2, busy=2), Scan(16, 1, 3, busy=2)
_SHORT = 512  # tokens a row at most: at 177 it takes 0.9 of the time, at 1,024 as long or 1.08
_EXACT = Scan(16, 4, 1, busy=2)  # float32, by products that do not round


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 4
    )


def scan_for(programs: int, cache: torch.Tensor) -> Scan:
    """Return the scan for so many rows times KV heads of a cache [..., length, head_dim]."""
    if cache.dtype not in (torch.bfloat16, torch.float16):
        return _EXACT
    if programs < _multiprocessors(cache.device):
        return FEW
    return SHORT if cache.shape[-2] <= _SHORT else MANY


def splits_for(programs: int, length: int, scan: Scan, device: torch.device) -> int:
    """Return into how many parts each length is split: a power of two, each part a block at least."""
    splits = 1
    enough = scan.busy * _multiprocessors(device)
    while programs * splits < enough and splits < _MOST_SPLITS and splits * scan.block < length:
        splits *= 2
    return splits


def attend(
    qkv: torch.Tensor,
    norms: HeadNorms | None,
    rotary: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scan: Scan | None = None,
    splits: int | None = None,
) -> torch.Tensor:
    """As ops.attend, but reading only each row's used length, once for all heads of a group."""
    rows, kv_heads, length, width = keys.shape
    assert keys.stride() == values.stride()
    assert keys.stride()[1:] == (length * width, width, 1)
    heads = qkv.shape[1] // width - 2 * kv_heads
    group = heads // kv_heads
    scan = scan or scan_for(rows * kv_heads, keys)
    splits = splits or splits_for(rows * kv_heads, length, scan, keys.device)
    out = qkv.new_empty((rows, heads * width))
    parts = sums = out
    if splits > 1:
        parts = torch.empty((rows * heads, splits, width), dtype=torch.float32, device=qkv.device)
        sums = torch.empty((rows * heads, splits, 2), dtype=torch.float32, device=qkv.device)
    _attend[(rows * kv_heads, splits)](
        qkv,
        rotary,
        keys,
        values,
        positions,
        qkv if norms is None else norms.gains,
        parts,
        sums,
        width**-0.5 * 1.4426950408889634,  # log2(e): the hardware's exponential is of base 2
        0.0 if norms is None else norms.eps,
        length,
        keys.stride(0),
        kv_heads,
        splits,
        WIDTH=width,
        GROUP=group,
        TALL=max(16, triton.next_power_of_2(group)),
        WHOLE=splits == 1,
        BLOCK=scan.block,
        NORM=norms is not None,
        PRECISION="ieee" if keys.dtype == torch.float32 else "tf32",
        LOWEST=_LOWEST,
        num_warps=scan.warps,
        num_stages=scan.stages,
        **Launch.options(),
    )
    if splits > 1:
        _join[(rows * heads,)](
            parts,
            sums,
            out,
            WIDTH=width,
            GROUP=group,
            SPLITS=splits,
            num_warps=1,
            **Launch.options(),
        )
    return out
