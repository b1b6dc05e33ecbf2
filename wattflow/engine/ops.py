# ruff: noqa: PLR0917 - an operation takes the tensors of its layer, in the order of its work
"""The operations of a layer in the `fast` engine, and their plain form: torch functions that run on any device.

Tokens lie one under another. `stream` [tokens, dim] is the residual stream; a sublayer's output `delta` is added to it
by the next operation that norms it, so that one kernel may do both. kernels/sets.py has the sets for GPUs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from wattflow.engine.llama import rotated, wide
from wattflow.engine.packed import Attend, attend_each
from wattflow.engine.products import Rows8, Weight, product

Tensor = torch.Tensor


@dataclass(frozen=True)
class HeadNorms:
    """Norms of queries and keys before they are turned, of models that have them."""

    gains: Tensor  # [2, head_dim]: a query's, a key's
    eps: float


@dataclass(frozen=True)
class Ops:
    """One set of functions for all work of a layer but its collectives; arguments as in this module's functions."""

    name: str  # as in engine.kernels
    linears: str
    attention: str
    prefill_attention: str
    reads_used_length: bool  # attention stops at a row's length, so that one graph serves all

    norm_linear: Callable[[Tensor, Tensor | None, Tensor, float, Weight], Tensor]
    norm_gate: Callable[[Tensor, Tensor | None, Tensor, float, Weight], Tensor | Rows8]
    linear: Callable[[Tensor | Rows8, Weight, Tensor | None], Tensor]
    linear_add: Callable[[Tensor, Tensor | Rows8, Weight], Tensor | None]
    rotate_store: Callable[[Tensor, HeadNorms | None, Tensor, Tensor, Tensor, Tensor, Tensor], None]
    attend: Callable[[Tensor, HeadNorms | None, Tensor, Tensor, Tensor, Tensor, int], Tensor]
    attend_packed: Attend


def norm_linear(
    stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Weight
) -> Tensor:
    """Return the product [tokens, out] of the normed stream with `weight` [out, dim]; adds `delta` to the stream."""
    return product(add_norm(stream, delta, norm, eps), weight)


def norm_gate(
    stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Weight
) -> Tensor | Rows8:
    """Return SwiGLU of that product: [tokens, out / 2] from a weight of gate rows, then up rows."""
    return swiglu(norm_linear(stream, delta, norm, eps, weight))


def linear(x: Tensor | Rows8, weight: Weight, out: Tensor | None) -> Tensor:
    """Return the product [tokens, out] of x and `weight` [out, in], written to `out` if given."""
    return product(x, weight, out)


def linear_add(stream: Tensor, x: Tensor | Rows8, weight: Weight) -> Tensor | None:
    """That product, for the next norm to add to the stream; None from a set that has added it already."""
    del stream
    return product(x, weight)


def add_norm(stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float) -> Tensor:
    """Return RMSNorm of stream + delta, [tokens, dim]; the sum stays in the stream."""
    if delta is not None:
        stream.add_(delta)
    x = stream.to(wide(stream.dtype))
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x.to(stream.dtype) * norm


def swiglu(gate_up: Tensor) -> Tensor:
    """Return the first half of each row through SiLU, times the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def rotate_store(
    qkv: Tensor,
    norms: HeadNorms | None,
    rotary: Tensor,
    rows: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
) -> None:
    """Norm and rotate queries and keys where they lie, and write keys and values at each token's row and position.

    qkv has all heads' queries, keys, then values, [tokens, (heads + 2 KV heads) head_dim]. Keys and values are a
    layer's cache [rows, KV heads, length, head_dim].
    """
    query, key, value = heads_of(qkv, keys)
    angles = rotary[:, positions]
    for number, vectors in enumerate((query, key)):
        if norms is not None:
            vectors.copy_(add_norm(vectors, None, norms.gains[number], norms.eps))
        vectors.copy_(rotated(vectors.unsqueeze(0), angles).squeeze(0))
    keys[rows, :, positions] = key
    values[rows, :, positions] = value


def heads_of(qkv: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return views [tokens, heads, head_dim] of the queries, keys and values of tokens, for a cache of such keys."""
    kv_heads, width = keys.shape[1], keys.shape[-1]
    all_heads = qkv.view(qkv.shape[0], -1, width)
    heads = all_heads.shape[1] - 2 * kv_heads
    query, key, value = torch.split(all_heads, [heads, kv_heads, kv_heads], dim=1)
    return query, key, value


def attend(
    qkv: Tensor,
    norms: HeadNorms | None,
    rotary: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    bucket: int,
) -> Tensor:
    """Return what one token a row reads of the cache up to itself, [rows, heads head_dim].

    Rotates and writes first, as `rotate_store` does; positions are below `bucket`. Heads that share a KV head are rows
    of one product, so keys are never expanded.
    """
    rows, kv_heads = keys.shape[:2]
    each = torch.arange(rows, device=qkv.device)
    rotate_store(qkv, norms, rotary, each, positions, keys, values)
    query, _, _ = heads_of(qkv, keys)
    visible = torch.arange(bucket, device=query.device) <= positions.unsqueeze(1)
    read = functional.scaled_dot_product_attention(
        query.reshape(rows, kv_heads, -1, query.shape[-1]),
        keys[:, :, :bucket],
        values[:, :, :bucket],
        attn_mask=visible[:, None, None, :],
    )
    return read.reshape(rows, -1)


EAGER = Ops(  # right everywhere, fast nowhere
    name="eager",
    linears="torch",
    attention="sdpa over a bucket of lengths",
    prefill_attention="sdpa, a prompt at a time",
    reads_used_length=False,
    norm_linear=norm_linear,
    norm_gate=norm_gate,
    linear=linear,
    linear_add=linear_add,
    rotate_store=rotate_store,
    attend=attend,
    attend_packed=attend_each,
)
