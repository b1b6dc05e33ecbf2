# ruff: noqa: PLR0917 - a piece of a layer takes the tensors of that layer, in the order of its work
"""The pieces of a layer's work in the `fast` engine, and their plain form: torch operations that run on any device.

Tokens lie in rows. `stream` [tokens, dim] is the residual stream; a sublayer's output `delta` is added to it by the
next piece that norms it, so that a set of kernels may do both at once. kernels.py has sets for GPUs.
"""

from typing import Protocol

import torch
from torch.nn import functional

from wattflow.engine.llama import rotated, wide


class Pieces(Protocol):
    """One set of kernels for all work of a layer but its collectives."""

    name: str  # as in engine.kernels
    linears: str
    attention: str
    reads_used_length: (
        bool  # attention stops at each row's length, so that one graph serves all lengths
    )

    def norm_linear(
        self,
        stream: torch.Tensor,
        delta: torch.Tensor | None,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """The product [tokens, out] of the normed stream with `weight` [out, dim]; adds `delta` to the stream."""

    def norm_gate(
        self,
        stream: torch.Tensor,
        delta: torch.Tensor | None,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """SwiGLU of that product: [tokens, out / 2] from a weight of gate rows, then up rows."""

    def project(
        self,
        stream: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        *,
        alone: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """What is to be added to the stream, or None where it has been; only if `alone` may it be, without peers.

        It is written to `out` where that is given.
        """

    def rotate_store(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        per_row: int,
    ) -> torch.Tensor:
        """Turned queries [tokens, heads, head_dim]; keys and values are written at their row's position.

        qkv has all heads' queries, keys, then values, [tokens, (heads + 2 KV heads) head_dim]; `per_row` tokens
        follow each other in a row of the batch. Keys and values are a layer's cache [rows, KV heads, length, head_dim].
        """

    def attend(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        bucket: int,
    ) -> torch.Tensor:
        """What one token a row reads of the cache up to itself, [rows, heads head_dim].

        Its query and key are turned and its key and value written as by `rotate_store`; positions are below `bucket`.
        """


class Eager:
    """Plain torch: right everywhere, fast nowhere."""

    name = "eager"
    linears = "torch"
    attention = "sdpa over a bucket of lengths"
    reads_used_length = False

    def norm_linear(
        self,
        stream: torch.Tensor,
        delta: torch.Tensor | None,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """See Pieces."""
        return functional.linear(add_norm(stream, delta, norm, eps), weight)

    def norm_gate(
        self,
        stream: torch.Tensor,
        delta: torch.Tensor | None,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """See Pieces."""
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
        """See Pieces."""
        del stream, alone
        return linear(x, weight, out)

    def rotate_store(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        per_row: int,
    ) -> torch.Tensor:
        """See Pieces."""
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
        """See Pieces."""
        return attend(qkv, rotary, keys, values, positions, bucket)


def linear(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """The product [tokens, out] of x and `weight` [out, in], in `out` where that is given."""
    if out is None:
        return functional.linear(x, weight)
    return torch.mm(x, weight.t(), out=out)


def add_norm(
    stream: torch.Tensor, delta: torch.Tensor | None, norm: torch.Tensor, eps: float
) -> torch.Tensor:
    """RMSNorm of stream + delta, [tokens, dim]; the sum stays in the stream."""
    if delta is not None:
        stream.add_(delta)
    x = stream.to(wide(stream.dtype))
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x.to(stream.dtype) * norm


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """The first half of each row through SiLU, times the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def rotate_store(
    qkv: torch.Tensor,
    rotary: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    per_row: int,
) -> torch.Tensor:
    """See Pieces."""
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
    qkv: torch.Tensor,
    rotary: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    bucket: int,
) -> torch.Tensor:
    """See Pieces. Heads that share a KV head are rows of one product, so keys are never expanded."""
    query = rotate_store(qkv, rotary, positions, keys, values, 1)
    rows, kv_heads = keys.shape[:2]
    seen = torch.arange(bucket, device=query.device) <= positions.unsqueeze(1)
    read = functional.scaled_dot_product_attention(
        query.view(rows, kv_heads, -1, query.shape[-1]),
        keys[:, :, :bucket],
        values[:, :, :bucket],
        attn_mask=seen[:, None, None, :],
    )
    return read.reshape(rows, -1)


def attend_causal(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, length: int
) -> torch.Tensor:
    """What prompts padded to `length` read, each position up to itself: [tokens, heads head_dim].

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
