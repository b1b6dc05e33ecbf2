"""The arithmetic of LLaMA's decoder and its relatives: parameters, bytes, FLOPs, shards that work, what fits, roofline.

Mistral, Qwen2 and Qwen3 are relatives: heads of a width of their own, biases, norms of heads. With precision=fp8 the
layers' matrices take a byte a weight, all else 16 bit. Pure: no torch, no numpy, no files. A login node uses it to
refuse points, and the engine to explain a lack of memory.
"""

from dataclasses import dataclass

from wattflow.config.choices import BYTES_PER_VALUE, Config, Model, plain
from wattflow.errors import RefusedError

GIB = 2**30
USABLE = 0.92  # of a GPU's memory: the driver's context, NCCL's buffers and fragments take the rest
_PREFILL_GUESS = 128  # tokens a row: prompts are not known when a sweep is planned


def head_dim(model: Model) -> int:
    """Return the width of one attention head."""
    own: int | None = model.more.get("head_dim")
    return model.dim // model.n_heads if own is None else own


def query_width(model: Model) -> int:
    """Return the width of all heads together, which need not be the model's."""
    return model.n_heads * head_dim(model)


def has_biases(model: Model) -> bool:
    """Whether queries, keys and values have a bias, as Qwen2's."""
    return model.architecture == "qwen2"


def has_head_norms(model: Model) -> bool:
    """Whether each head's queries and keys are normed, as Qwen3's."""
    return model.architecture == "qwen3"


def parameters(model: Model) -> int:
    """Return the number of weights of the whole model; tied embeddings count once."""
    return rank_parameters(model, 1)


def rank_parameters(model: Model, shards: int) -> int:
    """Return the number of weights of one rank: KV heads repeat above their number, norms are whole everywhere."""
    return model.n_layers * _layer_matrices(model, shards) + _other_parameters(model, shards)


def _layer_matrices(model: Model, shards: int) -> int:
    """Return the number of weights in the matrices of one layer on one rank."""
    kv_width = kv_heads_of_rank(model, shards) * head_dim(model)
    split = 2 * model.dim * query_width(model) + 3 * model.dim * model.ffn_dim
    return split // shards + 2 * model.dim * kv_width


def _other_parameters(model: Model, shards: int) -> int:
    """Return the number of all other weights on one rank: tables, norms, biases."""
    layer = 2 * model.dim
    if has_biases(model):
        kv_width = kv_heads_of_rank(model, shards) * head_dim(model)
        layer += query_width(model) // shards + 2 * kv_width
    if has_head_norms(model):
        layer += 2 * head_dim(model)
    tables = 1 if model.tied_embeddings else 2
    vocab_rows = -(-model.vocab_size // shards)  # the last rank's part is padded
    return model.n_layers * layer + tables * vocab_rows * model.dim + model.dim


def kv_heads_of_rank(model: Model, shards: int) -> int:
    """Return how many KV heads one rank holds, at least one."""
    return max(1, model.n_kv_heads // shards)


def weight_bytes(model: Model, shards: int, precision: str) -> int:
    """Return the bytes of weights on one rank, without the scales of quantised ones."""
    matrices = model.n_layers * _layer_matrices(model, shards) * BYTES_PER_VALUE[precision]
    return matrices + _other_parameters(model, shards) * plain_bytes(precision)


def plain_bytes(precision: str) -> int:
    """Return the bytes of a value that is not quantised: of tables, norms, activations and the cache."""
    return BYTES_PER_VALUE[plain(precision)]


def kv_bytes_per_token(model: Model, precision: str) -> int:
    """Return the bytes of keys and values of one token of one row in the whole model, without repeated heads."""
    values = 2 * model.n_layers * model.n_kv_heads * head_dim(model)
    return values * plain_bytes(precision)


def kv_cache_bytes(model: Model, shards: int, precision: str, batch: int, length: int) -> int:
    """Return the bytes of the cache that one rank allocates for `batch` rows of `length` tokens."""
    return kv_cache_values(model, shards, batch, length) * plain_bytes(precision)


def kv_cache_values(model: Model, shards: int, batch: int, length: int) -> int:
    """Return how many keys' and values' numbers one rank keeps for `batch` rows of `length` tokens."""
    return batch * length * 2 * model.n_layers * kv_heads_of_rank(model, shards) * head_dim(model)


def workspace_bytes(model: Model, shards: int, precision: str, batch: int, length: int) -> int:
    """Return an estimate of the largest activations of one rank, in bytes; linear in the batch.

    It takes the larger of a prefill of 128 tokens a row and a decode step, which copies one layer's keys, and adds
    the logits with what sampling makes of them. Longer prompts need more.
    """
    value = plain_bytes(precision)
    tokens = min(_PREFILL_GUESS, length)
    heads = model.n_heads // shards
    feed_forward = tokens * (4 * model.dim + 3 * model.ffn_dim // shards) * value
    scores = tokens * 4 * model.dim * value + heads * tokens * tokens * (4 + 2 * value)
    keys = length * kv_heads_of_rank(model, shards) * head_dim(model) * value
    logits = model.vocab_size * (value + 6 * 4)  # float32 logits, probabilities, sort with indices
    return batch * (max(feed_forward, scores, keys) + logits)


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank of the `paper` engine takes."""

    weights: int
    cache: int
    workspace: int

    @property
    def total(self) -> int:
        """All three together."""
        return self.weights + self.cache + self.workspace


def memory(config: Config) -> Memory:
    """Return the memory of one rank for resolved choices; the cache is allocated whole, batch x max_seq_len."""
    length = config.max_seq_len
    if length is None:
        raise RefusedError("max_seq_len is null: memory is computed for resolved choices only.")
    shape = (config.model, config.shards, config.precision)
    return Memory(
        weights=weight_bytes(*shape),
        cache=kv_cache_bytes(*shape, config.batch_size, length),
        workspace=workspace_bytes(*shape, config.batch_size, length),
    )


def largest_batch(config: Config, gpu_memory_gib: float) -> int:
    """Return the largest batch that fits on a GPU of that memory at these shards, or 0."""
    need = memory(config)
    row_bytes = (need.cache + need.workspace) // config.batch_size
    return max(0, int(gpu_memory_gib * USABLE * GIB - need.weights) // row_bytes)


def why_too_big(config: Config, gpu_memory_gib: float) -> str | None:
    """Return why resolved choices do not fit on GPUs of that memory, with figures; None where they fit."""
    need = memory(config)
    if need.total <= gpu_memory_gib * USABLE * GIB:
        return None
    return memory_in_words(config, gpu_memory_gib)


def memory_in_words(config: Config, gpu_memory_gib: float) -> str:
    """Return the memory that a rank needs and that a GPU has, and the largest batch that fits, in one sentence."""
    need = memory(config)
    batch = largest_batch(config, gpu_memory_gib)
    name = config.model.name
    way_out = (
        f"the largest batch that fits is {batch}"
        if batch
        else f"no batch fits: {_more_shards(config)}"
    )
    return (
        f"{name} on {config.shards} shards, {config.precision}, batch {config.batch_size} x {config.max_seq_len} "
        f"tokens needs {need.weights / GIB:.1f} GiB weights + {need.cache / GIB:.1f} GiB cache + "
        f"{need.workspace / GIB:.1f} GiB workspace = {need.total / GIB:.1f} GiB of {USABLE} x {gpu_memory_gib:g} GiB "
        f"a GPU; {way_out}"
    )


def _more_shards(config: Config) -> str:
    more = [n for n in valid_shards(config.model) if n > config.shards]
    if not more:
        return "the model cannot be split further"
    return f"take more shards ({', '.join(map(str, more))})"


def why_not_shards(model: Model, shards: int) -> str | None:
    """Return why a model cannot be split into that many shards, with the counts that work; None where it can."""
    wrong = _why_no_model(model)
    if wrong is not None:
        return f"{model.name}: {wrong}"
    fault = _fault(model, shards)
    if fault is None:
        return None
    works = ", ".join(map(str, valid_shards(model)))
    return f"{model.name} cannot be split into {shards} shards: {fault}; these work: {works}"


def valid_shards(model: Model) -> list[int]:
    """Return the shard counts that work, ascending; none for shapes that are no model."""
    if _why_no_model(model) is not None:
        return []
    return [n for n in range(1, model.n_heads + 1) if _fault(model, n) is None]


def _why_no_model(model: Model) -> str | None:
    if "head_dim" not in model.more and model.dim % model.n_heads:
        return f"dim {model.dim} over {model.n_heads} heads gives no even head width"
    if head_dim(model) % 2:
        return f"heads {head_dim(model)} wide have no halves to rotate"
    if model.n_heads % model.n_kv_heads:
        return f"{model.n_heads} heads cannot share {model.n_kv_heads} KV heads evenly"
    return None


def _fault(model: Model, shards: int) -> str | None:
    if model.n_heads % shards:
        return f"it has {model.n_heads} heads"
    if model.ffn_dim % shards:
        return f"its feed-forward is {model.ffn_dim} wide"
    if model.n_kv_heads % shards and shards % model.n_kv_heads:
        return f"it has {model.n_kv_heads} KV heads"
    return None


@dataclass(frozen=True)
class Work:
    """What one GPU moves and computes in one forward pass."""

    read_bytes: float
    flops: float

    def roofline_s(self, bytes_per_s: float, flops_per_s: float) -> float:
        """Return the least seconds it can take at these peaks, without communication."""
        return max(self.read_bytes / bytes_per_s, self.flops / flops_per_s)


def read_parameters(model: Model) -> int:
    """Return the number of weights that a decode step reads: all matrices and the head, no norms and no table."""
    return model.n_layers * _layer_matrices(model, 1) + model.vocab_size * model.dim


def decode_work(model: Model, shards: int, precision: str, batch: float, length: float) -> Work:
    """Return the work of one decode step of `batch` rows whose mean length is `length`, per GPU."""
    matrices = model.n_layers * _layer_matrices(model, 1) * BYTES_PER_VALUE[precision]
    weights = matrices + model.vocab_size * model.dim * plain_bytes(precision)
    repeats = max(1.0, shards / model.n_kv_heads)
    cache = batch * length * kv_bytes_per_token(model, precision) * repeats
    attention = 4 * batch * length * model.n_layers * query_width(model)
    flops = 2 * read_parameters(model) * batch + attention
    return Work((weights + cache) / shards, flops / shards)


def prefill_work(model: Model, shards: int, precision: str, batch: int, length: int) -> Work:
    """Return the work of the prefill of `batch` prompts of `length` tokens, per GPU, without the head's."""
    matrices = model.n_layers * _layer_matrices(model, 1)
    attention = 2 * batch * model.n_layers * query_width(model) * length**2
    flops = 2 * matrices * batch * length + attention
    return Work(matrices * BYTES_PER_VALUE[precision] / shards, flops / shards)
