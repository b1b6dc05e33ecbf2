# ruff: noqa: PLR0917 - as in ops.py
"""The kernel sets of a GPU: `cublas` and `triton`.

    cublas   products by cuBLAS; norm, rotation with the write to the cache, attention and SwiGLU fused, in Triton
    triton   besides, the products of one row, with the norm before them and SwiGLU or the residual after them

Every function gives what its namesake in ops.py gives, and rounds where that rounds, but for the order of sums.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from wattflow.engine.kernels import attention
from wattflow.engine.kernels.gemv import TILES, Tile, gemv
from wattflow.engine.kernels.heads import rotate_store
from wattflow.engine.kernels.launch import Launch
from wattflow.engine.kernels.rowwise import (
    add_norm,
    add_norm_rows8,
    rows8,
    swiglu,
    swiglu_rows8,
)
from wattflow.engine.ops import EAGER, HeadNorms, Ops
from wattflow.engine.products import Rows8, Weight, product

Tensor = torch.Tensor


def cublas() -> Ops:
    """Return the set with products by cuBLAS, all else fused."""
    scans = f"{attention.MANY}, short {attention.SHORT}, few rows {attention.FEW}"
    early = "launched early" if Launch.early else "launched one after another"
    return replace(
        EAGER,
        name="cublas",
        linears="cublas",
        attention=f"triton over the used length, {scans}, {early}",
        reads_used_length=True,
        norm_linear=_norm_linear,
        norm_gate=_norm_gate,
        linear=_linear,
        linear_add=_linear_add,
        rotate_store=rotate_store,
        attend=_attend,
    )


def one_row(tiles: Mapping[tuple[int, ...], Tile]) -> Ops:
    """Return the set with products of one row by Triton, a tile for each weight's shape; all else as in `cublas`."""

    def tile(weight: Weight) -> Tile:
        return tiles.get(tuple(weight.values.shape), TILES[0])

    def norm_linear(
        stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Weight
    ) -> Tensor:
        if delta is not None:
            stream.add_(delta)
        return gemv(stream, weight, norm=norm, eps=eps, tile=tile(weight))

    def norm_gate(
        stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Weight
    ) -> Tensor:
        if delta is not None:
            stream.add_(delta)
        return gemv(stream, weight, norm=norm, eps=eps, gate=True, tile=tile(weight))

    def linear(x: Tensor | Rows8, weight: Weight, out: Tensor | None) -> Tensor:
        assert isinstance(x, Tensor)
        return gemv(x, weight, out=out, tile=tile(weight))

    def linear_add(stream: Tensor, x: Tensor | Rows8, weight: Weight) -> None:
        assert isinstance(x, Tensor)
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
    stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Weight
) -> Tensor:
    normed = add_norm if weight.scales is None else add_norm_rows8
    return product(normed(stream, delta, norm, eps), weight)


def _norm_gate(
    stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Weight
) -> Tensor | Rows8:
    gate_up = _norm_linear(stream, delta, norm, eps, weight)
    return swiglu(gate_up) if weight.scales is None else swiglu_rows8(gate_up)


def _linear(x: Tensor | Rows8, weight: Weight, out: Tensor | None) -> Tensor:
    if weight.scales is not None and isinstance(x, Tensor):
        x = rows8(x)
    return product(x, weight, out)


def _linear_add(stream: Tensor, x: Tensor | Rows8, weight: Weight) -> Tensor:
    del stream  # the next norm adds it
    return _linear(x, weight, None)


def _attend(
    qkv: Tensor,
    norms: HeadNorms | None,
    rotary: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    bucket: int,
) -> Tensor:
    del bucket  # it reads each row's used length
    return attention.attend(qkv, norms, rotary, keys, values, positions)
