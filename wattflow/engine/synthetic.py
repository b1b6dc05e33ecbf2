"""An engine whose output is known: it sleeps a set time a step and its tokens follow from the prompts.

It shows the overhead of wattflow itself, and lets a laptop try a sweep without torch or weights.
"""

import time
from collections.abc import Collection
from typing import Any

from wattflow.config.choices import Config
from wattflow.engine.protocol import Generated, check_prompts, kept
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError
from wattflow.workload.model import parameters


class Synthetic:
    """Token k of a row is (sum of its prompt + k) modulo the vocabulary; every step takes the same time."""

    def __init__(self, config: Config, ranks: Ranks, *, eos_ids: Collection[int]) -> None:
        if config.max_seq_len is None:
            raise EngineError("max_seq_len is null: an engine takes resolved choices only.")
        self._config = config
        self._max_seq_len = config.max_seq_len
        self._step_s = config.engine.synthetic_ms_per_token / 1e3
        self._eos_ids = tuple(eos_ids) if config.stop == "eos" else ()
        self._prompts: list[list[int]] = []
        self.info: dict[str, object] = {
            "engine": "synthetic",
            "device": ranks.device,
            "dtype": None,
            "parameters": parameters(config.model),
            "weight_bytes": 0,
            "kv_cache_bytes": 0,
            "attention": None,
            "linears": None,
            "source": "none",
        }

    def load_weights(self) -> Any:
        """Nothing to load."""

    def load(self, weights: Any = None) -> None:
        """Nothing to load."""

    def prefill(self, prompts: list[list[int]]) -> None:
        """Take one step's time for all prompts."""
        model = self._config.model
        check_prompts(prompts, self._config.batch_size, self._max_seq_len, model.vocab_size)
        self._prompts = prompts
        time.sleep(self._step_s)

    def decode(self) -> Generated:
        """Take one step's time for each token after the first of the row that makes most."""
        counts = [
            min(self._config.max_gen_len, self._max_seq_len - len(prompt))
            for prompt in self._prompts
        ]
        steps = max(counts) - 1
        time.sleep(steps * self._step_s)
        rows = [
            kept(self._output(prompt, count), self._config.max_gen_len, self._eos_ids)
            for prompt, count in zip(self._prompts, counts, strict=True)
        ]
        return Generated(
            tokens=[tokens for tokens, _ in rows],
            stop_reasons=[reason for _, reason in rows],
            prefill_tokens_computed=sum(map(len, self._prompts)),
            decode_tokens_computed=len(self._prompts) * steps,
            work=None,
        )

    def _output(self, prompt: list[int], count: int) -> list[int]:
        return [(sum(prompt) + k) % self._config.model.vocab_size for k in range(count)]

    def synchronize(self) -> None:
        """Sleeping is synchronous."""

    def close(self) -> None:
        """Nothing to give back."""
