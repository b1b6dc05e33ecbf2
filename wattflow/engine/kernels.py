# Triton writes compile-time constants in capitals, reads annotations as code, and a kernel takes what it takes:
# ruff: noqa: N803, ANN001, ANN202, PLR0917
# Triton has no types, and is absent where torch was built without CUDA:
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, no-untyped-def, import-not-found, unused-ignore"
"""Triton kernels of the `fast` engine, and the sets that use them: `cublas` and `triton`.

    cublas   products by cuBLAS; norm, rotation with the write to the cache, attention and SwiGLU fused, in Triton
    triton   besides, the products of one row, with the norm before them and SwiGLU or the residual after them

Every kernel does what its namesake in pieces.py does, and rounds where that rounds but for the order of sums.
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional

from wattflow.engine import pieces
from wattflow.engine.llama import wide

_LOWEST = -1.0e30  # below any score, and finite, so that the difference of two is 0 and not NaN


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
):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(stream + row + at, mask=inside, other=0.0)
    if HAS_DELTA:
        added = tl.load(delta + row + at, mask=inside, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + added).to(stream.dtype.element_ty)
        tl.store(stream + row + at, x, mask=inside)
    y = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(y * y, axis=0) / width + eps)
    normed = (y * scale).to(out.dtype.element_ty)
    tl.store(out + row + at, normed * tl.load(weight + at, mask=inside, other=0.0), mask=inside)


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
    )
    return out


# --- SwiGLU ---


@triton.jit
def _swiglu(gate_up, out, width, BLOCK: tl.constexpr):
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
    _swiglu[(tokens, triton.cdiv(width, 1024))](gate_up, out, width, BLOCK=1024, num_warps=4)
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
):
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
    )
    return query


# --- attention of one query a row, over the used length ---


@triton.jit
def _attend(
    query,
    keys,
    values,
    positions,
    out,
    sums,
    scale,
    row_stride,
    head_stride,
    heads,
    group,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    LOWEST: tl.constexpr,
):
    # One program a head and split. BLOCK lanes each keep a softmax of their own over every BLOCK-th key, and meet only
    # at the end: nothing crosses warps inside the loop.
    which = tl.program_id(0)
    split = tl.program_id(1)
    row = (which // heads).to(tl.int64)
    head = which % heads
    length = tl.load(positions + row) + 1
    span = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    start = split * span
    stop = tl.minimum(length, start + span)
    lane = tl.arange(0, BLOCK)
    at = tl.arange(0, WIDTH)
    q = tl.load(query + which.to(tl.int64) * WIDTH + at).to(tl.float32) * scale
    base = row * row_stride + (head // group) * head_stride
    most = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    read = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(start, stop, BLOCK):
        place = first + lane
        seen = place < stop
        there = base + place[:, None] * WIDTH + at[None, :]
        key = tl.load(keys + there, mask=seen[:, None], other=0.0).to(tl.float32)
        value = tl.load(values + there, mask=seen[:, None], other=0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(key * q[None, :], axis=1), LOWEST)
        higher = tl.maximum(most, score)
        shrink = tl.exp2(most - higher)
        share = tl.where(seen, tl.exp2(score - higher), 0.0)
        total = total * shrink + share
        read = read * shrink[:, None] + share[:, None] * value
        most = higher
    highest = tl.max(most, axis=0)
    shrink = tl.exp2(most - highest)
    whole = tl.sum(total * shrink, axis=0)
    result = tl.sum(read * shrink[:, None], axis=0)
    if SPLITS == 1:
        tl.store(out + which.to(tl.int64) * WIDTH + at, (result / whole).to(out.dtype.element_ty))
    else:
        part = which.to(tl.int64) * SPLITS + split
        tl.store(out + part * WIDTH + at, result)
        tl.store(sums + part * 2, highest)
        tl.store(sums + part * 2 + 1, whole)


@triton.jit
def _join(parts, sums, out, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
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


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """As pieces.attend, but reading only each row's used length; heads of a group read the same keys from the L2."""
    rows, kv_heads, length, width = keys.shape
    heads = query.shape[1]
    # enough programs to keep every multiprocessor busy, no split shorter than a few blocks
    splits = 1
    while rows * heads * splits < 512 and splits * 64 < length and splits < 16:
        splits *= 2
    out = query.new_empty((rows, heads * width))
    parts = sums = out
    if splits > 1:
        parts = torch.empty((rows * heads, splits, width), dtype=torch.float32, device=query.device)
        sums = torch.empty((rows * heads, splits, 2), dtype=torch.float32, device=query.device)
    _attend[(rows * heads, splits)](
        query,
        keys,
        values,
        positions,
        parts,
        sums,
        width**-0.5 * 1.4426950408889634,  # log2(e): the hardware's exponential is of base 2
        keys.stride(0),
        keys.stride(1),
        heads,
        heads // kv_heads,
        WIDTH=width,
        SPLITS=splits,
        BLOCK=32,
        LOWEST=_LOWEST,
        num_warps=4,
    )
    if splits > 1:
        _join[(rows * heads,)](parts, sums, out, WIDTH=width, SPLITS=splits, num_warps=1)
    return out


# --- products of one row ---

Tile = tuple[int, int, int]  # outputs a program, inputs it takes at a time, warps

TILES: tuple[Tile, ...] = (
    (4, 1024, 4),
    (2, 1024, 4),
    (2, 2048, 4),
    (1, 2048, 4),
    (8, 512, 4),
    (4, 1024, 8),
)


@triton.jit
def _gemv(
    x,
    weight,
    norm,
    stream,
    out,
    eps,
    outs,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    GATE: tl.constexpr,
    ADD: tl.constexpr,
):
    # ROWS outputs a program. The norm's sum of squares is gathered while x passes; GATE pairs row n with n + outs.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = (row < outs)[:, None]
    base = weight + row.to(tl.int64)[:, None] * WIDTH
    at = tl.arange(0, BLOCK)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    ups = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, WIDTH, BLOCK):
        place = first + at
        inside = place < WIDTH
        mask = real & inside[None, :]
        w = tl.load(base + place[None, :], mask=mask, other=0.0, eviction_policy="evict_first")
        y = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += y * y
            y = y * tl.load(norm + place, mask=inside, other=0.0).to(tl.float32)
        sums += w.to(tl.float32) * y[None, :]
        if GATE:
            up_base = base + outs.to(tl.int64) * WIDTH
            u = tl.load(
                up_base + place[None, :], mask=mask, other=0.0, eviction_policy="evict_first"
            )
            ups += u.to(tl.float32) * y[None, :]
    result = tl.sum(sums, axis=1)
    scale = 1.0
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / WIDTH + eps)
        result = result * scale
    if GATE:
        result = result / (1.0 + tl.exp(-result)) * (tl.sum(ups, axis=1) * scale)
    if ADD:
        result += tl.load(stream + row, mask=row < outs, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row < outs)


def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    gate: bool = False,
    stream: torch.Tensor | None = None,
    tile: Tile = TILES[0],
) -> torch.Tensor:
    """Row x [1, in] times weight [out, in]: normed before if `norm`, SwiGLU after if `gate`, into `stream` if given."""
    assert x.shape[0] == 1
    outs, width = weight.shape
    outs = outs // 2 if gate else outs
    out = x.new_empty((1, outs)) if stream is None else stream
    rows, block, warps = tile
    _gemv[(triton.cdiv(outs, rows),)](
        x,
        weight,
        x if norm is None else norm,
        out,
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
    )
    return out


# --- the sets ---


class Cublas:
    """Products by cuBLAS, all else fused."""

    name = "cublas"
    linears = "cublas"
    attention = "triton over the used length, split keys"
    reads_used_length = True

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
        self, stream: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, alone: bool
    ) -> torch.Tensor | None:
        """See pieces.Pieces; the next norm adds it at no cost."""
        del stream, alone
        return functional.linear(x, weight)

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
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        bucket: int,
    ) -> torch.Tensor:
        """See pieces.Pieces."""
        del bucket
        return attend(query, keys, values, positions)


class Gemv(Cublas):
    """One row's products by Triton, with what stands around them."""

    name = "triton"
    linears = "triton, one row"

    def __init__(self) -> None:
        self._tiles: dict[tuple[int, ...], Tile] = {}  # by the weight's shape

    def tune(self, weights: list[torch.Tensor], *, gate: bool) -> None:
        """Take the quickest tile for weights of one shape; all layers' in turn, so that none comes from the L2."""
        x = torch.randn_like(weights[0][:1])
        shape = tuple(weights[0].shape)
        milliseconds = {tile: _milliseconds(x, weights, tile, gate=gate) for tile in TILES}
        self._tiles[shape] = min(milliseconds, key=milliseconds.__getitem__)
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
        self, stream: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, alone: bool
    ) -> torch.Tensor | None:
        """See pieces.Pieces."""
        if not alone:
            return gemv(x, weight, tile=self._tile(weight))
        gemv(x, weight, stream=stream, tile=self._tile(weight))
        return None


def _milliseconds(x: torch.Tensor, weights: list[torch.Tensor], tile: Tile, *, gate: bool) -> float:
    """The time of one product, over replays of a graph of all weights: single launches would hide the kernels."""
    rounds = max(3, 64 // len(weights))
    for _ in range(2):  # compiles, and brings clocks up
        gemv(x, weights[0], gate=gate, tile=tile)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for weight in weights:
            gemv(x, weight, gate=gate, tile=tile)
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(rounds):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / (rounds * len(weights))


def why_not(cache: torch.Tensor, rotary: torch.Tensor) -> str | None:
    """Why these kernels cannot serve a cache [layers, 2, rows, KV heads, length, head_dim]; None when they can.

    They run once, on a small cache of that dtype and head width, and are compared with pieces.py.
    """
    if cache.dtype == torch.float64:
        return "the fused kernels compute in float32"
    width = cache.shape[-1]
    if width & (width - 1):
        return f"heads are {width} wide, which is no power of two"
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
    pairs = [
        (
            rotate_store(qkv, angles, positions, ours[0], ours[1], 1),
            pieces.rotate_store(qkv, angles, positions, theirs[0], theirs[1], 1),
        )
    ]
    pairs += [(ours, theirs)]
    query = pairs[0][1]
    pairs += [
        (
            attend(query, theirs[0], theirs[1], positions),
            pieces.attend(query, theirs[0], theirs[1], positions, length),
        ),
        (
            add_norm(stream.clone(), delta, norm, 1e-5),
            pieces.add_norm(stream.clone(), delta, norm, 1e-5),
        ),
        (swiglu(qkv), pieces.swiglu(qkv)),
        (
            gemv(stream[:1], matrix, norm=norm, eps=1e-5, gate=True),
            pieces.swiglu(functional.linear(pieces.add_norm(stream[:1], None, norm, 1e-5), matrix)),
        ),
    ]
    return max(
        float((a.to(wide(dtype)) - b.to(wide(dtype))).norm() / b.to(wide(dtype)).norm())
        for a, b in pairs
    )
