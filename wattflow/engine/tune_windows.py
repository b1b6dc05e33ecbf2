"""Windows of decode with each kernel set that can run a point, over one load of its weights.

`wattflow tune` decides the order of the windows and measures the energy of each.
"""

import time
from dataclasses import dataclass
from typing import Self

import torch

from wattflow.config.choices import Config
from wattflow.engine.fast import Fast
from wattflow.engine.ranks import Ranks
from wattflow.engine.tuned_kernels import key_of
from wattflow.errors import RefusedError

PROMPT = 128  # tokens a row, or as many as the sequence leaves room for
SEED = 7


@dataclass(frozen=True)
class Window:
    """Consecutive batches with one kernel set; only their decodes count."""

    kernels: str
    spans: list[tuple[int, int]]  # of each decode, unix ns
    tokens: int  # made in the spans
    steps: int
    bytes_per_step: float  # the least that one GPU reads


class Arms:
    """A loaded engine whose kernels can be changed; a context manager."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        """RefusedError for choices that leave no choice of kernels."""
        if config.engine.name != "fast":
            raise RefusedError(f"engine={config.engine.name} has one way only: tune engine=fast.")
        if config.shards != 1:
            raise RefusedError(f"shards={config.shards}: tune works on one GPU; take shards=1.")
        self._config = config
        self._ranks = ranks
        self._engine = Fast(config, ranks, eos_ids=())
        generator = torch.Generator().manual_seed(SEED)
        assert config.max_seq_len is not None
        length = max(1, min(PROMPT, config.max_seq_len - config.max_gen_len))
        shape = config.batch_size, length
        self._prompts = torch.randint(0, config.model.vocab_size, shape, generator=generator)

    def __enter__(self) -> Self:
        """Load the engine with its first kernel set."""
        self._engine.load()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the memory back."""
        self._engine.close()

    @property
    def key(self) -> str:
        """The key under which the choice is kept."""
        return key_of(self._config, self._ranks.device_name, torch.__version__)

    def names(self) -> list[str]:
        """Return the kernel sets that run here, each run once, so that all are compiled."""
        one_row = ["triton"] if self._config.batch_size == 1 else []
        wanted = ["cublas", *one_row, "eager"] if self._ranks.device.startswith("cuda") else []
        found = []
        for name in wanted or ["eager"]:
            self._engine.use_kernels(name)
            self._batch()
            found.append(name)
        return found

    def window(self, kernels: str, seconds: float) -> Window:
        """Run whole batches until their decodes have taken that time."""
        self._engine.use_kernels(kernels)
        spans: list[tuple[int, int]] = []
        steps = rows = 0
        bytes_per_step = 0.0
        while sum(end - start for start, end in spans) < seconds * 1e9:
            spans.append(self._batch())
            batch = self._engine.last_batch
            steps += batch.decode_steps
            rows = batch.rows
            bytes_per_step = batch.bytes_per_step
        return Window(kernels, spans, steps * rows, steps, bytes_per_step)

    def _batch(self) -> tuple[int, int]:
        self._engine.prefill(self._prompts.tolist())
        self._engine.synchronize()
        start = time.time_ns()
        self._engine.decode()
        self._engine.synchronize()
        return start, time.time_ns()
