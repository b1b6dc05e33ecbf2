"""The identity of a point: the hash of its choices."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from wattflow.config.choices import Config, flat, to_dict

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
}


def _defaults() -> dict[str, Any]:
    return flat(to_dict(Config()))


DEFAULTS = _defaults()


def is_hashed(key: str) -> bool:
    """Whether a dotted key is part of the point_id, where its value differs from the default."""
    parts = key.split(".")
    above = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return key == "cluster.gpu_model" or not above & _NOT_HASHED


def hashed(choices: dict[str, Any]) -> dict[str, Any]:
    """The leaves of resolved choices that make the point_id: those that are hashed and differ from their default."""
    out = {
        key: value
        for key, value in flat(choices).items()
        if is_hashed(key) and value != DEFAULTS.get(key) and key != "cluster.gpu_model"
    }
    gpu_model = choices["cluster"]["gpu_model"]
    if gpu_model is not None:
        out["cluster.gpu_model"] = gpu_model
    return out


def point_id(choices: dict[str, Any]) -> str:
    """12 hex digits of sha256 over the canonical JSON of `hashed(choices)`; the choices must be resolved."""
    canonical = json.dumps(
        [ID_VERSION, hashed(choices)], sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def command_id(command: Sequence[str]) -> str:
    """The same for a command under `measure`: all measurements of one command are attempts at one point."""
    canonical = json.dumps([ID_VERSION, {"measure.command": list(command)}], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
