"""Read one attempt's spans and traces: typed values for the arithmetic in `figures`."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.energy import counter, curve
from wattflow.energy import counter as energy_counter
from wattflow.energy.counter import Counter
from wattflow.energy.curve import Curve, Joules
from wattflow.errors import DamagedError
from wattflow.nullable import known_sum, quadrature
from wattflow.store.layout import AttemptDir
from wattflow.store.phases import AROUND, NOT_WITHIN
from wattflow.store.schema import SPAN, TRACE, NodeInfo, Record
from wattflow.store.sources import SECOND_NS, source_of
from wattflow.store.tables import read_table

Row = dict[str, Any]
Who = tuple[str, str]  # node, GPU UUID


@dataclass(frozen=True)
class Collected:
    """One attempt's row of points.parquet, its rows of phases.parquet, and where its devices' traces lie.

    An hour of 32 GPUs is half a gigabyte of readings, so they are kept on the disk.
    """

    point: Row
    phases: list[Row]
    traces: dict[Who, Path]


@dataclass(frozen=True)
class Spans:
    """The spans of one rank in order of start; columns of equal length.

    `measured`: those of a command under `measure`, whose window any phase may begin and end.
    """

    measured: bool
    rank: int
    who: Who
    phase: list[str]
    start_ns: curve.Ints
    end_ns: curve.Ints
    tokens: dict[str, list[int | None]]

    def edges(self, phase: str) -> tuple[curve.Ints, curve.Ints]:
        """Starts and ends of the spans of one phase."""
        of_phase = np.array([name == phase for name in self.phase], dtype=bool)
        return self.start_ns[of_phase], self.end_ns[of_phase]

    def within(self) -> tuple[curve.Ints, curve.Ints]:
        """Starts and ends of the spans inside the measured window, in order of start."""
        inside = np.array([name not in NOT_WITHIN for name in self.phase], dtype=bool)
        return self.start_ns[inside], self.end_ns[inside]

    def window(self) -> tuple[int, int] | None:
        """From the first prefill's start to the last decode's end; null without either."""
        starts, ends = self.edges("prefill")[0], self.edges("decode")[1]
        if self.measured:
            starts, ends = self.within()
        return (int(starts.min()), int(ends.max())) if len(starts) and len(ends) else None

    def seconds(self, phase: str) -> float | None:
        """The time in one phase; null where the rank has no such span."""
        starts, ends = self.edges(phase)
        return float((ends - starts).sum()) / SECOND_NS if len(starts) else None

    def count(self, column: str, phase: str) -> int | None:
        """The sum of one token column over a phase; null where nothing was counted."""
        return known_sum(
            n for n, name in zip(self.tokens[column], self.phase, strict=True) if name == phase
        )

    def steady(self) -> tuple[int, int] | None:
        """From the second prefill's start to the last but one decode's end; null with fewer than three batches."""
        starts, ends = self.edges("prefill")[0], self.edges("decode")[1]
        if len(starts) < 3 or len(ends) != len(starts):
            return None
        return int(np.sort(starts)[1]), int(np.sort(ends)[-2])

    def between(self, window: tuple[int, int]) -> tuple[curve.Ints, curve.Ints]:
        """The edges of what is in no phase inside the window."""
        starts, ends = self.within()
        return np.append(window[0], ends), np.append(starts, window[1])


@dataclass(frozen=True)
class Device:
    """One device of the job: what its sensor told, by which ranks' spans it is billed, and its node's window."""

    who: Who
    source: str
    period_ms: float
    spans: Spans
    window: tuple[int, int]
    readings: pa.Table  # its trace without the power samples
    power: Curve
    counter: Counter
    clock_stepped: bool  # its node's wall clock, inside the window

    def windows(self, start_ns: curve.Ints, end_ns: curve.Ints) -> curve.Windows:
        """What was measured in some windows, by the sensor that the device's node names."""
        if self.source == "nvml_counter":
            return energy_counter.counter_between(self.counter, start_ns, end_ns)
        return curve.between(self.power, start_ns, end_ns)

    def by_phase(self) -> dict[str, Joules]:
        """The device's energy in each phase that its spans tell, between batches, and in the whole window."""
        own = dict.fromkeys((*AROUND, "prefill", "decode", *self.spans.phase))
        edges = {phase: self.spans.edges(phase) for phase in own}
        edges["other"] = self.spans.between(self.window)
        edges["window"] = np.array(self.window[:1]), np.array(self.window[1:])
        if (steady := self.spans.steady()) is not None:
            edges["steady"] = np.array(steady[:1]), np.array(steady[1:])
        # all at once: ten thousand attempts of a few spans each are slow one phase at a time
        starts, ends = (np.concatenate([pair[side] for pair in edges.values()]) for side in (0, 1))
        found = self.windows(starts, ends)
        bounds = np.cumsum([0, *(len(pair[0]) for pair in edges.values())])
        return {
            phase: curve.summed(found.part(int(first), int(last)))
            for phase, first, last in zip(edges, bounds[:-1], bounds[1:], strict=True)
            if last > first
        }


def of_batches(table: pa.Table, batches: tuple[int, int] | None) -> pa.Table:
    """The rows of some batches, first and count, and those of none; all for null."""
    if batches is None:
        return table
    first, count = batches
    inside = pc.and_(
        pc.greater_equal(table["batch"], first), pc.less(table["batch"], first + count)
    )
    if "phase" in table.schema.names:
        counted = pc.is_in(table["phase"], value_set=pa.array(["prefill", "decode"]))
        inside = pc.or_(pc.invert(counted), pc.fill_null(inside, fill_value=False))
    return table.filter(inside)


def read_spans(
    attempt: AttemptDir,
    record: Record,
    reasons: list[str],
    batches: tuple[int, int] | None,
) -> dict[int, Spans]:
    """The spans of each rank of the record; what is missing is a reason, what contradicts the record is damaged."""
    expected = {rank["rank"]: (rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}
    found: dict[int, Spans] = {}
    if "measure" in record and len(record["nodes"]) < record["measure"]["nodes"]:
        reasons.append("missing_node")
    for node in sorted({node for node, _ in expected.values()}):
        path = attempt.spans_path(node)
        try:
            table = of_batches(read_table(path, SPAN), batches)
        except FileNotFoundError:
            reasons.append("missing_node")
            continue
        for spans in _by_rank(table, measured="measure" in record):
            if expected.get(spans.rank) != spans.who or spans.who[0] != node:
                raise DamagedError(
                    f"{path}: rank {spans.rank} on {spans.who[0]} with {spans.who[1]} is not in the record."
                )
            if np.any(spans.end_ns < spans.start_ns) or _overlap(spans):
                reasons.append("spans_overlap")
            found[spans.rank] = spans
    if "missing_node" not in reasons and len(found) < len(expected):
        reasons.append("missing_rank")
    return found


def _by_rank(table: pa.Table, *, measured: bool) -> list[Spans]:
    columns = table.sort_by([("rank", "ascending"), ("start_ns", "ascending")]).to_pydict()
    rows: dict[int, list[int]] = defaultdict(list)
    for i, rank in enumerate(columns["rank"]):
        rows[rank].append(i)
    return [
        Spans(
            measured=measured,
            rank=rank,
            who=(columns["node"][at[0]], columns["gpu_uuid"][at[0]]),
            phase=[columns["phase"][i] for i in at],
            start_ns=np.array([columns["start_ns"][i] for i in at], dtype=np.int64),
            end_ns=np.array([columns["end_ns"][i] for i in at], dtype=np.int64),
            tokens={
                name: [columns[name][i] for i in at]
                for name in ("tokens_in", "tokens_kept", "tokens_computed")
            },
        )
        for rank, at in rows.items()
    ]


def _overlap(spans: Spans) -> bool:
    return bool(np.any(spans.start_ns[1:] < spans.end_ns[:-1]))


def read_devices(
    attempt: AttemptDir, record: Record, ranks: dict[int, Spans], reasons: list[str]
) -> list[Device]:
    """The job's devices in the order of their lowest ranks, or none where one is missing: then no total is known."""
    if set(reasons) & {"missing_node", "missing_rank", "no_window", "spans_overlap"}:
        return []
    meters = {info["node"]: info for info in record.get("nodes", [])}
    lowest: dict[Who, Spans] = {}
    for _, spans in sorted(ranks.items()):
        lowest.setdefault(spans.who, spans)
    if any(node not in meters for node, _ in lowest):
        reasons.append("missing_node")
        return []
    if len({meters[node]["boundary"] for node, _ in lowest}) > 1:
        reasons.append("mixed_boundary")
        return []
    devices = []
    for who, spans in lowest.items():
        window = _node_window(who[0], ranks)
        if window is None:
            reasons.append("no_window")
            return []
        try:
            trace = read_table(attempt.trace_path(*who), TRACE)
        except FileNotFoundError:
            reasons.append("missing_trace")
            continue
        check_trace(
            attempt.trace_path(*who),
            trace,
            node=who[0],
            gpu_uuid=who[1],
            source=meters[who[0]]["source"],
            scope=meters[who[0]]["boundary"],
        )
        devices.append(_device(who, meters[who[0]], spans, window, trace))
    return devices if len(devices) == len(lowest) else []


def _node_window(node: str, ranks: dict[int, Spans]) -> tuple[int, int] | None:
    """From the first prefill's start to the last decode's end over all ranks of a node."""
    windows = [spans.window() for spans in ranks.values() if spans.who[0] == node]
    known = [window for window in windows if window is not None]
    if len(known) < len(windows):
        return None
    return min(start for start, _ in known), max(end for _, end in known)


def check_trace(path: Path, trace: pa.Table, **expected: str) -> None:
    """DamagedError when a trace does not say whose it is and what measured it, or says another than the record."""
    found = {
        k.decode(): v.decode(errors="replace") for k, v in (trace.schema.metadata or {}).items()
    }
    for key, value in expected.items():
        if found.get(key) != value:
            told = f"{key} {found[key]!r}" if key in found else f"no {key}"
            raise DamagedError(f"{path}: its metadata tell {told}, the record {key} {value!r}.")


def _device(
    who: Who, meter: NodeInfo, spans: Spans, window: tuple[int, int], trace: pa.Table
) -> Device:
    source, period_ms = meter["source"], meter["period_ms"]
    counted = _where(trace, pc.is_valid(trace["counter_mj"]), "counter_mj")
    paired = _where(trace, pc.is_valid(trace["monotonic_ns"]), "monotonic_ns")
    stamps = paired["time_ns"].to_numpy(), paired["monotonic_ns"].to_numpy()
    return Device(
        who=who,
        source=source,
        period_ms=period_ms,
        spans=spans,
        window=window,
        readings=trace.filter(pc.not_equal(trace["source"], source)),
        power=power_curve(trace, source, period_ms),
        counter=counter.counter(
            counted["time_ns"].to_numpy(),
            counted["counter_mj"].to_numpy(),
            age_ns=source_of(source).counter_age_ns,
        ),
        clock_stepped=curve.clock_stepped(*stamps, *window),
    )


def _where(trace: pa.Table, mask: pa.ChunkedArray, *columns: str) -> pa.Table:
    """Stamps and some columns of the readings under a mask: a trace has many columns, and each costs its time."""
    return trace.select(["time_ns", *columns]).filter(mask)


def power_curve(trace: pa.Table, source: str, period_ms: float) -> Curve:
    """The power over time that one sensor reported."""
    # a row of the sensor without a value, flagged as a gap, is a reading that failed
    samples = _where(trace, pc.equal(trace["source"], source), "power_w", "gap")
    return curve.curve_of(
        source,
        period_ms,
        samples["time_ns"].to_numpy(),
        samples["power_w"].to_numpy(),
        samples["gap"].to_numpy(),
    )


def u_of(parts: Sequence[Joules | None]) -> float | None:
    """The standard uncertainty of the sum over devices, each with a sensor of its own."""
    return quadrature([None if part is None else part.u_j for part in parts])
