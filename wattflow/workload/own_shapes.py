"""All shapes of a Hugging Face folder that our own engines compute with, so that `model.path=DIR` is enough for them.

Other engines read config.json themselves and need of it what `folder.model_of` takes.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from wattflow.config.choices import Model, RopeScaling
from wattflow.store.files import read_given
from wattflow.workload import folder as folders


def model_at(path: Path, model: Model) -> Model:
    """Return a model with the shapes of the folder at a path; RefusedError where that is none of a language model.

    A family that our engines do not compute keeps its name, by which they refuse it.
    """
    found = folders.read(path)
    values = json.loads(read_given(path / "config.json"))
    rotary = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    return replace(
        folders.model_of(found, model),
        norm_eps=float(values.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rotary.get("rope_theta", values.get("rope_theta", 10000.0))),
        rope_scaling=_scaling(rotary),
        more=_more(values, found.width // found.n_heads),
    )


def _scaling(rotary: dict[str, Any]) -> RopeScaling | None:
    """Return Llama 3.1's stretching; null for any other, which the checkpoint's check then refuses."""
    if rotary.get("rope_type", rotary.get("type")) != "llama3":
        return None
    return RopeScaling(
        factor=float(rotary["factor"]),
        low_freq_factor=float(rotary["low_freq_factor"]),
        high_freq_factor=float(rotary["high_freq_factor"]),
        original_max_position=int(rotary["original_max_position_embeddings"]),
    )


def _more(values: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Return the entries that differ from what follows from the shapes: heads of their own width, a window in use."""
    more = {}
    if values.get("head_dim") not in (None, head_dim):
        more["head_dim"] = int(values["head_dim"])
    mistral = values["model_type"] == "mistral"
    window = values.get("sliding_window", 4096 if mistral else None)  # transformers' default
    if window is not None and (mistral or values.get("use_sliding_window")):
        more["sliding_window"] = int(window)
    return more
