"""Which points cannot run, and why: exclude rules, memory, prompts."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from wattflow.config.checks import why_not_engine, why_not_metered, why_not_side_by_side
from wattflow.config.choices import (
    GROUPS,
    Config,
    Exclude,
    controls_itself,
    leaves,
    ranks_of,
    reads_folders,
)
from wattflow.config.keys import from_text, kind_of, no_such_key, not_null, wrong_type
from wattflow.errors import RefusedError
from wattflow.plan.points import Point
from wattflow.workload import transformers_fit, vllm_fit
from wattflow.workload.checkpoint import check_header
from wattflow.workload.model import why_not_shards, why_too_big
from wattflow.workload.prompts import Checker

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


_COMPARISON = re.compile(r"\s*(>=|<=|>|<)\s*(\S+)\s*")


def typed_rule(rule: Exclude) -> Exclude:
    """Return an exclude rule with each value of the type that its key takes; RefusedError for one of another type."""
    return replace(rule, when={key: _wanted(key, value) for key, value in rule.when.items()})


def _wanted(key: str, value: Any) -> Any:
    """Return what a rule wants of one key: a value, a list of values, or a comparison with a number."""
    if isinstance(value, list):
        return [_wanted(key, one) for one in value]
    if key in GROUPS:
        return value
    try:
        kind = not_null(kind_of(key))
    except KeyError:
        raise RefusedError(f"sweep.exclude: {key}: {no_such_key(key)}") from None
    if is_dataclass(kind):
        raise RefusedError(f"sweep.exclude: {wrong_type(key)}")
    if value is None:
        return None
    compared = _COMPARISON.fullmatch(str(value))
    try:
        if compared is None:
            return from_text(key, str(value))
        if kind in (int, float) and math.isfinite(float(compared[2])):
            return value
    except ValueError:
        pass
    raise RefusedError(f"sweep.exclude: {key}: {value}: {wrong_type(key)}")


def _matches(value: Any, wanted: Any) -> bool:
    """Whether a value equals what an exclude rule wants, is in its list, or satisfies its comparison."""
    if isinstance(wanted, list):
        return value in wanted
    if isinstance(wanted, str) and (found := _COMPARISON.fullmatch(wanted)):
        return value is not None and _COMPARISONS[found[1]](value, float(found[2]))
    return bool(value == wanted)


def excluded(config: Config) -> str | None:
    """Return the reason of the first exclude rule that matches all its keys, or null."""
    if not config.sweep.exclude:
        return None
    values = leaves(config)
    for group in ("model", "dataset", "engine", "cluster"):
        values[group] = values[f"{group}.name"]
    for rule in config.sweep.exclude:
        if rule.when and all(_matches(values.get(k), wanted) for k, wanted in rule.when.items()):
            return f"excluded: {rule.reason}"
    return None


def why_not(config: Config) -> str | None:
    """Return why a point cannot run: shards that do not divide, ranks that do not fit nodes, memory; null if it can."""
    ranks, nodes, cluster = ranks_of(config), config.nodes, config.cluster
    assert nodes is not None  # the choices are resolved
    stages = "" if config.pipeline == 1 else f" x {config.pipeline} stages"
    if ranks % nodes:
        return f"{config.shards} shards{stages} cannot be spread evenly over {nodes} nodes"
    if ranks // nodes > cluster.gpus_per_node:
        return (
            f"{config.shards} shards{stages} on {nodes} nodes are {ranks // nodes} ranks a node, and "
            f"cluster {cluster.name} has {cluster.gpus_per_node} GPUs a node"
        )
    unmetered = why_not_metered(config) or why_not_engine(config) or why_not_side_by_side(config)
    if unmetered is not None:
        return unmetered
    uncapped = _why_not_capped(config)
    if uncapped is not None or config.engine.name == "synthetic":
        return uncapped
    return _why_not_fitting(config)


def _why_not_fitting(config: Config) -> str | None:
    """Return why an engine cannot split the model, or its GPUs do not hold it; null where they can."""
    gib = config.cluster.gpu_memory_gib
    if config.engine.name == "vllm":
        return vllm_fit.why_not(config, gib)
    if config.engine.name == "transformers":
        return transformers_fit.why_not(config, gib)
    return why_not_shards(config.model, config.shards) or (
        why_too_big(config, gib) if gib is not None else None
    )


def _why_not_capped(config: Config) -> str | None:
    """Return why Slurm cannot be asked for a point's power limit; null where it can, or need not."""
    limit_w, cluster = config.control.power_limit_w, config.cluster
    if limit_w is None or controls_itself(config) or str(limit_w) in cluster.power_caps:
        return None
    offered = ", ".join(cluster.power_caps) or "none"
    return (
        f"control.power_limit_w={limit_w}: cluster {cluster.name} offers {offered} "
        "(cluster.power_caps: which node feature or partition has a cap; docs/sites.md)"
    )


def check_inputs(points: Sequence[Point], prompts: Checker) -> None:
    """Look at every dataset and checkpoint once, headers only; RefusedError at the first that is wrong."""
    checked: set[str] = set()
    for point in points:
        if point.reason is not None:
            continue
        config = point.config
        sizes = (config.weights, config.seed, config.n_prompts, config.max_seq_len)
        lengths = (config.workload.trace, config.max_gen_len)
        key = repr((config.engine.name, config.model, config.dataset, sizes, lengths))
        if key in checked:
            continue
        checked.add(key)
        prompts.check(config)
        if reads_folders(config):
            vllm_fit.check_folder(config)
        elif config.weights != "dummy" and config.engine.name != "synthetic":
            check_header(config.model, config.weights)
