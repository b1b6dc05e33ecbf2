"""What each key takes, in words for a person who wrote another: its type, an example, the nearest key."""

import difflib
import re
from dataclasses import is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from wattflow.config.checks import allowed
from wattflow.config.choices import GROUPS, Config, Exclude
from wattflow.config.identity import DEFAULTS

_LISTED = "`wattflow keys` lists keys, groups and their choices."
# by type: in words, and a value that serves as an example where the default is null
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "4"),
    float: ("a number", "0.5"),
    bool: ("true or false", "true"),
    str: ("text", "name"),
    list[str]: ("a list of texts", "['first text','second text']"),
    list[list[str]]: ("a list of lists of keys", "[[shards,batch_size]]"),
    list[Exclude]: ("a list of rules", "[{when:{shards:2},reason:too slow}]"),
    dict[str, Any]: ("values by name", "{seed: 1}"),
    dict[str, str]: ("texts by name, set in a file of conf/", "{'name': text}"),
}

# of keys whose default is null: a value that one may ask for
_EXAMPLES = {
    "control.power_limit_w": "300",
    "control.sm_clock_mhz": "1410",
    "cluster.mem_gb_per_node": "64",
    "cluster.gpu_memory_gib": "80",
    "n_prompts": "512",
}

# by the end of a number's key
_UNITS = {
    "_min": "minutes",
    "_s": "seconds",
    "_ms": "milliseconds",
    "_w": "watts",
    "_mhz": "MHz",
    "_gib": "GiB",
    "mem_gb_per_node": "GB",
}


@cache
def _hints(part: type) -> dict[str, Any]:
    return get_type_hints(part)


def kind_of(key: str) -> Any:
    """Return the type of a dotted key, of a part of the choices too; KeyError where there is no such key."""
    kind: Any = Config
    for part in key.split("."):
        kind = not_null(kind)
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif is_dataclass(kind) and isinstance(kind, type):
            kind = _hints(kind)[part]
        else:
            raise KeyError(key)
    return kind


def not_null(kind: Any) -> Any:
    """Return the type of those of a key's values that are not null."""
    kinds = [one for one in get_args(kind) if one is not NoneType]
    return kinds[0] if NoneType in get_args(kind) else kind


def is_nullable(key: str) -> bool:
    """Whether a key may be null."""
    return NoneType in get_args(kind_of(key))


def from_text(key: str, text: str) -> Any:
    """Return a text as a value of the key's type; ValueError where it is none, KeyError where there is no such key."""
    kind = not_null(kind_of(key))
    if text == "null" and is_nullable(key):
        return None
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text) if kind in (int, float) else text


# what people call it elsewhere, by the key's end
_ELSEWHERE = {
    "batch_size": ("bs", "batch", "global_batch_size", "max_batch_size", "max_num_seqs"),
    "shards": (
        "tp",
        "tensor_parallel",
        "tensor_parallel_size",
        "model_parallel_size",
        "world_size",
    ),
    "max_gen_len": ("max_tokens", "max_new_tokens", "output_len", "new_tokens", "gen_tokens"),
    "precision": ("dtype", "torch_dtype", "quant"),
    "n_prompts": ("prompts", "num_prompts", "samples", "num_samples", "limit"),
    "temperature": ("temp",),
    "nodes": ("nodes", "num_nodes", "nnodes"),
    "cluster.gpus_per_node": ("gpu", "gpus", "ngpus", "num_gpus", "n_gpus", "gres"),
    "cluster.mem_gb_per_node": ("mem", "memory", "mem_gb", "ram"),
    "cluster.time_min": ("walltime", "time_limit", "timelimit", "hours", "minutes"),
    "control.power_limit_w": ("cap", "power_cap", "powercap", "power_limit", "tdp", "watts"),
    "control.sm_clock_mhz": ("clock", "clocks", "sm_clock", "frequency", "freq"),
    "sweep.repeats": ("repeats", "reps", "repetitions", "trials", "runs"),
}
_MEANT = {word: key for key, words in _ELSEWHERE.items() for word in words}


def nearest(name: str, names: list[str]) -> str | None:
    """Return the name that a misspelt one was probably meant for, or null.

    Of keys too what is called otherwise elsewhere: `tp` for shards. Names that only rhyme are none.
    """
    typed = re.sub(r"[\s-]+", "_", name.strip(" -+~").lower())
    by_end = {one.rpartition(".")[2]: one for one in reversed(names)}
    alike = {re.sub(r"-", "_", one.lower()): one for one in (*by_end, *names)}
    end = re.split(r"[./]", typed)[-1]
    whole = alike.get(typed) or (_MEANT[end] if _MEANT.get(end) in names else alike.get(end))
    if whole is not None:
        return by_end.get(whole, whole)
    found = _close(typed, [one for one in alike if one[:1] == typed[:1]], 0.8)
    found = found or [one for one in by_end if len(one) > 2 and end.startswith(one)]
    found = found or _close(end, [one for one in by_end if one[:1].lower() == end[:1]], 0.65)
    found = found or [one for one in by_end if len(end) > 2 and one.startswith(end)]
    return by_end.get(found[0], alike.get(found[0])) if found else None


def _close(name: str, names: list[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(name, names, n=1, cutoff=cutoff if len(name) > 2 else 1.0)


def no_such_key(key: str) -> str:
    """Return the message for a key that there is not."""
    meant = nearest(key, [*DEFAULTS, *GROUPS])
    return f"no such key.{f' Did you mean {meant}?' if meant else ''} {_LISTED}"


def _another(example: str) -> str:
    """Return a second value beside an example: the double of a whole number."""
    return str(2 * int(example)) if example.isdecimal() else "1"


def wrong_type(key: str) -> str:
    """Return what a key takes, for a value of another type: the type in words and an example."""
    kind = not_null(kind_of(key))
    if is_dataclass(kind):
        inner = ", ".join(f"{key}.{name}" for name in _hints(kind))  # type: ignore[arg-type]
        return f"{key} has keys of its own: {inner}."
    words, example = _WORDS[kind]
    if kind in (int, float):
        words += next((f" of {unit}" for end, unit in _UNITS.items() if key.endswith(end)), "")
    if allowed(key):
        words = f"one of {', '.join(allowed(key))}"
    elif is_nullable(key):
        words += ", or null"
    default = DEFAULTS.get(key)
    if kind in (int, float, bool, str) and default not in (None, "???"):
        example = str(default).lower() if kind is bool else str(default)
    example = _EXAMPLES.get(key, example)
    if key.startswith("cluster.sbatch_options."):
        words += f", and '' for a bare --{key.rpartition('.')[2]}"
    several = ""
    if kind in (int, float) and key.split(".", maxsplit=1)[0] not in ("sweep", "cluster", "power"):
        several = f", and {key}={example},{_another(example)} for two points"
    return f"takes {words}, such as {key}={example}{several}."
