"""What ran beside a point on its node, as its sidecar saw it in the measured window: context, and a class apart."""

from dataclasses import dataclass
from typing import Any, cast

from wattflow.errors import DamagedError
from wattflow.store.schema import Beside, Record


@dataclass(frozen=True)
class Neighbours:
    """Columns of results/points.parquet; null for a point that had its job's GPUs to itself."""

    slots: int | None = None
    beside: bool | None = None
    neighbours: float | None = None
    neighbour_gpus: int | None = None
    neighbour_power_w: float | None = None
    neighbour_temperature_c: float | None = None
    host_load_pct: float | None = None


_FIELDS = tuple(Beside.__annotations__)  # the columns but `beside`, which follows from them


def neighbours(record: Record) -> Neighbours:
    """Return what ran beside a measured point; one whose window was not seen whole counts as beside others."""
    found = [node.get("beside") for node in record.get("nodes", [])]
    known = [one for one in found if one is not None]
    if not known:
        return Neighbours()
    (one,) = known  # a point in a slot has one node
    values = {name: one.get(name) for name in _FIELDS}
    if not all(value is None or isinstance(value, int | float) for value in values.values()):
        raise DamagedError("a record's neighbours are no numbers.")
    return Neighbours(beside=values["neighbours"] != 0, **cast(Any, values))
