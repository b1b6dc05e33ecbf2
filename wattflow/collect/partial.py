"""What an attempt took that did not finish: joules from its devices' first to last sample, as far as traces reach.

Such an attempt has no measured window, so these joules stand in no ratio: they are for those who add up a bill.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.energy import curve
from wattflow.errors import DamagedError
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE, Record
from wattflow.store.tables import read_stream, read_table

Who = tuple[str, str]  # node, GPU UUID
_COPY = re.compile(r"\.\d+\.arrow$")  # of a trace that was never closed


def took(attempt: AttemptDir, record: Record) -> dict[str, Any]:
    """The columns unfinished_* of one such attempt.

    Empty where a device that a rank had left no trace, or one with too long a gap: then nobody knows.
    """
    parts = _parts(attempt)
    ranks = {(rank["node"], rank["gpu_uuid"]) for rank in record.get("ranks", [])}
    wanted = ranks or _devices(parts)
    if not wanted or not wanted <= set(parts):
        return {}
    told = [_one(parts[who]) for who in sorted(wanted)]
    known = [one for one in told if one is not None]
    if len(known) < len(told) or len({one["boundary"] for one in known}) > 1:
        return {}
    sources = sorted({str(one["source"]) for one in known})
    return {
        "unfinished_energy_j": sum(one["energy_j"] for one in known),
        "unfinished_energy_u_j": sum(one["u_j"] ** 2 for one in known) ** 0.5,
        "unfinished_s": max(one["seconds"] for one in known),
        "unfinished_source": " + ".join(sources),
    }


def _parts(attempt: AttemptDir) -> dict[Who, list[pa.Table]]:
    """The traces of each device: the closed one, else the copies of the growing ones, oldest first."""
    parts: dict[Who, list[pa.Table]] = defaultdict(list)
    closed: set[Who] = set()
    folder = attempt.path / "traces"
    for path in sorted(folder.glob("*.parquet")):
        table = read_table(path, TRACE)
        closed.add(_who(table))
        parts[_who(table)].append(table)
    for path in sorted(folder.glob("*.arrow")):
        table = _growing(path)
        if table is not None and _who(table) not in closed:
            parts[_who(table)].append(table)
    return parts


def _growing(path: Path) -> pa.Table | None:
    """The whole batches of a trace that was never closed; null where not even its head was copied."""
    if not _COPY.search(path.name):
        return None
    try:
        return read_stream(path)
    except DamagedError:
        return None


def _who(table: pa.Table) -> Who:
    told = table.schema.metadata or {}
    return told.get(b"node", b"").decode(), told.get(b"gpu_uuid", b"").decode()


def _devices(parts: dict[Who, list[pa.Table]]) -> set[Who]:
    """The job's devices, where no rank came to say which one it has: all that were traced, hosts of GPUs aside."""
    gpus = {who for who, tables in parts.items() if _about(tables[0], "boundary") != "host"}
    return gpus or set(parts)


def _about(table: pa.Table, key: str) -> str | None:
    value = (table.schema.metadata or {}).get(key.encode())
    return None if value is None else value.decode()


def _one(tables: list[pa.Table]) -> dict[str, Any] | None:
    """The joules of one device over all of its samples; null where they are too few, or have too long a gap."""
    source = _about(tables[0], "source")
    whole = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    samples = whole.filter(
        pc.and_(pc.equal(whole["source"], source or ""), pc.is_valid(whole["power_w"]))
    )
    if source is None or samples.num_rows < 2:
        return None
    # a row of the sensor without a value, flagged as a gap, is a reading that failed
    rows = whole.filter(pc.equal(whole["source"], source))
    period_ms = float(_about(tables[0], "period_ms") or 20.0)
    power = curve.curve_of(
        source,
        period_ms,
        rows["time_ns"].to_numpy(),
        rows["power_w"].to_numpy(),
        rows["gap"].to_numpy(),
    )
    stamps = samples["time_ns"].to_numpy()
    edges = np.array([stamps.min()]), np.array([stamps.max()])
    joules = curve.summed(curve.between(power, *edges))
    if joules.energy_j is None:
        return None
    return {
        "energy_j": joules.energy_j,
        "u_j": joules.u_j,
        "seconds": joules.seconds,
        "source": source,
        "boundary": _about(tables[0], "boundary") or "gpu",
    }
