"""What cannot have happened, whatever follows from it: results made anew of an invented record agree with it.

    one attempt     its times, tokens, samples, joules and the names of its devices, held to one another
    all that count  a device is in one place at a time: no two attempts share its time or its samples

Only attempts with figures are held to this: of others a reason in their row says why they have none. Clocks of two
nodes are never compared, and each bound leaves room for what was seen on real hardware.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.config.choices import Config, ranks_of
from wattflow.publish.verdict import Key, named
from wattflow.store.files import has_own
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import REQUEST, SPAN, TRACE, NodeInfo, Record, beside_devices
from wattflow.store.sources import DEVICES, SECOND_NS, of_kind, source_of
from wattflow.store.tables import read_table

# watts that a board's maker lets it take at most, by a word of its name
BOARDS_W = {
    "GB300": 1400, "GB200": 1200, "B300": 1400, "B200": 1200, "GH200": 1000, "H200": 700,
    "H100": 700, "H800": 700, "H20": 500, "A100": 500, "A800": 500, "A40": 300, "A30": 165,
    "A16": 250, "A10": 150, "A6000": 300, "A5000": 230, "A4000": 140, "A2": 60, "L40S": 350,
    "L40": 300, "L4": 72, "V100": 350, "P100": 300, "P40": 250, "T4": 70, "5090": 600, "4090": 600,
    "3090": 450, "4080": 320, "3080": 350,
}  # fmt: skip
_ANY_BOARD_W = 2000
_ANY_MODULE_W = 5000  # two GPUs and a Grace CPU
_ANY_HOST_W = 20_000
_BESIDE = {"host", "node", "accelerator"}  # what is measured of a node beside its devices
_ABOVE_LIMIT = 2.0  # a 700 W board was seen at 971 W, over 20 ms
# the clock may be set while an attempt runs; the driver's buffer begins before it does
_CLOCK_S, _BEFORE_S, _AFTER_S = 5.0, 30.0, 10.0
_JOULES = 0.01  # how far a node's joules may be off the sum over its traces
_RUN, _DISTINCT, _ONE_IN = (
    32,
    16,
    8,
)  # samples that are compared at once, and how many are looked at

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


# --- one attempt ----------------------------------------------------------------------------------


def strange_sensors(record: Record) -> list[str]:
    """Return which nodes of a record name a sensor or boundary that is none, or measured no device."""
    problems = []
    for info in record.get("nodes", []):
        for source, boundary in [
            (info["source"], {info["boundary"]}),
            *((one["source"], _BESIDE) for one in beside_devices(info)),
        ]:
            if source not in (*of_kind("power"), *of_kind("counter")):
                problems.append(
                    f"node {info['node']}: power came from {source!a}, which is no sensor."
                )
            elif source_of(source).boundary not in boundary:
                words = " or ".join(sorted(boundary))
                problems.append(f"node {info['node']}: {source} does not measure a {words!a}.")
        if not info["devices"]:
            problems.append(f"node {info['node']}: measured no device.")
    return problems


def strange_devices(record: Record, config: Config) -> list[str]:
    """Return what cannot be of the ranks and devices of a record; a device is one thing in one place."""
    ranks, nodes = record["ranks"], record["nodes"]
    problems = []
    if len({rank["rank"] for rank in ranks}) < len(ranks):
        problems.append("two ranks have one number.")
    if "measure" not in record and len(ranks) > ranks_of(config):
        problems.append(f"{len(ranks)} ranks ran, and the point has {ranks_of(config)}.")
    for node, n in Counter(info["node"] for info in nodes).items():
        if n > 1:
            problems.append(f"node {node} is in the record {n} times.")
    places = Counter(device["uuid"] for info in nodes for device in info["devices"])
    problems += [f"{uuid} is measured as {n} devices." for uuid, n in places.items() if n > 1]
    return problems


def strange_times(record: Record) -> list[str]:
    """Return whether an attempt ended before it began, or never."""
    started, ended = record["started_ns"], record["ended_ns"]
    if ended is None or started <= 0:
        return ["it finished, and the record does not say when."]
    if ended < started:
        return [f"it ended {_seconds(started - ended)} before it started."]
    return []


def strange_spans(attempt: AttemptDir, record: Record) -> list[str]:
    """Return which spans lie outside of their attempt: by the clock that wrote its times, on other nodes by length."""
    started, ended = record["started_ns"], record["ended_ns"]
    if ended is None or ended < started:
        return []
    problems = []
    for node in sorted({rank["node"] for rank in record["ranks"]}):
        spans = read_table(attempt.spans_path(node), SPAN)
        first, last = _extent(spans["start_ns"], spans["end_ns"])
        problems += _outside(f"spans on {node}", (first, last), record, node)
        length = pc.max(pc.subtract(spans["end_ns"], spans["start_ns"])).as_py()
        if length > ended - started + _CLOCK_S * SECOND_NS:
            problems.append(
                f"a span on {node} takes {_seconds(length)}, the attempt {_seconds(ended - started)}."
            )
    return problems


def _outside(what: str, times: tuple[int, int], record: Record, node: str) -> list[str]:
    """Return how far spans, or samples, lie outside of an attempt."""
    started, ended = record["started_ns"], record["ended_ns"] or 0
    first, last = times
    before_s, after_s = (_CLOCK_S, _CLOCK_S) if what.startswith("spans") else (_BEFORE_S, _AFTER_S)
    if node != _first_node(record):  # a clock of its own
        if last - first > ended - started + (before_s + after_s) * SECOND_NS:
            return [f"{what} reach over {_seconds(last - first)}, longer than the attempt."]
        return []
    problems = []
    if first < started - before_s * SECOND_NS:
        problems.append(f"{what} begin {_seconds(started - first)} before the attempt.")
    if last > ended + after_s * SECOND_NS:
        problems.append(f"{what} end {_seconds(last - ended)} after the attempt.")
    return problems


def _is_stated(record: Record) -> bool:
    """Return whether the sidecars reported joules; those of the first versions did not, and are held to less."""
    return all(info.get("energy_j") is not None for info in record["nodes"])


def _first_node(record: Record) -> str | None:
    """Return the node whose clock wrote the record's times."""
    return next((rank["node"] for rank in record["ranks"] if rank["rank"] == 0), None)


def _extent(starts: pa.ChunkedArray, ends: pa.ChunkedArray) -> tuple[int, int]:
    return pc.min(starts).as_py() or 0, pc.max(ends).as_py() or 0


def _seconds(ns: int) -> str:
    return f"{ns / SECOND_NS:,.1f} s"


def strange_tokens(attempt: AttemptDir, record: Record, config: Config) -> list[str]:
    """Return which tokens no engine could have made under the point's choices, or are of no span."""
    requests = read_table(attempt.requests_path, REQUEST)
    rows = requests.select(["prompt", "batch", "tokens_in", "tokens_kept"]).to_pylist()
    problems = []
    most, longest = max((row["tokens_kept"] for row in rows), default=0), config.max_gen_len
    if most > longest:
        problems.append(f"an answer has {most} tokens, and max_gen_len is {longest}.")
    if any(row["tokens_kept"] < 0 or row["tokens_in"] < 0 for row in rows):
        problems.append("a prompt has fewer tokens than none.")
    length = max((row["tokens_in"] + row["tokens_kept"] for row in rows), default=0)
    if config.max_seq_len is not None and length > config.max_seq_len:
        problems.append(
            f"a prompt and its answer have {length} tokens, and max_seq_len is {config.max_seq_len}."
        )
    if len({row["prompt"] for row in rows}) < len(rows):
        problems.append("a prompt is answered twice.")
    batches = Counter(row["batch"] for row in rows)
    if _is_stated(record) and max(batches.values(), default=0) > config.batch_size:
        problems.append(
            f"a batch has {max(batches.values())} prompts, and batch_size is {config.batch_size}."
        )
    if "prompts" in record and len(rows) > record["prompts"]["count"]:
        problems.append(f"{len(rows)} prompts are answered of {record['prompts']['count']}.")
    return problems + _tokens_of_spans(attempt, record, rows, config)


def _tokens_of_spans(
    attempt: AttemptDir, record: Record, rows: list[dict[str, Any]], config: Config
) -> list[str]:
    """Return in which batches rank 0's spans and the requests differ, and spans with more tokens than steps."""
    node = _first_node(record)
    if node is None:
        return []
    spans = read_table(attempt.spans_path(node), SPAN).to_pylist()
    asked: dict[int | None, list[int]] = defaultdict(lambda: [0, 0])
    counted: dict[int | None, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        asked[row["batch"]][0] += row["tokens_in"]
        asked[row["batch"]][1] += row["tokens_kept"]
    rows_of = Counter(row["batch"] for row in rows)
    problems = []
    for span in spans:
        if span["rank"] != 0 or span["phase"] not in ("prefill", "decode"):
            continue
        kept, computed = span["tokens_kept"] or 0, span["tokens_computed"]
        counted[span["batch"]][0] += (span["tokens_in"] or 0) * (span["phase"] == "prefill")
        counted[span["batch"]][1] += kept * (span["phase"] == "decode")
        most = config.batch_size * (config.max_seq_len or 0)
        # the first token of each row comes of its prefill
        if computed is not None and not kept - rows_of[span["batch"]] <= computed <= max(
            most, kept
        ):
            problems.append(f"batch {span['batch']}: {computed} tokens computed, {kept} kept.")
    differ = sorted(
        (b for b in {*asked, *counted} if asked[b] != counted[b]), key=lambda b: (b is None, b)
    )
    if differ:
        batch = differ[0]
        problems.append(
            f"batch {batch} has {asked[batch][0]} and {asked[batch][1]} tokens in its requests, "
            f"{counted[batch][0]} and {counted[batch][1]} in its spans"
            f"{f', and {len(differ) - 1} more differ' if len(differ) > 1 else ''}."
        )
    return problems


def strange_traces(attempt: AttemptDir, record: Record) -> tuple[list[str], list["Stay"]]:
    """Return which samples no such device can have given, or not then, and joules that are not those of the traces.

    Beside them what is held to other attempts: the stays on the GPUs that the attempt's ranks used.
    """
    problems, found = [], []
    used = {Place(rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}
    for info in record["nodes"]:
        total_j: float | None = 0.0
        for device in info["devices"]:
            place = Place(info["node"], device["uuid"])
            path = attempt.trace_path(*place)
            if not has_own(path):
                total_j = None
                continue
            trace = read_table(path, TRACE)
            readings = _readings(trace, info["source"])
            limit_w = _most_w(device["name"], device.get("power_limit_max_w"), info["boundary"])
            problems += _strange_readings(readings, limit_w, place.uuid)
            problems += _other_name(trace, device["name"], place.uuid)
            if len(readings.time_ns):
                times = int(readings.time_ns[0]), int(readings.time_ns[-1])
                what = f"samples of {place.uuid}"
                problems += _outside(what, times, record, place.node)
            if total_j is not None:
                total_j += readings.joules()
            if info["boundary"] in DEVICES and place in used:
                found.append(_stay(attempt, record, place, readings))
        problems += [] if total_j is None else _other_joules(info, total_j)
    return problems, found


class _Readings(NamedTuple):
    """One device's power samples and readings of its energy counter, each in order of time."""

    time_ns: Ints
    power_w: Floats
    counted_ns: Ints
    counter_mj: npt.NDArray[np.uint64]

    def joules(self) -> float:
        """Return the joules from the first to the last sample, gaps bridged, as a sidecar adds them up."""
        return float(
            np.sum((self.power_w[1:] + self.power_w[:-1]) / 2 * np.diff(self.time_ns) / SECOND_NS)
        )


def _readings(trace: pa.Table, source: str) -> _Readings:
    of_power = pc.and_(pc.equal(trace["source"], source), pc.is_valid(trace["power_w"]))
    columns: list[Any] = []
    for mask, name in (
        (of_power, "power_w"),
        (pc.is_valid(trace["counter_mj"]), "counter_mj"),
    ):
        rows = trace.select(["time_ns", name]).filter(mask)
        stamps, values = rows["time_ns"].to_numpy(), rows[name].to_numpy()
        order = np.argsort(stamps, kind="stable")
        columns += [stamps[order], values[order]]
    return _Readings(*columns)


def _most_w(name: str, limit_w: float | None, boundary: str) -> float:
    """Return the watts that no sample of a device can have."""
    if boundary not in DEVICES:
        return _ANY_HOST_W
    if boundary == "module":
        return _ANY_MODULE_W
    words = name.upper().replace("-", " ").split()
    known = [float(watts) for word, watts in BOARDS_W.items() if word in words]
    limits = [*known[:1], *([limit_w] if limit_w else [])]
    return _ABOVE_LIMIT * min(limits) if limits else _ANY_BOARD_W


def _strange_readings(found: _Readings, limit_w: float, uuid: str) -> list[str]:
    problems = []
    watts = found.power_w[np.isfinite(found.power_w)]
    if np.max(watts, initial=0.0) > limit_w:
        most = f"{np.max(watts):,.0f} W"
        problems.append(f"{uuid}: a sample of {most}, more than such a device can take.")
    stamps, readings = found.counted_ns, found.counter_mj
    for i in np.flatnonzero(readings[1:] < readings[:-1]) + 1:
        # after a reset it counts from 0; a reading that is low once is none, which the figures leave out
        since_s = (stamps[i] - stamps[0]) / SECOND_NS + 1.0
        if readings[i] / 1e3 > limit_w * since_s and not np.any(readings[i:] >= readings[i - 1]):
            problems.append(f"{uuid}: its energy counter falls, and not to 0.")
            break
    return problems


def _other_name(trace: pa.Table, name: str, uuid: str) -> list[str]:
    """Return where a trace was recorded of a device of another name than the record's."""
    found = (trace.schema.metadata or {}).get(b"gpu_name")
    if found is None or found.decode(errors="replace") == name:
        return []
    return [
        f"{uuid} is a {name!a} in the record, and a {found.decode(errors='replace')!a} in its trace."
    ]


def _other_joules(info: NodeInfo, total_j: float) -> list[str]:
    """Return where the joules that a sidecar reported are not those of its traces."""
    stated_j = info.get("energy_j")
    known = stated_j is not None and info["sidecar_restarts"] == 0
    if not known or source_of(info["source"]).kind != "power" or stated_j is None:
        return []
    if abs(stated_j - total_j) <= _JOULES * max(abs(total_j), abs(stated_j)) + 1.0:
        return []
    return [
        f"node {info['node']}: the record has {stated_j:,.1f} J, its traces {total_j:,.1f} J from first to last sample."
    ]


def strange(attempt: AttemptDir, record: Record, config: Config) -> tuple[list[str], list["Stay"]]:
    """Return all that cannot be of one attempt with figures, and its stays on GPUs."""
    problems = [*strange_sensors(record), *strange_devices(record, config), *strange_times(record)]
    if problems:  # what follows would only say it again
        return problems, []
    of_traces, found = strange_traces(attempt, record)
    problems = [*strange_spans(attempt, record), *of_traces]
    if "measure" not in record:
        problems += strange_tokens(attempt, record, config)
    return problems, found


# --- all that count -------------------------------------------------------------------------------


class Place(NamedTuple):
    """A device where it was measured."""

    node: str
    uuid: str


@dataclass(frozen=True)
class Stay:
    """What one attempt recorded of one GPU, in the time of its spans."""

    key: Key
    place: Place
    name: str
    first_ns: int
    last_ns: int
    stated: bool  # whether its sidecar reported joules, as all do but those of the first versions
    marks: frozenset[int]  # of runs of samples
    counter_mj: tuple[int, int] | None  # its energy counter's first and last reading


def _stay(attempt: AttemptDir, record: Record, place: Place, found: _Readings) -> Stay:
    spans = read_table(attempt.spans_path(place.node), SPAN)
    own = spans.filter(pc.equal(spans["gpu_uuid"], place.uuid))
    first, last = _extent(own["start_ns"], own["end_ns"])
    inside = (found.time_ns >= first) & (found.time_ns <= last)
    counts = found.counter_mj
    return Stay(
        key=(attempt.point_id, attempt.number),
        place=place,
        name=next(
            device["name"]
            for info in record["nodes"]
            for device in info["devices"]
            if info["node"] == place.node and device["uuid"] == place.uuid
        ),
        first_ns=first,
        last_ns=last,
        stated=_is_stated(record),
        marks=marks(found.power_w[inside]),
        counter_mj=(int(counts[0]), int(counts[-1])) if len(counts) else None,
    )


def marks(watts: Floats) -> frozenset[int]:
    """Return hashes of runs of samples that vary enough to happen once, of some runs that follow from their values."""
    if len(watts) < _RUN:
        return frozenset()
    values = np.ascontiguousarray(watts).view(np.uint64)
    runs = len(values) - _RUN + 1
    found = np.zeros(runs, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(_RUN):
            found = found * np.uint64(0x9E3779B97F4A7C15) + values[i : i + runs]
            found ^= found >> np.uint64(29)
    chosen = np.flatnonzero(found % np.uint64(_ONE_IN) == 0)
    varied = [i for i in chosen if len(np.unique(values[i : i + _RUN])) >= _DISTINCT]
    return frozenset(found[varied].tolist())


def strange_stays(found: Iterable[Stay], settings: Mapping[Key, Hashable]) -> dict[Key, list[str]]:
    """Return, by attempt, what two attempts that count cannot both have; `settings` are their choices but the repeat.

    Attempts of the first versions, which do not state their joules, are held to their repeats on the same GPU alone.
    """
    problems: dict[Key, list[str]] = defaultdict(list)
    stays = sorted(found, key=lambda stay: stay.first_ns)
    for one, other, text in dict.fromkeys([*_of_one_gpu(stays), *_of_one_recording(stays)]):
        repeated = settings[one.key] == settings[other.key] and one.place == other.place
        if repeated or (one.stated and other.stated):
            problems[one.key].append(f"{one.place.uuid} {text} {named(other.key)}.")
            if one.key != other.key:
                problems[other.key].append(f"{other.place.uuid} {text} {named(one.key)}.")
    return problems


def _of_one_gpu(stays: Sequence[Stay]) -> Iterator[tuple[Stay, Stay, str]]:
    """Yield pairs of stays of one GPU that overlap, whose names differ, or between which its counter went back."""
    by_uuid: dict[str, list[Stay]] = defaultdict(list)
    for stay in stays:
        by_uuid[stay.place.uuid].append(stay)
    for there in by_uuid.values():
        last: dict[str, Stay] = {}  # by node: that which ends last
        for before, stay in zip([None, *there], there, strict=False):
            if before is not None and before.name != stay.name:
                yield stay, before, f"is a {stay.name!a}, and a {before.name!a} in"
            earlier = last.get(stay.place.node)
            if earlier is not None and earlier.last_ns > stay.first_ns:
                yield stay, earlier, "was busy at that time in"
            elif earlier and earlier.stated and stay.stated and _counter_jumps(earlier, stay):
                yield stay, earlier, "has an energy counter that does not go on from that in"
            if earlier is None or stay.last_ns > earlier.last_ns:
                last[stay.place.node] = stay


def _of_one_recording(stays: Sequence[Stay]) -> Iterator[tuple[Stay, Stay, str]]:
    """Yield pairs of stays that have samples of one recording."""
    owners: dict[int, Stay] = {}
    for stay in stays:
        for mark in stay.marks:
            owner = owners.setdefault(mark, stay)
            if owner is not stay:
                yield stay, owner, "has the samples of"


def _counter_jumps(earlier: Stay, later: Stay) -> bool:
    """Return whether a counter rose by more than any board takes, or begins again higher than it could have from 0."""
    if earlier.counter_mj is None or later.counter_mj is None:
        return False
    between_s = (later.last_ns - earlier.first_ns) / SECOND_NS + _BEFORE_S + _AFTER_S
    most_mj = 1e3 * _ANY_BOARD_W * between_s
    rose = later.counter_mj[0] - earlier.counter_mj[1]
    return rose > most_mj or (rose < 0 and later.counter_mj[0] > most_mj)
