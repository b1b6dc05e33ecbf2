# Triton writes compile-time constants in capitals, reads annotations as code, and a kernel takes what it takes:
# ruff: noqa: N803, ANN001, ANN202, PLR0915, PLR0917, C901
# Triton has no types, and is absent where torch was built without CUDA:
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, no-untyped-def, import-not-found, unused-ignore"
"""Triton kernels of the `fast` engine, and the sets that use them: `cublas` and `triton`.

    cublas   products by cuBLAS; norm, rotation with the write to the cache, attention and SwiGLU fused, in Triton
    triton   besides, the products of one row, with the norm before them and SwiGLU or the residual after them

Every kernel does what its namesake in pieces.py does, and rounds where that rounds but for the order of sums.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.nn import functional

from wattflow.engine import ops
from wattflow.engine.llama import wide

_log = logging.getLogger(__name__)

_LOWEST = -1.0e30  # below any score, and finite, so that the difference of two is 0 and not NaN


# --- early launch ---
#
# On Hopper a kernel may be launched while the one before it still runs: it reads what no kernel writes (weights), waits
# until the other has ended and its writes are seen, and only then touches what that left. Each waits before it lets the
# next one in, so no more than two are ever under way. Where that cannot be had, kernels follow each other.


def _can_launch_early() -> bool:
    if not torch.cuda.is_available() or not hasattr(tl.extra.cuda, "gdc_wait"):
        return False
    return torch.cuda.get_device_capability() >= (9, 0)


class Launch:
    """How kernels are launched; `early` is taken back where a check finds that it does not work."""

    early = _can_launch_early()

    @classmethod
    def options(cls) -> dict[str, bool]:
        """What a launch is told, beside its arguments."""
        return {"EARLY": True, "launch_pdl": True} if cls.early else {"EARLY": False}


@triton.jit
def _wait(EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


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
    _wait(EARLY)
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
    """As pieces.add_norm, in one kernel."""
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
    _wait(EARLY)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + token * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * width + width + at, mask=inside, other=0.0)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty)
    tl.store(out + token * width + at, silu * up, mask=inside)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """As pieces.swiglu, in one kernel."""
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
    _wait(EARLY)
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
    """As pieces.rotate_store, in one kernel; keys and values are views of one cache, equally laid out."""
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


# --- attention of one query a row, over the used length ---


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
    _wait(EARLY)
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
    _wait(EARLY)
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
    """The scan, or a plain one where tensor cores would round float32, or find heads too narrow."""
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
    """As pieces.attend, but reading only each row's used length; heads of a group read the same keys from the L2."""
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


# --- products of one row ---

Tile = tuple[int, int, int]  # outputs a program, inputs it takes at a time, warps

# the best of tests/benchmarks/engine_search.py for LLaMA-7B's five shapes on an H100, and what fits other widths
TILES: tuple[Tile, ...] = (
    (2, 2048, 8),
    (4, 2048, 8),
    (1, 4096, 8),
    (4, 4096, 16),
    (1, 2048, 4),
    (8, 1024, 4),
    (4, 1024, 2),
)


@triton.jit
def _gemv(
    x,
    weight,
    norm,
    out,
    eps,
    outs,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    GATE: tl.constexpr,
    ADD: tl.constexpr,
    EARLY: tl.constexpr,
):
    # ROWS outputs a program. The norm's sum of squares is gathered while x passes; GATE pairs row n with n + outs. A
    # block of weights is always on its way: the first one while the kernel before this one still runs.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = (row < outs)[:, None]
    at = tl.arange(0, BLOCK)
    base = weight + row.to(tl.int64)[:, None] * WIDTH + at[None, :]
    up_base = base + outs.to(tl.int64) * WIDTH
    mask = real & (at < WIDTH)[None, :]
    w = tl.load(base, mask=mask, other=0.0, eviction_policy="evict_first")
    if GATE:
        u = tl.load(up_base, mask=mask, other=0.0, eviction_policy="evict_first")
    if NORM:
        gain = tl.load(norm + at, mask=at < WIDTH, other=0.0)
    _wait(EARLY)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    ups = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, WIDTH, BLOCK):
        place = first + at
        inside = place < WIDTH
        this = w.to(tl.float32)
        if GATE:
            this_up = u.to(tl.float32)
        if BLOCK < WIDTH:
            ahead = first + BLOCK
            mask = real & (place + BLOCK < WIDTH)[None, :]
            w = tl.load(base + ahead, mask=mask, other=0.0, eviction_policy="evict_first")
            if GATE:
                u = tl.load(up_base + ahead, mask=mask, other=0.0, eviction_policy="evict_first")
        y = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += y * y
            y = y * gain.to(tl.float32)
            if BLOCK < WIDTH:
                gain = tl.load(norm + place + BLOCK, mask=place + BLOCK < WIDTH, other=0.0)
        sums += this * y[None, :]
        if GATE:
            ups += this_up * y[None, :]
    result = tl.sum(sums, axis=1)
    scale = 1.0
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / WIDTH + eps)
        result = result * scale
    if GATE:
        result = result / (1.0 + tl.exp(-result)) * (tl.sum(ups, axis=1) * scale)
    if ADD:
        result += tl.load(out + row, mask=row < outs, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row < outs)


def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    gate: bool = False,
    stream: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    tile: Tile = TILES[0],
) -> torch.Tensor:
    """Row x [1, in] times weight [out, in]: normed before if `norm`, SwiGLU after if `gate`, into `stream` if given.

    The answer is written to `out` where that is given.
    """
    assert x.shape[0] == 1
    outs, width = weight.shape
    outs = outs // 2 if gate else outs
    if stream is not None:
        out = stream
    elif out is None:
        out = x.new_empty((1, outs))
    rows, block, warps = tile
    _gemv[(triton.cdiv(outs, rows),)](
        x,
        weight,
        x if norm is None else norm,
        out,
        eps,
        outs,
        WIDTH=width,
        ROWS=rows,
        BLOCK=min(block, triton.next_power_of_2(width)),
        NORM=norm is not None,
        GATE=gate,
        ADD=stream is not None,
        num_warps=warps,
        **Launch.options(),
    )
    return out


# --- the sets ---


class Cublas:
    """Products by cuBLAS, all else fused."""

    name = "cublas"
    linears = "cublas"
    reads_used_length = True

    def __init__(self) -> None:
        early = "launched early" if Launch.early else "launched one after another"
        self.attention = (
            f"triton over the used length, {SCANS['few']}, many rows {SCANS['many']}, {early}"
        )

    def norm_linear(
        self,
        stream: torch.Tensor,
        delta: torch.Tensor | None,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """See pieces.Pieces."""
        return functional.linear(add_norm(stream, delta, norm, eps), weight)

    def norm_gate(
        self,
        stream: torch.Tensor,
        delta: torch.Tensor | None,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """See pieces.Pieces."""
        return swiglu(functional.linear(add_norm(stream, delta, norm, eps), weight))

    def project(
        self,
        stream: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        *,
        alone: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """See pieces.Pieces; the next norm adds it at no cost."""
        del stream, alone
        return ops.linear(x, weight, out)

    def rotate_store(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        per_row: int,
    ) -> torch.Tensor:
        """See pieces.Pieces."""
        return rotate_store(qkv, rotary, positions, keys, values, per_row)

    def attend(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        bucket: int,
    ) -> torch.Tensor:
        """See pieces.Pieces."""
        del bucket
        return attend(qkv, rotary, keys, values, positions)


class Gemv(Cublas):
    """One row's products by Triton, with what stands around them."""

    name = "triton"
    linears = "triton, one row"

    def __init__(self) -> None:
        super().__init__()
        self._tiles: dict[tuple[int, ...], Tile] = {}  # by the weight's shape

    def tune(
        self, weights: list[torch.Tensor], *, norm: torch.Tensor | None = None, gate: bool = False
    ) -> None:
        """Take the quickest tile for weights of one shape; all layers' in turn, so that none comes from the L2."""
        x = torch.randn_like(weights[0][:1])
        stream = None if norm is not None else torch.zeros_like(weights[0][:, 0]).unsqueeze(0)
        shape = tuple(weights[0].shape)

        def milliseconds(tile: Tile) -> float:
            return milliseconds_each(
                weights,
                lambda w: gemv(x, w, norm=norm, eps=1e-5, gate=gate, stream=stream, tile=tile),
            )

        self._tiles[shape] = min(TILES, key=milliseconds)
        told = ", ".join(f"{a}x{b}: {self._tiles[a, b]}" for a, b in sorted(self._tiles))
        self.linears = f"triton, one row, (rows, block, warps) of {told}"

    def _tile(self, weight: torch.Tensor) -> Tile:
        return self._tiles.get(tuple(weight.shape), TILES[0])

    def norm_linear(
        self,
        stream: torch.Tensor,
        delta: torch.Tensor | None,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """See pieces.Pieces."""
        if delta is not None:
            stream.add_(delta)
        return gemv(stream, weight, norm=norm, eps=eps, tile=self._tile(weight))

    def norm_gate(
        self,
        stream: torch.Tensor,
        delta: torch.Tensor | None,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """See pieces.Pieces."""
        if delta is not None:
            stream.add_(delta)
        return gemv(stream, weight, norm=norm, eps=eps, gate=True, tile=self._tile(weight))

    def project(
        self,
        stream: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        *,
        alone: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """See pieces.Pieces."""
        if not alone:
            return gemv(x, weight, out=out, tile=self._tile(weight))
        gemv(x, weight, stream=stream, tile=self._tile(weight))
        return None


def milliseconds_each(tensors: list[torch.Tensor], work: Callable[[torch.Tensor], object]) -> float:
    """The time of one call, over replays of a graph of all tensors' calls: single launches would hide the kernels."""
    rounds = max(3, 64 // len(tensors))
    for _ in range(2):  # compiles, and brings clocks up
        work(tensors[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for tensor in tensors:
            work(tensor)
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(rounds):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / (rounds * len(tensors))


def why_not(cache: torch.Tensor, rotary: torch.Tensor) -> str | None:
    """Why these kernels cannot serve a cache [layers, 2, rows, KV heads, length, head_dim]; None when they can.

    They run once, on a small cache of that dtype and head width, and are compared with pieces.py.
    """
    if cache.dtype == torch.float64:
        return "the fused kernels compute in float32"
    width = cache.shape[-1]
    if width & (width - 1):
        return f"heads are {width} wide, which is no power of two"
    reason = _why_wrong(cache, rotary)
    if reason is not None and Launch.early:
        _log.warning("kernels are not launched early: %s", reason)
        Launch.early = False
        reason = _why_wrong(cache, rotary)
    return reason


def _why_wrong(cache: torch.Tensor, rotary: torch.Tensor) -> str | None:
    try:
        worst = _disagreement(cache, rotary)
    except Exception as error:  # noqa: BLE001 - a compiler or driver fails as it likes, and plain torch can still run
        return f"Triton {triton.__version__} failed: {str(error).partition(chr(10))[0]}"
    allowed = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(cache.dtype, 1e-4)
    return None if worst <= allowed else f"they differ from plain torch by {worst:.1e}"


def _disagreement(cache: torch.Tensor, rotary: torch.Tensor) -> float:
    """The largest relative difference between these kernels and pieces.py on random inputs."""
    dtype, device, width = cache.dtype, cache.device, cache.shape[-1]
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    length = min(rotary.shape[1], 200)
    angles = rotary[:, :length].contiguous()
    positions = torch.tensor([length - 1, length // 2, 0], device=device)
    caches = random(2, 3, 2, length, width)
    ours, theirs = caches.clone(), caches.clone()
    qkv, norm, matrix = random(3, 8 * width), random(8 * width), random(96, 8 * width)
    stream, delta = random(3, 8 * width), random(3, 8 * width)
    prompt, starts = random(2, 8 * width), torch.arange(2, device=device)
    pairs = [
        (
            rotate_store(prompt, angles, starts, ours[0, :1], ours[1, :1], 2),
            ops.rotate_store(prompt, angles, starts, theirs[0, :1], theirs[1, :1], 2),
        ),
        *(
            (
                attend(qkv, angles, ours[0], ours[1], positions, scan),
                ops.attend(qkv, angles, theirs[0], theirs[1], positions, length),
            )
            for scan in SCANS.values()
        ),
        (ours, theirs),
        (
            add_norm(stream.clone(), delta, norm, 1e-5),
            ops.add_norm(stream.clone(), delta, norm, 1e-5),
        ),
        (swiglu(qkv), ops.swiglu(qkv)),
        (
            gemv(stream[:1], matrix, norm=norm, eps=1e-5, gate=True),
            ops.swiglu(functional.linear(ops.add_norm(stream[:1], None, norm, 1e-5), matrix)),
        ),
    ]
    return max(
        float((a.to(wide(dtype)) - b.to(wide(dtype))).norm() / b.to(wide(dtype)).norm())
        for a, b in pairs
    )
