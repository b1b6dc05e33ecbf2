"""From overrides to points: Hydra's grammar expands the grid, types are checked, what cannot run is set apart.

    wattflow plan grid=shards model=llama-7b,llama-13b batch_size=range(8,65,8)

Hydra composes once per combination of config groups, 90 ms each; plain values are then set on what it composed, which
gives the same points as composing each (a test compares them) at some 30 us a point.
"""

import itertools
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from wattflow.config.choices import GROUPS, Config, Dataset, Sweep, leaves, resolve, with_leaves
from wattflow.config.identity import DEFAULTS, hashed, point_id
from wattflow.config.keys import no_such_key
from wattflow.config.overrides import split
from wattflow.errors import RefusedError
from wattflow.plan.feasible import check_inputs, excluded, why_not
from wattflow.plan.hydra import (
    PRIMARY,
    arguments,
    compose_groups,
    hydra_config,
    register,
    typed,
)
from wattflow.plan.labels import Labels
from wattflow.plan.names import default_name
from wattflow.plan.overrides import (
    TypedValues,
    check_size,
    is_group,
    is_list,
    listed,
    parse,
    refuse_interpolation,
    refuse_unsafe,
    rewritten,
)
from wattflow.plan.points import Plan, Point
from wattflow.plan.text_values import as_text
from wattflow.store.files import check_name
from wattflow.store.layout import SweepDir
from wattflow.workload.prompts import Checker


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
                why = (
                    "has no list of values to advance."
                    if key in (*DEFAULTS, *GROUPS)
                    else no_such_key(key)
                )
                raise RefusedError(f"sweep.zip: {key}: {why}")
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
    own: frozenset[str]  # keys to which the grid's file gives several values
    base: Config  # composed without any axis
    files: dict[str, str]  # the file of conf/ that each group has there
    labels: Labels
    typed_values: TypedValues


def _read_grid(overrides: Sequence[str]) -> _Grid:
    """Parse and compose overrides, with those of a grid file below them."""
    typed_values = TypedValues()
    parsed = parse(overrides, typed_values)
    keys = {override.key_or_group for override in parsed}
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    composed = compose_groups(fixed, whole=True)
    others = _grid_params(composed, keys)
    try:
        from_file = parse(others, typed_values)
    except RefusedError as error:
        raise RefusedError(f"hydra.sweeper.params of the grid's file: {error}") from error
    own = frozenset(split(line)[0] for line in _grid_params(composed, set()) if is_list(line))
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
        (groups if is_group(override) else values)[key] = listed(override)
    files = dict(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    labels = Labels({*keys, *(override.key_or_group for override in from_file)})
    return _Grid(fixed, groups, values, own, typed(composed), files, labels, typed_values)


def _grid_params(composed: DictConfig, besides: set[str]) -> list[str]:
    """Return hydra.sweeper.params of the grid's file as overrides, without those of the keys `besides`."""
    sweeper = cast(dict[str, Any], OmegaConf.to_container(composed.hydra.sweeper, resolve=False))
    params = {k: v for k, v in (sweeper["params"] or {}).items() if k not in besides}
    others = [f"{key}={_in_grammar(value)}" for key, value in params.items()]
    for other in others:
        refuse_interpolation(other)
    return others


def _in_grammar(value: Any) -> str:
    """Return a value of a file as it is written in an override."""
    if isinstance(value, list):
        return f"[{','.join(map(_in_grammar, value))}]"
    return "null" if value is None else str(value)


def _combinations(grid: _Grid, repeats: int | None) -> Iterator[Config]:
    """Yield the choices of every combination, axes in the order in which they were named, the last one fastest."""
    axes = {**grid.group_axes, **grid.value_axes}
    if "repeat" not in axes and not any(split(override)[0] == "repeat" for override in grid.fixed):
        n = grid.base.sweep.repeats if repeats is None else repeats
        check_size(n)
        axes["repeat"] = [str(k) for k in range(n)]
    composed: dict[tuple[str, ...], Config] = {}
    blocks = _blocks(axes, grid.base.sweep.zip)
    check_size(math.prod(map(len, blocks)))
    for factors in itertools.product(*blocks):
        chosen = dict(itertools.chain.from_iterable(factors))
        groups = tuple(f"{key}={chosen[key]}" for key in grid.group_axes)
        if groups not in composed:
            composed[groups] = (
                typed(compose_groups([*grid.fixed, *groups])) if groups else grid.base
            )
        combination = with_leaves(
            composed[groups],
            {
                key: grid.typed_values.value(key, text)
                for key, text in chosen.items()
                if key not in grid.group_axes
            },
        )
        yield grid.labels.of(combination, {**grid.files, **chosen})


def expand(
    overrides: Sequence[str], repeats: int | None = None, prompts: Checker | None = None
) -> tuple[_Grid, list[Point], int]:
    """Return the grid, its distinct points in its order, and how many duplicates there were.

    `repeats` overrides sweep.repeats. RefusedError for a wrong override, key, type or value.
    """
    overrides = rewritten(overrides)
    refuse_unsafe(overrides)
    records = (prompts or Checker()).records
    datasets: dict[tuple[Any, ...], Dataset] = {}
    points: dict[str, Point] = {}
    duplicates = 0
    with hydra_config():
        grid = _read_grid(overrides)
        for combination in _combinations(grid, repeats):
            config = resolve(combination, records)
            dataset = datasets.setdefault(tuple(vars(config.dataset).values()), config.dataset)
            config = replace(config, dataset=dataset)  # points share it
            identity = point_id(config)
            if identity in points:
                if hashed(points[identity].config) != hashed(config):
                    raise RefusedError(f"two points share the id {identity}: change one choice.")
                _refuse_unlike(points[identity].config, config)
                duplicates += 1
                continue
            points[identity] = Point(identity, config, excluded(config) or why_not(config))
    return grid, list(points.values()), duplicates


def _refuse_unlike(first: Config, second: Config) -> None:
    """Raise RefusedError where two combinations are one point and yet differ: the second would never run."""
    if first == second:
        return
    one, other = leaves(first), leaves(second)
    key = next(key for key in one if one[key] != other.get(key))
    raise RefusedError(
        f"{key}={one[key]},{other[key]}: it is no part of a point, so that both are one point. "
        f"{_INSTEAD.get(key, _APART)}"
    )


_APART = "Give each value a sweep of its own, with sweep=NAME."
_BY_CAP = (
    "Where a partition or a node feature has a power cap, say so in cluster.power_caps and choose "
    "control.power_limit_w=300,400 (docs/sites.md)."
)
_BY_REVISION = "Name what lies there: model.revision=A,B with sweep.zip=[[{},model.revision]]."
_INSTEAD = {
    "cluster.constraint": _BY_CAP,
    "cluster.partition": _BY_CAP,
    "dataset.path": "Name them: dataset.name=A,B with sweep.zip=[[dataset.path,dataset.name]].",
    "model.path": _BY_REVISION.format("model.path"),
    "model.tokenizer_path": _BY_REVISION.format("model.tokenizer_path"),
}


def _name(overrides: Sequence[str], grid: _Grid) -> str:
    """Return the sweep's name: as given, else by its grid file and the keys that vary."""
    if grid.base.sweep.name:
        return check_name(str(grid.base.sweep.name), "sweep")
    files = [value for key, value in map(split, overrides) if key == "grid" and value != "null"]
    varied = {*grid.group_axes, *grid.value_axes} - {"repeat"}
    return default_name(files[-1] if files else None, grid.own, varied, grid.base.model.name)


def plan(overrides: Sequence[str], repeats: int | None = None) -> Plan:
    """Return the sweep that the overrides describe, its points shuffled by sweep.seed; nothing is written.

    RefusedError for a wrong override, key, type or value, a missing or malformed dataset, a bad checkpoint header.
    """
    prompts = Checker()
    grid, points, duplicates = expand(overrides, repeats, prompts)
    base = grid.base
    random.Random(base.sweep.seed).shuffle(points)  # noqa: S311 (an order, not a secret)
    overrides = rewritten(overrides)
    name = _name(overrides, grid)
    check_inputs(points, prompts)
    notes = _prompt_notes([point.config for point in points if point.reason is None], prompts)
    return Plan(name, SweepDir.named(base.sweeps_dir, name), overrides, points, duplicates, notes)


def _prompt_notes(configs: Sequence[Config], prompts: Checker) -> list[str]:
    """Return a line a dataset: how many prompts points take, of how many there are, and whether some are repeated."""
    by_file: dict[tuple[str, str | None], list[Config]] = {}
    for config in configs:
        if config.workload.trace is not None:
            continue  # its requests are the trace's, not the dataset's
        by_file.setdefault((config.dataset.name, config.dataset.path), []).append(config)
    notes = []
    for (name, path), alike in by_file.items():
        counts = sorted({config.n_prompts or 0 for config in alike})
        count = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        records = prompts.records(alike[0])
        repeating = sum((config.n_prompts or 0) > records for config in alike)
        points = f"{repeating} point{'s' * (repeating > 1)}"
        repeated = f", repeated in {points} (dataset.cycle)" if repeating else ""
        where = (
            f"in {path}"
            if path
            else "that wattflow ships; dataset.path=FILE names a file of your own"
        )
        notes.append(f"dataset {name}: {count} prompts a point{repeated}, of {records} {where}.")
    return notes


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
    records = Checker().records
    with hydra_config():
        labels = _read_grid(planned.overrides).labels

    def one(composed: DictConfig) -> None:
        labelled = labels.of(typed(composed), HydraConfig.get().runtime.choices)
        job(planned, by_id[point_id(resolve(labelled, records))])

    register()
    application = hydra.main(version_base="1.3", config_path=None, config_name=PRIMARY)(one)
    with (
        tempfile.TemporaryDirectory(prefix="wattflow-hydra-") as folder,
        arguments(
            # Hydra writes multirun.yaml; the sweep's own directory holds all that is worth keeping
            [
                *(["-m"] if multirun else []),
                *map(as_text, planned.overrides),
                f"hydra.sweep.dir={folder}",
            ]
        ),
    ):
        application()
    return planned
