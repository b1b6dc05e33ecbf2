"""Whether a point fits engine=transformers: shards that its plan can split, and memory, without torch.

The cache is allocated whole, batch_size x max_seq_len, as by our own engines.
"""

from wattflow.config.choices import BYTES_PER_VALUE, Config
from wattflow.workload import folder as folders
from wattflow.workload import model as arithmetic
from wattflow.workload import vllm_fit

# families that transformers cannot split over ranks: they have no tensor-parallel plan there
_WHOLE = ("opt", "bloom", "gpt2", "falcon")
_PREFILL_GUESS = 128  # tokens a row: prompts are not known when a sweep is planned
_ACTIVATIONS = 8  # values of the model's width that a token's activations take at their most


def why_not(config: Config, gpu_memory_gib: float | None) -> str | None:
    """Return why a point cannot run, or does not fit GPUs of that memory; null where it can."""
    reason = _why_not_quantised(config) or why_not_shards(config) or vllm_fit.why_not_length(config)
    if reason is not None or gpu_memory_gib is None:
        return reason
    need = _bytes(config)
    if need is None or sum(need) <= arithmetic.USABLE * gpu_memory_gib * arithmetic.GIB:
        return None
    return memory_in_words(config, gpu_memory_gib)


def _why_not_quantised(config: Config) -> str | None:
    """Return why a checkpoint is left to vLLM: what transformers cannot compute with as it is, it widens in silence."""
    folder = vllm_fit.folder_of(config)
    if config.weights != "hf" or folder is None or folder.quantization is None:
        return None
    return (
        f"{config.model.name}: its weights are quantised ({folder.quantization}), which engine=transformers may "
        "compute with as plain numbers; use engine=vllm"
    )


def why_not_shards(config: Config) -> str | None:
    """Return why transformers cannot split a point's model into its shards; null where it may."""
    shards, name = config.shards, config.model.name
    if shards == 1:
        return None
    folder = vllm_fit.folder_of(config)
    kind = config.model.architecture if folder is None else folder.model_type
    if kind in _WHOLE:
        return f"shards={shards}: transformers has no tensor-parallel plan for a {kind}; take shards=1, or engine=vllm"
    sizes = {
        "heads": config.model.n_heads if folder is None else folder.n_heads,
        "KV heads": config.model.n_kv_heads if folder is None else folder.n_kv_heads,
    }
    for what, size in sizes.items():
        if size % shards:
            return f"{name} has {size} {what}, which {shards} shards do not divide"
    return None


def memory_in_words(config: Config, gpu_memory_gib: float) -> str:
    """Return the memory that a rank needs and that a GPU has, in one sentence."""
    need = _bytes(config)
    has = f"{arithmetic.USABLE} x {gpu_memory_gib:g} GiB a GPU"
    what = f"{config.model.name} on {config.shards} shards, {config.precision}, batch {config.batch_size} x "
    what += f"{config.max_seq_len} tokens"
    if need is None:
        return (
            f"{what}: its family is not known here, so what it needs is not either; there are {has}"
        )
    weights, cache, workspace = (value / arithmetic.GIB for value in need)
    return (
        f"{what} needs {weights:.1f} GiB weights + {cache:.1f} GiB cache + {workspace:.1f} GiB workspace = "
        f"{weights + cache + workspace:.1f} GiB of {has}; take a smaller batch or another precision"
    )


def _bytes(config: Config) -> tuple[int, int, int] | None:
    """Return the bytes of one rank's weights, cache and workspace; null for an unknown family."""
    folder, model = vllm_fit.folder_of(config), config.model
    value, length = BYTES_PER_VALUE[config.precision], config.max_seq_len or 0
    if folder is None:
        width, vocabulary = model.dim, model.vocab_size
        weights = arithmetic.parameters(model) * value // config.shards
        row = arithmetic.kv_cache_bytes(model, config.shards, config.precision, 1, length)
    elif folder.counts is None:
        return None
    else:
        width, vocabulary = folder.width, folder.vocab_size
        weights = folder.counts.parameters * value // config.shards
        row = folders.cache_bytes(folder, config.shards, length, value) or 0
    activations = min(_PREFILL_GUESS, length) * _ACTIVATIONS * width * value
    logits = vocabulary * (value + 6 * 4)  # float32 logits, probabilities, sort with indices
    return weights, config.batch_size * row, config.batch_size * (activations + logits)
