"""What an engine that schedules by itself did: its iterations, and the part of the window that figures of load are of.

    requests in work   .:|||||||||||||||||||||||:..
                         ^ full_*             ^

With all prompts at once, or so many at any time, the batch fills at the start and drains at the end. The full part runs
from the iteration after that in which batch_size requests, or workload.concurrency, have their first token, to that by
which n - batch_size - 1 of n are done (ML.ENERGY's rule). Where requests come by a clock (workload.mode=open), it runs
from the iteration in which the first one was sent that was due after ramp_s, to the last one's end. Its edges are those
of each node's own iterations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.collect.reading import Device, Window
from wattflow.config.choices import Config
from wattflow.energy import curve
from wattflow.nullable import complete_sum, quadrature
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import ITERATION, REQUEST
from wattflow.store.sources import SECOND_NS
from wattflow.store.tables import read_table

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scheduling:
    """Columns of results/points.parquet; null for an engine that runs one batch as it was given."""

    iterations: int | None = None
    cached_tokens: int | None = None
    preemptions: int | None = None
    draft_tokens: int | None = None
    accepted_tokens: int | None = None
    full_s: float | None = None
    full_tokens_kept: int | None = None
    full_energy_j: float | None = None
    full_energy_u_j: float | None = None


@dataclass(frozen=True)
class Part:
    """Rows of a table of iterations, the last one too."""

    first: int
    last: int

    def window(self, iterations: pa.Table) -> Window:
        """Return its edges by the clock of a node's iterations."""
        return iterations["start_ns"][self.first].as_py(), iterations["end_ns"][self.last].as_py()


@dataclass(frozen=True)
class Load:
    """The iterations of an attempt by node, rank 0's first, and of requests that came while others were in work."""

    iterations: Mapping[str, pa.Table]
    mode: str  # workload.mode
    part: Part | None  # that figures of load are of; null where there is none
    requests: pa.Table | None = None  # all of them, where they came while others were in work
    counted: Bools | None = None  # which of them figures of requests are of

    @property
    def first(self) -> pa.Table:
        """The iterations of rank 0."""
        return next(iter(self.iterations.values()))


def read_load(attempt: AttemptDir, nodes: Sequence[str], config: Config) -> Load | None:
    """Return the load of an attempt whose rank 0 ran on the first of `nodes`; null for an engine without iterations."""
    tables: dict[str, pa.Table] = {}
    for node in nodes:
        try:
            tables[node] = read_table(attempt.iterations_path(node), ITERATION)
        except FileNotFoundError:
            return None
    if not tables:
        return None
    first, workload = tables[nodes[0]], config.workload
    if workload.mode == "static":
        return Load(tables, workload.mode, None)
    if workload.mode == "offline":
        return Load(tables, workload.mode, full_rows(first, config.batch_size))
    requests = read_table(attempt.requests_path, REQUEST)
    if workload.mode == "open":
        counted = due_after(requests, workload.ramp_s)
        part = due_rows(first, requests, counted)
    else:
        part = full_rows(first, workload.concurrency or 1)
        counted = sent_in(first, requests, part)
    return Load(tables, workload.mode, part, requests, counted)


def scheduling(load: Load, devices: Sequence[Device]) -> tuple[Scheduling, list[str]]:
    """Return the scheduling of an attempt, and reason codes."""
    first, part = load.first, load.part
    sums = {
        column: pc.sum(first[name]).as_py()
        for column, name in (
            ("cached_tokens", "cached_tokens"),
            ("preemptions", "preempted"),
            ("draft_tokens", "draft_tokens"),
            ("accepted_tokens", "accepted_tokens"),
        )
    }
    counts = Scheduling(iterations=first.num_rows, **sums)
    if load.mode == "static":
        return counts, []
    if part is None:
        return counts, ["never_full"]
    windows = {node: part.window(table) for node, table in load.iterations.items()}
    energy_j, u_j = _energy(devices, windows)
    start, end = part.window(first)
    inside = first["tokens_kept"].to_numpy()[part.first : part.last + 1]
    return replace(
        counts,
        full_s=(end - start) / SECOND_NS,
        full_tokens_kept=int(inside.sum()),
        full_energy_j=energy_j,
        full_energy_u_j=u_j,
    ), []


def full_rows(iterations: pa.Table, at_once: int) -> Part | None:
    """Return the rows in which so many requests were in work; null where the batch was never full."""
    begun = np.cumsum(iterations["first_tokens"].to_numpy())
    done = np.cumsum(iterations["finished"].to_numpy())
    last = int(done[-1]) - at_once - 1
    if begun[-1] < at_once or last < 1:
        return None
    first_row = int(np.searchsorted(begun, at_once))
    last_row = int(np.searchsorted(done, last))
    return Part(first_row + 1, last_row) if last_row > first_row else None


def due_after(requests: pa.Table, ramp_s: float) -> Bools:
    """Return which requests were due so long after the first one, or later."""
    due_ns = requests["due_ns"].to_numpy()
    since_ns = due_ns - due_ns.min(initial=np.iinfo(np.int64).max)
    return np.asarray(since_ns >= round(ramp_s * SECOND_NS))


def due_rows(iterations: pa.Table, requests: pa.Table, counted: Bools) -> Part | None:
    """Return the rows from the sending of the first of some requests to the end; null where there is none."""
    sent_ns = requests["sent_ns"].to_numpy()[counted]
    if not len(sent_ns):
        return None
    starts = iterations["start_ns"].to_numpy()
    return Part(int(np.searchsorted(starts, sent_ns.min())), len(starts) - 1)


def sent_in(iterations: pa.Table, requests: pa.Table, part: Part | None) -> Bools:
    """Return which requests were sent in a part: after the row before it, and before its last row's end."""
    sent_ns = requests["sent_ns"].to_numpy()
    if part is None:
        return np.zeros(len(sent_ns), bool)
    ends = iterations["end_ns"].to_numpy()
    return np.asarray((sent_ns > ends[part.first - 1]) & (sent_ns <= ends[part.last]))


def _energy(
    devices: Sequence[Device], windows: Mapping[str, Window]
) -> tuple[float | None, float | None]:
    """Return joules of all devices, each in its node's window, and their standard uncertainty; null where unknown."""
    parts = []
    for device in devices:
        start, end = windows[device.key.node]
        parts.append(curve.summed(device.between(np.array([start]), np.array([end]))))
    if not parts:
        return None, None
    return (
        complete_sum(part.energy_j for part in parts),
        quadrature(part.u_j for part in parts),
    )
