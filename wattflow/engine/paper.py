"""The `paper` engine: generation as Meta's first LLaMA release does it, which the paper measured.

A static batch. Prefill reads as many tokens of every prompt as the shortest has; the rest of longer prompts is fed one
token a step, in decode. No row stops early: all run until the longest prompt has its max_gen_len tokens, or the
sequence is full, and are cut afterwards. The cache is allocated whole, for batch_size x max_seq_len.
"""

import contextlib
import zlib
from collections.abc import Iterator

import torch

from wattflow import model as arithmetic
from wattflow.config import Config
from wattflow.engine import weights
from wattflow.engine.generation import Generated, check_prompts, kept
from wattflow.engine.layers import share_among
from wattflow.engine.llama import Cache, Llama, empty_cache, rotary_table
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError, RefusedError

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Paper:
    """One rank's part of the engine."""

    def __init__(self, config: Config, ranks: Ranks, *, eos_id: int | None, pad_id: int) -> None:
        """Check what can be checked without the device; RefusedError for shards that do not split the model."""
        reason = arithmetic.why_not_shards(config.model, config.shards)
        if reason is not None:
            raise RefusedError(f"{reason}.")
        if ranks.world != config.shards:
            raise EngineError(f"{config.shards} shards need as many ranks, but {ranks.world} came.")
        if config.max_seq_len is None:
            raise EngineError("max_seq_len is null: an engine takes resolved choices only.")
        self._config = config
        self._ranks = ranks
        self._max_seq_len = config.max_seq_len
        self._dtype = DTYPES[config.precision]
        self._eos_id = eos_id if config.stop == "eos" else None
        self._pad_id = pad_id
        self.info: dict[str, object] = {
            "engine": "paper",
            "device": ranks.device_name,
            "dtype": config.precision,
            "attention": "eager, float32 softmax" if config.precision != "fp64" else "eager",
            "linears": "fairscale",
            "source": config.weights,
        }

    def load(self) -> None:
        """Read or draw this rank's weights and allocate the cache."""
        torch.set_num_threads(self._config.engine.threads_per_rank)
        self._check_precision()
        share_among(self._ranks)
        with self._memory_explained(), torch.inference_mode():
            self._llama = self._loaded()
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
        read = weights.reader(model, self._config.weights, ranks.device)
        state = dict(
            weights.of_rank(
                model, read, ranks.rank, ranks.world, dtype=self._dtype, device=ranks.device
            )
        )
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

    def _check_precision(self) -> None:
        if not self._ranks.device.startswith("cuda"):
            return
        capability = torch.cuda.get_device_capability(self._ranks.device)
        # torch.cuda.is_bf16_supported may count emulation
        if self._config.precision == "bf16" and capability < (8, 0):
            raise EngineError(
                f"precision=bf16: {self._ranks.device_name} (compute capability {capability[0]}.{capability[1]}) has "
                "no bf16 arithmetic; use precision=fp16."
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
        self._made = places.unsqueeze(0) >= lengths_column
        self._shortest = min(lengths)
        with self._memory_explained(), torch.inference_mode():
            logits = self._step(0, self._shortest)
            finite = bool(torch.isfinite(logits).all())
        if not finite:
            raise EngineError(
                f"{self._config.model.name} in {self._config.precision} gives logits that are not finite: the weights "
                "do not fit the model or the precision is too narrow. Try precision=bf16 or fp32."
            )

    def decode(self) -> Generated:
        """Make one token a step for all rows up to the batch's full length, then cut each row."""
        total = self._tokens.shape[1]
        with self._memory_explained(), torch.inference_mode():
            for place in range(self._shortest, total - 1):
                self._step(place, place + 1)
        made = self._tokens.tolist()
        self._check_agreement(made)
        rows = [
            kept(row[length:], self._config.max_gen_len, self._eos_id)
            for row, length in zip(made, self._lengths, strict=True)
        ]
        return Generated(
            tokens=[tokens for tokens, _ in rows],
            stop_reasons=[reason for _, reason in rows],
            prefill_tokens_computed=len(rows) * self._shortest,
            decode_tokens_computed=len(rows) * (total - 1 - self._shortest),
        )

    def _step(self, start: int, stop: int) -> torch.Tensor:
        """Feed the tokens at places start ... stop-1, write the one at `stop`, return its logits [batch, vocab]."""
        hidden = self._llama(self._tokens[:, start:stop], start, self._cache, self._rotary)
        logits = self._llama.logits(hidden[:, -1]).to(self._rotary.dtype)
        chosen = choose(logits, self._config.temperature, self._config.top_p, self._generator)
        self._tokens[:, stop] = torch.where(
            self._made[:, stop], chosen.to(self._tokens.dtype), self._tokens[:, stop]
        )
        return logits

    def _check_agreement(self, made: list[list[int]]) -> None:
        """EngineError unless all ranks made the same tokens; otherwise each would continue another text."""
        digests = self._ranks.gather(zlib.crc32(repr(made).encode()))
        if len(set(digests)) > 1:
            raise EngineError(
                f"ranks made different tokens (digests by rank {digests}): their GPUs or libraries round differently. "
                "Run all shards on one kind of GPU and one version of torch."
            )

    @contextlib.contextmanager
    def _memory_explained(self) -> Iterator[None]:
        """Turn CUDA's out-of-memory into one EngineError that tells the arithmetic and the batch that fits."""
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            _, total = torch.cuda.mem_get_info(self._ranks.device)
            words = arithmetic.memory_in_words(self._config, round(total / arithmetic.GIB, 1))
            raise EngineError(
                f"rank {self._ranks.rank} on {self._ranks.node}: {self._ranks.device_name} is out of memory: {words}. "
                "Long prompts need more workspace than is estimated here."
            ) from error

    def synchronize(self) -> None:
        """Wait until the GPU has done all it was asked; the CPU always has."""
        if self._ranks.device.startswith("cuda"):
            torch.cuda.synchronize(self._ranks.device)

    def close(self) -> None:
        """Drop weights and cache, also after a failed load."""
        for name in ("_llama", "_cache", "_rotary", "_tokens", "_made"):
            self.__dict__.pop(name, None)
        share_among(None)
        if self._ranks.device.startswith("cuda"):
            torch.cuda.empty_cache()


def choose(
    logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> torch.Tensor:
    """One token a row of logits [batch, vocab]: the likeliest at temperature 0, else drawn.

    Drawn from the smallest set of likeliest tokens whose probabilities reach `top_p`, by their probabilities.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, tokens = torch.softmax(logits / temperature, dim=-1).sort(
        dim=-1, descending=True
    )
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before > top_p, 0.0)
    place = torch.multinomial(probabilities, 1, generator=generator)
    return tokens.gather(-1, place).squeeze(-1)
