"""What a bundle says in place of names: salted hashes of GPUs, nodes, jobs and sites, and nothing of people and paths.

One name has one pseudonym in a bundle, so that tables still join on it. Which field holds what is said in
`publish.tables` and `publish.records`: names stand in fields of their own, and in text. Text is of two kinds. In what
people or programs wrote freely each private name is replaced, and in what the format or a vendor calls a thing each
but those that are words of the format too: a partition called `gpu` changes no sensor's name.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattflow.config.choices import flat
from wattflow.config.identity import is_hashed
from wattflow.publish.vocabulary import format_words, is_common
from wattflow.store.phases import COMMAND, MIXED, OUTSIDE
from wattflow.store.schema import PHASES

_BESIDE = re.compile(r"(host|node|accel\d{1,3})-(.+)")  # what is measured of a node beside its GPUs

# strings among the choices that make no point_id and name no site
_PUBLIC_CHOICES = {
    *("cluster.launcher", "cluster.gpu_request", "cluster.gpu_type", "cluster.gpu_model"),
    *("power.meter", "control.by", "sweep.block"),
}
_OUR_PHASES = {*PHASES, "other", COMMAND, MIXED, OUTSIDE}

_UUID = re.compile(r"\b(?:GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]*")
_PATHS = (
    re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://\S+"),  # an address
    re.compile(r"(?<=['\"`])~?/[^'\"`\n]*(?=['\"`])"),  # in quotes, so with blanks
    re.compile(r"(?<![\w.])~?/[\w.@+~-][^\s'\"`,;:)]*"),
)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")


@dataclass(frozen=True)
class Surroundings:
    """What may stand in a sweep's texts and is nobody's business: users, nodes and hosts, texts of private choices.

    `hardware`: words of what the vendors of its devices call them, which are no names.
    """

    users: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    private: frozenset[str] = frozenset()
    hardware: frozenset[str] = frozenset()


def is_public(key: str) -> bool:
    """Whether a bundle carries the texts of a choice: those that make the point_id, and some that name no site."""
    return is_hashed(key) or key in _PUBLIC_CHOICES


def private_texts(points: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the texts of choices that a bundle leaves out, such as an account.

    What is public in one choice is not private by another, and a sweep may be called what its model is, or after it.
    """
    public, private, sweeps = {"local"}, set[str](), set[str]()
    for choices in points:
        for key, value in flat(dict(choices)).items():
            texts = {text for text in _texts(value) if len(text) > 2}
            if is_public(key):
                public |= texts
            elif key == "sweep.name":
                sweeps |= texts
            else:
                private |= texts
    private |= {name for name in sweeps if not any(map(_any_of([name]).search, public))}
    return frozenset(private - public)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    for part in value if isinstance(value, list) else ():
        yield from _texts(part)


class Pseudonyms:
    """Pseudonyms by a salt that the bundle does not hold."""

    def __init__(self, salt: bytes, around: Surroundings, *, measured: bool) -> None:
        """Take the salt, what must not be said, and whether a command was `measured`.

        The point_id of a measured command is a hash of the command, and so is replaced too.
        """
        self._salt, self._measured = salt, measured
        words = format_words() | around.hardware
        kinds = around.nodes, around.users, around.private
        self._all = [_any_of(names) for names in kinds]
        self._rare = [_any_of(n for n in names if not is_common(n, words)) for names in kinds]

    def _hash(self, kind: str, name: str, digits: int) -> str:
        text = (kind + ":" + name).encode()  # a name that is no text is an error, not a pseudonym
        return hmac.digest(self._salt, text, hashlib.sha256).hex()[:digits]

    def node(self, name: str) -> str:
        """Return a node's pseudonym."""
        return f"node-{self._hash('node', name, 10)}"

    def device(self, uuid: str) -> str:
        """Return a device's pseudonym, in the form of NVML's UUIDs; of a host or an accelerator with its node's."""
        if beside := _BESIDE.fullmatch(uuid):
            return f"{beside[1]}-{self.node(beside[2])}"
        prefix = "MIG" if uuid.startswith("MIG-") else "GPU"
        h = self._hash("device", uuid, 32)
        return f"{prefix}-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    def job(self, job_id: str | None) -> str | None:
        """Return a job's pseudonym; null outside Slurm."""
        return None if job_id is None else f"job-{self._hash('job', job_id, 10)}"

    def cluster(self, name: str) -> str:
        """Return a site profile's pseudonym, except of `local`, which is everybody's."""
        return name if name == "local" else f"cluster-{self._hash('cluster', name, 10)}"

    def point(self, point_id: str) -> str:
        """Return the point_id itself, since it holds no name; of a measured command a pseudonym."""
        return self._hash("point", point_id, 12) if self._measured else point_id

    def phase(self, name: str) -> str:
        """Return a phase's name; one of a measured command's own is kept where it is one word."""
        if name in _OUR_PHASES or (_WORD.fullmatch(name) and self.text(name) == name):
            return name
        return f"phase-{self._hash('phase', name, 10)}"

    def text(self, text: str) -> str:
        """Return a free text without paths, addresses, users and private choices, nodes and GPUs by pseudonyms."""
        return self._without(text, self._all)

    def term(self, text: str) -> str:
        """Return what the format or a vendor calls a thing: as `text`, but names that are the format's words stay."""
        return self._without(text, self._rare)

    def _without(self, text: str, names: Sequence[re.Pattern[str]]) -> str:
        nodes, users, private = names
        text = _UUID.sub(lambda match: self.device(match[0]), text)
        for pattern in _PATHS:
            text = pattern.sub("(path)", text)
        text = nodes.sub(lambda match: self.node(match[1]), text)
        text = users.sub("(user)", text)
        return private.sub("(withheld)", text)

    def value(self, value: Any) -> Any:
        """Return a JSON value with each term in it replaced; entries whose key would be replaced are left out."""
        if isinstance(value, str):
            return self.term(value)
        if isinstance(value, list):
            return [self.value(part) for part in value]
        if isinstance(value, dict):
            return {key: self.value(part) for key, part in value.items() if self.term(key) == key}
        return value


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Return what finds any of some names as words of their own, the longest first, with a domain behind them."""
    some = sorted((name for name in names if name), key=lambda name: (-len(name), name))
    if not some:
        return re.compile(r"(?!)")
    either = "|".join(map(re.escape, some))
    return re.compile(rf"(?<![A-Za-z0-9])({either})(?:\.[A-Za-z][A-Za-z0-9-]*)*(?![A-Za-z0-9])")
