"""The kernels that `wattflow tune` found best, in one JSON file of the user's. No torch here.

What holds for one GPU model, driver, torch and wattflow need not hold for another, so each has an entry of its own.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from wattflow import __version__
from wattflow.config.choices import Config
from wattflow.errors import EngineError
from wattflow.store.files import expanded, read_given, read_own, write_json

# most tokens a second; least joules a token; least product of joules and seconds
GOALS = ("speed", "energy", "edp")
_SHAPES = (
    *("architecture", "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size"),
    "more",
)
_DRIVER = Path("/proc/driver/nvidia/version")


def path() -> Path:
    """Return the file: tuned.json in wattflow's folder of $XDG_CACHE_HOME, else of ~/.cache."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "wattflow" / "tuned.json"


def driver() -> str | None:
    """Return the version of NVIDIA's kernel module, or null where there is none."""
    try:
        return version_in(read_given(_DRIVER).decode(errors="replace"))
    except OSError:
        return None


def version_in(text: str) -> str | None:
    """Return the version in the text of the kernel module's version file; null where there is none.

    It stands after spaces: the open module's name ends in `for x86_64`, the closed one's has that before it.
    """
    version = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\b", text)
    return version[1] if version else None


def key_of(config: Config, device_name: str, torch_version: str) -> str:
    """Return the conditions of a choice as canonical JSON: GPU, software, the model's shapes, the batch."""
    conditions = {
        "device": device_name,
        "driver": driver(),
        "torch": torch_version,
        "wattflow": __version__,
        "model": {name: getattr(config.model, name) for name in _SHAPES},
        "shards": config.shards,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "max_seq_len": config.max_seq_len,
    }
    return json.dumps(conditions, sort_keys=True)


def find(key: str, goal: str) -> str | None:
    """Return the kernels kept for a key and a goal; null where none are. EngineError for a file that is not whole."""
    entry = _read().get(key)
    return None if entry is None else str(entry["kernels"][goal])


def keep(key: str, kernels: dict[str, str], frontier: list[dict[str, Any]]) -> Path:
    """Keep the best kernels by goal, with the numbers that they were chosen by; returns the file."""
    file = path()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(file, {**_read(), key: {"kernels": kernels, "frontier": frontier}})
    return file


def _read() -> dict[str, Any]:
    try:
        entries = json.loads(read_own(path()))
        if isinstance(entries, dict) and all("kernels" in entry for entry in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise EngineError(
            f"{path()}: {error.strerror}. Make it readable, and tune again."
        ) from error
    except (ValueError, TypeError):
        pass
    raise EngineError(f"{path()}: not what `wattflow tune` writes. Delete it, and tune again.")
