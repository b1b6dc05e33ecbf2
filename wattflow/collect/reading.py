"""Read one attempt's spans and traces into typed values, on which `figures` does its arithmetic."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.energy import curve
from wattflow.energy.aliasing import aliasing_w, is_near
from wattflow.energy.counter import Counter, counter, counter_between
from wattflow.energy.curve import Curve, Joules
from wattflow.energy.short_phases import corrected
from wattflow.errors import DamagedError
from wattflow.nullable import known_sum
from wattflow.store.layout import AttemptDir
from wattflow.store.phases import AROUND, NOT_WITHIN
from wattflow.store.references import checked
from wattflow.store.schema import SPAN, TRACE, DeviceSettings, NodeInfo, Record, Reference
from wattflow.store.sources import (
    SECOND_NS,
    Response,
    counters_beside,
    least_w,
    most_w,
    response_of,
    source_of,
)
from wattflow.store.tables import read_table

MOST_TOKENS = 10**12  # of one span
LEAST_BEATS = 2  # of a phase, or its spans show no period
Batches = tuple[int, int]  # the first, and how many
Window = tuple[int, int]  # start and end, unix ns


class DeviceKey(NamedTuple):
    """Which device: a GPU, or the host of a node."""

    node: str
    gpu_uuid: str


# --- spans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spans:
    """The spans of one rank in order of start; columns of equal length.

    `measured`: those of a command under `measure`, whose window any phase may begin and end.
    """

    measured: bool
    rank: int
    device: DeviceKey
    phase: list[str]
    start_ns: curve.Ints
    end_ns: curve.Ints
    tokens: Mapping[str, list[int | None]]

    def edges(self, phase: str) -> tuple[curve.Ints, curve.Ints]:
        """Return starts and ends of the spans of one phase."""
        of_phase = np.array([name == phase for name in self.phase], dtype=bool)
        return self.start_ns[of_phase], self.end_ns[of_phase]

    def within(self) -> tuple[curve.Ints, curve.Ints]:
        """Return starts and ends of the spans inside the measured window, in order of start."""
        inside = np.array([name not in NOT_WITHIN for name in self.phase], dtype=bool)
        return self.start_ns[inside], self.end_ns[inside]

    def window(self) -> Window | None:
        """Return the time from the first prefill's start to the last decode's end; null without either."""
        starts, ends = self.edges("prefill")[0], self.edges("decode")[1]
        if self.measured:
            starts, ends = self.within()
        return (int(starts.min()), int(ends.max())) if len(starts) and len(ends) else None

    def steady(self) -> Window | None:
        """Return the window without the first and the last batch; null below three batches."""
        starts, ends = self.edges("prefill")[0], self.edges("decode")[1]
        if len(starts) < 3 or len(ends) != len(starts):
            return None
        return int(np.sort(starts)[1]), int(np.sort(ends)[-2])

    def between(self, window: Window) -> tuple[curve.Ints, curve.Ints]:
        """Return starts and ends of the time inside a window that is in no phase."""
        starts, ends = self.within()
        return np.append(window[0], ends), np.append(starts, window[1])

    def periods_s(self, steps: int) -> tuple[float, ...]:
        """Return the periods with which the load repeats, s: from one start of a phase to its next, and decode steps.

        Those of phases that start three times or more, and of so many decode steps in all.
        """
        found = []
        for phase in dict.fromkeys(self.phase):
            starts, _ = self.edges(phase)
            if phase not in NOT_WITHIN and len(starts) > LEAST_BEATS:
                found.append(float(np.median(np.diff(np.sort(starts)))) / SECOND_NS)
        decode_s = self.seconds("decode")
        if steps and decode_s:
            found.append(decode_s / steps)
        return tuple(one for one in dict.fromkeys(found) if one > 0)

    def seconds(self, phase: str) -> float | None:
        """Return the time in one phase; null where the rank has no such span."""
        starts, ends = self.edges(phase)
        return float((ends - starts).sum()) / SECOND_NS if len(starts) else None

    def counts(self, column: str, phase: str) -> list[int | None]:
        """Return one token column of the spans of a phase, in order of start."""
        pairs = zip(self.tokens[column], self.phase, strict=True)
        return [n for n, name in pairs if name == phase]

    def count(self, column: str, phase: str) -> int | None:
        """Return the sum of one token column over a phase; null where nothing was counted."""
        return known_sum(self.counts(column, phase))


def of_batches(table: pa.Table, batches: Batches | None) -> pa.Table:
    """Return the rows of some batches and those that are of no batch; all rows for null."""
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
    attempt: AttemptDir, record: Record, batches: Batches | None
) -> tuple[dict[int, Spans], list[str]]:
    """Return the spans of each rank of the record, and reason codes of what is missing.

    DamagedError for a span of a rank that the record does not have.
    """
    measured = "measure" in record
    expected = {rank["rank"]: DeviceKey(rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}
    found: dict[int, Spans] = {}
    reasons: list[str] = []
    if measured and len(record["nodes"]) < record["measure"]["nodes"]:
        reasons.append("missing_node")
    for node in sorted({device.node for device in expected.values()}):
        path = attempt.spans_path(node)
        try:
            table = of_batches(read_table(path, SPAN), batches)
        except FileNotFoundError:
            reasons.append("missing_node")
            continue
        _check_tokens(path, table)
        for spans in _by_rank(table, measured=measured):
            if expected.get(spans.rank) != spans.device or spans.device.node != node:
                raise DamagedError(
                    f"{path}: rank {spans.rank} on {spans.device.node} with {spans.device.gpu_uuid} is not in the "
                    "record."
                )
            if np.any(spans.end_ns < spans.start_ns) or _overlap(spans):
                reasons.append("spans_overlap")
            found[spans.rank] = spans
    if "missing_node" not in reasons and len(found) < len(expected):
        reasons.append("missing_rank")
    return found, reasons


def _check_tokens(path: Path, table: pa.Table) -> None:
    """Raise DamagedError for a span of fewer than no tokens, or of more than there can be."""
    for column in ("tokens_in", "tokens_kept", "tokens_computed"):
        bounds = pc.min_max(table[column]).as_py()
        for count in bounds.values():
            if count is not None and not 0 <= count <= MOST_TOKENS:
                raise DamagedError(f"{path}: a span with {column} {count}.")


def _by_rank(table: pa.Table, *, measured: bool) -> list[Spans]:
    columns = table.sort_by([("rank", "ascending"), ("start_ns", "ascending")]).to_pydict()
    rows: dict[int, list[int]] = defaultdict(list)
    for i, rank in enumerate(columns["rank"]):
        rows[rank].append(i)
    return [
        Spans(
            measured=measured,
            rank=rank,
            device=DeviceKey(columns["node"][at[0]], columns["gpu_uuid"][at[0]]),
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


def lowest_ranks(ranks: Mapping[int, Spans]) -> dict[DeviceKey, Spans]:
    """Return the spans of each device's lowest rank, by which it is billed, in order of ranks."""
    lowest: dict[DeviceKey, Spans] = {}
    for _, spans in sorted(ranks.items()):
        lowest.setdefault(spans.device, spans)
    return lowest


# --- devices --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceEnergy:
    """The energy of one device: in its window, without the first and the last batch, and in each phase."""

    window: Joules
    steady: Joules | None  # null below three batches
    phases: Mapping[str, Joules]  # those that it has, `other` included


@dataclass(frozen=True)
class Device:
    """One device of the job: what its sensor reported, the spans by which it is billed, and its node's window."""

    key: DeviceKey
    source: str
    period_ms: float
    spans: Spans
    window: Window
    readings: pa.Table  # its trace without the power samples
    power: Curve
    counter: Counter
    clock_stepped: bool  # its node's wall clock, inside the window, or slewed
    response: Response  # of its power sensor
    periods_s: Sequence[float] = ()  # with which its load is known to repeat: batches, decode steps
    incredible: bool = False  # a sample in the window was of watts that no board draws
    reference: Reference | None = (
        None  # of its board by a meter; power and counter are corrected by it
    )

    @property
    def by_counter(self) -> bool:
        """Whether its energy is an energy counter's, so that there is nothing to check that by."""
        return source_of(self.source).kind == "counter"

    def between(self, start_ns: curve.Ints, end_ns: curve.Ints) -> curve.Windows:
        """Return its energy in windows, by its counter or its power over time."""
        if self.by_counter:
            return counter_between(self.counter, start_ns, end_ns)
        return curve.between(self.power, start_ns, end_ns)

    def energy(self) -> DeviceEnergy:
        """Return its energy in the whole window, in the steady part of it, in each phase and between batches."""
        own = dict.fromkeys((*AROUND, "prefill", "decode", *self.spans.phase))
        edges = {phase: self.spans.edges(phase) for phase in own}
        edges["other"] = self.spans.between(self.window)
        edges["window"] = np.array(self.window[:1]), np.array(self.window[1:])
        if (steady := self.spans.steady()) is not None:
            edges["steady"] = np.array(steady[:1]), np.array(steady[1:])
        # all at once: ten thousand attempts of a few spans each are slow one phase at a time
        starts, ends = (np.concatenate([pair[side] for pair in edges.values()]) for side in (0, 1))
        windows = self.between(starts, ends)
        bounds = np.cumsum([0, *(len(pair[0]) for pair in edges.values())])
        sums = {
            phase: curve.summed(windows.part(int(first), int(last)))
            for phase, first, last in zip(edges, bounds[:-1], bounds[1:], strict=True)
            if last > first
        }
        if not self.by_counter:
            sums = self._doubted(sums, edges)
        return DeviceEnergy(
            window=sums["window"],
            steady=sums.get("steady"),
            phases={name: part for name, part in sums.items() if name not in ("window", "steady")},
        )

    def _doubted(
        self, sums: Mapping[str, Joules], edges: Mapping[str, tuple[curve.Ints, curve.Ints]]
    ) -> dict[str, Joules]:
        """Return joules with short phases corrected by the sensor's answer, and aliasing in their uncertainty."""
        found = dict(sums)
        if found["window"].energy_j is None:
            return found
        inside = [name for name in found if name not in (*NOT_WITHIN, "window", "steady")]
        hidden_w = aliasing_w(self.power, *self.window, self.response, self.periods_s)
        hidden_w = max(hidden_w, self._contradicted_w(found["window"]))
        for name in (*inside, "window", "steady"):
            one = found.get(name)
            if one is not None and one.u_j is not None and hidden_w > 0:
                hidden_j = hidden_w * one.seconds
                found[name] = replace(
                    one, u_j=float(np.hypot(one.u_j, hidden_j)), aliasing_u_j=hidden_j
                )
        return found | corrected(
            self.power, self.response, {name: edges[name] for name in inside}, self.window, found
        )

    def _contradicted_w(self, whole: Joules) -> float:
        """Return the uncertainty, W, by an energy counter that saw more or less than both uncertainties allow.

        Either of both may be right: the truth lies anywhere up to as far from the integral as the counter.
        """
        counted = self.counted
        if counted.energy_j is None or counted.u_j is None or not whole.seconds:
            return 0.0
        assert whole.energy_j is not None
        assert whole.u_j is not None
        apart_j = abs(whole.energy_j - counted.energy_j)
        explained_j = 2 * float(np.hypot(whole.u_j, counted.u_j))
        return apart_j / 3**0.5 / whole.seconds if apart_j > explained_j else 0.0

    @cached_property
    def counted(self) -> Joules:
        """The joules of its window by the energy counter."""
        start, end = self.window
        return curve.summed(counter_between(self.counter, [start], [end], self.power))

    @property
    def may_alias(self) -> bool:
        """Whether its load repeats, too fast to be seen, near a multiple of the sensor's sampling."""
        seconds = (self.window[1] - self.window[0]) / SECOND_NS
        return not self.by_counter and any(
            is_near(period_s, seconds, self.response) for period_s in self.periods_s
        )


def read_devices(
    attempt: AttemptDir, record: Record, ranks: Mapping[int, Spans]
) -> tuple[list[Device], list[str]]:
    """Return the job's devices in the order of their lowest ranks, and reason codes.

    No device is returned where one is missing: then no total is known. DamagedError for a trace of another device.
    """
    meters = {info["node"]: info for info in record.get("nodes", [])}
    lowest = lowest_ranks(ranks)
    if any(key.node not in meters for key in lowest):
        return [], ["missing_node"]
    if len({meters[key.node]["boundary"] for key in lowest}) > 1:
        return [], ["mixed_boundary"]
    devices: list[Device] = []
    reasons: list[str] = []
    for key, spans in lowest.items():
        window = _node_window(key.node, ranks)
        if window is None:
            return [], [*reasons, "no_window"]
        path, meter = attempt.trace_path(*key), meters[key.node]
        try:
            trace = read_table(path, TRACE)
        except FileNotFoundError:
            reasons.append("missing_trace")
            continue
        check_trace(path, trace, key, source=meter["source"], scope=meter["boundary"])
        devices.append(_device(key, meter, spans, window, trace, steps=_steps(record)))
    return devices if len(devices) == len(lowest) else [], reasons


def _node_window(node: str, ranks: Mapping[int, Spans]) -> Window | None:
    """Return the time from the first prefill's start to the last decode's end over all ranks of a node."""
    windows = [spans.window() for spans in ranks.values() if spans.device.node == node]
    known = [window for window in windows if window is not None]
    if len(known) < len(windows):
        return None
    return min(start for start, _ in known), max(end for _, end in known)


def check_trace(path: Path, trace: pa.Table, key: DeviceKey, **sensor: str) -> None:
    """Raise DamagedError where a trace does not name its device and sensor, or names others than the record."""
    found = {
        k.decode(): v.decode(errors="replace") for k, v in (trace.schema.metadata or {}).items()
    }
    for name, value in {**key._asdict(), **sensor}.items():
        if found.get(name) != value:
            other = f"{name} {found[name]!r}" if name in found else f"no {name}"
            raise DamagedError(f"{path}: its metadata have {other}, the record {name} {value!r}.")


def _steps(record: Record) -> int:
    """Return the decode steps that an engine counted; 0 where it did not."""
    return record["work"]["decode_steps"] if "work" in record else 0


def _device(
    key: DeviceKey,
    meter: NodeInfo,
    spans: Spans,
    window: Window,
    trace: pa.Table,
    *,
    steps: int,
) -> Device:
    source, period_ms = meter["source"], meter["period_ms"]
    # a counter of another boundary, as a superchip's beside its GPU's power, neither checks it nor is checked by it
    of_same = pc.is_in(trace["source"], pa.array(counters_beside(source), pa.string()))
    counted = _where(trace, pc.and_(of_same, pc.is_valid(trace["counter_mj"])), "counter_mj")
    paired = _where(trace, pc.is_valid(trace["monotonic_ns"]), "monotonic_ns")
    stamps = paired["time_ns"].to_numpy(), paired["monotonic_ns"].to_numpy()
    bare = _where(trace, pc.is_valid(trace["raw_ns"]), "raw_ns")
    raw = bare["time_ns"].to_numpy(), bare["raw_ns"].to_numpy()
    of_device = [device for device in meter["devices"] if device["uuid"] == key.gpu_uuid]
    limit_w = _highest_limit_w(of_device, trace)
    reference = of_device[0].get("reference") if of_device else None
    if reference is not None:
        reference = checked(reference, f"record.json: the reference of {key.gpu_uuid}")
    samples = samples_of(trace, source)
    at_ns, watts = samples["time_ns"].to_numpy(), samples["power_w"].to_numpy()
    beyond = ~_is_reading(watts, source, limit_w) & ~np.isnan(watts)
    return Device(
        key=key,
        source=source,
        period_ms=period_ms,
        spans=spans,
        window=window,
        readings=trace.filter(pc.not_equal(trace["source"], source)),
        power=power_curve(samples, source, period_ms, limit_w, reference),
        counter=counter(
            counted["time_ns"].to_numpy(),
            _true_mj(counted, reference),
            age_ns=source_of(source).counter_age_ns,
            highest_w=most_w(source, limit_w),
        ),
        clock_stepped=curve.clock_stepped(*stamps, *window) or curve.clock_slewed(*raw, *window),
        response=response_of(source, of_device[0]["name"] if of_device else "", period_ms),
        periods_s=spans.periods_s(steps),
        reference=reference,
        incredible=bool(np.any(beyond & (at_ns >= window[0]) & (at_ns <= window[1]))),
    )


def _highest_limit_w(of_device: Sequence[DeviceSettings], trace: pa.Table) -> float | None:
    """Return the highest limit that a device accepts, else the highest that it is known to have had; null for none."""
    if of_device and (most := of_device[0].get("power_limit_max_w")) is not None:
        return most
    default_w = of_device[0].get("power_limit_default_w") if of_device else None
    return max(default_w or 0.0, pc.max(trace["power_limit_w"]).as_py() or 0.0) or None


def _is_reading(watts: curve.Floats, source: str, limit_w: float | None) -> curve.Bools:
    """Return, per sample, whether the device can have drawn that."""
    return (watts >= least_w(source)) & (watts <= most_w(source, limit_w))


def _where(trace: pa.Table, mask: pa.ChunkedArray, *columns: str) -> pa.Table:
    """Return stamps and some columns of the readings under a mask: of all columns each would cost its time."""
    return trace.select(["time_ns", *columns]).filter(mask)


def _true_mj(counted: pa.Table, reference: Reference | None) -> npt.NDArray[np.uint64]:
    """Return the readings of an energy counter, as they would be without gain and offset where those are known."""
    readings = counted["counter_mj"].to_numpy().astype(np.uint64)
    if reference is None or not len(readings):
        return cast("npt.NDArray[np.uint64]", readings)
    since_s = (counted["time_ns"].to_numpy() - counted["time_ns"][0].as_py()) / SECOND_NS
    rise_mj = readings.astype(np.float64) - float(readings[0])
    true_mj = (rise_mj - reference["offset_w"] * since_s * 1e3) / (1 + reference["gain"])
    # whole mJ above a base that nothing falls below
    return cast(
        "npt.NDArray[np.uint64]", np.rint(true_mj - min(true_mj.min(), 0.0)).astype(np.uint64)
    )


def samples_of(trace: pa.Table, source: str) -> pa.Table:
    """Return the rows of a trace that are one sensor's samples: time, watts, and whether they come after a gap."""
    return _where(trace, pc.equal(trace["source"], source), "power_w", "gap")


def power_curve(
    samples: pa.Table,
    source: str,
    period_ms: float,
    limit_w: float | None = None,
    reference: Reference | None = None,
) -> Curve:
    """Return the power over time of one sensor's samples; `limit_w` is its device's highest limit, where known.

    With a `reference` of the board, its true power: (reading - offset) / (1 + gain). Gaps are readings that failed.
    """
    watts = samples["power_w"].to_numpy()
    if reference is not None:
        true_w = (watts - reference["offset_w"]) / (1 + reference["gain"])
        is_reading = _is_reading(watts, source, limit_w)
        watts = np.where(is_reading, np.maximum(true_w, least_w(source)), np.nan)
    return curve.curve_of(
        source,
        period_ms,
        samples["time_ns"].to_numpy(),
        watts,
        samples["gap"].to_numpy(),
        limit_w=limit_w,
    )
