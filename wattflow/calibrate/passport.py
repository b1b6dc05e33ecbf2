"""The passport of a GPU's power sensors: what each shows, how late, how smoothed, at what cost; as JSON and as a page.

    wattflow calibrate [--out DIR] [--minutes 5]

    DIR/record.json           what was done, and when each load was switched
    DIR/reads-<uuid>.parquet  every value that a sensor gave (schema.READS)
    DIR/passport-<uuid>.json  what follows from it for one GPU (PASSPORT_VERSION)
    DIR/passports.html        all of them

The first two come from a GPU (wattflow.power.calibrate); the others follow from them anywhere, and again at any time.
"""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from wattflow import __version__
from wattflow.calibrate.reads import Reads
from wattflow.calibrate.sources import BUFFER, COUNTER, GPM, NAMES, POWER, Passport
from wattflow.energy import response
from wattflow.energy.counter import Counter
from wattflow.energy.curve import Curve, Floats, Ints
from wattflow.energy.response import MS
from wattflow.errors import DamagedError, RefusedError
from wattflow.run.provenance import versions
from wattflow.store.files import write_atomic
from wattflow.store.schema import READS, SCHEMA_VERSION
from wattflow.store.tables import read_table, write_table

if TYPE_CHECKING:  # it loads pynvml
    from wattflow.power.recorder import Step

PASSPORT_VERSION = 1
FAST_ENOUGH_MS = 200.0  # a sensor whose whole answer takes longer is read from the slow load
BEFORE_NS = 1_300_000_000  # of an aliasing step: sensors still show what was before it
AFTER_NS = 700_000_000  # and those that average 1 s are so far behind
IDLE = ("bare", "sidecar", "context", "watched")
THINNED = 400  # points of a figure


@dataclass(frozen=True)
class Asked:
    """Where a calibration goes, how long it takes, and the command of its load."""

    out: Path
    steps: Sequence["Step"]  # wattflow.power.calibrate.plan
    load: Sequence[str]
    draw: bool = True  # the page, too, for which altair has to be there


# --- making ---------------------------------------------------------------------------------------


def calibrate(asked: Asked, say: Callable[[str], None]) -> list[Path]:
    """Record all visible GPUs and write their passports, whose paths are returned; `say` takes lines of progress.

    RefusedError before anything is asked of a GPU where there is none, it is in use, or the folder has a record.
    """
    from wattflow.power.recorder import Recorder  # noqa: PLC0415 - pynvml, only where it is wanted

    check(asked.out)
    with Recorder(asked.load) as recorder:
        asked.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        done = recorder.record(asked.steps, say)
        for device in recorder.devices:
            write_table(
                _reads_path(asked.out, device["uuid"]), _table(recorder.rows(device["uuid"]))
            )
        record = {
            "schema_version": PASSPORT_VERSION,
            "made": made,
            "minutes": round(sum(step.seconds for step in asked.steps) / 60, 2),
            "versions": versions(),
            "driver": recorder.driver,
            "load": recorder.load_name,
            "gpus": recorder.devices,
            "steps": done,
            "failed": {
                device["uuid"]: recorder.failed(device["uuid"]) for device in recorder.devices
            },
            "others": recorder.strangers(),
        }
    write_atomic(_record_path(asked.out), json.dumps(record).encode())
    return read_again(asked.out, draw=asked.draw)


def check(out: Path) -> None:
    """RefusedError for a folder that has a record."""
    if _record_path(out).exists():
        raise RefusedError(
            f"{out} has a calibration: take another --out, or read it again by `wattflow calibrate --from {out}`."
        )


def read_again(folder: Path, *, draw: bool) -> list[Path]:
    """Write the passports of a recorded folder, and their page; their paths."""
    record = _record(folder)
    made = [
        passport(record, gpu, read_table(_reads_path(folder, gpu["uuid"]), READS))
        for gpu in record["gpus"]
    ]
    paths = [folder / f"passport-{one['gpu']['uuid']}.json" for one in made]
    for path, one in zip(paths, made, strict=True):
        write_atomic(path, json.dumps(one, indent=1).encode())
    if draw:
        from wattflow.calibrate.page import draw_page  # noqa: PLC0415 (altair and polars may be missing on a node)

        paths.append(folder / "passports.html")
        write_atomic(paths[-1], draw_page(made).encode())
    return paths


def _record(folder: Path) -> dict[str, Any]:
    path = _record_path(folder)
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RefusedError(f"{folder} has no calibration: there is no {path}.") from error
    except ValueError as error:
        raise DamagedError(f"{path}: no JSON ({error}).") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != PASSPORT_VERSION:
        raise DamagedError(f"{path}: schema version {version}, not {PASSPORT_VERSION}.")
    return record


def _record_path(folder: Path) -> Path:
    return folder / "record.json"


def _reads_path(folder: Path, uuid: str) -> Path:
    return folder / f"reads-{uuid}.parquet"


def _table(rows: Sequence[Sequence[Any]]) -> pa.Table:
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * len(READS)
    told = READS.with_metadata({"schema_version": str(SCHEMA_VERSION)})
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, READS, strict=True)], told)


def passport(record: Mapping[str, Any], gpu: Mapping[str, Any], table: pa.Table) -> Passport:
    """What follows from the reads of one GPU."""
    reads = Reads(record, gpu, table)
    told: Passport = {source: _source(reads, source) for source in reads.sources}
    return {
        "schema": "wattflow passport",
        "schema_version": PASSPORT_VERSION,
        "made": record["made"],
        "minutes": record["minutes"],
        "wattflow": __version__,
        "driver": record["driver"],
        "load": record["load"],
        "gpu": dict(gpu),
        "others_on_the_gpu": record["others"].get(gpu["uuid"], []),
        "failed_reads": record["failed"].get(gpu["uuid"], {}),
        "sources": told,
        "costs_ms": _costs(reads),
        "idle_w": {name: _idle(reads, name) for name in IDLE},
        "levels_w": _levels(reads),
        "aliasing": [
            _alias(reads, told, k) for k, step in enumerate(reads.steps) if step["period_ms"]
        ],
        "figures": {"traces": _traces(reads), "answers": _answers(reads, told)},
    }


def _source(reads: Reads, source: str) -> dict[str, Any]:
    """One sensor: how often it is renewed, how it answers a step, and for the buffer how far back it goes."""
    loaded = [k for k, step in enumerate(reads.steps) if step["edges_ns"]]
    busy = [k for k in loaded if reads.steps[k]["name"] != "costs-on"]
    spacings = [np.diff(_stamps(reads, source, [k])) / MS for k in busy]
    period = response.spread(np.concatenate([np.zeros(0), *spacings]))
    found: dict[str, Any] = {
        "unit": "%" if source == GPM else "W",
        "stamped_by": "driver" if source == BUFFER else "first read that shows it",
        "period_ms": _told(period),
        "beat_ms": _beat_ms(reads, source, busy),
        "spacings_ms": _histogram(np.concatenate([np.zeros(0), *spacings])),
        **_answer(reads, source),
    }
    if source == BUFFER:
        found |= {
            "history": _history(reads),
            "shown_after_ms": _told(response.spread(_shown(reads))),
        }
    return found


def _beat_ms(reads: Reads, source: str, steps: Sequence[int]) -> float | None:
    """The steady period of a polled sensor, far sharper than its polls; null for one that keeps none."""
    if source in (BUFFER, GPM):
        return None
    beats = []
    for number in steps:
        if source == COUNTER:
            times: Counter | response.Renewals = reads.ticks([number])
        else:
            start, end, _, value = reads.of(source, [number])
            times = response.renewals(start, end, value)
        found = response.beat(times.time_ns, times.half_ns)
        if found is not None:
            beats.append(found.period_ns / MS)
    return round(float(np.median(beats)), 3) if beats else None


def _stamps(reads: Reads, source: str, steps: Sequence[int]) -> Ints:
    if source == COUNTER:
        return reads.ticks(steps).time_ns
    return reads.series(source, steps)[0]


def _told(value: Any) -> dict[str, Any] | None:
    """A small record as JSON has it, with the digits that mean something."""
    if value is None:
        return None
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(value).items()}


def _histogram(values: Floats) -> dict[str, Any] | None:
    """How many values lie in each of some equal bins up to their 99.5th percentile."""
    if not len(values):
        return None
    counts, bounds = np.histogram(
        values, bins=60, range=(0.0, float(np.percentile(values, 99.5)) * 1.05)
    )
    return {"width": round(float(bounds[1]), 4), "counts": counts.tolist()}


def _folded(reads: Reads, source: str, load: str) -> response.Folded | None:
    """The samples of a source around the edges of the load of a step; null where the step was not taken."""
    (number,) = reads.numbers(load) or (None,)
    if number is None:
        return None
    stamps, values = reads.series(source, [number])
    return response.folded(stamps, values, reads.edges(number), settle_ns=reads.settle_ns(number))


def _answer(reads: Reads, source: str) -> dict[str, Any]:
    """The answer to a step: of the slow load, and where that shows a quick sensor, of the fast one's many edges."""
    used = "slow"
    steps = _folded(reads, source, used)
    first = None if steps is None else response.fitted(steps)
    if first is not None and first.lag_ms + first.window_ms < FAST_ENOUGH_MS:
        quick = "ticks" if source == COUNTER else "fast"
        fast = _folded(reads, source, quick)
        if fast is not None and response.fitted(fast) is not None:
            used, steps = quick, fast
    if steps is None or steps.edges == 0:
        return {"answer": None, "answer_reason": "no step of the load could be seen"}
    best = response.fitted(steps)
    if best is None:
        return {"answer": None, "answer_reason": f"only {len(steps.since_ns)} samples beside edges"}
    shape = best.shape
    return {
        "answer": {
            **(_told(best) or {}),
            "load": used,
            "edges": steps.edges,
            "on": _told(response.fitted(steps, on=True, shape=shape)),
            "off": _told(response.fitted(steps, on=False, shape=shape)),
            "box": _told(response.fitted(steps, shape="box")),
            "exponential": _told(response.fitted(steps, shape="exponential")),
        },
        "answer_reason": None,
    }


def _history(reads: Reads) -> dict[str, Any] | None:
    """How much the buffer remembers: whole reads of it, one after another."""
    start, _, stamp, _ = reads.of(BUFFER, reads.numbers("costs"))
    if not len(start):
        return None
    spans = [stamp[start == one] for one in np.unique(start)]
    samples = max(len(of) for of in spans)
    seconds = max(float(of.max() - of.min()) / 1e9 for of in spans)
    return {"samples": samples, "seconds": round(seconds, 3)}


def _shown(reads: Reads) -> Floats:
    """How long after its stamp each sample could first be read, ms; the first read shows older ones and is left out."""
    start, end, stamp, _ = reads.of(BUFFER, reads.numbers("watched"))
    later = start > start.min(initial=np.iinfo(np.int64).max)
    shown: Floats = (end[later] - stamp[later]) / MS
    return shown


def _costs(reads: Reads) -> dict[str, Any]:
    """What each call takes, ms: alone on an idle GPU, and alone on a busy one."""
    found: dict[str, Any] = {}
    for source in NAMES:
        for name, step in (("idle", "costs"), ("busy", "costs-on")):
            start, end, _, _ = reads.of(source, reads.numbers(step))
            calls = np.unique(np.stack([start, end]), axis=1) if len(start) else np.zeros((2, 0))
            cost = _told(response.spread((calls[1] - calls[0]) / MS))
            if cost is not None:
                found.setdefault(source, {})[name] = cost
    return found


def _idle(reads: Reads, name: str) -> dict[str, Any] | None:
    """The mean watts of an idle GPU in each step of a name: by the buffer, and by the counter."""
    by_buffer, by_counter = [], []
    for number in reads.numbers(name):
        step = reads.steps[number]
        _, _, stamp, value = reads.of(BUFFER, [number])
        inside = value[(stamp >= step["start_ns"]) & (stamp < step["end_ns"])]
        if len(inside):
            by_buffer.append(round(float(inside.mean()), 2))
        start, end, _, reading = reads.of(COUNTER, [number])
        if len(start) > 1:
            seconds = float(start[-1] + end[-1] - start[0] - end[0]) / 2e9
            by_counter.append(round(float(reading[-1] - reading[0]) / 1e3 / seconds, 2))
    if not (by_buffer or by_counter):
        return None
    best = by_buffer or by_counter
    return {"power_w": round(float(np.mean(best)), 2), "buffer": by_buffer, "counter": by_counter}


def _levels(reads: Reads) -> dict[str, float] | None:
    """The plateaus of the slow load by the first source that has them, W."""
    for number in reads.numbers("slow"):
        edges = reads.edges(number)
        for source in reads.sources[:1]:
            stamps, values = reads.series(source, [number])
            late = [
                values[(stamps > start + reads.settle_ns(number)) & (stamps < end)]
                for start, end in itertools.pairwise(edges)
            ]
            off, on = np.concatenate(late[0::2]), np.concatenate([np.zeros(0), *late[1::2]])
            if len(off) and len(on):
                return {
                    "off_w": round(float(np.median(off)), 2),
                    "on_w": round(float(np.median(on)), 2),
                }
    return None


def _behind_ns(told: Passport, source: str) -> float:
    """How far the middle of the time that a value stands for lies before its stamp, ns; 0 where it is not known."""
    answer = told[source]["answer"]
    if answer is None:
        return 0.0
    share = 0.5 if answer["shape"] == "box" else 1.0
    return float(answer["lag_ms"] + share * answer["window_ms"]) * MS


def _alias(reads: Reads, told: Passport, number: int) -> dict[str, Any]:
    """One load period: the joules of each source over one window between two ticks of the counter, and over 1 s."""
    step = reads.steps[number]
    ticks = reads.ticks([number])
    exact = response.at_ticks(ticks, step["start_ns"] + BEFORE_NS, step["end_ns"] - AFTER_NS)
    found: dict[str, Any] = {"period_ms": step["period_ms"], "seconds": None, "energy_j": {}}
    found |= {"ratio": {}, "windows_1s": {}, "on_share": None, "levels_j": None}
    if exact is None:
        return found
    start, end, counted_j = exact
    # a tick tells of the time up to its lag before it: by its own answer, whose window is one tick long
    late = told[COUNTER]["answer"]["lag_ms"] * MS if told[COUNTER]["answer"] else 0.0
    found["seconds"] = round((end - start) / 1e9, 4)
    found["energy_j"][COUNTER] = round(counted_j, 3)
    by_source: dict[str, Curve | Counter] = {COUNTER: ticks}
    for source in (source for source in reads.sources if source in POWER):
        power = reads.curve(source, [number])
        behind_ns = _behind_ns(told, source) if source == BUFFER else _held_ns(told, source)
        energy_j = response.joules(power, start - round(late), end - round(late), behind_ns)
        by_source[source] = power
        if energy_j is not None:
            found["energy_j"][source] = round(energy_j, 3)
            found["ratio"][source] = round(energy_j / counted_j, 5) if counted_j else None
    found |= _by_levels(reads, number, start - round(late), end - round(late))
    for source, of in by_source.items():
        reach = response.range_of_windows(of, start, end, step["period_ms"] * MS)
        found["windows_1s"][source] = None if reach is None else [round(v, 5) for v in reach]
    return found


def _by_levels(reads: Reads, number: int, start_ns: int, end_ns: int) -> dict[str, Any]:
    """The share of a window in which the load was on, and the joules by the slow load's plateaus for that share."""
    share = response.on_share(reads.edges(number), start_ns, end_ns)
    levels = _levels(reads)
    if levels is None:
        return {"on_share": round(share, 5), "levels_j": None}
    power_w = levels["off_w"] + (levels["on_w"] - levels["off_w"]) * share
    return {
        "on_share": round(share, 5),
        "levels_j": round(power_w * (end_ns - start_ns) / 1e9, 3),
    }


def _held_ns(told: Passport, source: str) -> float:
    """The same for a polled value, which is read again until the next one comes: half a period more, ns."""
    period = told[source]["period_ms"]
    return _behind_ns(told, source) + (period["median"] / 2 * MS if period else 0.0)


# --- for figures ----------------------------------------------------------------------------------


def _traces(reads: Reads) -> dict[str, Any]:
    """The first seconds of the slow and the fast load by each power source: seconds since the step began, W."""
    found: dict[str, Any] = {}
    for load, seconds in (("slow", 10.0), ("fast", 3.0)):
        for number in reads.numbers(load):
            start_ns = reads.steps[number]["start_ns"]
            lines = {}
            for source in reads.sources:
                if source == GPM:
                    continue
                stamps, values = reads.series(source, [number])
                since = (stamps - start_ns) / 1e9
                shown = (since >= 0) & (since <= seconds)
                if not shown.any():
                    continue
                lines[source] = [
                    [round(float(s), 4), round(float(v), 1)]
                    for s, v in zip(since[shown], values[shown], strict=True)
                ]
            edges = [round((e - start_ns) / 1e9, 4) for e in reads.edges(number)[1:-1]]
            found[load] = {"lines": lines, "edges_s": [e for e in edges if e <= seconds]}
    return found


def _answers(reads: Reads, told: Passport) -> dict[str, Any]:
    """The folded samples that each answer was fitted to: ms since the edge, share of the step."""
    found = {}
    for source in reads.sources:
        answer = told[source]["answer"]
        steps = None if answer is None else _folded(reads, source, answer["load"])
        if steps is None or answer is None:
            continue
        reach_ms = max(60.0, 2.0 * (answer["lag_ms"] + answer["window_ms"]))
        near = np.flatnonzero(
            (steps.since_ns > -reach_ms / 3 * MS) & (steps.since_ns < reach_ms * MS)
        )
        near = near[:: max(1, len(near) // THINNED)]
        found[source] = [
            [round(float(steps.since_ns[k]) / MS, 2), round(float(steps.share[k]), 4)] for k in near
        ]
    return found
