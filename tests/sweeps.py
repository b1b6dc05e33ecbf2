"""Makes sweeps on disk with the project's own writers, from power curves whose joules are known by hand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import wattflow
from wattflow.collect.collect import collect
from wattflow.config import choices as config_choices
from wattflow.config import identity
from wattflow.plan.points import Point
from wattflow.store.grid import GridPoint, write_grid
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import REQUEST, SCHEMA_VERSION, SPAN, TRACE, Host, Record
from wattflow.store.sources import source_of
from wattflow.store.tables import write_table

START_NS = 1_760_000_000_000_000_000
SECOND_NS = 1_000_000_000
ABOUT = {"schema_version": str(SCHEMA_VERSION)}

RECORDS = 10_000  # in the file of every dataset

Power = Callable[[np.ndarray], np.ndarray]  # seconds since START_NS -> W


def constant(power_w: float) -> Power:
    """The same watts at all times."""
    return lambda seconds: np.full(len(seconds), power_w)


@dataclass
class Gpu:
    """One device of a node and the power it draws; each has a rank unless `ranks` says otherwise."""

    uuid: str
    power: Power = field(default_factory=lambda: constant(70.0))
    node: str = "node1"
    ranks: int = 1


# of what is measured by a counter, too
COUNTERS = {"gpu": "nvml_counter", "module": "nvml_module_counter", "node": "cray_counter"}


@dataclass
class Made:
    """How an attempt is made. Times are seconds after START_NS; each batch has a prefill, a decode and a pause."""

    gpus: Sequence[Gpu]
    batches: int = 2
    first_batch: int = 0  # its number; an attempt that goes on from another's does not begin with 0
    prefill_s: float = 1.0
    decode_s: float = 3.0
    pause_s: float = 0.5
    tokens: int = 100  # output tokens a batch
    prompts: int = 4  # a batch
    source: str = "nvml_buffer"
    boundary: str = "gpu"
    period_s: float = 0.02
    before_s: float = 3.0  # idle, load and warm-up, 1 s each
    after_s: float = 0.2
    idle_after_s: float = 0.0
    reference_s: float = 0.0  # within the idle before the load
    limit_w: float | None = None  # in force throughout
    offset_s: dict[str, float] = field(default_factory=dict)  # a node's clock against the first's
    drift: dict[str, float] = field(default_factory=dict)  # how much faster it runs
    status: str = "finished"
    dummy: bool = True
    counter: bool = True
    hosts: dict[str, Power] = field(default_factory=dict)  # by node, where RAPL answers
    others: dict[str, tuple[str, Power]] = field(
        default_factory=dict
    )  # sensor and watts by UUID: accel0-node1
    started_s: float = 0.0
    beside: dict[str, Any] | None = None  # what the sidecar saw of the rest of the node

    @property
    def window_s(self) -> float:
        """The measured window's length."""
        return self.batches * (self.prefill_s + self.decode_s + self.pause_s) - self.pause_s

    def stamps(self, node: str, seconds: Any) -> Any:
        """Unix ns by a node's clock of seconds after START_NS."""
        zero = START_NS + round((self.started_s + self.offset_s.get(node, 0.0)) * 1e9)
        passed_ns = np.rint(np.asarray(seconds) * (1 + self.drift.get(node, 0.0)) * 1e9)
        return zero + passed_ns.astype(np.int64)


def choices(**over: Any) -> dict[str, Any]:
    """Resolved choices; dotted keys with `__` for the dots."""
    made = config_choices.to_dict(config_choices.Config())
    made["model"]["name"], made["dataset"]["name"] = "tiny", "alpaca"
    made["cluster"]["name"] = "local"
    for key, value in over.items():
        *path, last = key.split("__")
        target = made
        for part in path:
            target = target[part]
        target[last] = value
    return config_choices.to_dict(
        config_choices.resolve(config_choices.from_dict(made), lambda _: RECORDS)
    )


def resolved(records: int = RECORDS, **over: Any) -> config_choices.Config:
    """The defaults with some choices changed, resolved; `records` stand in the dataset's file."""
    values = {key.replace("__", "."): value for key, value in over.items()}
    config = config_choices.with_leaves(config_choices.Config(), values)
    return config_choices.resolve(config, lambda _: records)


def id_of(point: dict[str, Any]) -> str:
    """The point_id of resolved choices."""
    return identity.point_id(config_choices.from_dict(point))


def plan_point(point: dict[str, Any], reason: str | None = None) -> Point:
    """A point as a plan has it."""
    return Point(id_of(point), config_choices.from_dict(point), reason)


def make_sweep(
    path: Path, points: Sequence[dict[str, Any]], reasons: Sequence[str | None] = ()
) -> SweepDir:
    """A sweep with a grid of these choices and nothing run."""
    sweep = SweepDir(path)
    sweep.make()
    reasons = [*reasons, *[None] * (len(points) - len(reasons))]
    rows = [
        GridPoint(id_of(point), i, reason, json.dumps(point))
        for i, (point, reason) in enumerate(zip(points, reasons, strict=True))
    ]
    write_grid(sweep.grid_path, rows)
    return sweep


def spans_of(made: Made) -> list[dict[str, Any]]:
    """The spans of all ranks, by the clocks of their nodes."""
    rows = []
    rank = 0
    for gpu in made.gpus:
        for _ in range(gpu.ranks):

            def row(
                phase: str, batch: int | None, start_s: float, end_s: float, **tokens: int
            ) -> dict[str, Any]:
                return {
                    "rank": rank,  # noqa: B023 (called in this turn of the loop)
                    "node": gpu.node,  # noqa: B023
                    "gpu_uuid": gpu.uuid,  # noqa: B023
                    "phase": phase,
                    "batch": batch,
                    "start_ns": int(made.stamps(gpu.node, start_s)),  # noqa: B023
                    "end_ns": int(made.stamps(gpu.node, end_s)),  # noqa: B023
                    **tokens,
                }

            third = made.before_s / 3
            for i, phase in enumerate(("idle", "load", "warmup")):
                rows.append(
                    row(phase, 0 if phase == "warmup" else None, i * third, (i + 1) * third)
                )
            if made.reference_s:
                rows[-3]["end_ns"] -= round(made.reference_s / 2 * 1e9)
                rows.append(row("reference", None, third - made.reference_s / 2, third))
            at = made.before_s
            for batch in range(made.first_batch, made.first_batch + made.batches):
                then = at + made.prefill_s
                rows.append(
                    row(
                        "prefill",
                        batch,
                        at,
                        then,
                        tokens_in=10 * made.prompts,
                        tokens_computed=10 * made.prompts,
                    )
                )
                rows.append(
                    row(
                        "decode",
                        batch,
                        then,
                        then + made.decode_s,
                        tokens_kept=made.tokens,
                        tokens_computed=2 * made.tokens,
                    )
                )
                at = then + made.decode_s + made.pause_s
            if made.idle_after_s:
                after = made.before_s + made.window_s
                rows.append(row("idle_after", None, after, after + made.idle_after_s))
            rank += 1
    return rows


def trace_beside(made: Made, one: Host, node: str, power: Power) -> pa.Table:
    """The readings of what is measured of a node beside its GPUs, 50 ms apart."""
    end_s = made.before_s + made.window_s + made.after_s
    seconds = np.arange(-0.1, end_s + 0.05, 0.05)
    stamps = made.stamps(node, seconds)
    boundary = source_of(one["source"]).boundary
    about = {**ABOUT, "node": node, "gpu_uuid": one["uuid"], "source": one["source"]}
    about |= {"boundary": boundary, "scope": boundary, "period_ms": "50"}
    table = _readings(stamps, one["source"], power_w=power(seconds))
    return table.replace_schema_metadata(about)


def trace_of(made: Made, gpu: Gpu) -> pa.Table:
    """The readings of one device: power at each period, a counter and conditions each second."""
    end_s = made.before_s + made.window_s + made.after_s
    seconds = np.arange(-0.1, end_s + made.period_s, made.period_s)
    power = _readings(made.stamps(gpu.node, seconds), made.source, power_w=gpu.power(seconds))
    fine = np.arange(-0.1, end_s + 0.001, 0.001)
    watts = gpu.power(fine)
    joules = np.concatenate([[0.0], np.cumsum((watts[1:] + watts[:-1]) / 2 * 0.001)])
    ticks = slice(0, None if made.counter and made.boundary in COUNTERS else 0, 100)
    counted = _readings(
        made.stamps(gpu.node, fine[ticks]),
        COUNTERS.get(made.boundary, "nvml_counter"),
        counter_mj=(126_000_000_000 + np.rint(joules[ticks] * 1e3)).astype(np.uint64),
    )
    conditions = _readings(
        made.stamps(gpu.node, [made.before_s + 0.5]),
        "nvml_conditions",
        temperature_c=[61.0],
        gpu_activity_pct=[90.0],
        throttle_reasons=np.array([4], np.uint64),
        power_limit_w=[made.limit_w],
    )
    about = {**ABOUT, "node": gpu.node, "gpu_uuid": gpu.uuid}
    about |= {"source": made.source, "scope": made.boundary}
    about |= {"boundary": made.boundary, "period_ms": str(made.period_s * 1e3)}
    return pa.concat_tables([power, counted, conditions]).replace_schema_metadata(about)


def _readings(stamps: np.ndarray, source: str, **values: Any) -> pa.Table:
    """Rows of one sensor; columns not named are null."""
    given = {
        "time_ns": stamps,
        "source": [source] * len(stamps),
        "gap": np.zeros(len(stamps), bool),
        **values,
    }
    columns = [
        pa.array(given[f.name], f.type) if f.name in given else pa.nulls(len(stamps), f.type)
        for f in TRACE
    ]
    return pa.Table.from_arrays(columns, schema=TRACE)


def make_attempt(sweep: SweepDir, point: dict[str, Any], made: Made) -> AttemptDir:
    """One attempt at a point, its record written last."""
    attempt = sweep.claim_attempt(id_of(point))
    spans = spans_of(made)
    nodes = list(dict.fromkeys(gpu.node for gpu in made.gpus))
    for node in nodes:
        own = [row for row in spans if row["node"] == node]
        table = pa.Table.from_pylist(own, schema=SPAN).replace_schema_metadata(ABOUT)
        write_table(attempt.spans_path(node), table)
    for gpu in made.gpus:
        write_table(attempt.trace_path(gpu.node, gpu.uuid), trace_of(made, gpu))
    for node in nodes:
        for one, power in _beside(made, node):
            write_table(attempt.trace_path(node, one["uuid"]), trace_beside(made, one, node, power))
    write_table(attempt.requests_path, _requests(made))
    ranks: list[Any] = []
    for gpu in made.gpus:
        for _ in range(gpu.ranks):
            ranks.append(
                {
                    "rank": len(ranks),
                    "node": gpu.node,
                    "local_rank": 0,
                    "gpu_uuid": gpu.uuid,
                    "device": "H100",
                }
            )
    started_ns = START_NS + round(made.started_s * 1e9)
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "point_id": attempt.point_id,
        "attempt": attempt.number,
        "status": made.status,
        "error": None if made.status == "finished" else "the checkpoint ends early",
        "error_rank": None,
        "started_ns": started_ns,
        "ended_ns": started_ns + 60 * SECOND_NS,
        "choices": point,
        "job": {"job_id": "17", "array_task": "0", "restart": 0, "cluster": "local"},
        "ranks": ranks,
        "nodes": [
            {
                "node": node,
                "meter": "simulated" if made.source == "simulated" else "nvml",
                "source": made.source,
                "boundary": made.boundary,
                "driver": "580.159.04",
                "period_ms": made.period_s * 1e3,
                "devices": [
                    {"ordinal": i, "uuid": gpu.uuid, "bus_id": None, "name": "NVIDIA H100 80GB HBM3"}
                    for i, gpu in enumerate(g for g in made.gpus if g.node == node)
                ],
                "host": next((one for one, _ in _beside(made, node) if one["source"] == "rapl"), None),
                "others": [one for one, _ in _beside(made, node) if one["source"] != "rapl"],
                "sidecar_restarts": 0,
                "beside": made.beside,
            }
            for node in nodes
        ],
        "prompts": {"sha256": "ab" * 32, "count": made.prompts * made.batches, "skipped": 0, "truncated": 0,
                    "tokens_min": 10, "tokens_mean": 10.0, "tokens_p50": 10.0, "tokens_p95": 10.0, "tokens_max": 10},
        "engine": {"name": "paper", "attention": "sdpa"},
        "versions": {"wattflow": "0.1.0", "torch": "2.13.0"},
        "git": None,
    }  # fmt: skip
    attempt.write_record(record)
    return attempt


def _beside(made: Made, node: str) -> list[tuple[Host, Power]]:
    """What is measured of a node beside its GPUs, and its watts."""
    found = (
        {f"host-{node}": ("host (package-0)", "rapl", made.hosts[node])}
        if node in made.hosts
        else {}
    )
    for uuid, (source, power) in made.others.items():
        if uuid.endswith(f"-{node}"):
            found[uuid] = (uuid, source, power)
    return [
        ({"uuid": uuid, "name": name, "source": source, "period_ms": 50.0}, power)
        for uuid, (name, source, power) in found.items()
    ]


def _requests(made: Made) -> pa.Table:
    each, rest = divmod(made.tokens, made.prompts)
    rows = [
        {
            "prompt": batch * made.prompts + i,
            "batch": batch,
            "tokens_in": 10,
            "tokens_kept": each + (rest if i == 0 else 0),
            "stop_reason": "length",
            "words": None if made.dummy else 5,
            "text": None,
        }
        for batch in range(made.first_batch, made.first_batch + made.batches)
        for i in range(made.prompts)
    ]
    return pa.Table.from_pylist(rows, schema=REQUEST).replace_schema_metadata(ABOUT)


def collected(path: Path, attempts: Sequence[Made], points: Sequence[dict[str, Any]] = ()) -> Any:
    """A collected sweep of attempts, opened; a point each, which differ in their seed unless given."""
    points = points or [choices(seed=i) for i in range(len(attempts))]
    sweep = make_sweep(path, points)
    for point, made in zip(points, attempts, strict=True):
        make_attempt(sweep, point, made)
    collect(sweep)
    return wattflow.open_sweep(path)


def demo(path: Path, *, source: str = "simulated", boundary: str = "host") -> SweepDir:
    """Shards 1 and 2 by two batch sizes by two repeats, a failed point and an infeasible one; not collected."""
    points = [
        choices(shards=shards, batch_size=batch_size, repeat=repeat)
        for shards in (1, 2)
        for batch_size in (4, 8)
        for repeat in (0, 1)
    ]
    bad = [choices(shards=3), choices(shards=4, max_gen_len=99)]
    sweep = make_sweep(path, [*points, *bad], [None] * 9 + ["shards=4 does not divide n_heads=6"])
    for i, point in enumerate(points):
        base, batch = 60.0 + 25 * point["shards"] + 2 * point["repeat"], point["batch_size"]
        made = Made(
            [Gpu("host-node1", _busy(base, i), ranks=point["shards"])],
            source=source,
            boundary=boundary,
            period_s=0.05,
            batches=3,
            prefill_s=0.3,
            decode_s=1.6 - 0.3 * point["shards"] + 0.02 * point["repeat"],
            pause_s=0.05,
            tokens=batch * 32,
            prompts=batch,
            counter=False,
            started_s=40.0 * i,
        )
        make_attempt(sweep, point, made)
    failed = Made([Gpu("host-node1", ranks=3)], status="failed", source=source, boundary=boundary)
    make_attempt(sweep, bad[0], failed)
    return sweep


def _busy(base_w: float, seed: int) -> Power:
    """Idle, then a load that ripples: something for the eye."""

    def power(seconds: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, 1.5, len(seconds))
        rise = 1 / (1 + np.exp(-(seconds - 1.2) * 8))
        return 40 + (base_w - 40 + 6 * np.sin(seconds * 7)) * rise + noise

    return power
