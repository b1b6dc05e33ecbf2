"""An artifact description of a sweep: hardware, software, data, commands, hashes of its files."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from wattflow import __version__
from wattflow.analysis.sweep import Sweep
from wattflow.config.overrides import split
from wattflow.report import sections
from wattflow.report.html import render
from wattflow.store.files import read_own
from wattflow.store.layout import SweepDir

_HARDWARE = ("launcher", "gpu_request", "gpu_type", "gpu_model")  # of a profile, and no site's name
_PLAIN = re.compile(r"[\d.,eE+-]+|true|false|null|local")
_PATH = re.compile(r"(?:^|[^\w.-])(?:~[\w.-]*|\.{0,2})/")
_NODES_AND_JOBS = ("nodes", "Slurm jobs")  # names of a site and of its jobs are nobody else's
HIDDEN = "..."


@dataclass(frozen=True)
class File:
    """A file of a sweep that the description's figures follow from."""

    name: str
    size_bytes: int
    sha256: str


def appendix(sweep: Sweep) -> str:
    """Return the description as Markdown, made from what the sweep's files say and nothing else."""
    points = sweep.points
    counting = points.filter("counts")
    choices = {
        name.replace("_", " "): _values(sweep, name)
        for name in ("model", "weights", "engine", "precision", "dataset", "n_prompts", "seed")
    }
    about = sections.provenance(sweep.attempts)
    return render(
        "report/appendix.md.j2",
        name=sweep.name,
        version=__version__,
        provenance={k: v for k, v in about.items() if k not in _NODES_AND_JOBS},
        gpus=sorted(counting["gpus"].drop_nulls().unique().to_list()),
        boundaries=sorted(counting["boundary"].drop_nulls().unique().to_list()),
        sensors=sorted(counting["power_source"].drop_nulls().unique().to_list()),
        simulated=bool(counting["simulated"].any()),
        dummy="dummy" in counting["weights"].to_list(),
        choices=choices,
        counting=len(counting),
        points=len(points),
        attempts=len(sweep.attempts.filter(sweep.attempts["attempt"].is_not_null())),
        hours=sum(sweep.attempts["attempt_s"].drop_nulls()) / 3600.0,
        commands=list(commands(sweep.directory)),
        files=list(files(sweep.directory)),
    )


def _values(sweep: Sweep, name: str) -> str:
    return ", ".join(map(str, sweep.points[name].unique(maintain_order=True).to_list()))


def commands(directory: SweepDir) -> Iterator[str]:
    """Yield the submits of a sweep, oldest first; paths and names of a site's accounts are left out."""
    if not directory.sweep_yaml.is_file():
        return
    text = read_own(directory.sweep_yaml).decode(errors="replace")
    for line in re.findall(r"^  words: (\[.*\])$", text, re.MULTILINE):
        yield shlex.join(["wattflow", "submit", *map(_shown, json.loads(line))])


def _shown(override: str) -> str:
    key, value = split(override)
    if value is None:
        return override
    group, _, named = key.lstrip("+").rpartition(".")
    of_site = (group or named).split(".")[0] == "cluster" and named not in _HARDWARE
    private = of_site and not _PLAIN.fullmatch(value)
    if private or named.endswith(("path", "dir")) or _PATH.search(value):
        return f"{key}={HIDDEN}"
    return override


def files(directory: SweepDir) -> Iterator[File]:
    """Yield the files from which the figures follow, with their sizes and hashes."""
    for path in (directory.grid_path, directory.points_path, directory.phases_path):
        if path.is_file():
            data = read_own(path)
            name = str(path.relative_to(directory.path))
            yield File(name, len(data), hashlib.sha256(data).hexdigest())
