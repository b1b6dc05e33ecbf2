"""Chats in prompt files, as OpenAI's and ShareGPT's files have them, cut where the model is to answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wattflow.errors import RefusedError

KEYS = ("messages", "conversations", "conversation")  # a record of a chat has one of them
# what files call a speaker, and what chat templates do
_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Message:
    """What one speaker says."""

    role: str  # system | developer | user | assistant | tool
    content: str


@dataclass(frozen=True)
class Turn:
    """A place in a chat where the model is to answer: all that was said before, and the record's own answer."""

    number: int  # of the user's messages, from 1
    messages: tuple[Message, ...]  # the last one is the user's
    answer: str | None


def read(record: dict[str, Any], where: str) -> list[Message]:
    """Return the messages of a record that has one of KEYS; RefusedError says what is wrong with them."""
    key = next(key for key in KEYS if key in record)
    listed = record[key]
    if isinstance(listed, dict):  # datasets turns a list of objects into an object of lists
        listed = _transposed(listed)
    if not isinstance(listed, list):
        raise RefusedError(f"{where}: {key} is no list of messages. Mend the file.")
    return [_message(one, f"{where}, message {number}") for number, one in enumerate(listed, 1)]


def _transposed(lists: dict[str, Any]) -> Any:
    columns = [value for value in lists.values() if isinstance(value, list)]
    if len(columns) < len(lists) or len({len(column) for column in columns}) != 1:
        return None
    return [dict(zip(lists, row, strict=True)) for row in zip(*columns, strict=True)]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise RefusedError(f"{where}: not an object with role and content. Mend the file.")
    role = message.get("role", message.get("from"))
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise RefusedError(
            f"{where}: its role is {str(role)[:40]!r}, not one of {', '.join(_ROLES)}. Mend the file."
        )
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = _joined(content, where)
    if content is None and known == "assistant":  # one that called a tool
        content = ""
    if not isinstance(content, str):
        raise RefusedError(f"{where}: its content is no text. Mend the file.")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(
            f"{where}: holds half a surrogate pair, which is no character. Mend the file."
        ) from error
    return Message(known, content)


def _joined(parts: list[Any], where: str) -> str:
    """Return the text of a content in parts; RefusedError for an image or a sound."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text") or not isinstance(part.get("text"), str):
            raise RefusedError(
                f"{where}: a part of its content is {str(kind)[:40]!r}; text alone is sent."
            )
        texts.append(part["text"])
    return "\n".join(texts)


def turns(messages: Sequence[Message], where: str, which: str) -> Iterator[Turn]:
    """Yield the places where the model is to answer: each of the user's messages, or the `last` alone.

    RefusedError for a chat in which the user says nothing.
    """
    asked = [at for at, message in enumerate(messages) if message.role == "user"]
    if not asked:
        raise RefusedError(f"{where}: no message of the user's. Mend the file.")
    for number, at in enumerate(asked, 1):
        if which == "all" or number == len(asked):
            after = messages[at + 1] if at + 1 < len(messages) else None
            answer = after.content if after is not None and after.role == "assistant" else None
            yield Turn(number, tuple(messages[: at + 1]), answer)


def as_text(messages: Sequence[Message], template: str) -> str:
    """Return a chat as text for a model without a chat template: `plain` has the contents alone, else the roles too.

    A single message is sent as it is.
    """
    if len(messages) == 1 or template == "plain":
        return "\n\n".join(message.content for message in messages)
    said = [f"{message.role.capitalize()}: {message.content}" for message in messages]
    return "\n\n".join([*said, "Assistant:"])
