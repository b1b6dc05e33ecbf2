"""The `paper` engine: generation as Meta's first LLaMA release does it, which the paper measured.

A static batch. Prefill reads as many tokens of every prompt as the shortest has; the rest of longer prompts is fed one
token a step, in decode. No row stops early: all run until the longest prompt has its max_gen_len tokens, or the
sequence is full, and are cut afterwards. The cache is allocated whole, for batch_size x max_seq_len.
"""

from collections.abc import Collection

import torch

from wattflow.config.choices import Config
from wattflow.engine import weights as checkpoints
from wattflow.engine.checks import (
    DTYPES,
    check_agreement,
    check_finite,
    check_precision,
    check_shards,
    memory_explained,
)
from wattflow.engine.layers import share_among
from wattflow.engine.llama import Cache, Llama, empty_cache, rotary_table
from wattflow.engine.protocol import Generated, check_prompts, kept
from wattflow.engine.ranks import Ranks
from wattflow.engine.sampling import choose
from wattflow.store.schema import WorkInfo
from wattflow.workload import model as arithmetic


class Paper:
    """One rank's part of the engine."""

    def __init__(
        self, config: Config, ranks: Ranks, *, eos_ids: Collection[int], pad_id: int
    ) -> None:
        """Check what can be checked without the device; RefusedError for shards that do not split the model."""
        self._max_seq_len = check_shards(config, ranks)
        self._config = config
        self._ranks = ranks
        self._dtype = DTYPES[config.precision]
        self._eos_ids = tuple(eos_ids) if config.stop == "eos" else ()
        self._pad_id = pad_id
        self.info: dict[str, object] = {
            "engine": "paper",
            "device": ranks.device_name,
            "dtype": config.precision,
            "attention": "eager, float32 softmax" if config.precision != "fp64" else "eager",
            "linears": "fairscale",
            "source": config.weights,
        }

    def load_weights(self) -> Llama:
        """Read or draw this rank's weights."""
        torch.set_num_threads(self._config.engine.threads_per_rank)
        check_precision(self._config, self._ranks)
        share_among(self._ranks)
        with memory_explained(self._config, self._ranks), torch.inference_mode():
            return self._loaded()

    def load(self, weights: Llama | None = None) -> None:
        """Take this rank's weights, or read or draw them, and allocate the cache."""
        share_among(self._ranks)
        self._llama = self.load_weights() if weights is None else weights
        with memory_explained(self._config, self._ranks), torch.inference_mode():
            self._cache = self._empty_cache()
            self._rotary = rotary_table(
                self._config.model, self._max_seq_len, self._dtype, self._ranks.device
            )
        # the same seed on all ranks, so that all draw the same tokens
        self._generator = torch.Generator(self._ranks.device).manual_seed(self._config.seed)
        unique = {p.data_ptr(): p for p in self._llama.parameters()}  # tied weights count once
        self.info |= {
            "parameters": arithmetic.parameters(self._config.model),
            "weight_bytes": sum(p.nbytes for p in unique.values()),
            "kv_cache_bytes": sum(keys.nbytes + values.nbytes for keys, values in self._cache),
        }

    def _loaded(self) -> Llama:
        model, ranks = self._config.model, self._ranks
        with torch.device("meta"):
            llama = Llama(model, ranks.rank, ranks.world)
        with checkpoints.opened(model, self._config.weights, ranks) as read:
            parts = checkpoints.of_rank(
                model, read, ranks.rank, ranks.world, dtype=self._dtype, device=ranks.device
            )
            state = dict(parts)
        if model.tied_embeddings:
            state["output.weight"] = state["tok_embeddings.weight"]
        llama.load_state_dict(state, assign=True)
        return llama.requires_grad_(requires_grad=False)

    def _empty_cache(self) -> Cache:
        return empty_cache(
            self._config.model,
            self._config.shards,
            self._config.batch_size,
            self._max_seq_len,
            dtype=self._dtype,
            device=self._ranks.device,
        )

    def prefill(self, prompts: list[list[int]]) -> None:
        """Read the first tokens of all prompts, as many as the shortest has, and choose the next token of each row."""
        vocab_size = self._config.model.vocab_size
        check_prompts(prompts, self._config.batch_size, self._max_seq_len, vocab_size)
        lengths = [len(prompt) for prompt in prompts]
        total = min(self._max_seq_len, self._config.max_gen_len + max(lengths))
        rows = [prompt + [self._pad_id] * (total - len(prompt)) for prompt in prompts]
        self._lengths = lengths
        self._tokens = torch.tensor(rows, device=self._ranks.device)
        # where a prompt's token stands, the token made for that place is thrown away
        lengths_column = torch.tensor(lengths, device=self._ranks.device).unsqueeze(1)
        places = torch.arange(total, device=self._ranks.device)
        self._is_output = places.unsqueeze(0) >= lengths_column
        self._shortest = min(lengths)
        with memory_explained(self._config, self._ranks), torch.inference_mode():
            logits = self._step(0, self._shortest)
            check_finite(self._config, logits)

    def decode(self) -> Generated:
        """Make one token a step for all rows up to the batch's full length, then cut each row."""
        total = self._tokens.shape[1]
        with memory_explained(self._config, self._ranks), torch.inference_mode():
            for place in range(self._shortest, total - 1):
                self._step(place, place + 1)
        tokens = self._tokens.tolist()
        check_agreement(self._ranks, tokens)
        rows = [
            kept(row[length:], self._config.max_gen_len, self._eos_ids)
            for row, length in zip(tokens, self._lengths, strict=True)
        ]
        return Generated(
            tokens=[tokens for tokens, _ in rows],
            stop_reasons=[reason for _, reason in rows],
            prefill_tokens_computed=len(rows) * self._shortest,
            decode_tokens_computed=len(rows) * (total - 1 - self._shortest),
            work=self._work(total),
        )

    def _work(self, total: int) -> WorkInfo:
        """Return the work of a prefill of the shortest prompt's length and of the steps up to the full length."""
        rows, first = len(self._lengths), self._shortest
        steps = total - 1 - first
        return {
            "decode_steps": steps,
            "decode_rows": rows * steps,
            # the step that feeds place p reads p + 1 positions
            "decode_positions": rows * sum(range(first + 1, total)),
            "prefills": 1,
            "prefill_tokens": rows * first,
            "prefill_squares": rows * first**2,
        }

    def _step(self, start: int, stop: int) -> torch.Tensor:
        """Feed the tokens at places start ... stop-1, write the one at `stop`, return its logits [batch, vocab]."""
        hidden = self._llama(self._tokens[:, start:stop], start, self._cache, self._rotary)
        logits = self._llama.logits(hidden[:, -1]).to(self._rotary.dtype)
        chosen = choose(logits, self._config.temperature, self._config.top_p, self._generator)
        self._tokens[:, stop] = torch.where(
            self._is_output[:, stop], chosen.to(self._tokens.dtype), self._tokens[:, stop]
        )
        return logits

    def synchronize(self) -> None:
        """Wait until the GPU has finished all queued work; the CPU always has."""
        if self._ranks.device.startswith("cuda"):
            torch.cuda.synchronize(self._ranks.device)

    def close(self) -> None:
        """Drop weights and cache, also after a failed load."""
        for name in ("_llama", "_cache", "_rotary", "_tokens", "_is_output"):
            self.__dict__.pop(name, None)
        share_among(None)
        if self._ranks.device.startswith("cuda"):
            torch.cuda.empty_cache()
