"""Checks of every engine on torch: the device has the precision, memory suffices, ranks agree."""

import contextlib
import zlib
from collections.abc import Callable, Iterator

import torch

from wattflow.config.choices import Config, ranks_of
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError, RefusedError
from wattflow.workload import model as arithmetic

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # of all that is not quantised
}


def check_shards(config: Config, ranks: Ranks) -> int:
    """Return the longest sequence of resolved choices; RefusedError for shards that do not split the model."""
    return check_split(config, ranks, arithmetic.why_not_shards(config.model, config.shards))


def check_split(config: Config, ranks: Ranks, reason: str | None) -> int:
    """Return the same where an engine has a reason of its own, or none, why shards do not split the model."""
    if reason is not None:
        raise RefusedError(f"{reason}.")
    if ranks.world != ranks_of(config):
        stages = "" if config.pipeline == 1 else f" in each of {config.pipeline} stages"
        raise EngineError(
            f"{config.shards} shards{stages} need as many ranks, but {ranks.world} came."
        )
    if config.max_seq_len is None:
        raise EngineError("max_seq_len is null: an engine takes resolved choices only.")
    return config.max_seq_len


def check_precision(config: Config, ranks: Ranks) -> None:
    """EngineError for bf16 on a GPU that would only emulate it."""
    if not ranks.device.startswith("cuda"):
        return
    capability = torch.cuda.get_device_capability(ranks.device)
    # torch.cuda.is_bf16_supported may count emulation
    if config.precision == "bf16" and capability < (8, 0):
        raise EngineError(
            f"precision=bf16: {ranks.device_name} (compute capability {capability[0]}.{capability[1]}) has "
            "no bf16 arithmetic; use precision=fp16."
        )


def check_finite(config: Config, logits: torch.Tensor) -> None:
    """EngineError unless all logits of a prefill are finite."""
    if not bool(torch.isfinite(logits).all()):
        raise EngineError(
            f"{config.model.name} in {config.precision} gives logits that are not finite: the weights "
            "do not fit the model or the precision is too narrow. Try precision=bf16 or fp32."
        )


def check_agreement(ranks: Ranks, tokens: list[list[int]]) -> None:
    """EngineError unless all ranks made the same tokens, as each would go on with another text."""
    digests = ranks.gather(zlib.crc32(repr(tokens).encode()))
    if len(set(digests)) > 1:
        raise EngineError(
            f"ranks made different tokens (digests by rank {digests}): their GPUs or libraries round differently. "
            "Run all shards on one kind of GPU and one version of torch."
        )


@contextlib.contextmanager
def memory_explained(
    config: Config,
    ranks: Ranks,
    in_words: Callable[[Config, float], str] = arithmetic.memory_in_words,
) -> Iterator[None]:
    """Turn CUDA's out-of-memory into one EngineError with the arithmetic, `in_words` for a GPU of so many GiB."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        _, total = torch.cuda.mem_get_info(ranks.device)
        words = in_words(config, round(total / arithmetic.GIB, 1))
        raise EngineError(
            f"rank {ranks.rank} on {ranks.node}: {ranks.device_name} is out of memory: {words}. "
            "Long prompts need more workspace than is estimated here."
        ) from error
