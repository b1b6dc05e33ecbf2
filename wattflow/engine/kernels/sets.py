# ruff: noqa: PLR0917 - as in ops.py
"""The kernel sets of a GPU: `cublas` and `triton`.

    cublas   products by cuBLAS; norm, rotation with the write to the cache, attention and SwiGLU fused, in Triton
    triton   besides, the products of one row, with the norm before them and SwiGLU or the residual after them

Every function gives what its namesake in ops.py gives, and rounds where that rounds, but for the order of sums.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch.nn import functional

from wattflow.engine import ops
from wattflow.engine.kernels import attention
from wattflow.engine.kernels.gemv import TILES, Tile, gemv
from wattflow.engine.kernels.launch import Launch
from wattflow.engine.kernels.rowwise import add_norm, rotate_store, swiglu
from wattflow.engine.ops import Ops

Tensor = torch.Tensor


def cublas() -> Ops:
    """Return the set with products by cuBLAS, all else fused."""
    scans = attention.SCANS
    early = "launched early" if Launch.early else "launched one after another"
    return Ops(
        name="cublas",
        linears="cublas",
        attention=f"triton over the used length, {scans['few']}, many rows {scans['many']}, {early}",
        reads_used_length=True,
        norm_linear=_norm_linear,
        norm_gate=_norm_gate,
        linear=ops.linear,
        linear_add=ops.linear_add,
        rotate_store=rotate_store,
        attend=_attend,
    )


def one_row(tiles: Mapping[tuple[int, ...], Tile]) -> Ops:
    """Return the set with products of one row by Triton, a tile for each weight's shape; all else as in `cublas`."""

    def tile(weight: Tensor) -> Tile:
        return tiles.get(tuple(weight.shape), TILES[0])

    def norm_linear(
        stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Tensor
    ) -> Tensor:
        if delta is not None:
            stream.add_(delta)
        return gemv(stream, weight, norm=norm, eps=eps, tile=tile(weight))

    def norm_gate(
        stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Tensor
    ) -> Tensor:
        if delta is not None:
            stream.add_(delta)
        return gemv(stream, weight, norm=norm, eps=eps, gate=True, tile=tile(weight))

    def linear(x: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
        return gemv(x, weight, out=out, tile=tile(weight))

    def linear_add(stream: Tensor, x: Tensor, weight: Tensor) -> None:
        gemv(x, weight, stream=stream, tile=tile(weight))

    by_shape = ", ".join(f"{a}x{b}: {tiles[a, b]}" for a, b in sorted(tiles))
    choice = f", (rows, block, warps) of {by_shape}" if tiles else ""
    return replace(
        cublas(),
        name="triton",
        linears=f"triton, one row{choice}",
        norm_linear=norm_linear,
        norm_gate=norm_gate,
        linear=linear,
        linear_add=linear_add,
    )


def _norm_linear(
    stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Tensor
) -> Tensor:
    return functional.linear(add_norm(stream, delta, norm, eps), weight)


def _norm_gate(
    stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Tensor
) -> Tensor:
    return swiglu(functional.linear(add_norm(stream, delta, norm, eps), weight))


def _attend(
    qkv: Tensor, rotary: Tensor, keys: Tensor, values: Tensor, positions: Tensor, bucket: int
) -> Tensor:
    del bucket  # it reads each row's used length
    return attention.attend(qkv, rotary, keys, values, positions)
