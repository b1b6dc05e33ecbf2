"""Which points cannot run, and why: exclude rules, memory, prompts."""

import json
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from wattflow.config.choices import controls_itself, flat, from_dict
from wattflow.errors import RefusedError
from wattflow.plan.points import Point
from wattflow.workload import prompts as workload_prompts
from wattflow.workload.checkpoint import check_header
from wattflow.workload.model import why_not_shards, why_too_big

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def _matches(value: Any, wanted: Any) -> bool:
    """Whether a value equals what an exclude rule wants, is in its list, or satisfies its comparison."""
    if isinstance(wanted, list):
        return value in wanted
    if isinstance(wanted, str) and (
        found := re.fullmatch(r"\s*(>=|<=|>|<)\s*(-?[0-9.]+)\s*", wanted)
    ):
        return value is not None and _COMPARISONS[found[1]](value, float(found[2]))
    return bool(value == wanted)


def excluded(choices: dict[str, Any]) -> str | None:
    """The reason of the first exclude rule that matches all its keys, or null."""
    rules = choices["sweep"]["exclude"]
    if not rules:
        return None
    leaves = flat(choices)
    for group in ("model", "dataset", "engine", "cluster"):
        leaves[group] = choices[group]["name"]
    for rule in rules:
        unknown = [key for key in rule["when"] if key not in leaves]
        if unknown:
            raise RefusedError(f"sweep.exclude: no key {unknown[0]}.")
        if rule["when"] and all(_matches(leaves[k], wanted) for k, wanted in rule["when"].items()):
            return f"excluded: {rule['reason']}"
    return None


def why_not(choices: dict[str, Any]) -> str | None:
    """Why a point cannot run: shards that do not divide, ranks that do not fit nodes, memory; null if it can."""
    shards, nodes, cluster = choices["shards"], choices["nodes"], choices["cluster"]
    if shards % nodes:
        return f"{shards} shards cannot be spread evenly over {nodes} nodes"
    if shards // nodes > cluster["gpus_per_node"]:
        return (
            f"{shards} shards on {nodes} nodes are {shards // nodes} ranks a node, and "
            f"cluster {cluster['name']} has {cluster['gpus_per_node']} GPUs a node"
        )
    uncapped = _why_not_capped(choices)
    if uncapped is not None or choices["engine"]["name"] == "synthetic":
        return uncapped
    config = from_dict(choices)
    memory_gib = config.cluster.gpu_memory_gib
    return why_not_shards(config.model, config.shards) or (
        why_too_big(config, memory_gib) if memory_gib is not None else None
    )


def _why_not_capped(choices: dict[str, Any]) -> str | None:
    """Why Slurm cannot be asked for a point's power limit; null where it can, or need not."""
    limit_w, cluster = choices["control"]["power_limit_w"], choices["cluster"]
    if limit_w is None or controls_itself(choices) or str(limit_w) in cluster["power_caps"]:
        return None
    offered = ", ".join(cluster["power_caps"]) or "none"
    return (
        f"control.power_limit_w={limit_w}: cluster {cluster['name']} offers {offered} "
        "(cluster.power_caps: which node feature or partition has a cap; docs/sites.md)"
    )


def check_inputs(points: Sequence[Point]) -> None:
    """Look at every dataset and checkpoint once, headers only; RefusedError at the first that is wrong."""
    seen: set[str] = set()
    prompts = workload_prompts.Checker()
    for point in points:
        if point.reason is not None:
            continue
        choices = point.choices
        relevant = ("model", "dataset", "weights", "seed", "n_prompts", "max_seq_len")
        key = json.dumps([choices[name] for name in relevant])
        if key in seen:
            continue
        seen.add(key)
        config = from_dict(choices)
        prompts.check(config)
        if config.weights != "dummy" and config.engine.name != "synthetic":
            check_header(config.model, config.weights)
