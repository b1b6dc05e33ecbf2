"""From words to points: Hydra's grammar expands the grid, types are checked, what cannot run is set apart.

    wattflow plan grid=shards model=llama-7b,llama-13b batch_size=range(8,65,8)

Hydra composes once per combination of config groups, 90 ms each; plain values are then set on plain dicts, which gives
the same points as composing each (a test compares them) at some 30 us a point.
"""

import itertools
import math
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf, open_dict

from wattflow.config.checks import check, check_value
from wattflow.config.choices import GROUPS, Config, Sweep, resolve
from wattflow.config.identity import hashed, point_id
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
)
from wattflow.plan.points import Plan, Point
from wattflow.store.files import check_name
from wattflow.store.layout import SweepDir

# What no submitted value may hold: it could be evaluated by OmegaConf or Hydra, or by a shell further on.
_REFUSED = ("${", "_target_", "`", ";", "\n", "\r", "\0")
MOST_POINTS = 100_000


def refuse_unsafe(words: Sequence[str]) -> None:
    """RefusedError for a word that could be evaluated or leave the sweep's directory."""
    for word in words:
        for mark in _REFUSED:
            if mark in word:
                raise RefusedError(
                    f"{word!r}: {mark!r} is refused in submitted values. "
                    "Interpolations and shell characters belong in a config file of your own."
                )
        key, _, value = word.partition("=")
        if "../" in value and not key.endswith(("path", "dir")):
            raise RefusedError(f"{word!r}: '../' is refused in names.")


def _rewritten(words: Sequence[str]) -> list[str]:
    """`sweep=NAME` means `sweep.name=NAME`; everything else as it is."""
    return [
        re.sub(r"^sweep=", "sweep.name=", word.removeprefix("-m").strip())
        for word in words
        if word != "-m"
    ]


def _parse(words: Sequence[str]) -> list[Override]:
    overrides = parser().parse_overrides(overrides=list(words))
    for override in overrides:
        if override.is_delete() or override.is_add():
            raise RefusedError(f"{override.input_line}: keys can be set, not added or removed.")
        if override.key_or_group.startswith("hydra"):
            raise RefusedError(
                f"{override.input_line}: wattflow sets Hydra's own keys. "
                "Name the sweep with sweep=NAME and its folder with sweeps_dir=DIR."
            )
    return overrides


def _is_group(override: Override) -> bool:
    # Hydra's loader, asked here, knows the first of conf_dirs() only
    return override.key_or_group in GROUPS


def _listed(override: Override) -> list[str]:
    """The words that a list, range or glob stands for, as many as there are values."""
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


def _set_leaf(choices: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key on nested dicts, copying each dict on the way so that points share the others."""
    *parents, leaf = key.split(".")
    here = choices
    for parent in parents:
        if not isinstance(here.get(parent), dict):
            raise RefusedError(f"{key}: {parent} is null here, so nothing below it can be set.")
        here[parent] = dict(here[parent])
        here = here[parent]
    here[leaf] = value


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
    """What the words say, parsed: fixed words for Hydra, and the axes over groups and over values."""

    fixed: list[str]
    group_axes: dict[str, list[str]]
    value_axes: dict[str, list[str]]
    base: dict[str, Any]  # the composed choices without any axis


def _read_grid(words: Sequence[str]) -> _Grid:
    overrides = _parse(words)
    keys = {override.key_or_group for override in overrides}
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    composed = compose_groups(fixed, whole=True)
    params = dict(OmegaConf.select(composed, "hydra.sweeper.params") or {})
    from_file = _parse([f"{key}={value}" for key, value in params.items() if key not in keys])
    added = [str(o.input_line) for o in from_file if not o.is_sweep_override()]
    if added:  # a composition takes 0.1 s, so that none is made twice
        fixed += added
        composed = compose_groups(fixed, whole=True)
    groups: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for override in [*from_file, *overrides]:
        if not override.is_sweep_override():
            continue
        key = override.key_or_group
        if key.split(".")[0] in ("sweep", "sweeps_dir", "grid"):
            raise RefusedError(f"{override.input_line}: {key} has one value for the whole sweep.")
        (groups if _is_group(override) else values)[key] = _listed(override)
    with open_dict(composed):
        del composed["hydra"]
    return _Grid(fixed, groups, values, _plain(composed))


def _plain(composed: DictConfig) -> dict[str, Any]:
    """Composed choices as plain dicts, checked; RefusedError for a value that is not allowed."""
    container = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    choices = cast(dict[str, Any], container)
    check(choices)
    return choices


class _TypedValues:
    """Converts words to the types of their keys, each distinct word once."""

    def __init__(self) -> None:
        self._parser = parser()  # 0.5 ms to make
        self._typed = OmegaConf.structured(Config)
        self._known: dict[tuple[str, str], Any] = {}

    def value(self, key: str, word: str) -> Any:
        """The value; RefusedError with Hydra's message when the key or the type is wrong."""
        if (key, word) not in self._known:
            override = self._parser.parse_overrides(overrides=[f"{key}={word}"])[0]
            OmegaConf.update(self._typed, key, override.value(), force_add=False)
            found = OmegaConf.select(self._typed, key)
            found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
            check_value(key, found)
            self._known[key, word] = found
        return self._known[key, word]


def _combinations(grid: _Grid, repeats: int | None) -> Iterator[dict[str, Any]]:
    """The choices of every combination, axes in the order in which they were named, the last one fastest."""
    axes = {**grid.group_axes, **grid.value_axes}
    if "repeat" not in axes and not any(word.startswith("repeat=") for word in grid.fixed):
        n = grid.base["sweep"]["repeats"] if repeats is None else repeats
        _check_size(n)
        axes["repeat"] = [str(k) for k in range(n)]
    composed: dict[tuple[str, ...], dict[str, Any]] = {}
    typed = _TypedValues()
    blocks = _blocks(axes, grid.base["sweep"]["zip"])
    _check_size(math.prod(map(len, blocks)))
    for factors in itertools.product(*blocks):
        chosen = dict(itertools.chain.from_iterable(factors))
        groups = tuple(f"{key}={chosen[key]}" for key in grid.group_axes)
        if groups not in composed:
            words = [*grid.fixed, *groups]
            composed[groups] = _plain(compose_groups(words)) if groups else grid.base
        choices = dict(composed[groups])
        for key, word in chosen.items():
            if key not in grid.group_axes:
                _set_leaf(choices, key, typed.value(key, word))
        yield choices


def _with_whole_paths(choices: dict[str, Any]) -> dict[str, Any]:
    """The same choices with their files named from the root: a job starts in another directory."""
    out = dict(choices)
    for group, key in (("dataset", "path"), ("model", "path"), ("model", "tokenizer_path")):
        if out[group][key] is not None:
            out[group] = {**out[group], key: str(Path(out[group][key]).expanduser().absolute())}
    return out


def expand(
    words: Sequence[str], repeats: int | None = None
) -> tuple[dict[str, Any], list[Point], int]:
    """The choices shared by all, the distinct points in the grid's order, and how many combinations were duplicates.

    `repeats` overrides sweep.repeats. RefusedError for a wrong word, key, type or value.
    """
    words = _rewritten(words)
    refuse_unsafe(words)
    points: dict[str, Point] = {}
    duplicates = 0
    with hydra_config():
        grid = _read_grid(words)
        for unresolved in _combinations(grid, repeats):
            choices = resolve(_with_whole_paths(unresolved))
            identity = point_id(choices)
            if identity in points:
                if hashed(points[identity].choices) != hashed(choices):
                    raise RefusedError(f"two points share the id {identity}: change one choice.")
                _refuse_places(points[identity].choices["cluster"], choices["cluster"])
                duplicates += 1
                continue
            points[identity] = Point(identity, choices, excluded(choices) or why_not(choices))
    return grid.base, list(points.values()), duplicates


def _refuse_places(first: dict[str, Any], second: dict[str, Any]) -> None:
    """RefusedError where two places are asked for one point: the second would never run."""
    for key in ("constraint", "partition"):
        if first[key] != second[key]:
            raise RefusedError(
                f"cluster.{key}={first[key]},{second[key]}: where a point runs is not part of it, so both are one "
                "point. Where a partition or a node feature has a power cap, say so in cluster.power_caps and choose "
                "control.power_limit_w=300,400 (docs/sites.md)."
            )


def _name(words: Sequence[str], base: dict[str, Any]) -> str:
    given = base["sweep"]["name"]
    grids = [word.partition("=")[2] for word in words if word.startswith("grid=")]
    return check_name(str(given or (grids[-1] if grids else "default")), "sweep")


def plan(words: Sequence[str], repeats: int | None = None) -> Plan:
    """The sweep that the words describe, its points shuffled by sweep.seed; nothing is written.

    RefusedError for a wrong word, key, type or value, a missing or malformed dataset, a bad checkpoint header.
    """
    base, points, duplicates = expand(words, repeats)
    random.Random(base["sweep"]["seed"]).shuffle(points)  # noqa: S311 (an order, not a secret)
    name = _name(words, base)
    check_inputs(points)
    return Plan(
        name, SweepDir.named(base["sweeps_dir"], name), _rewritten(words), points, duplicates
    )


def as_hydra_application(
    words: Sequence[str], job: Callable[[Plan, Point], None], *, multirun: bool
) -> Plan:
    """Run `job` once a point as an ordinary Hydra application does, and return the plan of all of them.

    RefusedError for what needs `submit`: zip blocks, repeats, exclude rules, another launcher, a list without -m.
    """
    made = plan(words, repeats=1)
    base = made.points[0].choices
    asked = base["sweep"]
    if asked["zip"] or asked["exclude"] or asked["repeats"] != Sweep().repeats:
        raise RefusedError(
            "`run` makes each point once and knows neither zip, repeats nor exclude: "
            "use `wattflow submit cluster=local` for this grid."
        )
    if base["cluster"]["launcher"] != "local":
        raise RefusedError(
            f"cluster={base['cluster']['name']} starts jobs by Slurm: use `wattflow submit`."
        )
    if len(made.points) + made.duplicates > 1 and not multirun:
        raise RefusedError("these words name several points: add -m to run them all.")
    by_id = {point.point_id: point for point in made.points}

    def one(composed: Any) -> None:
        choices = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
        job(made, by_id[point_id(resolve(choices))])

    register()
    application = hydra.main(
        version_base="1.3", config_path=str(conf_dirs()[0]), config_name=PRIMARY
    )(one)
    with (
        tempfile.TemporaryDirectory(prefix="wattflow-hydra-") as folder,
        arguments(
            # Hydra writes multirun.yaml; the sweep's own directory holds all that is worth keeping
            [*(["-m"] if multirun else []), *made.words, f"hydra.sweep.dir={folder}"]
        ),
    ):
        application()
    return made
