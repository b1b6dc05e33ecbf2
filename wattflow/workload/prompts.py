"""The prompts of a point: the records drawn from a file, the text made of them, and the tokens that fit the model.

Anyone can redraw the records of a point: they are the first n_prompts of
`numpy.random.default_rng(seed).permutation(records in the file)`, and the sha256 of their prompts is in the record.
"""

import hashlib
import importlib.resources
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from wattflow.config.choices import Config, Dataset
from wattflow.errors import RefusedError
from wattflow.store.files import expanded
from wattflow.store.schema import PromptInfo
from wattflow.workload import arrivals, confined_tokenizer, conversations, prompt_files
from wattflow.workload.conversations import Message
from wattflow.workload.tokenizer import Tokenizer

Encode = Callable[[str, tuple[Message, ...]], list[int]]  # the tokens of a text, or of its chat

_SHIPPED = {
    "alpaca": "alpaca.json",
    "gsm8k": "gsm8k.jsonl",
}  # a dataset's name: its file in samples/

# The keys that make a record one of a format: it has all keys of one of the alternatives.
_KEYS = {
    "alpaca": (("instruction",),),
    "gsm8k": (("question", "answer"),),
    "prompts": (("prompt",), ("text",)),
    "jsonl": (("prompt",), ("text",)),  # the older name of `prompts`
    "chat": tuple((key,) for key in conversations.KEYS),
}
_AS_THEY_ARE = ("prompts", "jsonl")

_CARRY_OUT = "Carry out the instruction below. Answer with the result alone."
_CARRY_OUT_ON_INPUT = (
    "Carry out the instruction below, on the input that follows it. Answer with the result alone."
)
_STEP_BY_STEP = (
    "Work this out step by step. End with a line that holds #### and, after it, the result alone."
)


@dataclass(frozen=True)
class Entry:
    """One record of a prompt file."""

    place: str  # in the file, counted from 1: "line 7", "record 7", "row 7, turn 2"
    instruction: str  # the task; blank in a record that cannot be used
    context: str = ""  # Alpaca's input
    answer: str | None = None  # the reference result, where the format has one
    messages: tuple[Message, ...] = ()  # of a chat, the last one the user's


@dataclass(frozen=True)
class Prompts:
    """The prompts of one point, in the order in which they are sent."""

    texts: list[str]  # what the template made; whole, even where the tokens are truncated
    tokens: list[list[int]]  # at most max_seq_len - 1 of each text
    indices: list[int]  # the record of each in the file, from 0
    answers: list[str | None]  # the reference results, for exact match
    info: PromptInfo


@dataclass(frozen=True)
class _Prompt:
    index: int
    text: str
    tokens: list[int]
    truncated: bool


def load(config: Config, tokenizer: Tokenizer) -> Prompts:
    """Return the prompts that resolved choices ask for; RefusedError says what is wrong with a file or a choice.

    A drawn record that cannot be used (an empty prompt, or one that leaves no room for an answer) is a matter of
    dataset.on_bad: `error` refuses it; `skip` draws the next one instead, so that fewer than n_prompts come back only
    where the file has no more; `truncate` keeps the first max_seq_len - 1 tokens, and refuses an empty prompt.
    """
    if config.workload.trace is not None:
        return _of_trace(config)
    entries = _entries(config.dataset)
    prompts, skipped = _draw(config, entries, tokenizer.encode)
    if config.dataset.cycle:
        prompts = list(itertools.islice(itertools.cycle(prompts), config.n_prompts))
    return Prompts(
        texts=[prompt.text for prompt in prompts],
        tokens=[prompt.tokens for prompt in prompts],
        indices=[prompt.index for prompt in prompts],
        answers=[entries[prompt.index].answer for prompt in prompts],
        info=_info(prompts, skipped),
    )


def _of_trace(config: Config) -> Prompts:
    """Return prompts of a trace's lengths, of random tokens; their hash is that of lengths and times."""
    wanted = arrivals.load(config)
    assert wanted.tokens_in is not None
    whole = json.dumps(
        [wanted.due_s, wanted.tokens_in, wanted.tokens_out, config.seed], separators=(",", ":")
    )
    count = len(wanted.tokens_in)
    return Prompts(
        texts=[""] * count,
        tokens=arrivals.ids(wanted.tokens_in, config.model.vocab_size, config.seed),
        indices=list(range(count)),
        answers=[None] * count,
        info=_about(whole, wanted.tokens_in, wanted.skipped, wanted.truncated),
    )


class Checker:
    """Checks the prompts of many points; each file is read once, and each text is cut into tokens once."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str | None, ...], list[Entry]] = {}
        self._encoders: dict[str, Encode] = {}
        self._open: Tokenizer | None = None

    def records(self, config: Config) -> int:
        """Return how many records a point's dataset or trace has; RefusedError for what is wrong with its file."""
        if config.workload.trace is not None:
            return arrivals.requests_in(config)
        return len(self._entries_of(config.dataset))

    def check(self, config: Config) -> None:
        """Raise RefusedError for whatever `load` would refuse on a compute node: file, draw, tokenizer or a prompt."""
        if config.workload.trace is not None:
            arrivals.load(config)
            return
        entries, model = self._entries_of(config.dataset), repr((config.model, config.weights))
        if model not in self._encoders:
            if self._open is not None:
                self._open.close()
            self._open = confined_tokenizer.load(config.model, config.weights)
            self._encoders[model] = cache(self._open.encode)
        _draw(config, entries, self._encoders[model])

    def _entries_of(self, dataset: Dataset) -> list[Entry]:
        key = dataset.name, dataset.format, dataset.path, dataset.split, dataset.turns
        if key not in self._entries:
            self._entries[key] = _entries(dataset)
        return self._entries[key]


def _draw(config: Config, entries: Sequence[Entry], encode: Encode) -> tuple[list[_Prompt], int]:
    """Return the prompts that are drawn from a file's records, and how many records were skipped."""
    prompts: list[_Prompt] = []
    skipped = 0
    for index in _order(config, len(entries)):
        if len(prompts) == config.n_prompts:
            break
        prompt = _prompt(config, encode, entries[index], index)
        if prompt is None:
            skipped += 1
        else:
            prompts.append(prompt)
    if not prompts:
        raise RefusedError(
            f"dataset {config.dataset.name}: each of the {skipped} records is empty or has more than "
            f"{_most_tokens(config)} tokens. Raise max_seq_len, or set dataset.path to another file."
        )
    return prompts, skipped


def text_of(entry: Entry, dataset: Dataset) -> str:
    """Return the prompt that a template makes of a record; prompts of one's own are sent as they are."""
    if entry.messages:
        return conversations.as_text(entry.messages, dataset.template)
    if dataset.template == "plain" or dataset.format in _AS_THEY_ARE:
        return f"{entry.instruction}\n\n{entry.context}" if entry.context else entry.instruction
    if dataset.format == "gsm8k":
        return f"{entry.instruction}\n\n{_STEP_BY_STEP}"
    opening = _CARRY_OUT_ON_INPUT if entry.context else _CARRY_OUT
    given = f"### Input:\n{entry.context}\n\n" if entry.context else ""
    return f"{opening}\n\n### Instruction:\n{entry.instruction}\n\n{given}### Response:\n"


def read(
    path: Path,
    format: str,  # noqa: A002 - the word of the choices
    split: str | None = None,
    turns: str = "last",
) -> list[Entry]:
    """Return the records of a prompt file or folder as those of a format; RefusedError names file, place and fault."""
    return _read_as(format, prompt_files.records_at(path, split), str(path), turns)


def parse(data: bytes, source: str, format: str) -> list[Entry]:  # noqa: A002 - the word of the choices
    """Return the records in the bytes of a prompt file; `source` names it in errors."""
    entries = _read_as(format, prompt_files.records(data, source), source, "last")
    if not entries:
        raise RefusedError(f"{source}: has no records. Set dataset.path to a file with prompts.")
    return entries


def _read_as(
    format: str,  # noqa: A002 - as above
    records: Iterable[prompt_files.Record],
    source: str,
    turns: str,
) -> list[Entry]:
    if format not in _KEYS:
        raise RefusedError(f"dataset.format={format}: not one of {', '.join(_KEYS)}.")
    entries: list[Entry] = []
    for place, record in records:
        entries.extend(_entries_of(record, f"{source}, {place}", place, format, turns))
    return entries


def _entries(dataset: Dataset) -> list[Entry]:
    """Return the records of dataset.path, or of the prompts that are shipped under the dataset's name."""
    if dataset.path is not None:
        path = expanded(dataset.path)
        return read(path, dataset.format, dataset.split, dataset.turns)
    if dataset.name not in _SHIPPED:
        raise RefusedError(
            f"dataset {dataset.name}: dataset.path is not set, and wattflow ships prompts for "
            f"{' and '.join(_SHIPPED)} only. Set dataset.path to the file."
        )
    file = importlib.resources.files("wattflow.workload") / "samples" / _SHIPPED[dataset.name]
    return parse(file.read_bytes(), f"shipped {_SHIPPED[dataset.name]}", dataset.format)


def _order(config: Config, n_records: int) -> list[int]:
    """Return all records of the file in the order in which they are drawn; RefusedError when there are too few."""
    assert config.n_prompts is not None  # the choices are resolved
    if config.n_prompts > n_records and not config.dataset.cycle:
        raise RefusedError(
            f"n_prompts={config.n_prompts}, but dataset {config.dataset.name} has {n_records} records. Set n_prompts="
            f"{n_records} or less, dataset.cycle=true to repeat them, or dataset.path to a larger file."
        )
    if not config.dataset.shuffle:
        return list(range(n_records))
    order: list[int] = np.random.default_rng(config.seed).permutation(n_records).tolist()
    return order


def _most_tokens(config: Config) -> int:
    """Return the longest prompt that leaves room for one token of output."""
    assert config.max_seq_len is not None  # the choices are resolved
    return config.max_seq_len - 1


def _prompt(config: Config, encode: Encode, entry: Entry, index: int) -> _Prompt | None:
    """Return the prompt of one record, or None where dataset.on_bad skips it."""
    text = text_of(entry, config.dataset)
    tokens = encode(text, entry.messages) if entry.instruction.strip() else []
    most = _most_tokens(config)
    if tokens and len(tokens) <= most:
        return _Prompt(index, text, tokens, truncated=False)
    where = f"{config.dataset.path or f'dataset {config.dataset.name}'}, {entry.place}"
    match config.dataset.on_bad:
        case "skip":
            return None
        case "truncate" if tokens:
            return _Prompt(index, text, tokens[:most], truncated=True)
        case _ if tokens:
            raise RefusedError(
                f"{where}: the prompt has {len(tokens)} tokens, but max_seq_len={config.max_seq_len} leaves room for "
                f"{most}. Raise max_seq_len, or set dataset.on_bad=skip or truncate."
            )
        case _:
            raise RefusedError(
                f"{where}: the prompt is empty. Mend the file, or set dataset.on_bad=skip."
            )


def _info(prompts: Sequence[_Prompt], skipped: int) -> PromptInfo:
    """Return hash and token lengths of the prompts as they are sent."""
    canonical = json.dumps([prompt.text for prompt in prompts], separators=(",", ":"))
    lengths = [len(prompt.tokens) for prompt in prompts]
    return _about(canonical, lengths, skipped, sum(prompt.truncated for prompt in prompts))


def _about(canonical: str, tokens_in: Sequence[int], skipped: int, truncated: int) -> PromptInfo:
    lengths = np.array(tokens_in)
    p50, p95 = np.percentile(lengths, [50, 95])
    return PromptInfo(
        sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        count=len(lengths),
        skipped=skipped,
        truncated=truncated,
        tokens_min=int(lengths.min()),
        tokens_mean=float(lengths.mean()),
        tokens_p50=float(p50),
        tokens_p95=float(p95),
        tokens_max=int(lengths.max()),
    )


def _entries_of(
    record: Any,
    where: str,
    place: str,
    format: str,  # noqa: A002 - as above
    turns: str,
) -> Iterator[Entry]:
    """Yield what a record asks: one prompt, or each turn of a chat."""
    if format != "chat":
        yield _entry(record, where, place, format)
        return
    _check_keys(record, where, format)
    messages = conversations.read(record, where)
    for turn in conversations.turns(messages, where, turns):
        at = f"{place}, turn {turn.number}" if turns == "all" else place
        asked = turn.messages[-1].content
        yield Entry(at, asked, answer=turn.answer, messages=turn.messages)


def _check_keys(record: Any, where: str, format: str) -> tuple[str, ...]:  # noqa: A002 - as above
    """Return the keys that make a record one of a format; RefusedError where it has none of the alternatives."""
    if not isinstance(record, dict):
        raise RefusedError(
            f"{where}: {_shown(record)} is not a JSON object. Mend the file, or set dataset.format."
        )
    keys = next((keys for keys in _KEYS[format] if record.keys() >= set(keys)), None)
    if keys is None:
        raise RefusedError(_other_format(record, where, format))
    return keys


def _entry(record: Any, where: str, place: str, format: str) -> Entry:  # noqa: A002 - as above
    keys = _check_keys(record, where, format)
    instruction = _text(record, keys[0], where)
    if format == "alpaca":
        context = _text(record, "input", where) if record.get("input") is not None else ""
        return Entry(place, instruction, context.strip())
    if format == "gsm8k":
        return Entry(place, instruction, answer=_result(_text(record, "answer", where)))
    answer = record.get("answer")
    return Entry(place, instruction, answer=answer if isinstance(answer, str) else None)


def _other_format(record: dict[str, Any], where: str, format: str) -> str:  # noqa: A002 - as above
    needed = " or ".join(" and ".join(keys) for keys in _KEYS[format])
    fitting = [
        name
        for name, choices in _KEYS.items()
        if name != "jsonl" and any(record.keys() >= set(keys) for keys in choices)
    ]
    advice = f"Set dataset.format={fitting[0]}" if fitting else "Rename its keys"
    return (
        f"{where}: has the keys {_shown(list(record))}, but dataset.format={format} needs {needed}. {advice}, or set "
        "dataset.path to another file."
    )


def _text(record: dict[str, Any], key: str, where: str) -> str:
    """Return a field that has to be text which can be written as UTF-8."""
    value = record[key]
    if not isinstance(value, str):
        raise RefusedError(f"{where}: {key} is {_shown(value)}, not text. Mend the file.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(
            f"{where}: {key} holds half a surrogate pair, {_shown(value[error.start])}, which is no character. Mend "
            "the file."
        ) from error
    return value


def _result(answer: str) -> str | None:
    """Return the text after the last #### of a worked solution, without commas; None where there is none."""
    _, mark, result = answer.rpartition("####")
    return result.strip().replace(",", "") or None if mark else None


def _shown(value: object) -> str:
    """Return a value as one short line for an error."""
    shown = json.dumps(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."
