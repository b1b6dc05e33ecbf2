"""Text to token ids and back: sentencepiece, tokenizer.json, or plain bytes for a model without a file.

Nothing here imports torch, so a login node can check a tokenizer before anything is sent.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wattflow.config.choices import Model
from wattflow.errors import RefusedError
from wattflow.store.files import expanded, read_given
from wattflow.workload.conversations import Message

if TYPE_CHECKING:  # only some models need them, and each takes a while to load
    import jinja2
    import tokenizers


class Tokenizer(Protocol):
    """What the rest of wattflow needs of a tokenizer."""

    name: str  # bytes | sentencepiece | tokenizer_json: the kind that was really used
    vocab_size: int  # the model's; ids that the tokenizer does not know mean nothing
    bos_id: int | None
    eos_id: int | None
    eos_ids: tuple[int, ...]  # each of them ends a response
    pad_id: int  # always an id that the model has; it fills rows and is never read

    def encode(self, text: str, messages: Sequence[Message] = ()) -> list[int]:
        """Return the ids of a prompt, with BOS first where the model has one and the chat template where asked for.

        The template is given the messages of a chat whose text it is, else the text as the user's only one.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids below vocab_size, without special tokens; ids that mean nothing are left out."""

    def close(self) -> None:
        """Give up what it holds for a while; the next call takes it again."""


def load(model: Model, weights: str = "dummy") -> Tokenizer:
    """Return the model's tokenizer; RefusedError when its file is missing, damaged or made for a larger vocabulary.

    A model with dummy weights for which neither `model.tokenizer_path` nor `model.path` is set gets bytes.
    """
    if not reads_file(model, weights):
        return Bytes(model)
    if model.tokenizer == "sentencepiece":
        return SentencePiece(model, _find(model, "tokenizer.model"))
    if model.tokenizer == "tokenizer_json":
        return TokenizerJson(model, _find(model, "tokenizer.json"))
    raise RefusedError(
        f"model.tokenizer={model.tokenizer}: not one of bytes, sentencepiece, tokenizer_json."
    )


def reads_file(model: Model, weights: str) -> bool:
    """Return whether a model's tokenizer is read from a file, by a library."""
    configured = model.tokenizer_path is not None or model.path is not None
    return model.tokenizer != "bytes" and (weights != "dummy" or configured)


def kind_beside(path: str | None, folder: str | None) -> str:
    """Return the kind of a tokenizer's file, else of the one in a checkpoint's folder; `bytes` where there is none."""
    if path is not None:
        return "tokenizer_json" if path.endswith(".json") else "sentencepiece"
    if folder is not None:
        for kind, name in (
            ("tokenizer_json", "tokenizer.json"),
            ("sentencepiece", "tokenizer.model"),
        ):
            with contextlib.suppress(OSError):
                if (Path(folder) / name).is_file():
                    return kind
    return "bytes"


class Bytes:
    """UTF-8 bytes as ids 0-255, then BOS, EOS and padding."""

    name = "bytes"
    bos_id: int | None = 256
    eos_id: int | None = 257
    eos_ids: tuple[int, ...] = (257,)
    pad_id = 258

    def __init__(self, model: Model) -> None:
        if model.vocab_size <= self.pad_id:
            raise RefusedError(
                f"model {model.name}: vocab_size={model.vocab_size} is too small for the bytes tokenizer, which has "
                f"256 bytes, BOS, EOS and padding. Set model.vocab_size to at least {self.pad_id + 1}."
            )
        self.vocab_size = model.vocab_size

    def close(self) -> None:
        """It holds nothing."""

    def encode(self, text: str, messages: Sequence[Message] = ()) -> list[int]:
        """Return BOS and the bytes of the text."""
        del messages  # there is no chat template
        return [256, *text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the bytes among the ids as text; U+FFFD for what is not UTF-8, so that random ids have a text too."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class SentencePiece:
    """A sentencepiece model, as LLaMA 1 and 2 have."""

    name = "sentencepiece"

    def __init__(self, model: Model, path: Path) -> None:
        if model.chat:
            raise RefusedError(
                f"model {model.name}: a sentencepiece file holds no chat template. Set model.chat=false, or "
                "model.tokenizer=tokenizer_json with the Hugging Face checkpoint's folder."
            )
        import sentencepiece  # noqa: PLC0415 - 30 ms that only models with such a file need

        data = _read(path)
        if not data:  # which the library takes for a model without pieces
            raise RefusedError(_not_sentencepiece(path, data))
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise RefusedError(_not_sentencepiece(path, data)) from error
        self._n_pieces: int = self._pieces.get_piece_size()
        _check_vocabulary(model, path, self._n_pieces)
        self.vocab_size = model.vocab_size
        self.bos_id = _present(self._pieces.bos_id())
        self.eos_id = _present(self._pieces.eos_id())
        also = [i for i in _Settings(path.parent).stop_ids() if i < self._n_pieces]
        self.eos_ids = _distinct(self.eos_id, also)
        pad_id = _present(self._pieces.pad_id())  # LLaMA's file has none
        self.pad_id = pad_id if pad_id is not None else self.eos_id or 0

    def close(self) -> None:
        """It holds the file's tables, for as long as it is there."""

    def encode(self, text: str, messages: Sequence[Message] = ()) -> list[int]:
        """Return BOS, where the file has one, and the pieces of the text."""
        del messages  # there is no chat template
        ids: list[int] = self._pieces.encode(text)
        return ids if self.bos_id is None else [self.bos_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the pieces; control tokens have none."""
        text: str = self._pieces.decode([i for i in ids if i < self._n_pieces])
        return text


class TokenizerJson:
    """A Hugging Face tokenizer.json, with the special tokens and the chat template of the files beside it."""

    name = "tokenizer_json"

    def __init__(self, model: Model, path: Path) -> None:
        self._tokens = _read_tokenizer_json(path)
        _check_vocabulary(model, path, _largest_id(self._tokens) + 1)
        self.vocab_size = model.vocab_size
        settings = _Settings(path.parent)
        self.bos_id = settings.special_id("bos", self._tokens)
        self.eos_id = settings.special_id("eos", self._tokens)
        also = [i for i in settings.stop_ids() if self._tokens.id_to_token(i) is not None]
        self.eos_ids = _distinct(self.eos_id, also)
        pad_id = settings.special_id("pad", self._tokens)
        self.pad_id = pad_id if pad_id is not None else self.eos_id or 0
        self._add_bos = settings.add_bos
        self._chat = settings.chat_template(model) if model.chat else None
        self._special = settings.special_texts()

    def close(self) -> None:
        """It holds the file's tables, for as long as it is there."""

    def encode(self, text: str, messages: Sequence[Message] = ()) -> list[int]:
        """Return the ids by the file's own post-processor, or those of the chat that the template makes."""
        if self._chat is not None:
            # the template writes BOS itself
            chat = _render(self._chat, messages or [Message("user", text)], self._special)
            return list(self._tokens.encode(chat, add_special_tokens=False).ids)
        ids = list(self._tokens.encode(text).ids)
        if self._add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids; special tokens and ids that the file does not know have none."""
        text: str = self._tokens.decode(list(ids), skip_special_tokens=True)
        return text


def _find(model: Model, name: str) -> Path:
    """Return the tokenizer's file: model.tokenizer_path, or `name` in model.path, or beside it, as Meta has it."""
    if model.tokenizer_path is not None:
        candidates = [expanded(model.tokenizer_path)]
    elif model.path is not None:
        folder = expanded(model.path)
        candidates = [folder / name, folder.parent / name]
    else:
        raise RefusedError(
            f"model {model.name}: model.tokenizer={model.tokenizer} needs a file. Set model.path to the checkpoint's "
            "folder or model.tokenizer_path to the file."
        )
    try:
        found = next((path for path in candidates if path.is_file()), None)
    except OSError as error:
        raise _unreadable(candidates[0], error) from error
    if found is None:
        raise RefusedError(
            f"{candidates[0]}: no such file, though model {model.name} has model.tokenizer={model.tokenizer}. Set "
            "model.path to the checkpoint's folder or model.tokenizer_path to the file."
        )
    return found


def _read(path: Path) -> bytes:
    try:
        return read_given(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> RefusedError:
    return RefusedError(
        f"{path}: cannot be read ({error.strerror}). Check the path and its permissions."
    )


def _not_sentencepiece(path: Path, data: bytes) -> str:
    """Return why a file is no sentencepiece model; Meta's Llama 3 has a list of base64 words under the same name."""
    first = data.split(b"\n", 1)[0].split(b" ")
    if len(first) == 2 and first[1].strip().isdigit():
        return (
            f"{path}: a tiktoken list, as Meta's Llama 3 has, not a sentencepiece model. Set model.tokenizer="
            "tokenizer_json and model.tokenizer_path to the tokenizer.json of the Hugging Face checkpoint."
        )
    return (
        f"{path}: not a sentencepiece model, or cut short ({len(data)} bytes). Compare its size with the original and "
        "copy it again, or set model.tokenizer_path."
    )


def _present(token_id: int) -> int | None:
    """Return the id, or None: sentencepiece has -1 for a special token that is missing."""
    return token_id if token_id >= 0 else None


def _distinct(first: int | None, others: Sequence[int]) -> tuple[int, ...]:
    """Return ids in their order, each once."""
    return tuple(dict.fromkeys([*([] if first is None else [first]), *others]))


def _check_vocabulary(model: Model, path: Path, size: int) -> None:
    """RefusedError when the tokenizer could give an id for which the model has no embedding."""
    if size > model.vocab_size:
        raise RefusedError(
            f"{path}: has {size} tokens, but model {model.name} has model.vocab_size={model.vocab_size}. It belongs "
            "to another model: set model.tokenizer_path to this model's file, or mend model.vocab_size."
        )


def _read_tokenizer_json(path: Path) -> "tokenizers.Tokenizer":
    import tokenizers  # noqa: PLC0415 - 50 ms that only models with such a file need

    data = _read(path)
    try:
        tokens = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:
        # the library raises bare Exception for every fault of a file
        raise RefusedError(
            f"{path}: not a tokenizer.json, or cut short ({len(data)} bytes; {_first_line(error)}). Copy it again, or "
            "set model.tokenizer_path."
        ) from error
    # a file may ask for a fixed length, which would silently cut or fill prompts
    tokens.no_truncation()
    tokens.no_padding()
    return tokens


def _largest_id(tokens: "tokenizers.Tokenizer") -> int:
    """Return the largest id; there may be holes below it, so the count of tokens would say too little."""
    return max(tokens.get_vocab(with_added_tokens=True).values(), default=-1)


class _Settings:
    """Special tokens and chat templates from the JSON files beside a tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = _read_settings(folder / "tokenizer_config.json")
        self._map = _read_settings(folder / "special_tokens_map.json")
        self._generation = _read_settings(folder / "generation_config.json")
        self._config = _read_settings(folder / "config.json")
        self.add_bos = self._tokenizer.get("add_bos_token") is True

    def special_id(self, kind: str, tokens: "tokenizers.Tokenizer") -> int | None:
        """Return the id of bos, eos or pad: by name, else by number, of several the first; None where there is none."""
        text = self.special_texts().get(f"{kind}_token")
        if text is not None:
            named: int | None = tokens.token_to_id(text)
            if named is not None:
                return named
        for settings in (self._generation, self._config):
            number = settings.get(f"{kind}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if type(number) is int and 0 <= number < 2**32 and tokens.id_to_token(number):
                return number
        return None

    def stop_ids(self) -> list[int]:
        """Return the ids that end a response, of generation_config.json, else of config.json."""
        for settings in (self._generation, self._config):
            found = settings.get("eos_token_id")
            listed: list[Any] = found if isinstance(found, list) else [found]
            ids = [one for one in listed if type(one) is int and one >= 0]
            if ids:
                return ids
        return []

    def special_texts(self) -> dict[str, str]:
        """Return the special tokens by name, such as eos_token; an entry may be the text or an object that holds it."""
        texts = {}
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            entry = self._tokenizer.get(key) or self._map.get(key)
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                texts[key] = text
        return texts

    def chat_template(self, model: Model) -> "jinja2.Template":
        """Return the compiled template of chat_template.jinja or tokenizer_config.json; RefusedError for none."""
        own_file = self._folder / "chat_template.jinja"
        template = self._tokenizer.get("chat_template")
        if isinstance(template, list):  # several by name
            named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
            template = named[0].get("template") if named else None
        if own_file.is_file():
            template = _read(own_file).decode(errors="replace")
        if not isinstance(template, str):
            raise RefusedError(
                f"{self._folder}: no chat template (chat_template in tokenizer_config.json, or chat_template.jinja), "
                f"though model {model.name} has model.chat=true. Set model.chat=false, or add the template."
            )
        return _compile(template, self._folder)


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the JSON object at path, empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise RefusedError(
            f"{path}: not JSON ({_first_line(error)}). Copy the checkpoint's file again."
        ) from error
    if not isinstance(settings, dict):
        raise RefusedError(f"{path}: not a JSON object. Copy the checkpoint's file again.")
    return settings


def _compile(source: str, folder: Path) -> "jinja2.Template":
    """Return the template in jinja2's sandbox: it came with a download, and must not reach Python's attributes."""
    import jinja2  # noqa: PLC0415 - 60 ms that only chat models need
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
    )
    # strftime_now is not offered: templates then write a fixed date, and a prompt is the same on every day
    sandbox.globals["raise_exception"] = _refuse_chat
    sandbox.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    try:
        return sandbox.from_string(source)
    except jinja2.TemplateError as error:
        raise RefusedError(
            f"{folder}: its chat template does not compile ({_first_line(error)}). Set model.chat=false, or mend it."
        ) from error


def _refuse_chat(message: str) -> str:
    """Raise RefusedError for a template that cannot take the messages."""
    reason = " ".join(str(message).split())
    raise RefusedError(
        f"the chat template refuses the prompt: {reason:.200}. Set model.chat=false."
    )


def _render(
    template: "jinja2.Template", messages: Sequence[Message], special: dict[str, str]
) -> str:
    """Return the chat after which the model is to answer."""
    import jinja2  # noqa: PLC0415 - loaded with the template

    listed = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return template.render(
            messages=listed, add_generation_prompt=True, tools=None, documents=None, **special
        )
    except RefusedError:
        raise
    except MemoryError as error:
        raise RefusedError(
            "the chat template failed: it takes more memory than it may. Set model.chat=false, or mend the template."
        ) from error
    except (
        jinja2.TemplateError,
        ArithmeticError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise RefusedError(
            f"the chat template failed ({_first_line(error)}). Set model.chat=false, or mend the template."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]
