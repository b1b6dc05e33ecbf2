"""Compose configurations with Hydra: where conf/ is found, groups, overrides."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
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
from wattflow.plan.messages import in_one_line

PRIMARY = "wattflow"


def conf_dirs() -> list[Path]:
    """Where configs are looked for, first one first: ./conf, then the package's copy, else the checkout's."""
    own = _shipped()
    site = Path.cwd() / "conf"
    if site.is_dir() and not site.samefile(own):
        return [site, own]
    return [own]


def _shipped() -> Path:
    package = Path(__file__).parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def shipped_files(group: str) -> list[str]:
    """Return the names that a config group can be set to anywhere, since wattflow brings their files."""
    return sorted(path.stem for path in (_shipped() / group).glob("*.yaml"))


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
        name=PRIMARY, node={"defaults": ["base", "config", "_self_", *quiet], "hydra": settings}
    )


@contextmanager
def hydra_config() -> Iterator[None]:
    """Hydra's compose API over our configs; its errors, which are good, become one line."""
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dirs()[0]), version_base="1.3", job_name="wattflow"):
            yield
    except WattflowError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: model=null
        raise RefusedError(in_one_line(error, conf_dirs())) from error


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
        text = in_one_line(error, conf_dirs())
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
    """Convert composed choices to their type; RefusedError for a value that is not allowed."""
    container = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    config = from_dict(cast(dict[str, Any], container))
    check(config)
    return config


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
