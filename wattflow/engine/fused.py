"""One rank's part of a LLaMA model for the `fast` engine: a static cache, prefill and a decode step.

The embedding is whole on every rank, which spares a collective; queries, keys and values are one matrix, and so are
the feed-forward's gate and up. The head stays shared by vocabulary.
"""

import copy
from dataclasses import dataclass

import torch
import torch.distributed as dist

from wattflow.config.choices import Model
from wattflow.engine.allreduce import Reduce
from wattflow.engine.llama import rotary_table, wide
from wattflow.engine.ops import HeadNorms, Ops, heads_of
from wattflow.engine.packed import Packed, parts
from wattflow.engine.products import Rows8, Weight, quantised
from wattflow.engine.ranks import Ranks
from wattflow.engine.weights import Reader, part_of_rank
from wattflow.workload.matrices import matrices
from wattflow.workload.model import head_dim, kv_heads_of_rank

PREFILL_TOKENS = (
    16384  # so many at a time: enough to fill a GPU, and activations stay below 2 GB for 7B
)


@dataclass
class LayerWeights:
    """One layer's part on this rank."""

    attention_norm: torch.Tensor
    wqkv: Weight  # [(heads + 2 KV heads) head_dim, dim]
    head_norms: HeadNorms | None
    wo: Weight  # [dim, heads head_dim]
    ffn_norm: torch.Tensor
    w13: Weight  # [2 ffn_dim / shards, dim]: gate rows, then up rows
    w2: Weight  # [dim, ffn_dim / shards]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        weights = (self.wqkv, self.wo, self.w13, self.w2)
        norms = self.attention_norm.nbytes + self.ffn_norm.nbytes
        if self.head_norms is not None:
            norms += self.head_norms.gains.nbytes
        return norms + sum(weight.nbytes for weight in weights)


class FusedLlama:
    """Weights of one rank and, after `with_cache`, their cache and the two passes over both."""

    cache: torch.Tensor
    rotary: torch.Tensor

    def __init__(
        self, model: Model, ranks: Ranks, read: Reader, *, dtype: torch.dtype, fp8: bool = False
    ) -> None:
        """Read a rank's weights; with `fp8` all matrices but the embedding and the head are quantised."""
        self._model = model
        self._ranks = ranks
        self._dtype = dtype
        self._alone = ranks.world == 1
        self.heads = model.n_heads // ranks.world
        self.reduce = Reduce()  # of all ranks' parts
        self._read_weights(read, fp8=fp8)

    def with_cache(self, rows: int, length: int) -> "FusedLlama":
        """Return the same weights, not copied, with a cache of their own for so many rows and positions."""
        model, ranks = self._model, self._ranks
        other = copy.copy(self)
        kv_heads, width = kv_heads_of_rank(model, ranks.world), head_dim(model)
        # zeros, since what a mask hides must still be finite
        other.cache = torch.zeros(
            (model.n_layers, 2, rows, kv_heads, length, width),
            dtype=self._dtype,
            device=ranks.device,
        )
        other.rotary = rotary_table(model, length, self._dtype, ranks.device).contiguous()
        return other

    def _read_weights(self, read: Reader, *, fp8: bool) -> None:
        model, ranks = self._model, self._ranks
        by_name = {matrix.name: matrix for matrix in matrices(model)}

        def loaded(*names: str) -> torch.Tensor:
            parts = [part_of_rank(by_name[n], read, ranks.rank, ranks.world) for n in names]
            parts = [part.to(ranks.device, self._dtype) for part in parts]
            # a copy also cuts a part loose from the file that it was mapped from
            return torch.cat(parts) if len(parts) > 1 else parts[0].clone().contiguous()

        def weight(*names: str) -> Weight:
            matrix = loaded(*(f"{name}.weight" for name in names))
            biased = f"{names[0]}.bias" in by_name
            bias = loaded(*(f"{name}.bias" for name in names)) if biased else None
            return quantised(matrix, bias) if fp8 else Weight(matrix, bias=bias)

        def head_norms(at: str) -> HeadNorms | None:
            if f"{at}.q_norm.weight" not in by_name:
                return None
            gains = loaded(f"{at}.q_norm.weight", f"{at}.k_norm.weight")
            return HeadNorms(gains.view(2, -1), model.norm_eps)

        table = by_name["tok_embeddings.weight"]
        self.embedding = read(table, 0, table.shape[0]).to(ranks.device, self._dtype, copy=True)
        self.layers = []
        for number in range(model.n_layers):
            attention = f"layers.{number}.attention"
            feed_forward = f"layers.{number}.feed_forward"
            self.layers.append(
                LayerWeights(
                    attention_norm=loaded(f"layers.{number}.attention_norm.weight"),
                    wqkv=weight(*(f"{attention}.w{x}" for x in "qkv")),
                    head_norms=head_norms(attention),
                    wo=weight(f"{attention}.wo"),
                    ffn_norm=loaded(f"layers.{number}.ffn_norm.weight"),
                    w13=weight(*(f"{feed_forward}.w{x}" for x in "13")),
                    w2=weight(f"{feed_forward}.w2"),
                )
            )
        self.norm = loaded("norm.weight")
        self.first, last = table.span(ranks.rank, ranks.world)
        self.mine = last - self.first  # tokens whose scores this rank computes, from `first` on
        if model.tied_embeddings and self._alone:
            head = self.embedding
        else:
            head = loaded("tok_embeddings.weight" if model.tied_embeddings else "output.weight")
        self.head = Weight(head)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on this rank; a tied head counts once."""
        tied = self.head.values.data_ptr() == self.embedding.data_ptr()
        ends = self.embedding.nbytes + self.norm.nbytes + (0 if tied else self.head.nbytes)
        return ends + sum(layer.nbytes for layer in self.layers)

    def prefill(self, prompts: list[list[int]], ops: Ops) -> torch.Tensor:
        """Return the stream [prompts, dim] at each prompt's last token; row k of the cache then holds prompt k.

        Prompts lie end to end, so nothing is padded; some at a time are read.
        """
        packs = parts(prompts, PREFILL_TOKENS, self._ranks.device)
        return torch.cat([self._prefill_packed(packed, ops) for packed in packs])

    def _prefill_packed(self, packed: Packed, ops: Ops) -> torch.Tensor:
        stream = self.embedding[packed.tokens]
        delta: torch.Tensor | None = None
        for number, layer in enumerate(self.layers):
            keys, values = self.cache[number]
            qkv = ops.norm_linear(
                stream, delta, layer.attention_norm, self._model.norm_eps, layer.wqkv
            )
            ops.rotate_store(
                qkv, layer.head_norms, self.rotary, packed.rows, packed.positions, keys, values
            )
            read = ops.attend_packed(*heads_of(qkv, keys), packed)
            delta = self._project(stream, read, layer.wo, ops)
            delta = self._feed_forward(stream, delta, layer, ops)
        last = stream[packed.last]
        return last if delta is None else last + delta[packed.last]

    def step(
        self, tokens: torch.Tensor, positions: torch.Tensor, bucket: int, ops: Ops
    ) -> torch.Tensor:
        """Return logits of one more token a row, as `logits` gives them; its keys are written at its row's position.

        Nothing here depends on the host: it runs as it is or is captured as a CUDA graph.
        """
        stream = torch.nn.functional.embedding(tokens, self.embedding)
        delta: torch.Tensor | None = None
        for number, layer in enumerate(self.layers):
            keys, values = self.cache[number, :, : tokens.shape[0]]
            qkv = ops.norm_linear(
                stream, delta, layer.attention_norm, self._model.norm_eps, layer.wqkv
            )
            read = ops.attend(qkv, layer.head_norms, self.rotary, keys, values, positions, bucket)
            delta = self._project(stream, read, layer.wo, ops)
            delta = self._feed_forward(stream, delta, layer, ops)
        return self.logits(stream, delta, ops)

    def _feed_forward(
        self, stream: torch.Tensor, delta: torch.Tensor | None, layer: LayerWeights, ops: Ops
    ) -> torch.Tensor | None:
        gated = ops.norm_gate(stream, delta, layer.ffn_norm, self._model.norm_eps, layer.w13)
        return self._project(stream, gated, layer.w2, ops)

    def _project(
        self, stream: torch.Tensor, x: torch.Tensor | Rows8, weight: Weight, ops: Ops
    ) -> torch.Tensor | None:
        """Return what all ranks' parts of a product add to the stream, or None where it has been added."""
        if self._alone:
            return ops.linear_add(stream, x, weight)
        return self.reduce(ops.linear(x, weight, self.reduce.buffer(stream.shape)))

    def logits(self, stream: torch.Tensor, delta: torch.Tensor | None, ops: Ops) -> torch.Tensor:
        """Return this rank's part of the vocabulary's scores, [tokens, part]; beyond the vocabulary they are -inf."""
        scores = ops.norm_linear(stream, delta, self.norm, self._model.norm_eps, self.head)
        if self.mine < scores.shape[1]:
            scores[:, self.mine :] = -torch.inf
        return scores


class Chooser:
    """Takes one token a row of scores that ranks share by vocabulary; the same token on every rank."""

    def __init__(
        self,
        ranks: Ranks,
        vocab_size: int,
        first: int,
        *,
        temperature: float,
        top_p: float,
        generator: torch.Generator,
    ) -> None:
        self._ranks = ranks
        self._vocab_size = vocab_size
        self._first = first
        self._temperature = temperature
        self._top_p = top_p
        self._generator = generator

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The likeliest token of each row at temperature 0, else a drawn one, int64 [rows]."""
        if self._temperature == 0:
            return self._greedy(scores)
        wider = self._whole(scores).to(wide(scores.dtype))
        return draw(wider, self._temperature, self._top_p, self._generator)

    def _greedy(self, scores: torch.Tensor) -> torch.Tensor:
        value, place = scores.max(dim=-1)
        if self._ranks.world == 1:
            return place
        # a sum of zeros and one rank's pair is that pair, so one kind of collective serves all; float32 holds any
        # token's number exactly
        pairs = torch.zeros(
            (self._ranks.world, 2, len(scores)), dtype=wide(scores.dtype), device=scores.device
        )
        pairs[self._ranks.rank, 0] = value
        pairs[self._ranks.rank, 1] = place + self._first
        dist.all_reduce(pairs)
        best = pairs[:, 0].argmax(dim=0, keepdim=True)
        return pairs[:, 1].gather(0, best).squeeze(0).long()

    def _whole(self, scores: torch.Tensor) -> torch.Tensor:
        """Return all ranks' scores side by side, [rows, vocab_size]."""
        if self._ranks.world > 1:
            part = scores.shape[1]
            whole = scores.new_zeros((len(scores), self._ranks.world * part))
            whole[:, self._ranks.rank * part : (self._ranks.rank + 1) * part] = scores
            dist.all_reduce(whole)
            scores = whole
        return scores[:, : self._vocab_size]


def draw(
    scores: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Return one token a row, drawn by probability from the smallest set of likeliest tokens that reaches `top_p`.

    The largest of probability / exponential noise falls on each token with its probability. Unlike torch.multinomial,
    it never waits for the host.
    """
    shares, tokens = torch.softmax(scores / temperature, dim=-1).sort(dim=-1, descending=True)
    before = shares.cumsum(dim=-1) - shares
    shares = shares.masked_fill(before > top_p, 0.0)
    noise = torch.empty_like(shares).exponential_(generator=generator).clamp_min_(1e-30)
    return tokens.gather(-1, (shares / noise).argmax(dim=-1, keepdim=True)).squeeze(-1)
