"""Whether a point fits vLLM: shards that divide, and memory by vLLM's rule, without torch or vLLM.

vLLM takes a share of each GPU. Weights and the workspace of one iteration come off it, and the rest is the KV cache, in
pages: it needs not hold a whole batch, but at least one row of max_seq_len tokens.
"""

from functools import lru_cache
from pathlib import Path

from wattflow.config.choices import BYTES_PER_VALUE, Config, Model, plain
from wattflow.errors import RefusedError
from wattflow.store.files import expanded
from wattflow.workload import folder as folders
from wattflow.workload import model as arithmetic
from wattflow.workload.folder import Folder

UTILIZATION = 0.9  # of a GPU's memory, where the point does not say
_ITERATION = 8192  # tokens, likewise
_ACTIVATIONS = 8  # values of the model's width that a token's activations take at their most


def folder_of(config: Config) -> Folder | None:
    """Return what the model's folder says, or would say; null for shapes of LLaMA's, whose arithmetic is known.

    RefusedError for a folder that is none.
    """
    if config.model.path is None:
        return None if is_llama(config.model) else folders.of_shapes(config.model)
    path = expanded(config.model.path) / "config.json"
    try:
        changed_ns = path.stat().st_mtime_ns
    except OSError:
        changed_ns = 0
    return _read(path.parent, changed_ns)


def is_llama(model: Model) -> bool:
    """Whether shapes are LLaMA's and nothing else, so that `workload.model` has their arithmetic."""
    return model.architecture == "llama" and not model.more


@lru_cache(maxsize=64)
def _read(folder: Path, changed_ns: int) -> Folder:
    del changed_ns  # a folder that changed is read again
    return folders.read(folder)


def check_folder(config: Config) -> None:
    """RefusedError unless the folder of a point can be read, with weights where they are wanted."""
    if config.weights == "hf" and config.model.path is None:
        raise RefusedError(
            f"weights=hf needs model.path, the folder of {config.model.name}'s checkpoint."
        )
    folder = folder_of(config)
    other = None if folder is None else folders.why_not_this(folder, config.model)
    if other is not None:
        raise RefusedError(
            f"{config.model.path}: {other}. Leave model= out, and the folder says what it is."
        )
    if folder is not None and config.weights == "hf" and folder.file_bytes is None:
        raise RefusedError(f"{config.model.path}: no safetensors files there, and weights=hf.")


def parameters(config: Config) -> dict[str, int | None]:
    """Return the parameters of a model, and those that one token uses; null where its family is unknown."""
    folder = folder_of(config)
    if folder is None:
        total = arithmetic.parameters(config.model)
        return {"parameters": total, "active_parameters": total}
    if folder.counts is None:
        return {"parameters": None, "active_parameters": None}
    return {"parameters": folder.counts.parameters, "active_parameters": folder.counts.active}


def why_not(config: Config, gpu_memory_gib: float | None) -> str | None:
    """Return why a point cannot run, or does not fit GPUs of that memory; null where it can."""
    reason = why_not_precision(config) or why_not_shards(config) or why_not_length(config)
    if reason is not None or gpu_memory_gib is None:
        return reason
    weights = weight_bytes(config)
    if weights is None:
        return None
    row, workspace = row_bytes(config), workspace_bytes(config)
    share = config.engine.vllm.gpu_memory_utilization or UTILIZATION
    if weights + row + workspace <= share * gpu_memory_gib * arithmetic.GIB:
        return None
    parts = [value / arithmetic.GIB for value in (weights, row, workspace)]
    return (
        f"{config.model.name} on {config.shards} shards, {config.precision}: {parts[0]:.1f} GiB weights + "
        f"{parts[1]:.1f} GiB for one row of {config.max_seq_len} tokens + {parts[2]:.1f} GiB workspace = "
        f"{sum(parts):.1f} GiB, and vLLM has {share} x {gpu_memory_gib:g} GiB a GPU; take more shards or a narrower "
        "precision"
    )


def why_not_precision(config: Config) -> str | None:
    """Return why a precision is not the one in which a model's weights lie; null where it is, or vLLM makes it.

    A quantised checkpoint runs as it is: a row that called it bf16 would be compared as such.
    """
    folder, name, wanted = folder_of(config), config.model.name, config.precision
    there = None if folder is None else folder.quantised_in
    if there == wanted or (there is None and wanted not in ("int8", "int4")):
        return None
    if there is not None and folder is not None:
        return f"precision={wanted}: {name} has weights in {there} ({folder.quantization}); precision={there}"
    how = "is not quantised"
    if folder is not None and folder.quantization is not None:
        how = f"is quantised otherwise ({folder.quantization})"
    return (
        f"precision={wanted}: engine=vllm takes it from a checkpoint as it is, and {name} {how}; name the folder of "
        "one that is (AWQ, GPTQ, compressed-tensors) by model.path"
    )


def why_not_shards(config: Config) -> str | None:
    """Return why a point's model cannot be split into its shards; null where it can."""
    folder = folder_of(config)
    layers = config.model.n_layers if folder is None else folder.n_layers
    if config.pipeline > layers:
        return f"pipeline={config.pipeline}: {config.model.name} has {layers} layers"
    if folder is None:
        return arithmetic.why_not_shards(config.model, config.shards)
    return folders.why_not_shards(folder, config.shards)


def why_not_length(config: Config) -> str | None:
    """Return why rows cannot be as long as a point has them; null where they can, or the folder does not say."""
    folder = folder_of(config)
    longest = None if folder is None else folder.max_positions
    if longest is None or config.max_seq_len is None or config.max_seq_len <= longest:
        return None
    return f"max_seq_len={config.max_seq_len}: {config.model.name} has {longest} positions"


def weight_bytes(config: Config) -> int | None:
    """Return the bytes of weights on one rank, evenly over stages; null for an unknown family without files."""
    of_stages = _weight_bytes(config)
    return None if of_stages is None else of_stages // config.pipeline


def _weight_bytes(config: Config) -> int | None:
    """Return the bytes of one shard of all stages."""
    folder, quantised = folder_of(config), config.precision == "fp8"
    if folder is None:
        whole = arithmetic.weight_bytes(config.model, config.shards, plain(config.precision))
        if not quantised:
            return whole
        tables = 2 * config.model.vocab_size * config.model.dim * 2 // config.shards
        return (whole - tables) // 2 + tables  # the embedding and the head stay in 16 bit
    held = folders.weight_bytes(folder, config.precision, of_files=config.weights == "hf")
    return None if held is None else held // config.shards


def most_requests(config: Config) -> int:
    """Return how many requests a started vLLM takes into one iteration at most: its max_num_seqs."""
    return config.engine.vllm.max_num_seqs or config.batch_size


def row_bytes(config: Config) -> int:
    """Return the bytes that one rank keeps of one row of max_seq_len tokens; 0 for an unknown family."""
    folder, length = folder_of(config), config.max_seq_len or 0
    kept = config.kv_precision or plain(config.precision)
    if folder is None:
        values = arithmetic.kv_cache_values(config.model, config.shards, 1, length)
        whole = values * BYTES_PER_VALUE[kept]
    else:
        whole = folders.cache_bytes(folder, config.shards, length, BYTES_PER_VALUE[kept]) or 0
    return whole // config.pipeline


def workspace_bytes(config: Config) -> int:
    """Return an estimate of what one iteration takes beside weights and cache."""
    folder = folder_of(config)
    width = config.model.dim if folder is None else folder.width
    tokens = config.engine.vllm.max_num_batched_tokens or _ITERATION
    return tokens * _ACTIVATIONS * width * BYTES_PER_VALUE[plain(config.precision)]
