"""Compose configurations with Hydra: groups, overrides, the choices that they come to."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from wattflow.config.checks import check
from wattflow.config.choices import GROUPS, Config, from_dict
from wattflow.config.overrides import split
from wattflow.errors import RefusedError, WattflowError
from wattflow.plan import conf
from wattflow.plan.conf import conf_dirs
from wattflow.plan.feasible import typed_rule
from wattflow.plan.messages import in_one_line

PRIMARY = "wattflow"


def register() -> None:
    """Tell Hydra the typed keys and the primary config, which names the search path and so cannot lie in it."""
    quiet = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    settings = {
        "output_subdir": None,
        "run": {"dir": "."},
        "job": {"chdir": False},
        "searchpath": [f"{conf.SCHEME}://{folder}" for folder in conf_dirs()],
    }
    conf.register()
    store = ConfigStore.instance()
    store.store(name="base", node=Config(weights="auto"))
    store.store(
        name=PRIMARY, node={"defaults": ["base", "config", "_self_", *quiet], "hydra": settings}
    )


@contextmanager
def hydra_config() -> Iterator[None]:
    """Hydra's compose API over our configs; its errors, which are good, become one line."""
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize(None, job_name="wattflow", version_base="1.3"):
            yield
    except WattflowError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: model=null
        raise RefusedError(in_one_line(error)) from error


def compose_groups(overrides: list[str], *, whole: bool = False) -> DictConfig:
    """Compose overrides, `whole` with Hydra's own settings; RefusedError also where Hydra did not think of one.

    A file that is cut or no text, a list where it looks for names, defaults that name themselves.
    """
    try:
        return compose(PRIMARY, overrides, return_hydra_config=whole)
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
        text = in_one_line(error)
        if isinstance(error, YAMLError):  # it names the file
            raise RefusedError(text) from error
        for override in overrides if "NoneType" in text else []:
            if split(override)[0].startswith("model.rope_scaling"):
                raise RefusedError(
                    f"{override}: model.rope_scaling is null here. A file of conf/model/ can set it."
                ) from error
        raise RefusedError(
            f"{' '.join(overrides)}: {text} One of the files in conf/ that this names is damaged or no config."
        ) from error


def typed(composed: DictConfig) -> Config:
    """Convert composed choices to their type; RefusedError for a value that is not allowed.

    An interpolation is refused, not resolved: what it stands for would be kept in the sweep's files.
    """
    written = OmegaConf.to_container(composed, resolve=False, throw_on_missing=True)
    for key, text in _texts(written):
        if INTERPOLATION.search(text):
            raise RefusedError(
                f"{key}: {text}: interpolations are not resolved, since what they stand for would be kept in the "
                "sweep's files. Write the value itself; in lines of cluster.setup the shell knows $NAME."
            )
    container = OmegaConf.to_container(composed, resolve=True)  # which takes the \\ from \\${NAME}
    config = from_dict(cast(dict[str, Any], container))
    rules = [typed_rule(rule) for rule in config.sweep.exclude]
    config = replace(
        config,
        sweep=replace(config.sweep, exclude=rules),
        model=replace(config.model, more=_as_json(config.model.more)),
        engine=replace(
            config.engine,
            vllm=replace(config.engine.vllm, more=_as_json(config.engine.vllm.more)),
        ),
    )
    check(config)
    return config


def _as_json(value: Any) -> Any:
    """Return a value of any type as JSON would read its texts: files of conf/ hold texts alone."""
    if isinstance(value, dict):
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner) for inner in value]
    if isinstance(value, str) and _JSON_SCALAR.fullmatch(value):
        return json.loads(value)
    return value


_JSON_SCALAR = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?|true|false|null")
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text in nested choices with its dotted key, keys of dicts among them."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield key, str(name)
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def group_files(group: str) -> list[str]:
    """The names that a config group can be set to; RefusedError for what is no group."""
    if group not in GROUPS:
        raise RefusedError(f"{group}: no config group. The groups are {', '.join(GROUPS)}.")
    return sorted({path.stem for folder in conf_dirs() for path in (folder / group).glob("*.yaml")})


def parser() -> OverridesParser:
    """Hydra's parser of overrides."""
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())


@contextmanager
def arguments(overrides: Sequence[str]) -> Iterator[None]:
    """Have Hydra read these as sys.argv."""
    before, sys.argv = sys.argv, [sys.argv[0], *overrides]
    try:
        yield
    finally:
        sys.argv = before
