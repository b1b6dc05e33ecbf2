"""From overrides to points: Hydra's grammar expands the grid, types are checked, what cannot run is set apart.

    wattflow plan grid=shards model=llama-7b,llama-13b batch_size=range(8,65,8)

Hydra composes once per combination of config groups, 90 ms each; plain values are then set on what it composed, which
gives the same points as composing each (a test compares them) at some 30 us a point.
"""

import itertools
import math
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf, open_dict

from wattflow.config.checks import check_value
from wattflow.config.choices import GROUPS, Cluster, Config, Sweep, resolve, with_leaves
from wattflow.config.identity import hashed, point_id
from wattflow.config.overrides import split
from wattflow.errors import RefusedError
from wattflow.plan.feasible import check_inputs, excluded, why_not
from wattflow.plan.hydra import (
    PRIMARY,
    arguments,
    compose_groups,
    conf_dirs,
    group_files,
    hydra_config,
    parser,
    register,
    typed,
)
from wattflow.plan.points import Plan, Point
from wattflow.store.files import check_name
from wattflow.store.layout import SweepDir

# What no submitted value may hold: it could be evaluated by OmegaConf or Hydra, or by a shell further on.
_REFUSED = ("${", "_target_", "`", ";", "\n", "\r", "\0")
MOST_POINTS = 100_000


def refuse_unsafe(overrides: Sequence[str]) -> None:
    """Raise RefusedError for an override that could be evaluated or leave the sweep's directory."""
    for override in overrides:
        for mark in _REFUSED:
            if mark in override:
                raise RefusedError(
                    f"{override!r}: {mark!r} is refused in submitted values. "
                    "Interpolations and shell characters belong in a config file of your own."
                )
        key, value = split(override)
        if value is not None and "../" in value and not key.endswith(("path", "dir")):
            raise RefusedError(f"{override!r}: '../' is refused in names.")


def _rewritten(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with `sweep=NAME` as `sweep.name=NAME`, and without -m."""
    return [
        re.sub(r"^sweep=", "sweep.name=", override.removeprefix("-m").strip())
        for override in overrides
        if override != "-m"
    ]


def _parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar; RefusedError for one that wattflow does not take."""
    parsed = parser().parse_overrides(overrides=list(overrides))
    for override in parsed:
        if override.is_delete() or override.is_add():
            raise RefusedError(f"{override.input_line}: keys can be set, not added or removed.")
        if override.key_or_group.startswith("hydra"):
            raise RefusedError(
                f"{override.input_line}: wattflow sets Hydra's own keys. "
                "Name the sweep with sweep=NAME and its folder with sweeps_dir=DIR."
            )
    return parsed


def _is_group(override: Override) -> bool:
    # Hydra's loader, asked here, knows the first of conf_dirs() only
    return override.key_or_group in GROUPS


def _listed(override: Override) -> list[str]:
    """Return the values that a list, range or glob stands for, as they are typed."""
    value: Any = override.value()
    if isinstance(value, Glob):  # Hydra would look in the first of conf_dirs() only
        return value.filter(group_files(override.key_or_group))
    values = list(itertools.islice(override.sweep_string_iterator(), MOST_POINTS + 1))
    _check_size(len(values))
    return values


def _check_size(points: int) -> None:
    """RefusedError for more points than memory and a person can keep."""
    if points > MOST_POINTS:
        raise RefusedError(
            f"{points} points or more: a sweep has at most {MOST_POINTS:,}. Split it into several, or look for a "
            "range or sweep.repeats that is too long."
        )


def _blocks(
    axes: dict[str, list[str]], zips: list[list[str]]
) -> list[list[tuple[tuple[str, str], ...]]]:
    """The product's factors: each axis alone, or the axes of a zip block advancing together."""
    zipped: dict[str, int] = {}
    for number, keys in enumerate(zips):
        for key in keys:
            if key in zipped:
                raise RefusedError(f"sweep.zip: {key} stands in two blocks.")
            if key not in axes:
                raise RefusedError(f"sweep.zip: {key} has no list of values to advance.")
            zipped[key] = number
        lengths = {key: len(axes[key]) for key in keys}
        if len(set(lengths.values())) > 1:
            raise RefusedError(f"sweep.zip: lists of different lengths: {lengths}.")
    blocks, done = [], set()
    for key, values in axes.items():
        if key in done:
            continue
        keys = zips[zipped[key]] if key in zipped else [key]
        done.update(keys)
        columns = (
            [[(k, v) for v in axes[k]] for k in keys]
            if key in zipped
            else [[(key, v) for v in values]]
        )
        blocks.append(list(zip(*columns, strict=True)))
    return blocks


@dataclass(frozen=True)
class _Grid:
    """Parsed overrides: fixed ones for Hydra, and the axes over groups and over values."""

    fixed: list[str]
    group_axes: dict[str, list[str]]
    value_axes: dict[str, list[str]]
    base: Config  # composed without any axis


def _read_grid(overrides: Sequence[str]) -> _Grid:
    """Parse and compose overrides, with those of a grid file below them."""
    parsed = _parse(overrides)
    keys = {override.key_or_group for override in parsed}
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    composed = compose_groups(fixed, whole=True)
    params = dict(OmegaConf.select(composed, "hydra.sweeper.params") or {})
    from_file = _parse([f"{key}={value}" for key, value in params.items() if key not in keys])
    added = [str(o.input_line) for o in from_file if not o.is_sweep_override()]
    if added:  # a composition takes 0.1 s, so that none is made twice
        fixed += added
        composed = compose_groups(fixed, whole=True)
    groups: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for override in [*from_file, *parsed]:
        if not override.is_sweep_override():
            continue
        key = override.key_or_group
        if key.split(".")[0] in ("sweep", "sweeps_dir", "grid"):
            raise RefusedError(f"{override.input_line}: {key} has one value for the whole sweep.")
        (groups if _is_group(override) else values)[key] = _listed(override)
    with open_dict(composed):
        del composed["hydra"]
    return _Grid(fixed, groups, values, typed(composed))


class _TypedValues:
    """Converts values to the types of their keys, each distinct one once."""

    def __init__(self) -> None:
        self._parser = parser()  # 0.5 ms to make
        self._typed = OmegaConf.structured(Config)
        self._known: dict[tuple[str, str], Any] = {}

    def value(self, key: str, text: str) -> Any:
        """Return the value; RefusedError with Hydra's message when the key or the type is wrong."""
        if (key, text) not in self._known:
            override = self._parser.parse_overrides(overrides=[f"{key}={text}"])[0]
            OmegaConf.update(self._typed, key, override.value(), force_add=False)
            found = OmegaConf.select(self._typed, key)
            found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
            check_value(key, found)
            self._known[key, text] = found
        return self._known[key, text]


def _combinations(grid: _Grid, repeats: int | None) -> Iterator[Config]:
    """Yield the choices of every combination, axes in the order in which they were named, the last one fastest."""
    axes = {**grid.group_axes, **grid.value_axes}
    if "repeat" not in axes and not any(split(override)[0] == "repeat" for override in grid.fixed):
        n = grid.base.sweep.repeats if repeats is None else repeats
        _check_size(n)
        axes["repeat"] = [str(k) for k in range(n)]
    composed: dict[tuple[str, ...], Config] = {}
    values = _TypedValues()
    blocks = _blocks(axes, grid.base.sweep.zip)
    _check_size(math.prod(map(len, blocks)))
    for factors in itertools.product(*blocks):
        chosen = dict(itertools.chain.from_iterable(factors))
        groups = tuple(f"{key}={chosen[key]}" for key in grid.group_axes)
        if groups not in composed:
            whole = typed(compose_groups([*grid.fixed, *groups])) if groups else grid.base
            composed[groups] = _with_whole_paths(whole)
        yield with_leaves(
            composed[groups],
            {
                key: values.value(key, text)
                for key, text in chosen.items()
                if key not in grid.group_axes
            },
        )


def _with_whole_paths(config: Config) -> Config:
    """Return the same choices with their files named from the root: a job starts in another directory."""
    whole = {
        f"{part}.{key}": str(Path(path).expanduser().absolute())
        for part, key in (("dataset", "path"), ("model", "path"), ("model", "tokenizer_path"))
        if (path := getattr(getattr(config, part), key)) is not None
    }
    return with_leaves(config, whole)


def expand(overrides: Sequence[str], repeats: int | None = None) -> tuple[Config, list[Point], int]:
    """Return the choices shared by all, the distinct points in the grid's order, and how many duplicates there were.

    `repeats` overrides sweep.repeats. RefusedError for a wrong override, key, type or value.
    """
    overrides = _rewritten(overrides)
    refuse_unsafe(overrides)
    points: dict[str, Point] = {}
    duplicates = 0
    with hydra_config():
        grid = _read_grid(overrides)
        for combination in _combinations(grid, repeats):
            config = resolve(combination)
            identity = point_id(config)
            if identity in points:
                if hashed(points[identity].config) != hashed(config):
                    raise RefusedError(f"two points share the id {identity}: change one choice.")
                _refuse_places(points[identity].config.cluster, config.cluster)
                duplicates += 1
                continue
            points[identity] = Point(identity, config, excluded(config) or why_not(config))
    return grid.base, list(points.values()), duplicates


def _refuse_places(first: Cluster, second: Cluster) -> None:
    """Raise RefusedError where two places are requested for one point: the second would never run."""
    for key in ("constraint", "partition"):
        if getattr(first, key) != getattr(second, key):
            raise RefusedError(
                f"cluster.{key}={getattr(first, key)},{getattr(second, key)}: where a point runs is not part of it, so "
                "both are one point. Where a partition or a node feature has a power cap, say so in cluster.power_caps "
                "and choose control.power_limit_w=300,400 (docs/sites.md)."
            )


def _name(overrides: Sequence[str], base: Config) -> str:
    """Return the sweep's name: as given, else its grid file's."""
    grids = [value for key, value in map(split, overrides) if key == "grid"]
    return check_name(str(base.sweep.name or (grids[-1] if grids else "default")), "sweep")


def plan(overrides: Sequence[str], repeats: int | None = None) -> Plan:
    """Return the sweep that the overrides describe, its points shuffled by sweep.seed; nothing is written.

    RefusedError for a wrong override, key, type or value, a missing or malformed dataset, a bad checkpoint header.
    """
    base, points, duplicates = expand(overrides, repeats)
    random.Random(base.sweep.seed).shuffle(points)  # noqa: S311 (an order, not a secret)
    overrides = _rewritten(overrides)
    name = _name(overrides, base)
    check_inputs(points)
    return Plan(name, SweepDir.named(base.sweeps_dir, name), overrides, points, duplicates)


def as_hydra_application(
    overrides: Sequence[str], job: Callable[[Plan, Point], None], *, multirun: bool
) -> Plan:
    """Run `job` once a point as an ordinary Hydra application does, and return the plan of all of them.

    RefusedError for what needs `submit`: zip blocks, repeats, exclude rules, another launcher, a list without -m.
    """
    planned = plan(overrides, repeats=1)
    base = planned.points[0].config
    if base.sweep.zip or base.sweep.exclude or base.sweep.repeats != Sweep().repeats:
        raise RefusedError(
            "`run` makes each point once and knows neither zip, repeats nor exclude: "
            "use `wattflow submit cluster=local` for this grid."
        )
    if base.cluster.launcher != "local":
        raise RefusedError(
            f"cluster={base.cluster.name} starts jobs by Slurm: use `wattflow submit`."
        )
    if len(planned.points) + planned.duplicates > 1 and not multirun:
        raise RefusedError("this names several points: add -m to run them all.")
    by_id = {point.point_id: point for point in planned.points}

    def one(composed: DictConfig) -> None:
        job(planned, by_id[point_id(resolve(typed(composed)))])

    register()
    application = hydra.main(
        version_base="1.3", config_path=str(conf_dirs()[0]), config_name=PRIMARY
    )(one)
    with (
        tempfile.TemporaryDirectory(prefix="wattflow-hydra-") as folder,
        arguments(
            # Hydra writes multirun.yaml; the sweep's own directory holds all that is worth keeping
            [*(["-m"] if multirun else []), *planned.overrides, f"hydra.sweep.dir={folder}"]
        ),
    ):
        application()
    return planned
