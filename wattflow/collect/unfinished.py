"""The energy of an attempt that did not finish: from its devices' first to their last sample, as far as traces reach.

Such an attempt has no measured window, so this energy stands in no ratio: it is for those who add up a bill.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from wattflow.collect.reading import DeviceKey, power_curve, samples_of
from wattflow.energy import curve
from wattflow.energy.curve import Joules
from wattflow.errors import DamagedError
from wattflow.nullable import agreed, complete_sum, joined_names, quadrature
from wattflow.store.files import own_files
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE, Record
from wattflow.store.sources import DEVICES
from wattflow.store.tables import read_stream, read_table

_COPY = re.compile(r"\.\d+\.arrow$")  # of a trace that was never closed


@dataclass(frozen=True)
class Unfinished:
    """The columns of these names; null where a device left no trace, or one with too long a gap."""

    unfinished_energy_j: float | None = None
    unfinished_energy_u_j: float | None = None
    unfinished_s: float | None = None
    unfinished_source: str | None = None


def unfinished(attempt: AttemptDir, record: Record) -> Unfinished:
    """Return the energy of one such attempt over all devices that its ranks had, or that were traced."""
    traces = _traces(attempt)
    ranks = {DeviceKey(rank["node"], rank["gpu_uuid"]) for rank in record.get("ranks", [])}
    devices = sorted(ranks or _gpus(traces))
    if not devices or any(device not in traces for device in devices):
        return Unfinished()
    joules = [_joules(traces[device]) for device in devices]
    energy_j = complete_sum(None if part is None else part.energy_j for part in joules)
    heads = [traces[device][0] for device in devices]
    if energy_j is None or agreed(_about(head, "boundary") or "gpu" for head in heads) is None:
        return Unfinished()
    known = [part for part in joules if part is not None]
    return Unfinished(
        unfinished_energy_j=energy_j,
        unfinished_energy_u_j=quadrature(part.u_j for part in known),
        unfinished_s=max(part.seconds for part in known),
        unfinished_source=joined_names(_about(head, "source") for head in heads),
    )


def _traces(attempt: AttemptDir) -> dict[DeviceKey, list[pa.Table]]:
    """Return the traces of each device: the closed one, else the copies of the growing ones, oldest first."""
    found: dict[DeviceKey, list[pa.Table]] = defaultdict(list)
    closed: set[DeviceKey] = set()
    folder = attempt.path / "traces"
    for path in own_files(folder, "*.parquet"):
        table = read_table(path, TRACE)
        closed.add(_device(table))
        found[_device(table)].append(table)
    for path in own_files(folder, "*.arrow"):
        growing = _growing(path)
        if growing is not None and _device(growing) not in closed:
            found[_device(growing)].append(growing)
    return found


def _growing(path: Path) -> pa.Table | None:
    """Return the whole batches of a trace that was never closed; null where not even its head was copied."""
    if not _COPY.search(path.name):
        return None
    try:
        return read_stream(path)
    except DamagedError:
        return None


def _device(table: pa.Table) -> DeviceKey:
    return DeviceKey(_about(table, "node") or "", _about(table, "gpu_uuid") or "")


def _gpus(traces: dict[DeviceKey, list[pa.Table]]) -> set[DeviceKey]:
    """Return the job's devices where no rank came to name its own: all that were traced, what was beside GPUs aside."""
    gpus = {key for key, tables in traces.items() if _about(tables[0], "boundary") in DEVICES}
    return gpus or set(traces)


def _about(table: pa.Table, key: str) -> str | None:
    value = (table.schema.metadata or {}).get(key.encode())
    return None if value is None else value.decode()


def _joules(tables: Sequence[pa.Table]) -> Joules | None:
    """Return the energy of one device over all of its samples; null where they are too few."""
    source = _about(tables[0], "source")
    trace = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    if source is None:
        return None
    power = power_curve(
        samples_of(trace, source), source, float(_about(tables[0], "period_ms") or 20.0)
    )
    if len(power.time_ns) < 2:
        return None
    return curve.summed(curve.between(power, power.time_ns[:1], power.time_ns[-1:]))
