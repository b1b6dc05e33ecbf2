"""What an engine that schedules by itself did: its iterations, and the part of the window in which its batch was full.

    requests in work   .:|||||||||||||||||||||||:..
                         ^ full_*             ^

With all prompts at once the batch fills at the start and drains at the end. The full part runs from the iteration in
which batch_size requests have their first token to that by which n - batch_size - 1 of n are done (ML.ENERGY's rule),
by the edges of each node's own iterations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.collect.reading import Device, Window
from wattflow.config.choices import Config
from wattflow.energy import curve
from wattflow.energy.counter import counter_between
from wattflow.nullable import complete_sum, quadrature
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import ITERATION
from wattflow.store.sources import SECOND_NS
from wattflow.store.tables import read_table


@dataclass(frozen=True)
class Scheduling:
    """Columns of results/points.parquet; null for an engine that runs one batch as it was given."""

    iterations: int | None = None
    cached_tokens: int | None = None
    preemptions: int | None = None
    full_s: float | None = None
    full_tokens_kept: int | None = None
    full_energy_j: float | None = None
    full_energy_u_j: float | None = None


def scheduling(
    attempt: AttemptDir, devices: Sequence[Device], nodes: Sequence[str], config: Config
) -> tuple[Scheduling, list[str]]:
    """Return the scheduling of an attempt whose rank 0 ran on the first of `nodes`, and reason codes."""
    tables: dict[str, pa.Table] = {}
    for node in nodes:
        try:
            tables[node] = read_table(attempt.iterations_path(node), ITERATION)
        except FileNotFoundError:
            return Scheduling(), []
    if not tables:
        return Scheduling(), []
    first = tables[nodes[0]]
    counts = {
        "iterations": first.num_rows,
        "cached_tokens": pc.sum(first["cached_tokens"]).as_py(),
        "preemptions": pc.sum(first["preempted"]).as_py(),
    }
    if config.workload.mode != "offline":
        return Scheduling(**counts), []
    edges = full_rows(first, config.batch_size)
    if edges is None:
        return Scheduling(**counts), ["never_full"]
    windows = {node: _window(table, edges) for node, table in tables.items()}
    energy_j, u_j = _energy(devices, windows)
    start, end = windows[nodes[0]]
    inside = first["tokens_kept"].to_numpy()[edges[0] + 1 : edges[1] + 1]
    return Scheduling(
        **counts,
        full_s=(end - start) / SECOND_NS,
        full_tokens_kept=int(inside.sum()),
        full_energy_j=energy_j,
        full_energy_u_j=u_j,
    ), []


def full_rows(iterations: pa.Table, batch_size: int) -> tuple[int, int] | None:
    """Return the rows after which the full part begins and ends; null where the batch was never full."""
    begun = np.cumsum(iterations["first_tokens"].to_numpy())
    done = np.cumsum(iterations["finished"].to_numpy())
    last = int(done[-1]) - batch_size - 1
    if begun[-1] < batch_size or last < 1:
        return None
    first_row = int(np.searchsorted(begun, batch_size))
    last_row = int(np.searchsorted(done, last))
    return (first_row, last_row) if last_row > first_row else None


def _window(iterations: pa.Table, edges: tuple[int, int]) -> Window:
    ends = iterations["end_ns"]
    return ends[edges[0]].as_py(), ends[edges[1]].as_py()


def _energy(
    devices: Sequence[Device], windows: Mapping[str, Window]
) -> tuple[float | None, float | None]:
    """Return joules of all devices, each in its node's window, and their standard uncertainty; null where unknown."""
    parts = []
    for device in devices:
        start, end = windows[device.key.node]
        if device.by_counter:
            measured = counter_between(device.counter, [start], [end])
        else:
            measured = curve.between(device.power, [start], [end])
        parts.append(curve.summed(measured))
    if not parts:
        return None, None
    return (
        complete_sum(part.energy_j for part in parts),
        quadrature(part.u_j for part in parts),
    )
