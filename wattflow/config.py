"""The choices of a point, typed: what each key means, its unit, its default, and which of them make the point_id.

Hydra composes `Config` from conf/ and the command line; a wrong key or type stops there. `resolve` fills what
follows from other choices; `point_id` hashes what is left. Only config.py knows which keys are hashed.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from wattflow.errors import RefusedError

ID_VERSION = 1  # raised when a default or a rule of resolution changes, so that old ids never mean something new

PRECISIONS = ("fp64", "fp32", "bf16", "fp16")
BYTES_PER_VALUE = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}


@dataclass
class RopeScaling:
    """Llama 3.1's stretching of low rotary frequencies."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass
class Model:
    """A LLaMA-architecture model: its shapes, and where its checkpoint and tokenizer lie."""

    name: str = "???"
    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int = 32
    ffn_dim: int = 11008
    vocab_size: int = 32000
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    tokenizer: str = "bytes"  # bytes | sentencepiece | tokenizer_json
    chat: bool = False  # wrap each prompt in the tokenizer's chat template
    revision: str | None = None  # names the checkpoint in the point_id, where its path does not
    path: str | None = None  # the checkpoint's folder
    tokenizer_path: str | None = None  # a file; by default looked for in `path`


@dataclass
class Dataset:
    """Where prompts come from and how a record becomes one."""

    name: str = "???"
    format: str = "alpaca"  # alpaca | gsm8k | jsonl
    template: str = "default"  # default | plain: the text around a record's fields
    path: str | None = None  # a JSON or JSON-lines file; null for the prompts that wattflow ships
    on_bad: str = (
        "error"  # error | skip | truncate: an empty prompt, or one longer than the model can take
    )
    cycle: bool = False  # repeat the records when n_prompts exceeds them
    shuffle: bool = True  # draw without replacement by `seed`; otherwise take the first n_prompts


@dataclass
class Engine:
    """How text is generated."""

    name: str = "paper"  # paper | fast | synthetic
    device: str = "auto"  # auto | cuda | cpu
    kernels: str = "auto"  # auto | cublas | triton | eager: the fast engine's kernels; speed | energy | edp: as tuned
    threads_per_rank: int = 1  # CPU threads of a rank
    init_timeout_s: float = 300.0  # how long ranks wait for each other
    synthetic_ms_per_token: float = 1.0  # the synthetic engine sleeps this long a decode step


@dataclass
class Power:
    """How power is measured."""

    meter: str = "auto"  # auto | nvml | dcgm | rapl | simulated
    flush_ms: int = 200
    poll_ms: int = 50  # period of polled fields, where the driver has no sample buffer
    copy_s: float = 15.0  # how often the spool is copied to the shared directory
    idle_s: float = 5.0  # the idle window before the load
    host: bool = True  # RAPL of the host, beside its GPUs or in their place, where it answers
    powercap_dir: str = "/sys/class/powercap"  # where the kernel shows RAPL
    dcgm_profiling: bool = False  # also profiling fields, which lock out other profilers
    simulated_idle_w: float = 40.0  # the simulated meter's watts at no CPU load
    simulated_full_w: float = 120.0  # and with all cores busy


@dataclass
class Control:
    """What is asked of the GPUs: a cap on their power, a clock. Part of the point_id, but for how it is asked."""

    power_limit_w: int | None = None  # a GPU's; null: as it is found
    sm_clock_mhz: int | None = None  # locked; null: free
    by: str = (
        "auto"  # auto | nvml | slurm: auto is nvml on this machine, and the site's way by Slurm
    )
    journal_dir: str = (
        "/var/lib/wattflow/limits"  # node-local; keeps prior values until they are put back
    )


@dataclass
class Cost:
    """What a kWh costs at a site, as it declares: nothing is assumed, and each factor names its source."""

    price_per_kwh: float | None = None
    price_path: str | None = None  # a CSV of time,price_per_kwh in its place
    currency: str | None = None
    price_source: str | None = None
    carbon_g_per_kwh: float | None = None
    carbon_path: str | None = None  # a CSV of time,g_per_kwh in its place
    carbon_source: str | None = None
    pue: float | None = None  # what the facility takes over what its computers take
    pue_source: str | None = None


@dataclass
class Cluster:
    """One site: how its jobs are asked for. None of it makes the point_id but gpu_model."""

    name: str = "???"
    launcher: str = "slurm"  # slurm | local
    gpus_per_node: int = 1  # also the number of CPU ranks a node where there is no GPU
    gpu_request: str = "gpus-per-node"  # gpus-per-node | gres | none
    gpu_type: str | None = None  # for typed requests: gres=gpu:TYPE:N
    gpu_model: str | None = None  # as in the point_id: h100-sxm5-80gb
    gpu_memory_gib: float | None = None  # null: host memory, not checked
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    power_caps: dict[str, str] = field(
        default_factory=dict
    )  # watts: what to ask for, a node feature or partition=NAME
    reservation: str | None = None
    wckey: str | None = None
    cpus_per_rank: int = 1
    mem_gb_per_node: float | None = None  # null: the site's default
    time_min: int = 60  # limit of one task
    points_per_task: int = 1
    array_throttle: int = 256  # tasks of an array that run at once
    max_array_size: int = 1001
    max_tasks: int | None = None  # tasks queued at once (MaxSubmitJobs); more points share tasks
    setup: list[str] = field(default_factory=list)  # shell lines before the job: module and venv
    sbatch_options: dict[str, str] = field(default_factory=dict)
    srun_options: list[str] = field(default_factory=list)
    accounting: bool = True  # whether sacct answers
    comment: bool = True  # whether jobs may carry a comment
    python: str | None = None  # the interpreter on the compute nodes; null: this one
    spool_dir: str | None = None  # node-local; null: $SLURM_TMPDIR, else /tmp
    shared_sweeps_dir: bool = False  # all nodes see sweeps_dir, though it looks like one node's own
    group_readable: bool = False
    cost: Cost = field(default_factory=Cost)


@dataclass
class Exclude:
    """A rule that keeps points out of a sweep."""

    when: dict[str, Any] = field(
        default_factory=dict
    )  # key: value, list of values, or a comparison such as '> 64'
    reason: str = "???"


@dataclass
class Sweep:
    """What shapes the grid itself; never hashed."""

    name: str | None = None
    repeats: int = 3
    seed: int = 0  # of the shuffle
    zip: list[list[str]] = field(default_factory=list)  # keys whose values advance together
    exclude: list[Exclude] = field(default_factory=list)
    block: str | None = (
        None  # board: one task a repeat runs all points of a shape, on the same GPUs
    )
    on_interrupt: str = (
        "restart"  # restart | continue: a point that was cut short, from its last finished batch
    )
    load_shared_by: int = 1  # points of a task that share one load of the weights
    hang_s: float = 900.0  # a run in which nothing moves for so long is ended; 0 lets it be
    reference_s: float = 0.0  # a fixed load of so long at both ends of a task, to compare boards by


@dataclass
class Config:
    """All choices of one point."""

    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    engine: Engine = field(default_factory=Engine)
    power: Power = field(default_factory=Power)
    control: Control = field(default_factory=Control)
    cluster: Cluster = field(default_factory=Cluster)
    sweep: Sweep = field(default_factory=Sweep)
    sweeps_dir: str = "sweeps"
    shards: int = 1
    nodes: int | None = None  # ceil(shards / cluster.gpus_per_node)
    batch_size: int = 64
    max_gen_len: int = 256
    max_seq_len: int | None = None  # prompt + output; max_gen_len + 512
    precision: str = "bf16"
    n_prompts: int = 4096
    seed: int = 0  # draws prompts and tokens
    repeat: int = 0
    temperature: float = 0.8  # 0 is greedy
    top_p: float = 0.95
    stop: str | None = None  # eos | length; length for dummy weights, eos for real ones
    weights: str = "dummy"  # dummy | meta | hf


GROUPS = ("model", "dataset", "engine", "power", "cluster", "grid")

# Keys left out of the point_id: where things lie, how they are asked for, how they are watched.
_NOT_HASHED = {
    "sweep",
    "sweeps_dir",
    "power",
    "cluster",
    "model.path",
    "model.tokenizer_path",
    "dataset.path",
    "engine.init_timeout_s",
    "control.by",
    "control.journal_dir",
}

_ALLOWED = {
    "precision": PRECISIONS,
    "weights": ("dummy", "meta", "hf"),
    "stop": ("eos", "length", None),
    "dataset.format": ("alpaca", "gsm8k", "jsonl"),
    "dataset.template": ("default", "plain"),
    "dataset.on_bad": ("error", "skip", "truncate"),
    "model.tokenizer": ("bytes", "sentencepiece", "tokenizer_json"),
    "engine.name": ("paper", "fast", "synthetic"),
    "engine.kernels": ("auto", "cublas", "triton", "eager", "speed", "energy", "edp"),
    "engine.device": ("auto", "cuda", "cpu"),
    "sweep.block": ("board", None),
    "sweep.on_interrupt": ("restart", "continue"),
    "power.meter": ("auto", "nvml", "dcgm", "rapl", "simulated"),
    "control.by": ("auto", "nvml", "slurm"),
    "cluster.launcher": ("local", "slurm"),
    "cluster.gpu_request": ("gpus-per-node", "gres", "none"),
}

_AT_LEAST = {
    "seed": 0,
    "shards": 1,
    "nodes": 1,
    "batch_size": 1,
    "max_gen_len": 1,
    "max_seq_len": 2,
    "n_prompts": 1,
    "repeat": 0,
    "temperature": 0.0,
    "sweep.repeats": 1,
    "sweep.load_shared_by": 1,
    "sweep.hang_s": 0.0,
    "sweep.reference_s": 0.0,
    "power.flush_ms": 10,
    "power.poll_ms": 5,
    "power.copy_s": 1.0,
    "power.idle_s": 0.0,
    "control.power_limit_w": 1,
    "control.sm_clock_mhz": 1,
    "engine.threads_per_rank": 1,
    "engine.synthetic_ms_per_token": 0.0,
    "cluster.gpus_per_node": 1,
    "cluster.cpus_per_rank": 1,
    "cluster.time_min": 1,
    "cluster.points_per_task": 1,
    "cluster.array_throttle": 1,
    "cluster.max_array_size": 2,
    "cluster.max_tasks": 1,
    "cluster.cost.price_per_kwh": 0.0,
    "cluster.cost.carbon_g_per_kwh": 0.0,
    "cluster.cost.pue": 1.0,
    "model.dim": 1,
    "model.n_layers": 1,
    "model.n_heads": 1,
    "model.n_kv_heads": 1,
    "model.ffn_dim": 1,
    "model.vocab_size": 1,
}


def flat(choices: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested choices by dotted key; lists and empty dicts are leaves."""
    out: dict[str, Any] = {}
    for key, value in choices.items():
        if isinstance(value, dict) and value:
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def allowed(key: str) -> tuple[str, ...]:
    """The values that a key may have, as they are typed; empty for one that takes any of its type."""
    return tuple("null" if value is None else str(value) for value in _ALLOWED.get(key, ()))


def check_value(key: str, value: Any) -> None:
    """Raise RefusedError when one key's value is none of those allowed, or below its least."""
    if key in _ALLOWED and value not in _ALLOWED[key]:
        raise RefusedError(f"{key}={value}: not one of {', '.join(allowed(key))}.")
    least = _AT_LEAST.get(key)
    if least is not None and value is not None and value < least:
        raise RefusedError(f"{key}={value}: must be at least {least}.")
    if key == "top_p" and not 0.0 < value <= 1.0:
        raise RefusedError(f"top_p={value}: must be above 0 and at most 1.")


def check(choices: dict[str, Any]) -> None:
    """Raise RefusedError at the first leaf whose value is not allowed."""
    for key, value in flat(choices).items():
        check_value(key, value)
    check_cost(Cost(**choices["cluster"].get("cost", {})))


def check_cost(cost: Cost) -> None:
    """Raise RefusedError for a factor without its source, or one that is told twice."""
    at = "cluster.cost"
    for name, value, path, source in (
        ("price_per_kwh", cost.price_per_kwh, cost.price_path, cost.price_source),
        ("carbon_g_per_kwh", cost.carbon_g_per_kwh, cost.carbon_path, cost.carbon_source),
        ("pue", cost.pue, None, cost.pue_source),
    ):
        kind = name.partition("_")[0]
        if value is not None and path is not None:
            raise RefusedError(f"{at}.{name} and {at}.{kind}_path: declare one of them.")
        if (value is not None or path is not None) and not source:
            raise RefusedError(
                f"{at}.{name}: say where it comes from, {at}.{kind}_source='tariff of 2026'."
            )
    if (cost.price_per_kwh is not None or cost.price_path is not None) and not cost.currency:
        raise RefusedError(f"{at}.price_per_kwh: in which currency? {at}.currency=EUR.")


def with_cost(cost: Cost, words: Sequence[str]) -> Cost:
    """The same factors with those of `cluster.cost.KEY=VALUE` words in their place; RefusedError for another word.

    A constant takes the place of a table, and the other way round; `null` takes a factor away.
    """
    told = dict(vars(cost))
    for word in words:
        key, equals, text = word.partition("=")
        name = key.removeprefix("cluster.cost.")
        if key == name or not equals or name not in told:
            known = ", ".join(f"cluster.cost.{name}" for name in told)
            raise RefusedError(f"--set {word}: not KEY=VALUE with one of {known}.")
        value = None if text == "null" else text if name not in _COST_NUMBERS else _float(word)
        check_value(key, value)
        told[name] = value
        if name in _INSTEAD:
            told[_INSTEAD[name]] = None
    made = Cost(**told)
    check_cost(made)
    return made


_COST_NUMBERS = ("price_per_kwh", "carbon_g_per_kwh", "pue")
_INSTEAD = {
    "price_per_kwh": "price_path",
    "price_path": "price_per_kwh",
    "carbon_g_per_kwh": "carbon_path",
    "carbon_path": "carbon_g_per_kwh",
}


def _float(word: str) -> float:
    try:
        value = float(word.partition("=")[2])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RefusedError(f"--set {word}: no number.")
    return value


def resolve(choices: dict[str, Any]) -> dict[str, Any]:
    """The same choices with nodes, max_seq_len and stop filled in where they were null."""
    out = dict(choices)
    if out["nodes"] is None:
        out["nodes"] = math.ceil(out["shards"] / out["cluster"]["gpus_per_node"])
    if out["max_seq_len"] is None:
        out["max_seq_len"] = out["max_gen_len"] + 512
    if out["stop"] is None:
        out["stop"] = "length" if out["weights"] == "dummy" else "eos"
    return out


def controls_itself(choices: dict[str, Any]) -> bool:
    """Whether the job sets what control.* asks, on GPUs of its own; else the site does, before the job."""
    by = choices.get("control", {}).get("by", "auto")
    return bool(by == "nvml" or (by == "auto" and choices["cluster"]["launcher"] == "local"))


def _defaults() -> dict[str, Any]:
    return flat(to_dict(Config()))


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain dicts."""
    return {
        f.name: to_dict(value) if is_dataclass(value) else value
        for f in fields(config)
        for value in (getattr(config, f.name),)
    }


def cluster_of(choices: dict[str, Any]) -> Cluster:
    """The typed form of resolved choices' cluster."""
    cluster = dict(choices["cluster"])
    # absent from choices of before it was a key
    return Cluster(**{**cluster, "cost": Cost(**cluster.get("cost", {}))})


def from_dict(choices: dict[str, Any]) -> Config:
    """The typed form of resolved choices; an unknown key raises TypeError."""
    model = dict(choices["model"])
    if model.get("rope_scaling") is not None:
        model["rope_scaling"] = RopeScaling(**model["rope_scaling"])
    sweep = dict(choices["sweep"])
    sweep["exclude"] = [Exclude(**rule) for rule in sweep["exclude"]]
    parts = {
        "model": Model(**model),
        "dataset": Dataset(**choices["dataset"]),
        "engine": Engine(**choices["engine"]),
        "power": Power(**choices["power"]),
        # absent from choices of before it was a key
        "control": Control(**choices.get("control", {})),
        "cluster": cluster_of(choices),
        "sweep": Sweep(**sweep),
    }
    return Config(**{**choices, **parts})


DEFAULTS = _defaults()


def is_hashed(key: str) -> bool:
    """Whether a dotted key is part of the point_id, where its value differs from the default."""
    parts = key.split(".")
    above = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return key == "cluster.gpu_model" or not above & _NOT_HASHED


def hashed(choices: dict[str, Any]) -> dict[str, Any]:
    """The leaves of resolved choices that make the point_id: those that are hashed and differ from their default."""
    out = {
        key: value
        for key, value in flat(choices).items()
        if is_hashed(key) and value != DEFAULTS.get(key) and key != "cluster.gpu_model"
    }
    gpu_model = choices["cluster"]["gpu_model"]
    if gpu_model is not None:
        out["cluster.gpu_model"] = gpu_model
    return out


def point_id(choices: dict[str, Any]) -> str:
    """12 hex digits of sha256 over the canonical JSON of `hashed(choices)`; the choices must be resolved."""
    canonical = json.dumps(
        [ID_VERSION, hashed(choices)], sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def command_id(command: Sequence[str]) -> str:
    """The same for a command under `measure`: all measurements of one command are attempts at one point."""
    canonical = json.dumps([ID_VERSION, {"measure.command": list(command)}], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
