"""When requests are due, and how long they are: drawn by a seed, or as a recorded trace has them.

    due     |   | ||     |  |        |      open: by a clock, whatever the engine does
    engine  ==  ======   ========    ===

A trace is a CSV in one of two known formats:

    TIMESTAMP,ContextTokens,GeneratedTokens                                  Azure's, stamps as 2023-11-16 18:17:03.97
    Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type     BurstGPT's, stamps in seconds

Everything here follows from the choices alone, so that all ranks, and every rerun, have the same load.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wattflow.config.choices import Config
from wattflow.errors import RefusedError
from wattflow.store.files import expanded, read_given
from wattflow.workload import prompt_files

Floats = npt.NDArray[np.float64]
MOST_TOKENS = 10**7  # of one request; more is no count of tokens
_STREAM = 18  # keeps the draws of arrivals apart from those of prompts by the same seed

# by the columns of a format: those of time, prompt tokens and output tokens
_FORMATS = {
    "Azure's": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "BurstGPT's": ("Timestamp", "Request tokens", "Response tokens"),
}


@dataclass(frozen=True)
class Arrival:
    """One request of a trace."""

    place: str  # in the file: "line 7"
    due_s: float  # since the first request of the file
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Load:
    """The requests of a point, in the order in which they are sent; lists of one value a request."""

    due_s: list[float] | None  # since the start; null where each is sent as another one ends
    tokens_in: list[int] | None  # null: those of the dataset's prompts
    tokens_out: list[int] | None  # most output tokens; null: max_gen_len of all
    skipped: int = 0  # requests of the trace that do not fit, and were left out
    truncated: int = 0  # and that were cut


def drawn(count: int, rate_per_s: float, burstiness: float, seed: int) -> Floats:
    """Return so many rising times, s, the first one 0, with independent gaps of gamma's law.

    The gaps' mean is 1 / rate and their squared coefficient of variation 1 / burstiness: 1 is a Poisson process.
    """
    generator = np.random.default_rng([seed, _STREAM])
    gaps_s = generator.gamma(burstiness, 1.0 / (rate_per_s * burstiness), count)
    return np.concatenate([[0.0], np.cumsum(gaps_s[1:])])


def load(config: Config) -> Load:
    """Return the requests that resolved choices ask for; RefusedError for what is wrong with a trace.

    A request that does not fit max_gen_len and max_seq_len is a matter of dataset.on_bad: `error` refuses it, `skip`
    leaves it out, `truncate` cuts its output to max_gen_len, then its prompt to what max_seq_len leaves.
    """
    workload, count = config.workload, config.n_prompts
    assert count is not None  # the choices are resolved
    chosen, skipped, truncated = _fitting(config, count) if workload.trace else (None, 0, 0)
    due_s: list[float] | None = None
    if workload.mode == "open" and workload.rate_per_s is not None:
        due_s = drawn(count, workload.rate_per_s, workload.burstiness, config.seed).tolist()
    elif workload.mode == "open" and chosen is not None:
        due_s = [one.due_s - chosen[0].due_s for one in chosen]
    return Load(
        due_s=due_s,
        tokens_in=None if chosen is None else [one.tokens_in for one in chosen],
        tokens_out=None if chosen is None else [one.tokens_out for one in chosen],
        skipped=skipped,
        truncated=truncated,
    )


def ids(tokens_in: Sequence[int], vocabulary: int, seed: int) -> list[list[int]]:
    """Return random token ids for prompts of these lengths, without the lowest three, which are special in most."""
    generator = np.random.default_rng([seed, _STREAM + 1])
    lowest = min(3, vocabulary - 1)
    return [generator.integers(lowest, vocabulary, count).tolist() for count in tokens_in]


# --- traces ---------------------------------------------------------------------------------------


def read_trace(path: Path) -> list[Arrival]:
    """Return the requests of a trace by time; RefusedError names file, line and fault."""
    try:
        data = read_given(path)
    except FileNotFoundError:
        raise RefusedError(
            f"{path}: no such file. Set workload.trace to one of arrivals."
        ) from None
    rows = prompt_files.records(data, str(path), ".csv") if data.strip() else ()
    found: list[Arrival] = []
    names: tuple[str, str, str] | None = None
    for place, row in rows:
        if names is None:
            names = _format(row, path)
        stamp, tokens_in, tokens_out = (row[name] for name in names)
        found.append(
            Arrival(
                place,
                _seconds(stamp, f"{path}, {place}: {names[0]}"),
                _tokens(tokens_in, f"{path}, {place}: {names[1]}"),
                _tokens(tokens_out, f"{path}, {place}: {names[2]}"),
            )
        )
    if not found:
        raise RefusedError(f"{path}: has no requests. Set workload.trace to a file with some.")
    found.sort(key=lambda one: one.due_s)
    first_s = found[0].due_s
    return [Arrival(one.place, one.due_s - first_s, one.tokens_in, one.tokens_out) for one in found]


def requests_in(config: Config) -> int:
    """Return how many requests a point's trace has; RefusedError for what is wrong with its file."""
    assert config.workload.trace is not None
    return len(_cached(config.workload.trace))


def _cached(name: str) -> list[Arrival]:
    path = expanded(name)
    try:
        changed_ns = path.stat().st_mtime_ns
    except OSError:
        changed_ns = 0  # reading says what is wrong
    return _read(path, changed_ns)


@lru_cache(maxsize=8)
def _read(path: Path, changed_ns: int) -> list[Arrival]:
    del changed_ns  # a file that changed is read again
    return read_trace(path)


def _format(row: dict[str, object], path: Path) -> tuple[str, str, str]:
    for names in _FORMATS.values():
        if set(names) <= row.keys():
            return names
    known = "; ".join(f"{name} {', '.join(columns)}" for name, columns in _FORMATS.items())
    raise RefusedError(
        f"{path}: has the columns {', '.join(map(str, row))}, which are those of no known trace ({known})."
    )


def _seconds(text: str, where: str) -> float:
    """Return a stamp in seconds: a number, or a date with time, which is UTC where it does not say."""
    try:
        found = float(text)
    except ValueError:
        try:
            stamp = datetime.fromisoformat(text.strip())
        except ValueError:
            raise RefusedError(
                f"{where} is {text[:40]!r}: neither seconds nor a date with time."
            ) from None
        found = (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(found):
        raise RefusedError(f"{where} is {text[:40]!r}, no time.")
    return found


def _tokens(text: str, where: str) -> int:
    digits = text.strip()
    if not digits.isascii() or not digits.isdigit() or int(digits[:9]) > MOST_TOKENS:
        raise RefusedError(f"{where} is {text[:40]!r}, no count of tokens.")
    return int(digits)


def _fitting(config: Config, count: int) -> tuple[list[Arrival], int, int]:
    """Return the first requests of the trace that fit, how many were skipped and how many cut."""
    assert config.workload.trace is not None
    path, chosen, skipped, truncated = config.workload.trace, list[Arrival](), 0, 0
    for one in _cached(path):
        if len(chosen) == count:
            break
        misfit = _misfit(one, config)
        if misfit is None:
            chosen.append(one)
        elif config.dataset.on_bad == "skip":
            skipped += 1
        elif config.dataset.on_bad == "truncate" and one.tokens_in and one.tokens_out:
            chosen.append(_cut(one, config))
            truncated += 1
        else:
            raise RefusedError(
                f"{path}, {one.place}: {misfit}. Raise max_gen_len and max_seq_len, or set dataset.on_bad=skip or "
                "truncate."
            )
    if len(chosen) < count:
        left = f", {skipped} of which do not fit" if skipped else ""
        raise RefusedError(
            f"n_prompts={count}, but {path} has {len(_cached(path))} requests{left}. Set n_prompts={len(chosen)} or "
            "less."
        )
    return chosen, skipped, truncated


def _misfit(one: Arrival, config: Config) -> str | None:
    assert config.max_seq_len is not None  # the choices are resolved
    if not one.tokens_in or not one.tokens_out:
        return f"a request of {one.tokens_in} prompt and {one.tokens_out} output tokens"
    if one.tokens_out > config.max_gen_len:
        return f"{one.tokens_out} output tokens, and max_gen_len={config.max_gen_len}"
    whole = one.tokens_in + one.tokens_out
    if whole > config.max_seq_len:
        return f"{whole} tokens of prompt and output, and max_seq_len={config.max_seq_len}"
    return None


def _cut(one: Arrival, config: Config) -> Arrival:
    assert config.max_seq_len is not None  # the choices are resolved
    tokens_out = min(one.tokens_out, config.max_gen_len, config.max_seq_len - 1)
    return Arrival(
        one.place, one.due_s, min(one.tokens_in, config.max_seq_len - tokens_out), tokens_out
    )
