"""How a site's containers run a job's Python: the words before it, srun's options, lines of the batch script.

    apptainer   srun ... apptainer exec --nv --bind FOLDER IMAGE env PYTHONPATH=PACKAGES python3 ...
    pyxis       srun --container-image=IMAGE --container-mounts=FOLDER:FOLDER ... env PYTHONPATH=PACKAGES python3 ...
    edf         srun --environment=NAME ... env PYTHONPATH=PACKAGES python3 ...

Folders keep their paths inside, so that what the login node wrote means the same there. All words are quoted by who
joins them. Neither an image nor a package is fetched.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wattflow.config.choices import Cluster, Config, Container
from wattflow.errors import RefusedError
from wattflow.store.files import expanded

_PYTHON = "python3"  # an image's own, where the profile names none


@dataclass(frozen=True)
class Launch:
    """What a container adds to a batch script."""

    setup: list[str]  # lines before srun
    srun_args: list[str]
    command: list[str]  # the interpreter, with what enters the image


def paths_of(config: Config) -> list[str]:
    """Return the files and folders of this machine that a point reads, beside its sweep."""
    model, dataset = config.model, config.dataset
    named = [model.path, model.tokenizer_path, dataset.path]
    return [str(expanded(path)) for path in named if path]


def launch(cluster: Cluster, sweep: Path, read: Sequence[str]) -> Launch:
    """Return how jobs over a sweep's folder, which read these paths, enter the site's image.

    RefusedError for a path that the container's own syntax cannot express.
    """
    container = cluster.container
    # a home that is mounted holds packages of another Python
    inside = ["env", "PYTHONNOUSERSITE=1", f"PYTHONPATH={container.pythonpath or ''}"]
    inside += shlex.split(cluster.python) if cluster.python else [_PYTHON]
    if container.kind == "edf":
        return Launch([], [f"--environment={container.image}", *container.options], inside)
    folders = _folders(cluster, sweep, read)
    if container.kind == "apptainer":
        return _apptainer(container, folders, sweep, inside)
    mounts = ",".join(_mount(folder, both=True) for folder in folders)
    args = [f"--container-image={container.image}", f"--container-mounts={mounts}"]
    args.append(f"--container-workdir={sweep}")
    return Launch([], [*args, *container.options], inside)


def _apptainer(container: Container, folders: list[str], sweep: Path, inside: list[str]) -> Launch:
    binds = [word for folder in folders for word in ("--bind", _mount(folder))]
    command = ["apptainer", "exec", "--nv", *container.options, "--pwd", str(sweep), *binds]
    # the job's own disk is known on the node alone
    setup = [
        'if [ -n "$SLURM_TMPDIR" ]; then export APPTAINER_BIND="${APPTAINER_BIND:+$APPTAINER_BIND,}$SLURM_TMPDIR"; fi'
    ]
    return Launch(setup, [], [*command, str(container.image), *inside])


def _folders(cluster: Cluster, sweep: Path, read: Sequence[str]) -> list[str]:
    """Return the folders that a container has to show: the sweep's, spool, what points read, the profile's own.

    RefusedError for a colon in any but the profile's binds, where it parts a folder from its place inside.
    """
    container = cluster.container
    wanted = [str(sweep), *(folder for path in read for folder in _shown(Path(path)))]
    wanted += [path for path in (cluster.spool_dir, container.pythonpath) if path]
    for folder in wanted:
        if ":" in folder:
            raise RefusedError(_no_mount(folder))
    whole = [_without_slash(one) for one in [*wanted, *container.binds]]
    plain = [Path(one) for one in whole if ":" not in one]
    # a folder inside another is there already
    return [
        one
        for one in dict.fromkeys(whole)
        if ":" in one or not any(other in Path(one).parents for other in plain)
    ]


def _shown(path: Path) -> list[str]:
    """Return the folders to mount for a file or a folder: those to which links in it lead, too."""
    folder = path if path.is_dir() else path.parent
    links = [entry for entry in [folder, *folder.glob("*")] if entry.is_symlink()]
    ends = [link.resolve() for link in links]
    return [str(folder), *(str(end if end.is_dir() else end.parent) for end in ends)]


def _without_slash(folder: str) -> str:
    return folder.rstrip("/") or "/"


def _mount(folder: str, *, both: bool = False) -> str:
    """Return a bind as Apptainer and pyxis write it; pyxis wants the path inside as well."""
    if "," in folder or folder.count(":") > 2:
        raise RefusedError(_no_mount(folder))
    return f"{folder}:{folder}" if both and ":" not in folder else folder


def _no_mount(folder: str) -> str:
    return (
        f"{folder!r}: a container's binds are separated by commas and colons, so that such a folder cannot be mounted. "
        "Choose another, with sweeps_dir=DIR or model.path=DIR."
    )
