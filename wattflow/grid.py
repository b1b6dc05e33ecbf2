"""From words to points: Hydra's grammar expands the grid, types are checked, what cannot run is set apart.

    wattflow plan grid=shards model=llama-7b,llama-13b batch_size=range(8,65,8)

Hydra composes once per combination of config groups, 90 ms each; plain values are then set on plain dicts, which gives
the same points as composing each (a test compares them) at some 30 us a point.
"""

import itertools
import json
import math
import operator
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from wattflow import dataset
from wattflow.config import (
    GROUPS,
    Config,
    Sweep,
    check,
    check_value,
    controls_itself,
    flat,
    from_dict,
    hashed,
    point_id,
    resolve,
)
from wattflow.engine.header import check_header
from wattflow.errors import RefusedError, WattflowError
from wattflow.model import why_not_shards, why_too_big
from wattflow.sweepdir import SweepDir, check_name

# What no submitted value may hold: it could be evaluated by OmegaConf or Hydra, or by a shell further on.
_REFUSED = ("${", "_target_", "`", ";", "\n", "\r", "\0")
MOST_POINTS = 100_000
_PRIMARY = "wattflow"


@dataclass(frozen=True)
class Point:
    """One combination of resolved choices; `reason` says why it cannot run, null if it can."""

    point_id: str
    choices: dict[str, Any]
    reason: str | None


@dataclass(frozen=True)
class Plan:
    """A sweep as it was asked for: its points in the order in which they are run."""

    name: str
    sweep: SweepDir
    words: list[str]
    points: list[Point]
    duplicates: int  # combinations that came to a point already listed

    @property
    def feasible(self) -> list[Point]:
        """The points that can run."""
        return [point for point in self.points if point.reason is None]


def conf_dirs() -> list[Path]:
    """Where configs are looked for, first one first: ./conf, then the package's copy, else the checkout's."""
    package = Path(__file__).parent / "conf"
    own = package if package.is_dir() else Path(__file__).parent.parent / "conf"
    site = Path.cwd() / "conf"
    if site.is_dir() and not site.samefile(own):
        return [site, own]
    return [own]


def register() -> None:
    """Tell Hydra the typed keys and the primary config, which names the search path and so cannot lie in it."""
    quiet = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    settings = {
        "output_subdir": None,
        "run": {"dir": "."},
        "job": {"chdir": False},
        "searchpath": [f"file://{folder}" for folder in conf_dirs()[1:]],
    }
    store = ConfigStore.instance()
    store.store(name="base", node=Config)
    store.store(
        name=_PRIMARY, node={"defaults": ["base", "config", "_self_", *quiet], "hydra": settings}
    )


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra's compose API over our configs; its errors, which are good, become one line."""
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dirs()[0]), version_base="1.3", job_name="wattflow"):
            yield
    except WattflowError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: model=null
        raise RefusedError(_one_line(error)) from error


def _composed(words: list[str], *, whole: bool = False) -> DictConfig:
    """Hydra's composition of words, `whole` with its own settings; RefusedError also where Hydra did not think of one.

    A file that is cut or no text, a list where it looks for names, defaults that name themselves.
    """
    try:
        return compose(_PRIMARY, words, return_hydra_config=whole)
    except (HydraException, OmegaConfBaseException, ValueError):
        raise
    except (
        YAMLError,
        TypeError,
        AttributeError,
        AssertionError,
        KeyError,
        RecursionError,
    ) as error:
        raise RefusedError(
            f"{' '.join(words)}: {_one_line(error)} One of the files in conf/ that this names is damaged or no config."
        ) from error


def _one_line(error: BaseException) -> str:
    """Hydra's message without OmegaConf's full_key and reference lines or its own search path, and what to do."""
    text = str(error).partition("Config search path:")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [
        line
        for line in lines
        if not line.startswith(("full_key", "reference_type", "object_type", "Set the env"))
    ]
    for at, line in enumerate(kept):
        if line.startswith("Available options in"):  # a file's name a line follows
            kept[at - 1 :] = [f"{kept[at - 1]}. {line} {', '.join(kept[at + 1 :])}"]
            break
    told = re.sub(r"To append to your config use \S+", "", " ".join(kept)).strip().rstrip(".")
    told = re.sub(r"^In '\w+': ", "", told)
    return told + ". `wattflow keys` lists keys, groups and their choices."


def group_files(group: str) -> list[str]:
    """The names that a config group can be set to; RefusedError for what is no group."""
    if group not in GROUPS:
        raise RefusedError(f"{group}: no config group. The groups are {', '.join(GROUPS)}.")
    return sorted({path.stem for folder in conf_dirs() for path in (folder / group).glob("*.yaml")})


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


def _parser() -> OverridesParser:
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())


def _parse(words: Sequence[str]) -> list[Override]:
    overrides = _parser().parse_overrides(overrides=list(words))
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
    composed = _composed(fixed, whole=True)
    params = dict(OmegaConf.select(composed, "hydra.sweeper.params") or {})
    from_file = _parse([f"{key}={value}" for key, value in params.items() if key not in keys])
    added = [str(o.input_line) for o in from_file if not o.is_sweep_override()]
    if added:  # a composition takes 0.1 s, so that none is made twice
        fixed += added
        composed = _composed(fixed, whole=True)
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
        self._parser = _parser()  # 0.5 ms to make
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
            composed[groups] = _plain(_composed(words)) if groups else grid.base
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
    with _hydra():
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
        version_base="1.3", config_path=str(conf_dirs()[0]), config_name=_PRIMARY
    )(one)
    with (
        tempfile.TemporaryDirectory(prefix="wattflow-hydra-") as folder,
        _arguments(
            # Hydra writes multirun.yaml; the sweep's own directory holds all that is worth keeping
            [*(["-m"] if multirun else []), *made.words, f"hydra.sweep.dir={folder}"]
        ),
    ):
        application()
    return made


@contextmanager
def _arguments(words: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv."""
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        yield
    finally:
        sys.argv = before


def check_inputs(points: Sequence[Point]) -> None:
    """Look at every dataset and checkpoint once, headers only; RefusedError at the first that is wrong."""
    seen: set[str] = set()
    prompts = dataset.Checker()
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
