"""The `transformers` engine: any causal language model of Hugging Face through one static-batch loop.

    load     the model by transformers' own code; a static cache where the model allows one, else one that grows
    prefill  all prompts at once, padded at the left, each row's positions counted from its own first token
    decode   one token a step for all rows, eager or compiled, until every row has all it may make, or has ended

The slow, universal reference. Nothing here is ours but the loop: attention, cache and kernels are the library's.
"""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch

from wattflow.config.choices import Config
from wattflow.engine import transformers_library
from wattflow.engine.checks import (
    check_agreement,
    check_finite,
    check_precision,
    check_split,
    memory_explained,
)
from wattflow.engine.decode_state import LOOK_EVERY, EndLook, State
from wattflow.engine.installed import TRANSFORMERS
from wattflow.engine.protocol import Generated, check_prompts, kept
from wattflow.engine.ranks import Ranks
from wattflow.engine.sampling import choose
from wattflow.engine.transformers_library import Loaded
from wattflow.store.schema import WorkInfo
from wattflow.workload import transformers_fit, vllm_fit


class Transformers:
    """One rank's part of the engine."""

    def __init__(
        self, config: Config, ranks: Ranks, *, eos_ids: Collection[int], pad_id: int
    ) -> None:
        """Check what can be checked without the library's import; EngineError where it is missing."""
        self._version = TRANSFORMERS.require("engine=transformers")
        self._max_seq_len = check_split(config, ranks, transformers_fit.why_not_shards(config))
        self._config, self._ranks, self._pad_id = config, ranks, pad_id
        self._eos_ids = tuple(eos_ids) if config.stop == "eos" else ()
        self._compiles = config.engine.transformers.compile
        self.info: dict[str, object] = {
            "engine": "transformers",
            "engine_version": self._version,
            "device": ranks.device_name,
            "dtype": config.precision,
            "source": config.weights,
            "compiled": self._compiles,
            **vllm_fit.parameters(config),
        }

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn what the library or the device raises into one EngineError."""
        with (
            TRANSFORMERS.explained(self._version, f"{doing} {self._config.model.name}"),
            memory_explained(self._config, self._ranks, transformers_fit.memory_in_words),
        ):
            yield

    # --- load ---

    def load_weights(self) -> Loaded:
        """Read or draw this rank's weights."""
        torch.set_num_threads(self._config.engine.threads_per_rank)
        check_precision(self._config, self._ranks)
        with self._explained("did not load"):
            return transformers_library.load(self._config, self._ranks)

    def load(self, weights: Loaded | None = None) -> None:
        """Take this rank's weights, or read or draw them, and allocate what lies beside them."""
        config, ranks = self._config, self._ranks
        self._loaded = self.load_weights() if weights is None else weights
        model = self._loaded.model
        self._kind = transformers_library.cache_kind(config, self._loaded)
        self._cache: Any = None
        self._cache_shape = 0, self._max_seq_len  # rows, tokens a row
        self._forward: Any = model
        if self._compiles:
            # "reduce-overhead" captures CUDA graphs on a GPU
            self._forward = torch.compile(model.forward, mode="reduce-overhead", dynamic=False)
        with self._explained("did not load"):
            self._state = State.empty(config.batch_size, config.max_gen_len + 1, ranks.device)
        # the same seed on all ranks, so that all draw the same tokens
        self._generator = torch.Generator(ranks.device).manual_seed(config.seed)
        self.info |= {
            "model_class": type(model).__name__,
            "attention_backend": str(model.config._attn_implementation),  # noqa: SLF001 - the one place that says it
            "cache_kind": self._kind,
            "cuda_graphs": "reduce-overhead"
            if self._compiles and ranks.device != "cpu"
            else "NONE",
            "weight_bytes": transformers_library.weight_bytes(model),
        }

    # --- a batch ---

    def prefill(self, prompts: list[list[int]]) -> None:
        """Read all prompts whole and choose the first token of each row."""
        config = self._config
        check_prompts(prompts, config.batch_size, self._max_seq_len, config.model.vocab_size)
        self._asked = len(prompts)
        # a compiled step has one shape: rows that nobody asked for fill the batch
        prompts = prompts + [prompts[0]] * (self._compiles * (config.batch_size - len(prompts)))
        self._lengths = [len(prompt) for prompt in prompts]
        self._limits = [min(config.max_gen_len, self._max_seq_len - n) for n in self._lengths]
        self._longest = max(self._lengths)
        with self._explained("did not read the prompts of"), torch.no_grad():
            self._begin_cache(self._longest + max(self._limits))
            self._state.begin(self._lengths, self._limits)
            tokens, positions = self._padded(prompts)
            logits = self._step(self._loaded.model, tokens, positions)
            check_finite(config, logits)

    def _begin_cache(self, length: int) -> None:
        """Have an empty cache for so many tokens a row, and the mask of its padding.

        A static one is kept for the next batch of as many rows: compiled steps and their graphs know its address.
        """
        shape = len(self._lengths), max(self._cache_shape[1], length)
        if self._kind == "static" and shape == self._cache_shape:
            self._cache.reset()
        else:
            self._cache = None  # its memory goes first
            self._cache = transformers_library.new_cache(self._loaded, self._kind, shape[1])
            self._cache_shape = shape
        self._fed = 0
        self._mask = self._padding_mask(shape[1])

    def _padding_mask(self, length: int) -> torch.Tensor | None:
        """Return 1 for each place of a row but those before its first token; null where no row has such a place."""
        if min(self._lengths) == self._longest and not self._compiles:
            return None
        first = self._longest - torch.tensor(self._lengths, device=self._ranks.device)
        places = torch.arange(length, device=self._ranks.device)
        return (places >= first.unsqueeze(1)).to(torch.int64)

    def _padded(self, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return prompts that end together, and the place of each token in its own row."""
        device, longest = self._ranks.device, self._longest
        rows = [[self._pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
        first = longest - torch.tensor(self._lengths, device=device)
        positions = torch.arange(longest, device=device) - first.unsqueeze(1)
        return torch.tensor(rows, device=device), positions.clamp_(min=0)

    def _step(self, forward: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Feed new tokens, choose the next one of each row, and return the logits [rows, vocabulary]."""
        start, self._fed = self._fed, self._fed + tokens.shape[1]
        mask = self._mask
        if mask is not None and self._kind == "dynamic":
            mask = mask[:, : self._fed]
        inputs = self._loaded.inputs(tokens, positions, mask, self._cache, start)
        logits: torch.Tensor = forward(**inputs, return_dict=True).logits[:, -1]
        chosen = choose(logits, self._config.temperature, self._config.top_p, self._generator)
        self._state.write(chosen, self._max_seq_len - 1, self._eos_ids)
        return logits

    def decode(self) -> Generated:
        """Make one token a step until every row has all it may make, or every row has ended."""
        with self._explained("failed in a step of"), torch.no_grad():
            steps = self._run_steps(max(self._limits) - 1)
            output = self._state.output[: self._asked, : steps + 1].tolist()
        check_agreement(self._ranks, output)
        rows = [
            kept(row[:limit], self._config.max_gen_len, self._eos_ids)
            for row, limit in zip(output, self._limits[: self._asked], strict=True)
        ]
        return Generated(
            tokens=[tokens for tokens, _ in rows],
            stop_reasons=[reason for _, reason in rows],
            prefill_tokens_computed=len(self._lengths) * self._longest,
            decode_tokens_computed=len(self._lengths) * steps,
            work=self._work(steps),
        )

    def _run_steps(self, most: int) -> int:
        """Take up to `most` steps, none once all rows were seen to have ended; returns how many."""
        all_ended = EndLook(self._state.all_ended)
        for step in range(most):
            if self._eos_ids and step % LOOK_EVERY == 0 and all_ended():
                return step
            rows = len(self._lengths)
            tokens = self._state.tokens[:rows].unsqueeze(1)
            self._step(self._forward, tokens, self._state.positions[:rows].unsqueeze(1))
        return most

    def _work(self, steps: int) -> WorkInfo | None:
        """Return what the batch worked on; null for a family whose arithmetic is not known here."""
        if not vllm_fit.is_llama(self._config.model):
            return None
        rows, tokens = len(self._lengths), sum(self._lengths)
        return {
            "decode_steps": steps,
            "decode_rows": rows * steps,
            "decode_positions": steps * tokens + rows * steps * (steps + 1) // 2,
            "prefills": 1,
            "prefill_tokens": tokens,
            "prefill_squares": sum(n**2 for n in self._lengths),
        }

    def synchronize(self) -> None:
        """Wait until the GPU has finished all queued work; the CPU always has."""
        if self._ranks.device.startswith("cuda"):
            torch.cuda.synchronize(self._ranks.device)

    def close(self) -> None:
        """Drop weights and cache, also after a failed load."""
        for name in ("_forward", "_loaded", "_cache", "_state", "_mask"):
            self.__dict__.pop(name, None)
        if self._ranks.device.startswith("cuda"):
            torch.cuda.empty_cache()
