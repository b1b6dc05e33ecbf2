"""The name of a sweep that nobody named: from its grid's file and the keys that vary, so that no other axes share it.

grid=shards                          shards
grid=shards model=a,b                shards-with-model
grid=shards batch_size=4             shards-by-shards
shards=1,2 control.power_limit_w=300,400
                                     by-control.power_limit_w-shards
model=tiny                           tiny
"""

import hashlib
import re
from collections.abc import Collection

MOST = 60  # characters; a name is part of folders and of jobs


def default_name(
    grid: str | None, own: Collection[str], varied: Collection[str], model: str
) -> str:
    """Return the name of a sweep of these axes.

    `own` are the keys that vary by the grid's file, `varied` those that do, `model` names a sweep of one combination.
    """
    keys = sorted(varied)
    if grid is None:
        return _bounded(f"by-{'-'.join(keys)}" if keys else model)
    more = sorted({*varied} - {*own})
    if {*varied} == {*own}:
        return _bounded(grid)
    if {*varied} > {*own}:
        return _bounded(f"{grid}-with-{'-'.join(more)}")
    return _bounded(f"{grid}-by-{'-'.join(keys) or 'nothing'}")


def _bounded(name: str) -> str:
    """Return a name that a folder may have; what is cut off or replaced is in a hash at its end."""
    safe = re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", name).lstrip("-._") or "sweep"
    if safe == name and len(safe) <= MOST:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{safe[: MOST - 9].rstrip('-._')}-{digest}"
