"""The identity of a point: the hash of its choices."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import is_dataclass
from operator import attrgetter
from pathlib import PurePath
from typing import Any

from wattflow.config.choices import MOST_PROMPTS, Config, flat, leaves, to_dict

ID_VERSION = 1  # raised when a default or a rule of resolution changes, so that old ids never mean something new

# Keys left out of the point_id: where things lie, how they are asked for, how they are watched.
_NOT_HASHED = {
    "sweep",
    "sweeps_dir",
    "power",
    "cluster",
    "model.path",
    "model.tokenizer_path",
    "dataset.path",
    "engine.init_timeout_s",
    "control.by",
    "control.journal_dir",
    "workload.slo",
}
# a file that is part of what was chosen, by its name: its folder is not
BY_NAME = ("workload.trace",)

DEFAULTS = leaves(Config())
# What resolved choices were compared with before these defaults followed from others: what is so is not hashed.
_RESOLVED = {"n_prompts": MOST_PROMPTS, "dataset.cycle": False}


def is_hashed(key: str) -> bool:
    """Whether a dotted key is part of the point_id, where its value differs from the default."""
    parts = key.split(".")
    above = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return key == "cluster.gpu_model" or not above & _NOT_HASHED


# Of how jobs are asked for, what a sweep's points keep: where they belong, and how their GPUs and bills are understood.
_KEPT = ("cluster.name", "cluster.launcher", "cluster.gpu_model", "cluster.cost")


def is_replaceable(key: str) -> bool:
    """Whether points that are sent again may be asked for in another way: with another limit, partition or setup."""
    return key.startswith("cluster.") and not key.startswith(_KEPT)


def _hashed_defaults() -> dict[str, dict[str, Any]]:
    """The defaults of hashed keys by the part of the choices that they stand in; "" is the top."""
    out: dict[str, dict[str, Any]] = {}
    for key, value in {**DEFAULTS, **_RESOLVED}.items():
        if is_hashed(key):
            part, _, leaf = key.rpartition(".")
            out.setdefault(part, {})[leaf] = value
    return out


_HASHED_DEFAULTS = _hashed_defaults()


def hashed(config: Config) -> dict[str, Any]:
    """The leaves of resolved choices that make the point_id: those that are hashed and differ from their default."""
    out: dict[str, Any] = {}
    for part, defaults in _HASHED_DEFAULTS.items():
        values = vars(attrgetter(part)(config) if part else config)
        for leaf, default in defaults.items():
            if (value := values[leaf]) != default:
                key = f"{part}.{leaf}" if part else leaf
                value = PurePath(value).name if key in BY_NAME else value
                out.update(flat({key: to_dict(value)}) if is_dataclass(value) else {key: value})
    return out


def point_id(config: Config) -> str:
    """12 hex digits of sha256 over the canonical JSON of `hashed(config)`; the choices must be resolved."""
    canonical = json.dumps(
        [ID_VERSION, hashed(config)], sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def command_id(command: Sequence[str]) -> str:
    """The same for a command under `measure`: all measurements of one command are attempts at one point."""
    canonical = json.dumps([ID_VERSION, {"measure.command": list(command)}], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
