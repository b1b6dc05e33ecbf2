"""The folders of configs: where they lie, whose they may be, and how a file in them is read.

YAML 1.1 reads `16:00` as 960, `0123` as 83, `no` as false and `7e12345678` as infinity. Here each value stays the text
that was written, and becomes a number or a truth only where its key takes one. Of Hydra's own settings a file may set
`hydra.sweeper.params`: others would run code.
"""

import io
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from wattflow.errors import RefusedError
from wattflow.store.files import expanded, open_given, others_write, read_given, trusted

SCHEME = "wattflow"
_TEXT = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
_NULL = "tag:yaml.org,2002:null"
_STILL_RESOLVED = (_NULL, "tag:yaml.org,2002:merge")
_HYDRAS = re.compile(r"(^|[\s/@])hydra\b")  # in an entry of a list of defaults


def _shipped() -> Path:
    package = Path(__file__).parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def shipped_files(group: str) -> list[str]:
    """Return the names that a config group can be set to anywhere, since wattflow brings their files."""
    return sorted(path.stem for path in (_shipped() / group).glob("*.yaml"))


def searched_dirs() -> list[Path]:
    """Return where configs are looked for, first one first: ./conf, the user's own, then what wattflow ships."""
    shipped = _shipped()
    own = [Path.cwd() / "conf"]
    home = expanded(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    if home.is_absolute():
        own.append(home / "wattflow" / "conf")
    return [folder for folder in own if not _is_same(folder, shipped)] + [shipped]


def _is_same(one: Path, other: Path) -> bool:
    return one.is_dir() and other.is_dir() and one.samefile(other)


def conf_dirs() -> list[Path]:
    """Return those of the searched folders that are there."""
    *own, shipped = searched_dirs()
    return [*(folder for folder in own if folder.is_dir()), shipped]


def written(group: str, name: str) -> dict[str, Any]:
    """Return what the file of a group's choice says itself, as texts; nothing of what it takes from others."""
    for folder in conf_dirs():
        path = folder / group / f"{name}.yaml"
        if path.is_file():
            content = _parsed(read_given(path).decode("utf-8-sig"), path)
            return content if isinstance(content, dict) else {}
    return {}


class ConfSource(FileConfigSource):
    """Files of one such folder, as Hydra asks for them."""

    @staticmethod
    def scheme() -> str:
        """The beginning of the folder's name in Hydra's search path."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file; RefusedError for one of somebody else's, and for one that sets what is not its to set."""
        path = Path(self.path) / self._normalize_file_name(config_path)
        with io.TextIOWrapper(open_given(path), encoding="utf-8-sig") as file:
            if not _is_same(Path(self.path), _shipped()):
                _refuse_foreign(Path(self.path), path, os.fstat(file.fileno()))
            header = self._get_header_dict(file.read(512))
            file.seek(0)
            content = _parsed(file, path)
        if isinstance(content, str):
            content = {content: None}  # as OmegaConf does, which then finds no such key
        _refuse_hydras(path, config_path, header.get("package"), content)
        config = OmegaConf.create({} if content is None else content)
        return ConfigResult(self.provider, f"{SCHEME}://{self.path}", config, header)


def register() -> None:
    """Tell Hydra of these folders' scheme."""
    Plugins.instance().register(ConfSource)


class _TextLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads plain scalars as texts, but for null and `<<`; a key that stands twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        known: set[str] = set()
        for key, _ in node.value:
            if key.tag == _NULL:
                raise yaml.MarkedYAMLError(None, None, "a key has no name", key.start_mark)
            if key.tag == _TEXT and key.value in known:
                raise yaml.MarkedYAMLError(
                    None, None, f"found duplicate key {key.value}", key.start_mark
                )
            known.add(str(key.value))
        return super().construct_mapping(node, deep)


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _STILL_RESOLVED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parsed(text: str | io.TextIOWrapper, path: Path) -> Any:
    """Return what a YAML file holds; its errors name the file."""
    loader = _TextLoader(text)
    loader.name = str(path)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _refuse_foreign(root: Path, path: Path, opened: os.stat_result) -> None:
    """Raise RefusedError for a file that somebody else owns or may write: its lines of shell run in jobs."""
    folders = [root, *(root / folder for folder in path.relative_to(root).parents)]
    for where, about in [(path, opened), *((folder, folder.stat()) for folder in folders)]:
        if about.st_uid not in trusted():
            raise RefusedError(
                f"{where}: belongs to uid {about.st_uid}. Configs hold lines of shell for jobs, so that they are taken "
                "from your own files and root's alone: copy it."
            )
        if others_write(about) and not about.st_mode & stat.S_ISVTX:
            raise RefusedError(
                f"{where}: others may write to it, and configs hold lines of shell for jobs. Take that right away: "
                f"chmod go-w {where}."
            )


def _refuse_hydras(path: Path, name: str, package: str | None, content: Any) -> None:
    """Raise RefusedError for what a file sets of Hydra's own settings, beside hydra.sweeper.params."""
    settings = content if isinstance(content, dict) else {}
    hydra = settings.get("hydra")
    hydra = hydra if isinstance(hydra, dict) else {}
    sweeper = hydra.get("sweeper")
    sweeper = sweeper if isinstance(sweeper, dict) else {}
    others = [f"hydra.{key}" for key in hydra if key != "sweeper"]
    others += [f"hydra.sweeper.{key}" for key in sweeper if key != "params"]
    if name.split("/", maxsplit=1)[0] == "hydra" or (package or "").split(".")[0] == "hydra":
        others.append("hydra")
    defaults = settings.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        pairs = list(entry.items()) if isinstance(entry, dict) else [(entry,)]
        words = [str(word) for pair in pairs for word in pair]
        others += ["a default of hydra"] * any(_HYDRAS.search(word) for word in words)
        if any("${" in word for word in words):
            raise RefusedError(f"{path}: defaults: {entry}: interpolations are not resolved.")
    if others:
        raise RefusedError(
            f"{path}: {others[0]}: of Hydra's own settings a file may set hydra.sweeper.params alone."
        )
