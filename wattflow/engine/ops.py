# ruff: noqa: PLR0917 - an operation takes the tensors of its layer, in the order of its work
"""The operations of a layer in the `fast` engine, and their plain form: torch functions that run on any device.

Tokens lie in rows. `stream` [tokens, dim] is the residual stream; a sublayer's output `delta` is added to it by the
next operation that norms it, so that one kernel may do both. kernels/sets.py has the sets for GPUs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from wattflow.engine.llama import rotated, wide

Tensor = torch.Tensor


@dataclass(frozen=True)
class Ops:
    """One set of functions for all work of a layer but its collectives; arguments as in this module's functions."""

    name: str  # as in engine.kernels
    linears: str
    attention: str
    reads_used_length: bool  # attention stops at a row's length, so that one graph serves all

    norm_linear: Callable[[Tensor, Tensor | None, Tensor, float, Tensor], Tensor]
    norm_gate: Callable[[Tensor, Tensor | None, Tensor, float, Tensor], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    linear_add: Callable[[Tensor, Tensor, Tensor], Tensor | None]
    rotate_store: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
    attend: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


def norm_linear(
    stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Tensor
) -> Tensor:
    """Return the product [tokens, out] of the normed stream with `weight` [out, dim]; adds `delta` to the stream."""
    return functional.linear(add_norm(stream, delta, norm, eps), weight)


def norm_gate(
    stream: Tensor, delta: Tensor | None, norm: Tensor, eps: float, weight: Tensor
) -> Tensor:
    """Return SwiGLU of that product: [tokens, out / 2] from a weight of gate rows, then up rows."""
    return swiglu(norm_linear(stream, delta, norm, eps, weight))


def linear(x: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    """Return the product [tokens, out] of x and `weight` [out, in], written to `out` if given."""
    if out is None:
        return functional.linear(x, weight)
    return torch.mm(x, weight.t(), out=out)


def linear_add(stream: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
    """That product, for the next norm to add to the stream; None from a set that has added it already."""
    del stream
    return functional.linear(x, weight)


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
    qkv: Tensor, rotary: Tensor, positions: Tensor, keys: Tensor, values: Tensor, per_row: int
) -> Tensor:
    """Return rotated queries [tokens, heads, head_dim]; writes keys and values at their row's position.

    qkv has all heads' queries, keys, then values, [tokens, (heads + 2 KV heads) head_dim]; `per_row` tokens
    follow each other in a row of the batch. Keys and values are a layer's cache [rows, KV heads, length, head_dim].
    """
    kv_heads, width = keys.shape[1], keys.shape[-1]
    all_heads = qkv.view(qkv.shape[0], -1, width)
    heads = all_heads.shape[1] - 2 * kv_heads
    query, key, value = torch.split(all_heads, [heads, kv_heads, kv_heads], dim=1)
    angles = rotary[:, positions]
    rows = torch.arange(qkv.shape[0], device=qkv.device) // per_row
    keys[rows, :, positions] = rotated(key.unsqueeze(0), angles).squeeze(0)
    values[rows, :, positions] = value
    return rotated(query.unsqueeze(0), angles).squeeze(0)


def attend(
    qkv: Tensor, rotary: Tensor, keys: Tensor, values: Tensor, positions: Tensor, bucket: int
) -> Tensor:
    """Return what one token a row reads of the cache up to itself, [rows, heads head_dim].

    Rotates and writes first, as `rotate_store` does; positions are below `bucket`. Heads that share a KV head are rows
    of one product, so keys are never expanded.
    """
    query = rotate_store(qkv, rotary, positions, keys, values, 1)
    rows, kv_heads = keys.shape[:2]
    visible = torch.arange(bucket, device=query.device) <= positions.unsqueeze(1)
    read = functional.scaled_dot_product_attention(
        query.view(rows, kv_heads, -1, query.shape[-1]),
        keys[:, :, :bucket],
        values[:, :, :bucket],
        attn_mask=visible[:, None, None, :],
    )
    return read.reshape(rows, -1)


def attend_causal(query: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Return what prompts padded to `length` read, each position up to itself: [tokens, heads head_dim].

    Pads stand at the right, so no earlier position sees them. Heads of a group repeat their keys here: a prefill
    computes more than it reads.
    """
    rows, kv_heads = keys.shape[:2]
    query = query.view(rows, length, -1, query.shape[-1]).transpose(1, 2)
    key, value = keys[:, :, :length], values[:, :, :length]
    group = query.shape[1] // kv_heads
    if group > 1:
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    read = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return read.transpose(1, 2).reshape(rows * length, -1)


EAGER = Ops(  # right everywhere, fast nowhere
    name="eager",
    linears="torch",
    attention="sdpa over a bucket of lengths",
    reads_used_length=False,
    norm_linear=norm_linear,
    norm_gate=norm_gate,
    linear=linear,
    linear_add=linear_add,
    rotate_store=rotate_store,
    attend=attend,
)
