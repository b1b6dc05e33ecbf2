"""A tokenizer of somebody's files, in a child under limits: what they do to a library ends the child alone.

A chat template is a program that came with a download, and a tokenizer's file can have a library take any memory. The
child is there while texts are read or written: `close` ends it, and the next call starts another.
"""

import json
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from wattflow.config.choices import Model
from wattflow.errors import RefusedError
from wattflow.store.confined import NO_MEMORY, Budget, ConfinedError, Conversation
from wattflow.workload import tokenizer
from wattflow.workload.conversations import Message
from wattflow.workload.tokenizer import Tokenizer

# of addresses; the largest vocabularies take a sixth of it
BUDGET = Budget(memory_bytes=4 * 2**30, cpu_s=60.0, cpu_s_a_byte=20e-6)
_MOST_TOKENS = 10_000_000  # of one prompt
_KEYS = ("name", "vocab_size", "tokenizer", "chat", "path", "tokenizer_path")
# threads and their arenas take addresses by the core, and a prompt is too short to share out
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def load(model: Model, weights: str = "dummy", budget: Budget = BUDGET) -> Tokenizer:
    """Return the model's tokenizer, one that reads a file in a child; RefusedError as of `tokenizer.load`."""
    if not tokenizer.reads_file(model, weights):
        return tokenizer.load(model, weights)
    return ConfinedTokenizer(model, weights, budget)


class ConfinedTokenizer:
    """A tokenizer whose library, files and template are in a child."""

    def __init__(self, model: Model, weights: str, budget: Budget) -> None:
        """Start the child and have it load the files; RefusedError for what is wrong with them."""
        self._about = f"model {model.name}"
        self._budget = budget
        self._opening = {key: getattr(model, key) for key in _KEYS} | {"weights": weights}
        self._child: Conversation | None = None
        found = self._ask({"load": self._opening}, 0)
        self.name: str = found["name"]
        self.vocab_size: int = found["vocab_size"]
        self.bos_id: int | None = found["bos_id"]
        self.eos_id: int | None = found["eos_id"]
        self.eos_ids: tuple[int, ...] = tuple(found["eos_ids"])
        self.pad_id: int = found["pad_id"]

    def encode(self, text: str, messages: Sequence[Message] = ()) -> list[int]:
        """Return the ids of a prompt, as the file's own tokenizer does."""
        size = len(text) + sum(len(message.content) for message in messages)
        question = {"encode": text, "messages": [asdict(message) for message in messages]}
        ids: list[int] = self._again(question, size)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, as the file's own tokenizer does."""
        text: str = self._again({"decode": list(ids)}, 8 * len(ids))
        return text

    def close(self) -> None:
        """End the child, until the next call."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _again(self, question: dict[str, Any], size_bytes: int) -> Any:
        if self._child is None:
            self._ask({"load": self._opening}, 0)
        return self._ask(question, size_bytes)

    def _ask(self, question: dict[str, Any], size_bytes: int) -> Any:
        """Return the child's answer; RefusedError where it gives none."""
        if self._child is None:
            self._child = Conversation(f"{__name__}:answers", self._budget, _ONE_THREAD)
            weakref.finalize(self, self._child.close)
        try:
            answer = json.loads(self._child.ask(json.dumps(question), size_bytes))
        except ConfinedError as error:
            self.close()
            raise RefusedError(
                f"{self._about}: its tokenizer or chat template gives no answer: {error}. Set model.chat=false where "
                "the template is at fault, or take the files of another copy of the checkpoint."
            ) from error
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        return answer["answer"]


# --- the child ------------------------------------------------------------------------------------


def answers() -> Callable[[str], str]:
    """Return what answers each question of the parent's, as JSON."""
    held: list[Tokenizer] = []

    def answer(text: str) -> str:
        try:
            return json.dumps({"answer": _answer(json.loads(text), held)})
        except RefusedError as error:
            return json.dumps({"refused": str(error)})
        except MemoryError:
            os._exit(NO_MEMORY)
        except BaseException as error:  # noqa: BLE001 - a library's panic is no Exception
            reason = (str(error).split("\n", 1)[0] or type(error).__name__)[:200]
            text = f"the tokenizer's library or the chat template failed ({reason})."
            return json.dumps({"refused": f"{text} Set model.chat=false, or mend the files."})

    return answer


def _answer(question: dict[str, Any], held: list[Tokenizer]) -> Any:
    if "load" in question:
        weights = question["load"].pop("weights")
        found = tokenizer.load(Model(**question["load"]), weights)
        held.append(found)
        names = ("name", "vocab_size", "bos_id", "eos_id", "eos_ids", "pad_id")
        return {name: getattr(found, name) for name in names}
    (found,) = held
    if "decode" in question:
        return found.decode(question["decode"])
    messages = [Message(**message) for message in question["messages"]]
    ids = found.encode(question["encode"], messages)
    if len(ids) > _MOST_TOKENS:
        raise RefusedError(
            f"the tokenizer or chat template makes {len(ids)} tokens of one prompt; the most are {_MOST_TOKENS}."
        )
    return ids
