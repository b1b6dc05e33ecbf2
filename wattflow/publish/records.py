"""What a bundle carries of a sweep's JSON: records, nodes' parts, choices, commands, overrides.

What is carried is listed here; whatever else a record may come to hold is left out until it is.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any, cast

from wattflow.config.checks import allowed
from wattflow.config.identity import BY_NAME, DEFAULTS, is_hashed
from wattflow.errors import RefusedError
from wattflow.publish.pseudonyms import Pseudonyms, is_public
from wattflow.store.schema import (
    Device,
    Host,
    JobInfo,
    MeasuredCommand,
    NodeInfo,
    Part,
    RankInfo,
    Record,
)

Json = dict[str, Any]
WITHHELD = "withheld"

_RECORD = (
    *("schema_version", "attempt", "status", "error_rank", "reason", "started_ns", "ended_ns"),
    *("reference_rounds", "load_shared"),
)
_PART = ("schema_version", "task", "status", "exit_code", "tokens_out", "bad_lines", "still_running")  # fmt: skip
_NODE = ("meter", "source", "boundary", "driver", "period_ms", "sidecar_restarts", "energy_j")
_DEVICE = (
    *("ordinal", "name", "ecc", "persistence"),
    *("power_limit_default_w", "power_limit_min_w", "power_limit_max_w"),
    "reference",
)
_BESIDE = (
    *("slots", "neighbours", "neighbour_gpus", "neighbour_power_w", "neighbour_temperature_c"),
    "host_load_pct",
)
_CONTROL = ("prior_limit_w", "power_limit_w", "sm_clock_mhz", "limit_in_force_w")

_GROUPS = ("model", "dataset", "engine", "power", "grid")
_NUMBERS = re.compile(r"[0-9.,]+")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:-dirty)?")


def _picked(of: Mapping[str, Any], keys: Iterable[str]) -> Json:
    return {key: of[key] for key in keys if key in of}


# --- records --------------------------------------------------------------------------------------


def published_record(record: Record, names: Pseudonyms) -> Record:
    """Return a record.json as a bundle has it, without the parts that reading joins to it."""
    out = {
        **_picked(record, _RECORD),
        "point_id": names.point(record["point_id"]),
        "error": record.get("error") and WITHHELD,
        **{
            key: published(value, names)
            for key, published in _OBJECTS.items()
            if (value := record.get(key)) is not None
        },
        "git": _commit(record.get("git")),
    }
    return cast(Record, out)


def _values(of: Json, names: Pseudonyms) -> Json:
    return {name: names.value(value) for name, value in of.items()}


def _prompts(prompts: Json, _: Pseudonyms) -> Json:
    return {k: v for k, v in prompts.items() if k == "sha256" or not isinstance(v, str)}


def _pieces(pieces: list[Json], _: Pseudonyms) -> list[Json]:
    return [_picked(piece, ("attempt", "first_batch", "batches")) for piece in pieces]


def _job(job: JobInfo, names: Pseudonyms) -> JobInfo:
    return {
        "job_id": names.job(job["job_id"]),
        "array_task": job["array_task"],
        "restart": job["restart"],
        "cluster": names.cluster(job["cluster"]),
    }


def _measure(measure: MeasuredCommand, _: Pseudonyms) -> MeasuredCommand:
    return {"command": published_command(measure["command"]), "nodes": measure["nodes"]}


def published_versions(versions: Mapping[str, str], names: Pseudonyms) -> dict[str, str]:
    """Return the versions of software: what packages are called stays."""
    return {names.term(name): names.term(version) for name, version in versions.items()}


def _commit(commit: str | None) -> str | None:
    return commit if commit and _COMMIT.fullmatch(commit) else None


def published_part(part: Part, names: Pseudonyms) -> Part:
    """Return a timings/<node>.json of a measured command as a bundle has it."""
    out = {
        **{key: cast(Json, part)[key] for key in _PART},
        **_picked(cast(Json, part), ("stopped",)),
        "node": names.node(part["node"]),
        "error": part["error"] and WITHHELD,
        "ranks": _ranks(part["ranks"], names),
        "nodes": _nodes(part["nodes"], names),
    }
    return cast(Part, out)


def _ranks(ranks: list[RankInfo], names: Pseudonyms) -> list[RankInfo]:
    return [
        {
            "rank": rank["rank"],
            "node": names.node(rank["node"]),
            "local_rank": rank["local_rank"],
            "gpu_uuid": names.device(rank["gpu_uuid"]),
            "device": names.term(rank["device"]),
        }
        for rank in ranks
    ]


def _nodes(nodes: list[NodeInfo], names: Pseudonyms) -> list[Json]:
    return [_node(info, names) for info in nodes]


def _node(info: NodeInfo, names: Pseudonyms) -> Json:
    out = _picked(info, _NODE)
    out["node"] = names.node(info["node"])
    out["devices"] = [_device(device, names) for device in info["devices"]]
    if host := info.get("host"):
        out["host"] = _beside(host, names)
    if others := info.get("others"):
        out["others"] = [_beside(one, names) for one in others]
    if beside := info.get("beside"):
        out["beside"] = _picked(beside, _BESIDE)
    if "control" in info:
        out["control"] = [
            {"uuid": names.device(one["uuid"]), **{key: cast(Json, one)[key] for key in _CONTROL}}
            for one in info["control"]
        ]
    return out


def _beside(one: Host, names: Pseudonyms) -> Json:
    return {
        "uuid": names.device(one["uuid"]),
        "name": one["name"],
        "source": one["source"],
        "period_ms": one["period_ms"],
    }


def _device(device: Device, names: Pseudonyms) -> Json:
    return {**_picked(device, _DEVICE), "uuid": names.device(device["uuid"]), "bus_id": None}


# --- choices, commands and overrides --------------------------------------------------------------


def published_choices(choices: Mapping[str, Any], names: Pseudonyms) -> Json:
    """Return a point's choices; RefusedError where one that makes the point_id holds a name or a path."""
    return {
        key: {"command": published_command(value["command"])}
        if key == "measure"
        else _nested(value, f"{key}.", names)
        if isinstance(value, dict)
        else _choice(key, value, names)
        for key, value in choices.items()
    }


def _nested(values: Mapping[str, Any], prefix: str, names: Pseudonyms) -> Json:
    return {
        key: _nested(value, f"{prefix}{key}.", names)
        if isinstance(value, dict) and value
        else _choice(prefix + key, value, names)
        for key, value in values.items()
    }


def _choice(key: str, value: Any, names: Pseudonyms) -> Any:
    if key == "cluster.name":
        return names.cluster(value)
    if key.startswith("cluster.cost."):
        return None  # a factor means nothing without its source, which may name anything
    if key in BY_NAME and value is not None:
        value = PurePath(value).name  # which is all that the point_id is made of
    if is_hashed(key):
        ours = isinstance(value, str) and value in allowed(key)
        if isinstance(value, str) and not ours and names.term(value) != value:
            raise RefusedError(
                f"{key}={value}: holds a path or a name of this machine, and the point_id is made of it, so that "
                "no bundle can leave it out. Run the sweep with another value, then bundle that."
            )
        return value
    if isinstance(value, str):
        return value if is_public(key) else None
    return type(value)() if isinstance(value, list | dict) else value


_OBJECTS: dict[str, Callable[[Any, Pseudonyms], Any]] = {
    "choices": published_choices,
    "prompts": _prompts,
    "work": _values,
    "ceilings": _values,
    "pieces": _pieces,
    "job": _job,
    "ranks": _ranks,
    "nodes": _nodes,
    "measure": _measure,
    "engine": lambda engine, names: names.value(engine),
    "versions": published_versions,
}


def published_command(command: list[str]) -> list[str]:
    """Return what a bundle says of a measured command: how many words it has."""
    return [f"({WITHHELD}: {len(command)} words)"]


def published_overrides(overrides: Iterable[str], names: Pseudonyms) -> list[str]:
    """Return the overrides of a submit: those whose key a bundle carries, `KEY=(withheld)` for the others."""
    return [_override(override, names) for override in overrides]


def _override(override: str, names: Pseudonyms) -> str:
    key, equals, value = override.partition("=")
    bare = key.lstrip("+~").partition("@")[0]
    shown = key if bare in _GROUPS or bare in DEFAULTS else names.text(key)
    public = bare in _GROUPS or (is_public(bare) and not bare.startswith("hydra"))
    carried = equals and (public or _NUMBERS.fullmatch(value)) and names.term(value) == value
    return override if carried and shown == key else f"{shown}=({WITHHELD})"
