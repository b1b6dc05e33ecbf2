"""New values of `cluster.*` for points that are sent again: how jobs are asked for, never what they measure."""

from collections.abc import Sequence
from typing import Any

from wattflow.config.identity import is_replaceable
from wattflow.errors import RefusedError
from wattflow.plan.hydra import hydra_config
from wattflow.plan.overrides import TypedValues, parse, refuse_unsafe


def cluster_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the typed values of `cluster.KEY=VALUE` overrides by key; RefusedError for what they cannot be."""
    refuse_unsafe(overrides)
    found: dict[str, Any] = {}
    with hydra_config():
        values = TypedValues()
        for override in parse(overrides, values):
            line, key = str(override.input_line), override.key_or_group
            if not is_replaceable(key):
                raise RefusedError(f"{line}: a sweep's points keep theirs.")
            if override.is_sweep_override():
                raise RefusedError(f"{line}: {key} takes one value here.")
            found[key] = values.value(key, line.partition("=")[2])
    return found
