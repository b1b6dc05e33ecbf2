"""Which folders one node alone can see: memory, a container's layers, and what lies below /tmp.

A disk of this machine is not among them, since it may be the one that all nodes mount.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from wattflow.errors import RefusedError
from wattflow.slurm import client
from wattflow.slurm.shapes import Shape
from wattflow.store.files import read_given
from wattflow.store.layout import SweepDir

MOUNTINFO = Path("/proc/self/mountinfo")

_OF_ONE_NODE = {"aufs", "overlay", "ramfs", "tmpfs"}
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 (names, nothing is written there)


def node_local(path: Path, mountinfo: str) -> str | None:
    """Why an absolute path is seen by its node alone, by the text of /proc/self/mountinfo; null where it may be shared.

    proc(5): the fifth field is the mount point, and the first after a lone `-` the kind of file system.
    """
    mount, kind = Path("/"), ""
    for line in mountinfo.splitlines():
        fields, _, after = line.partition(" - ")
        if len(fields.split()) < 5 or not after.split():
            continue
        point = Path(_unescaped(fields.split()[4]))
        # of several at one place the last hides those before it
        if path.is_relative_to(point) and len(point.parts) >= len(mount.parts):
            mount, kind = point, after.split()[0]
    if kind in _OF_ONE_NODE:
        return f"{'an' if kind[0] in 'ao' else 'a'} {kind} at {mount}"
    for folder in _TEMPORARY:
        if path.is_relative_to(folder) and folder not in mount.parents:
            return f"below {folder}"
    return None


def _unescaped(field: str) -> str:
    r"""A path as it is: spaces and the like are written as \040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def check(sweep: SweepDir, requested: Sequence[Shape]) -> None:
    """RefusedError where Slurm has nodes that cannot see the sweep's folder."""
    if all(shape.is_local or shape.cluster.shared_sweeps_dir for shape in requested):
        return
    try:
        mounts = read_given(MOUNTINFO).decode(errors="replace")
    except OSError:  # no Linux
        return
    why = node_local(sweep.path.resolve(), mounts)
    other = client.other_node() if why else None
    if other is not None:
        raise RefusedError(
            f"{sweep.path}: {why}, which {other} cannot see. Choose a folder that all nodes share with "
            "sweeps_dir=DIR; if this one is shared, say cluster.shared_sweeps_dir=true."
        )
