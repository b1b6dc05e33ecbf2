"""What a point makes its GPUs do: the terms of which its seconds and joules are sums.

    seconds = a1 longest + a2 shortest + a3 layers + a4 batches + a5 communication          a >= 0, fitted
    joules  = c1 GPUs x seconds + c2 bytes + c3 operations + c4 communicating GPU-seconds   c >= 0, fitted

`longest` is the larger of reading all bytes and computing all operations at the measured ceilings, step by step, and
`shortest` the other, of which a part may not overlap. `layers` counts the layers that were launched: their overhead.
c1 are the static watts of a GPU. Bytes and operations are the least of workload/model.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wattflow.config.choices import Config, ranks_of
from wattflow.errors import RefusedError
from wattflow.workload.model import Work, decode_work, plain_bytes, prefill_work

_SUMS_A_LAYER = 2  # over ranks, after attention and after the feed-forward


@dataclass(frozen=True)
class Ceilings:
    """What one GPU copies and multiplies at most, as measured; bytes/s and FLOP/s."""

    copy_bytes_per_s: float
    product_flops_per_s: float


@dataclass(frozen=True)
class Fabric:
    """What GPUs exchange sums through: seconds of one exchange of nothing, and bytes a second of each GPU."""

    latency_s: float
    bytes_per_s: float

    def sum_s(self, ranks: int, size: float) -> float:
        """Return the seconds of one sum of so many bytes over ranks, as a ring makes it (2 (n-1) steps)."""
        if ranks == 1:
            return 0.0
        return 2 * (ranks - 1) * (self.latency_s + size / ranks / self.bytes_per_s)


@dataclass(frozen=True)
class Terms:
    """The terms of one point; seconds but for counts, bytes and operations, which are of all its GPUs."""

    gpus: int
    tokens: float  # output tokens
    longest_s: float
    shortest_s: float
    layers: float
    batches: float
    communication_s: float
    total_bytes: float
    total_flops: float

    def of_time(self) -> tuple[float, ...]:
        """Return the terms of the seconds."""
        return (self.longest_s, self.shortest_s, self.layers, self.batches, self.communication_s)

    def of_energy(self, seconds: float) -> tuple[float, ...]:
        """Return the terms of the joules of a point that takes so many seconds."""
        return (
            self.gpus * seconds,
            self.total_bytes,
            self.total_flops,
            self.gpus * self.communication_s,
        )


TIME_TERMS = ("longest", "shortest", "layers", "batches", "communication")
ENERGY_TERMS = ("static_w", "byte_j", "flop_j", "communication_w")


def why_not(config: Config) -> str | None:
    """Return why the form does not describe a point; null where it does."""
    if config.model.architecture not in ("llama", "mistral", "qwen2", "qwen3"):
        return f"model={config.model.name}: the bytes and operations of {config.model.architecture} are not counted"
    if config.pipeline != 1:
        return "pipeline: stages wait for each other, which the form does not have"
    if config.workload.mode != "static":
        return f"workload.mode={config.workload.mode}: the engine forms its batches by itself"
    if config.stop != "length":
        return "stop=eos: how many tokens an answer has is not known before"
    return None


def terms(config: Config, prompt_tokens: float, ceilings: Ceilings, fabric: Fabric) -> Terms:
    """Return the terms of a point's measured window; `prompt_tokens` is the mean length of its prompts.

    RefusedError where the form does not describe it.
    """
    if (why := why_not(config)) is not None:
        raise RefusedError(f"{why}: nothing is predicted of it.")
    prompts = config.n_prompts or 0
    whole, rest = divmod(prompts, config.batch_size)
    sizes = [(config.batch_size, whole), (rest, 1 if rest else 0)]
    steps = max(config.max_gen_len - 1, 0)  # the prefill makes the first token
    length = prompt_tokens + config.max_gen_len / 2
    longest = shortest = sums = moved = operations = 0.0
    for rows, batches in sizes:
        if not batches:
            continue
        decode = decode_work(config.model, config.shards, config.precision, rows, length)
        prefill = prefill_work(
            config.model, config.shards, config.precision, rows, round(prompt_tokens)
        )
        for work, times in ((decode, batches * steps), (prefill, batches)):
            slower, faster = _seconds(work, ceilings)
            longest += slower * times
            shortest += faster * times
            moved += work.read_bytes * times
            operations += work.flops * times
        size = config.model.dim * plain_bytes(config.precision)
        a_step = fabric.sum_s(config.shards, rows * size) * steps
        a_prefill = fabric.sum_s(config.shards, rows * prompt_tokens * size)
        sums += _SUMS_A_LAYER * config.model.n_layers * batches * (a_step + a_prefill)
    batches = math.ceil(prompts / config.batch_size)
    ranks = ranks_of(config)
    return Terms(
        gpus=ranks,
        tokens=float(prompts * config.max_gen_len),
        longest_s=longest,
        shortest_s=shortest,
        layers=float(batches * (steps + 1) * config.model.n_layers),
        batches=float(batches),
        communication_s=sums,
        total_bytes=moved * ranks,
        total_flops=operations * ranks,
    )


def _seconds(work: Work, ceilings: Ceilings) -> tuple[float, float]:
    """Return the seconds of reading and of computing at the ceilings, the longer one first."""
    both: Sequence[float] = sorted(
        (
            work.read_bytes / ceilings.copy_bytes_per_s,
            work.flops / ceilings.product_flops_per_s,
        )
    )
    return both[1], both[0]
