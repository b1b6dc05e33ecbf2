"""What lies on disk: the columns of each table, the fields of each record, and the schema's version.

Writers and readers import these; columns.csv declares every column once, and docs/results.md is generated from it. A
later version only adds nullable columns or optional fields; any other change raises SCHEMA_VERSION.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, NotRequired, TypedDict

import pyarrow as pa

SCHEMA_VERSION = 1

Phase = Literal["idle", "load", "warmup", "prefill", "decode", "idle_after", "reference"]
PHASES: tuple[Phase, ...] = (
    *("idle", "load", "warmup", "prefill", "decode", "idle_after"),
    "reference",  # a fixed load at both ends of a task, beside the point's own phases
)

Status = Literal["running", "finished", "failed", "interrupted"]


class Column(NamedTuple):
    """One row of columns.csv."""

    table: str
    name: str
    type: str  # Arrow's, followed by `not null` where every row has a value
    unit: str
    boundary: (
        str  # what an energy or power is of: devices, device, host, accelerators, node or site
    )
    meaning: str


_TYPES = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "bool": pa.bool_(),
    "double": pa.float64(),
    "list<string>": pa.list_(pa.string()),
    "list<int32>": pa.list_(pa.int32()),
    "timestamp[us, tz=UTC]": pa.timestamp("us", "UTC"),
}


@cache
def _columns() -> list[Column]:
    with Path(__file__).with_name("columns.csv").open(newline="", encoding="utf-8") as file:
        return [Column(*row) for row in csv.reader(file)][1:]


def columns_of(table: str) -> list[Column]:
    """Return the declared columns of a table, in their order on disk."""
    return [column for column in _columns() if column.table == table]


def fields(table: str, *, described: bool = False) -> list[pa.Field]:
    """Return a table's columns as Arrow fields; `described` ones carry unit and meaning as metadata."""
    return [
        pa.field(
            column.name,
            _TYPES[column.type.removesuffix(" not null")],
            nullable=not column.type.endswith(" not null"),
            metadata={"unit": column.unit, "meaning": column.meaning} if described else None,
        )
        for column in columns_of(table)
    ]


# One row per reading of one GPU: a power sample (power_w), a counter reading (counter_mj) or conditions (clocks,
# temperature ...), so most columns are null in most rows; `source` names the sensor.
TRACE = pa.schema(fields("trace"))
# One row per phase of one batch on one rank.
SPAN = pa.schema(fields("spans"))
# One row per iteration of an engine that schedules by itself, on the lowest rank of each node.
ITERATION = pa.schema(fields("iterations"))
# One row per answered prompt, written by rank 0.
REQUEST = pa.schema(fields("requests"))
# One row per point of the sweep, in the order in which points run.
GRID = pa.schema(fields("grid"))
# One row per value that `wattflow calibrate` read from a sensor.
READS = pa.schema(fields("reads"))


class DeviceSettings(TypedDict, total=False):
    """What an operator set on a GPU and what its maker allows; null where the driver does not report it."""

    ecc: bool | None
    persistence: bool | None
    power_limit_default_w: float | None
    power_limit_min_w: float | None
    power_limit_max_w: float | None


class Reference(TypedDict):
    """What a meter found of one board's sensor: reading = (1 + gain) x true + offset, with standard uncertainties."""

    gain: float
    offset_w: float
    gain_u: float
    offset_u_w: float
    correlation: float  # of gain and offset
    made: str  # UTC


class Device(DeviceSettings):
    """One measured device of a node, as the sidecar found it."""

    ordinal: int  # the CUDA ordinal within the job's visible devices
    uuid: str
    bus_id: str | None
    name: str
    reference: NotRequired[Reference]  # where an external meter was beside this board


class DeviceControl(TypedDict):
    """What a job set on a GPU of its own, and what was found there before."""

    uuid: str
    prior_limit_w: float
    power_limit_w: float | None  # requested; null: left alone
    sm_clock_mhz: int | None
    limit_in_force_w: float  # the least of all limiters, right after setting


class Host(TypedDict):
    """What measures a node beside its GPUs, in a trace of its own: its host, all of it, or one of its accelerators."""

    uuid: str  # host-<node>, node-<node>, accel0-<node>
    name: str
    source: str
    period_ms: float


class MeterInfo(TypedDict):
    """What measures a node, as its sidecar reports once the first sample lies on disk."""

    node: str
    meter: str  # nvml, dcgm, rapl, hwmon, cray, simulated
    source: str  # the sensor that the joules come from, a name from store/sources.py
    boundary: str  # a name from store/sources.py
    driver: str | None
    period_ms: float  # expected time between two samples of `source`
    devices: list[Device]
    host: NotRequired[Host | None]  # beside GPUs, where RAPL or the meters of Grace sockets answer
    others: NotRequired[list[Host]]  # likewise, by the node's own controller: of other boundaries
    control: NotRequired[list[DeviceControl]]  # where this job set limits or clocks itself


def beside_devices(info: MeterInfo) -> list[Host]:
    """Return what measured a node beside its devices."""
    host = info.get("host")
    return [*([host] if host else []), *info.get("others", [])]


class EnergySoFar(TypedDict):
    """Energy of a node's devices since an attempt's first sample, for people who watch it."""

    energy_j: float
    power_w: float | None  # the mean of the last seconds; null where there were none
    source: str  # the sensor
    # since the first sample, and of how many devices
    seconds: NotRequired[float | None]
    devices: NotRequired[int]


class RankInfo(TypedDict):
    """Where one rank ran."""

    rank: int
    node: str
    local_rank: int
    gpu_uuid: str
    device: str  # cpu, or the GPU's name


class Beside(TypedDict):
    """What the rest of a node did in an attempt's measured window, where points run side by side on it."""

    slots: int  # points that run there at once at most
    neighbours: (
        float | None
    )  # other points that ran, the mean; null where the window was not seen whole
    neighbour_gpus: int  # the task's GPUs that are not this point's
    neighbour_power_w: float | None  # of one of them, the mean
    neighbour_temperature_c: float | None  # of the hottest of them
    host_load_pct: float | None  # busy share of all CPUs of the node, whoever used them


class NodeInfo(MeterInfo):
    """One node of an attempt: what measured it, and what came of it."""

    sidecar_restarts: int
    beside: NotRequired[Beside | None]  # of a point that runs side by side with others
    energy_j: NotRequired[float | None]  # of its devices from first to last sample, for `status`


class JobInfo(TypedDict):
    """Slurm's names for where an attempt ran; all null outside Slurm."""

    job_id: str | None
    array_task: str | None
    restart: int
    cluster: str
    step: NotRequired[str | None]  # of a command under `measure`


class PromptInfo(TypedDict):
    """Hash and lengths of an attempt's prompts, never their text."""

    sha256: str
    count: int
    skipped: int
    truncated: int
    tokens_min: int
    tokens_mean: float
    tokens_p50: float
    tokens_p95: float
    tokens_max: int


class WorkInfo(TypedDict):
    """What an engine computed in some batches: the least bytes and FLOPs follow from it."""

    decode_steps: int
    decode_rows: int  # requested rows times steps
    decode_positions: float  # cached positions that those rows read, over all steps
    prefills: int
    prefill_tokens: int  # of prompts, without padding
    prefill_squares: int  # sum of the squares of the lengths read at once


class Ceilings(TypedDict):
    """Rates of the slowest device of an attempt in a copy and in a matrix product."""

    copy_bytes_per_s: float
    product_flops_per_s: float
    source: str  # how and when they were measured


class PartialAttempt(TypedDict):
    """A run of batches that one attempt finished, of a point that is measured in several."""

    attempt: int
    first_batch: int
    batches: int


class MeasuredCommand(TypedDict):
    """What `measure` ran, and on how many nodes."""

    command: list[str]
    nodes: int
    process: NotRequired[str]  # the local job id of `measure` where the record is written


class Part(TypedDict):
    """timings/<node>.json: one node's part of a measured command; its task is 0 on the node that wrote the record."""

    schema_version: int
    node: str
    task: int
    status: Status
    error: str | None
    exit_code: int | None
    ranks: list[RankInfo]  # one per device: each span of the command is of all the node's devices
    nodes: list[NodeInfo]  # this node, or none where its sidecar failed
    tokens_out: int | None  # by --tokens-json
    bad_lines: int  # lines of WATTFLOW_SPANS that are no spans
    still_running: int  # processes of the command that outlived it
    stopped: NotRequired[
        list[list[int]]
    ]  # starts and ends, unix ns, of times in which it stood still


class Record(TypedDict, total=False):
    """record.json: one attempt at one point. `status` is finished only when all other files lie in place."""

    schema_version: int
    point_id: str
    attempt: int
    status: Status
    error: str | None
    error_rank: int | None
    reason: str | None  # why it failed, as a code of columns.REASONS, where there is one: hung
    started_ns: int
    ended_ns: int | None
    choices: dict[str, object]
    job: JobInfo
    ranks: list[RankInfo]
    nodes: list[NodeInfo]
    prompts: PromptInfo
    pieces: list[
        PartialAttempt
    ]  # where sweep.on_interrupt=continue: finished batches, this attempt's last
    load_shared: bool  # whether the weights had been loaded before, for several points
    reference_rounds: int  # of the fixed load by rank 0, where the sweep asks for one
    measure: MeasuredCommand  # of a command under `measure`, with its nodes' parts beside it
    parts: list[Part]  # never on disk here: the finished ones, joined when the record is read
    engine: dict[str, object]  # which path and kernels ran, parameters, bytes of weights and cache
    work: WorkInfo  # of the measured batches; absent where the engine has none
    ceilings: Ceilings  # measured after the last batch; absent likewise
    versions: dict[str, str]  # wattflow, python, torch, ...
    git: str | None


class JournalLine(TypedDict, total=False):
    """One line of journal.jsonl. INTENT is written before sbatch is called, SUBMITTED after it answered."""

    schema_version: int
    journal_version: int  # of the functions and commands that its jobs name (intent); none: 1
    time_ns: int
    event: Literal["intent", "submitted", "released", "failed", "cancelled", "pruning", "pruned"]
    submission: str  # a name unique to this call, and the Slurm job's name
    kind: Literal["points", "collect"]
    tasks: list[list[str]]  # point ids, a list a task (intent)
    job_id: str  # (submitted)
    sha256: str  # of the pickle that its tasks load (submitted)
    folder: str  # submitit's folder, relative to the sweep (intent)
    kinds: list[str]  # of files that `prune` removes, or has removed (pruning, pruned)
    files: int  # how many (pruned)
    bytes: int  # that were freed (pruned)
    error: str
