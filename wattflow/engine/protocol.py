"""The interface of an engine, and the result of a batch. No torch here: `run` and the synthetic engine need none."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from wattflow.engine.serving import RequestTrace
from wattflow.engine.vllm_iterations import Iteration
from wattflow.errors import EngineError
from wattflow.store.schema import WorkInfo


@dataclass
class Generated:
    """The output of one batch: the tokens that each row keeps, why it ended, and how many tokens were computed."""

    tokens: list[list[int]]  # kept output, without the prompt and without the EOS token
    stop_reasons: list[str]  # eos, length or max_seq_len
    prefill_tokens_computed: int
    decode_tokens_computed: int
    work: WorkInfo | None  # null where nothing is computed
    iterations: tuple[Iteration, ...] = ()  # of an engine that schedules by itself, in order
    traces: tuple[
        RequestTrace, ...
    ] = ()  # of requests that came while others were in work, as rows


def total_work(batches: Iterable[Generated]) -> WorkInfo | None:
    """Return the work of all batches together; null where one does not report it, or there is no batch."""
    works = [batch.work for batch in batches]
    known = [work for work in works if work is not None]
    if not known or len(known) < len(works):
        return None
    return {
        "decode_steps": sum(work["decode_steps"] for work in known),
        "decode_rows": sum(work["decode_rows"] for work in known),
        "decode_positions": sum(work["decode_positions"] for work in known),
        "prefills": sum(work["prefills"] for work in known),
        "prefill_tokens": sum(work["prefill_tokens"] for work in known),
        "prefill_squares": sum(work["prefill_squares"] for work in known),
    }


class Engine(Protocol):
    """One rank's part of a model that generates text batch by batch; every rank makes the same calls."""

    info: dict[str, object]  # what runs and how large it is, for the record; complete after `load`

    def load_weights(self) -> Any:
        """Return this rank's weights on its device, for `load` of this engine and of others of the same model."""

    def load(self, weights: Any = None) -> None:
        """Bring the weights, unless they lie on the device already, and the cache onto the device."""

    def prefill(self, prompts: list[list[int]]) -> None:
        """Start a batch: read what of the prompts the engine reads at once."""

    def decode(self) -> Generated:
        """Finish the batch token by token."""

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work, so that a time stamp means something."""

    def close(self) -> None:
        """Give the memory back."""


def kept(output: list[int], max_gen_len: int, eos_ids: Collection[int]) -> tuple[list[int], str]:
    """Return the tokens that a row keeps of all it made, and its stop reason.

    At most max_gen_len are kept, and none from the first EOS on (no `eos_ids`: EOS is a token like others). A row
    that made fewer than max_gen_len met the end of the sequence.
    """
    tokens = output[:max_gen_len]
    for place, token in enumerate(tokens if eos_ids else ()):
        if token in eos_ids:
            return tokens[:place], "eos"
    return tokens, "length" if len(tokens) == max_gen_len else "max_seq_len"


def check_prompts(
    prompts: list[list[int]], batch_size: int, max_seq_len: int, vocab_size: int
) -> None:
    """Raise EngineError for a batch that the engine was not made for."""
    if not 0 < len(prompts) <= batch_size:
        raise EngineError(
            f"a batch of {len(prompts)} prompts, but the cache holds {batch_size} rows: set batch_size to what is run."
        )
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) < max_seq_len:
            raise EngineError(
                f"row {row} of the batch has {len(prompt)} tokens; with max_seq_len={max_seq_len}, which holds prompt "
                f"and output, 1 to {max_seq_len - 1} can be taken. Set dataset.on_bad=skip or truncate, or raise "
                "max_seq_len."
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            # the sharded embedding would silently read zeros
            raise EngineError(
                f"row {row} of the batch holds token {max(prompt)}, beyond the model's vocabulary of {vocab_size}: the "
                "tokenizer is not this model's. Look at model.tokenizer and model.tokenizer_path."
            )
