# Triton writes compile-time constants in capitals, reads annotations as code, and a kernel takes what it takes:
# ruff: noqa: N803, ANN001, ANN202, PLR0912, PLR0915, PLR0917, C901
# Triton has no types, and is absent where torch was built without CUDA:
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, no-untyped-def, import-not-found, unused-ignore"
"""Products of one row in Triton, with the norm before them and SwiGLU or the residual after them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import triton
import triton.language as tl

from wattflow.engine.kernels.launch import Launch, wait
from wattflow.engine.products import Weight

One = TypeVar("One")
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
    (2, 4096, 8),
    (4, 4096, 8),
)


@triton.jit
def _gemv(
    x,
    weight,
    scales,
    bias,
    norm,
    out,
    eps,
    outs,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
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
    wait(EARLY)
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
    if SCALED:
        result = result * tl.load(scales + row, mask=row < outs, other=0.0)
    if GATE:
        up = tl.sum(ups, axis=1) * scale
        if SCALED:
            up = up * tl.load(scales + outs + row, mask=row < outs, other=0.0)
        result = result / (1.0 + tl.exp(-result)) * up
    if BIASED:
        result += tl.load(bias + row, mask=row < outs, other=0.0).to(tl.float32)
    if ADD:
        result += tl.load(out + row, mask=row < outs, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row < outs)


def gemv(
    x: torch.Tensor,
    weight: Weight,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    gate: bool = False,
    stream: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    tile: Tile = TILES[0],
) -> torch.Tensor:
    """Return row x [1, in] times weight [out, in], written to `out` or added to `stream` where one of them is given.

    `norm` has x normed first; `gate` applies SwiGLU to a weight of gate rows, then up rows, which has no bias. The
    weight may be fp8; x is as it is.
    """
    assert x.shape[0] == 1
    assert weight.bias is None or not gate
    outs, width = weight.values.shape
    outs = outs // 2 if gate else outs
    if stream is not None:
        out = stream
    elif out is None:
        out = x.new_empty((1, outs))
    rows, block, warps = tile
    _gemv[(triton.cdiv(outs, rows),)](
        x,
        weight.values,
        x if weight.scales is None else weight.scales,
        x if weight.bias is None else weight.bias,
        x if norm is None else norm,
        out,
        eps,
        outs,
        WIDTH=width,
        ROWS=rows,
        BLOCK=min(block, triton.next_power_of_2(width)),
        SCALED=weight.scales is not None,
        BIASED=weight.bias is not None,
        NORM=norm is not None,
        GATE=gate,
        ADD=stream is not None,
        num_warps=warps,
        **Launch.options(),
    )
    return out


def quickest_tile(
    weights: list[Weight],
    dtype: torch.dtype,
    *,
    norm: torch.Tensor | None = None,
    gate: bool = False,
) -> Tile:
    """Return the quickest tile for weights of one shape, timed over all layers so that none comes from the L2."""
    outs, width = weights[0].values.shape
    device = weights[0].values.device
    x = torch.randn((1, width), dtype=dtype, device=device)
    stream = None if norm is not None else torch.zeros((1, outs), dtype=dtype, device=device)

    def milliseconds(tile: Tile) -> float:
        return milliseconds_each(
            weights,
            lambda w: gemv(x, w, norm=norm, eps=1e-5, gate=gate, stream=stream, tile=tile),
        )

    return min(TILES, key=milliseconds)


def milliseconds_each(tensors: Sequence[One], work: Callable[[One], object]) -> float:
    """Return the time of one call, from replays of a graph of all calls, as a launch may outlast its kernel."""
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
