"""The matrices of a LLaMA model, their names in checkpoints, and the part of each that a rank keeps. No torch here.

Parts are ranges of indices of the *whole* matrix, so any number of files can be read by any number of ranks.
"""

from dataclasses import dataclass

from wattflow.config.choices import Model
from wattflow.workload.model import has_biases, has_head_norms, head_dim, query_width


@dataclass(frozen=True)
class Matrix:
    """One weight of the whole model."""

    name: str  # Meta's
    hf_name: str
    shape: tuple[int, ...]
    split: int | None  # the dimension that ranks share; None: each holds it whole
    parts: int | None = None  # it is cut into at most so many parts (KV heads), then repeated
    head_dim: int | None = None  # rows come in heads of this width and are rotated (wq, wk)

    def rows_of_rank(self, shards: int) -> int:
        """Return the length of a rank's part along `split`; the last rank's is padded to it."""
        assert self.split is not None
        return -(-self.shape[self.split] // min(shards, self.parts or shards))

    def span(self, rank: int, shards: int) -> tuple[int, int]:
        """Return the range [start, stop) along `split` that a rank keeps; it may be shorter than `rows_of_rank`."""
        assert self.split is not None
        part = rank * min(shards, self.parts or shards) // shards
        rows, total = self.rows_of_rank(shards), self.shape[self.split]
        return min(total, part * rows), min(total, (part + 1) * rows)


def matrices(model: Model) -> list[Matrix]:
    """Return all weights of a model; with tied embeddings the head is the embedding's table and has no entry."""
    width, vocab = model.dim, model.vocab_size
    out = [Matrix("tok_embeddings.weight", "model.embed_tokens.weight", (vocab, width), 0)]
    for layer in range(model.n_layers):
        out += _layer(model, layer)
    out.append(Matrix("norm.weight", "model.norm.weight", (width,), None))
    if not model.tied_embeddings:
        out.append(Matrix("output.weight", "lm_head.weight", (vocab, width), 0))
    return out


def _layer(model: Model, layer: int) -> list[Matrix]:
    width, ffn_width, head = model.dim, model.ffn_dim, head_dim(model)
    heads = model.n_kv_heads
    meta, hf = f"layers.{layer}.", f"model.layers.{layer}."
    query, key_value = (query_width(model), width), (heads * head, width)
    return [
        *_of_heads(model, meta + "attention.", hf + "self_attn."),
        Matrix(meta + "attention_norm.weight", hf + "input_layernorm.weight", (width,), None),
        Matrix(
            meta + "attention.wq.weight",
            hf + "self_attn.q_proj.weight",
            query,
            split=0,
            head_dim=head,
        ),
        Matrix(
            meta + "attention.wk.weight",
            hf + "self_attn.k_proj.weight",
            key_value,
            split=0,
            parts=heads,
            head_dim=head,
        ),
        Matrix(
            meta + "attention.wv.weight",
            hf + "self_attn.v_proj.weight",
            key_value,
            split=0,
            parts=heads,
        ),
        Matrix(meta + "attention.wo.weight", hf + "self_attn.o_proj.weight", query[::-1], 1),
        Matrix(meta + "ffn_norm.weight", hf + "post_attention_layernorm.weight", (width,), None),
        Matrix(meta + "feed_forward.w1.weight", hf + "mlp.gate_proj.weight", (ffn_width, width), 0),
        Matrix(meta + "feed_forward.w2.weight", hf + "mlp.down_proj.weight", (width, ffn_width), 1),
        Matrix(meta + "feed_forward.w3.weight", hf + "mlp.up_proj.weight", (ffn_width, width), 0),
    ]


def _of_heads(model: Model, meta: str, hf: str) -> list[Matrix]:
    """Return the biases of queries, keys and values, and the norms of heads, of a layer that has them."""
    out = []
    if has_biases(model):
        kv_width = model.n_kv_heads * head_dim(model)
        for name, rows, parts in (
            ("q", query_width(model), None),
            ("k", kv_width, model.n_kv_heads),
            ("v", kv_width, model.n_kv_heads),
        ):
            out.append(Matrix(f"{meta}w{name}.bias", f"{hf}{name}_proj.bias", (rows,), 0, parts))
    if has_head_norms(model):
        names = ("q_norm.weight", "k_norm.weight")
        out += [Matrix(meta + name, hf + name, (head_dim(model),), None) for name in names]
    return out
