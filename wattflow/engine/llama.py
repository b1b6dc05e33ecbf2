"""One rank's part of a LLaMA model: RMSNorm, rotary positions, grouped KV heads, SwiGLU, a head shared by vocabulary.

Qwen2's biases and Qwen3's norms of heads are here too; Mistral differs in neither.

Rotary positions are half-split (a head's first half pairs with its second), so checkpoints that interleave the pairs
are permuted when they are loaded. Norms, rotations and the softmax are computed in float32 at least.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from wattflow.config.choices import Model, RopeScaling
from wattflow.engine.layers import Column, Embedding, Row, apply
from wattflow.workload.model import has_biases, has_head_norms, head_dim, kv_heads_of_rank

KeysValues = tuple[torch.Tensor, torch.Tensor]  # [batch, length, KV heads, head_dim] each
Cache = list[KeysValues]  # a layer each


class Llama(nn.Module):
    """The model's part of one rank of `shards`; make it under `torch.device("meta")` and assign the weights."""

    def __init__(self, model: Model, rank: int, shards: int) -> None:
        super().__init__()
        self.vocab_size = model.vocab_size
        vocab_mine = -(-model.vocab_size // shards)
        self.tok_embeddings = Embedding(vocab_mine, model.dim, rank)
        self.layers = nn.ModuleList(Layer(model, shards) for _ in range(model.n_layers))
        self.norm = RMSNorm(model.dim, model.norm_eps)
        self.output = Column(model.dim, vocab_mine, gather_output=True)

    def forward(
        self, tokens: torch.Tensor, start: int, cache: Cache, rotary: torch.Tensor
    ) -> torch.Tensor:
        """Return hidden states [batch, new, dim] of new tokens [batch, new] at positions start, start + 1, ...

        Keys and values of all positions before `start` must lie in the cache; those of the new tokens are written.
        `rotary` is what `rotary_table` gives, for all positions.
        """
        new = tokens.shape[1]
        here = rotary[:, start : start + new]
        mask = _causal_mask(new, start, tokens.device) if new > 1 else None
        x = apply(self.tok_embeddings, tokens)
        for layer, kv in zip(self.layers, cache, strict=True):
            x = layer(x, start, kv, here, mask)
        return apply(self.norm, x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return scores of all tokens of the vocabulary, [..., vocab_size], the same on all ranks."""
        return apply(self.output, hidden)[..., : self.vocab_size]


class Layer(nn.Module):
    """Attention and feed-forward, each normed before and added after."""

    def __init__(self, model: Model, shards: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(model.dim, model.norm_eps)
        self.attention = Attention(model, shards)
        self.ffn_norm = RMSNorm(model.dim, model.norm_eps)
        self.feed_forward = FeedForward(model, shards)

    def forward(
        self,
        x: torch.Tensor,
        start: int,
        kv: KeysValues,
        rotary: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the layer's output, [batch, new, dim]."""
        x = x + self.attention(self.attention_norm(x), start, kv, rotary, mask)
        return x + apply(self.feed_forward, self.ffn_norm(x))


class Attention(nn.Module):
    """Causal attention over a cache; this rank has its share of the heads and the KV heads that they read."""

    def __init__(self, model: Model, shards: int) -> None:
        super().__init__()
        self.head_dim = head_dim(model)
        self.heads = model.n_heads // shards
        self.kv_heads = kv_heads_of_rank(model, shards)
        biased = has_biases(model)
        self.wq = Column(model.dim, self.heads * self.head_dim, bias=biased)
        self.wk = Column(model.dim, self.kv_heads * self.head_dim, bias=biased)
        self.wv = Column(model.dim, self.kv_heads * self.head_dim, bias=biased)
        self.wo = Row(self.heads * self.head_dim, model.dim)
        normed = has_head_norms(model)
        self.q_norm = RMSNorm(self.head_dim, model.norm_eps) if normed else None
        self.k_norm = RMSNorm(self.head_dim, model.norm_eps) if normed else None

    def forward(
        self,
        x: torch.Tensor,
        start: int,
        kv: KeysValues,
        rotary: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return what the new positions read from all up to themselves, [batch, new, dim]."""
        batch, new, _ = x.shape
        end = start + new
        keys, values = kv
        query = apply(self.wq, x).view(batch, new, self.heads, self.head_dim)
        key = apply(self.wk, x).view(batch, new, self.kv_heads, self.head_dim)
        value = apply(self.wv, x).view(batch, new, self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        keys[:batch, start:end] = rotated(key, rotary)
        values[:batch, start:end] = value
        read = self._read(rotated(query, rotary), keys[:batch, :end], values[:batch, :end], mask)
        return apply(self.wo, read)

    def _read(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Softmax attention. Heads that share a KV head become rows of one product, so keys are never expanded."""
        batch, new, heads, width = query.shape
        group = heads // self.kv_heads
        rows = query.view(batch, new, self.kv_heads, group, width).permute(0, 2, 3, 1, 4)
        rows = rows.reshape(batch, self.kv_heads, group * new, width) / math.sqrt(width)
        scores = (rows @ keys.permute(0, 2, 3, 1)).to(wide(query.dtype))
        if mask is not None:
            scores = (scores.view(batch, self.kv_heads, group, new, -1) + mask).view_as(scores)
        shares = torch.softmax(scores, dim=-1).to(query.dtype)
        read = (shares @ values.transpose(1, 2)).view(batch, self.kv_heads, group, new, width)
        return read.permute(0, 3, 1, 2, 4).reshape(batch, new, heads * width)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, model: Model, shards: int) -> None:
        super().__init__()
        self.w1 = Column(model.dim, model.ffn_dim // shards)
        self.w2 = Row(model.ffn_dim // shards, model.dim)
        self.w3 = Column(model.dim, model.ffn_dim // shards)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, new, dim], summed over ranks."""
        return apply(self.w2, functional.silu(apply(self.w1, x)) * apply(self.w3, x))


class RMSNorm(nn.Module):
    """Division by the root of the mean square, then a weight per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normed input, of its shape and dtype."""
        y = x.to(wide(x.dtype))
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute sums in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def empty_cache(
    model: Model, shards: int, batch: int, length: int, *, dtype: torch.dtype, device: str
) -> Cache:
    """Return keys and values of all layers for `batch` rows of `length` tokens, zeroed so that they are finite."""
    shape = (batch, length, kv_heads_of_rank(model, shards), head_dim(model))
    return [
        (
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
        )
        for _ in range(model.n_layers)
    ]


def rotary_table(model: Model, length: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Return cosines and sines of positions 0 ... length-1, [2, length, head_dim / 2], in `wide(dtype)`."""
    width = head_dim(model)
    frequency = model.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    if model.rope_scaling is not None:
        frequency = _stretched(frequency, model.rope_scaling)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return torch.stack((angle.cos(), angle.sin())).to(device=device, dtype=wide(dtype))


def _stretched(frequency: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Return frequencies divided by `factor` where few turns fit the original context, as they were where many do."""
    turns = scaling.original_max_position * frequency / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling.factor


def rotated(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Return heads [batch, new, heads, head_dim] turned by their positions' angles."""
    cosine, sine = rotary.unsqueeze(2).unbind(0)  # [new, 1, head_dim / 2]
    first, second = x.to(rotary.dtype).chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(x.dtype)


def _causal_mask(new: int, start: int, device: torch.device) -> torch.Tensor:
    """[new, start + new]: -inf where a new position would see a later one, else 0."""
    mask = torch.full((new, start + new), -math.inf, device=device)
    return mask.triu(diagonal=start + 1)
