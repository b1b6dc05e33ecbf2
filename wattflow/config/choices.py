"""The choices of a point, typed: what each key means, its unit, its default, and which of them make the point_id.

Hydra composes `Config` from conf/ and the command line; a wrong key or type stops there. `resolve` fills in what
follows from other choices. From then on choices are a `Config`, which nobody changes: points share its parts.
Dictionaries stand for them in files alone, grid.parquet and record.json.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from wattflow.errors import RefusedError

QUANTISED = (
    "fp8",
    "int8",
    "int4",
)  # of the layers' matrices: tables, activations and cache are bf16
PRECISIONS = ("fp64", "fp32", "bf16", "fp16", *QUANTISED)
BYTES_PER_VALUE = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


@dataclass
class RopeScaling:
    """Llama 3.1's stretching of low rotary frequencies."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass
class Model:
    """A model: its shapes, and where its checkpoint and tokenizer lie."""

    name: str = "???"
    architecture: str = "llama"  # Hugging Face's model_type; engines paper and fast run llama alone
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
    more: dict[str, Any] = field(
        default_factory=dict
    )  # other entries of Hugging Face's config.json
    dummy: str = "normal"  # normal | heavy: how dummy weights are drawn, deviation 0.02 either way
    tokenizer: str = "bytes"  # bytes | sentencepiece | tokenizer_json
    chat: bool = False  # wrap each prompt in the tokenizer's chat template
    revision: str | None = None  # names the checkpoint in the point_id, where its path does not
    path: str | None = None  # the checkpoint's folder
    tokenizer_path: str | None = None  # a file; by default looked for in `path`


@dataclass
class Dataset:
    """Where prompts come from and how a record becomes one."""

    name: str = "???"
    format: str = "alpaca"  # alpaca | gsm8k | prompts | chat; jsonl is the older name of prompts
    template: str = "default"  # default | plain: the text around a record's fields
    path: str | None = (
        None  # a file, or a folder of datasets; null: the prompts that wattflow ships
    )
    split: str | None = None  # of a folder that has several
    turns: str = "last"  # last | all: which of the user's messages in a chat are prompts
    on_bad: str = (
        "error"  # error | skip | truncate: an empty prompt, or one longer than the model can take
    )
    cycle: bool | None = None  # repeat the records when n_prompts exceeds them; null: shipped ones
    shuffle: bool = True  # draw without replacement by `seed`; otherwise take the first n_prompts


@dataclass
class Vllm:
    """Options of engine=vllm, as vLLM's EngineArgs names them; null leaves vLLM's own default."""

    gpu_memory_utilization: float | None = None  # share of a GPU's memory that vLLM may take
    kv_cache_memory_bytes: int | None = None  # of the KV cache on one GPU; null: what is left
    max_num_batched_tokens: int | None = None  # most tokens of one iteration
    max_num_seqs: int | None = None  # most requests of one iteration; null: batch_size
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    async_scheduling: bool | None = None  # schedule an iteration while the one before still runs
    enforce_eager: bool | None = None  # no torch.compile, no CUDA graphs
    attention_backend: str | None = None
    quantization: str | None = None  # quantise while loading; a quantised checkpoint needs no name
    more: dict[str, Any] = field(default_factory=dict)  # any other argument of EngineArgs


@dataclass
class Transformers:
    """Options of engine=transformers; null leaves the library's own default."""

    compile: bool = False  # torch.compile a decode step, with CUDA graphs on a GPU
    cache: str = "auto"  # auto | static | dynamic: auto is static where the model allows it
    attention: str | None = None  # by transformers' names: eager, sdpa, flash_attention_2, ...


@dataclass
class Engine:
    """How text is generated."""

    name: str = "paper"  # paper | fast | vllm | transformers | synthetic
    device: str = "auto"  # auto | cuda | cpu
    kernels: str = "auto"  # auto | cublas | triton | eager: the fast engine's kernels; speed | energy | edp: as tuned
    threads_per_rank: int = 1  # CPU threads of a rank
    init_timeout_s: float = 300.0  # how long ranks wait for each other
    synthetic_ms_per_token: float = 1.0  # the synthetic engine sleeps this long a decode step
    vllm: Vllm = field(default_factory=Vllm)
    transformers: Transformers = field(default_factory=Transformers)


@dataclass
class Slo:
    """When a request is good; it changes no run, so no point_id."""

    ttft_s: float | None = None  # most time from the intended sending to the first token
    itl_s: float | None = None  # most of the request's own 99th percentile between tokens


@dataclass
class Workload:
    """How prompts reach the engine."""

    # static | offline: batches one after another, or all prompts at once
    # closed | open: so many requests in work at any time, or requests that come by a clock
    mode: str = "static"
    concurrency: int | None = None  # of mode=closed
    rate_per_s: float | None = None  # mean rate of arrivals of mode=open; null: a trace's own times
    burstiness: float = (
        1.0  # shape of gamma gaps between arrivals: 1 is Poisson's, below is burstier
    )
    trace: str | None = None  # a CSV of arrival times and lengths: Azure's, BurstGPT's
    ramp_s: float = 5.0  # of mode=open: requests due before are in no figure of requests
    slo: Slo = field(default_factory=Slo)


@dataclass
class Power:
    """How power is measured."""

    meter: str = "auto"  # auto | nvml | dcgm | rapl | hwmon | cray | simulated
    scope: str = "gpu"  # gpu | module: what NVML's power covers, of a superchip
    flush_ms: int = 200
    poll_ms: int = 50  # period of polled fields, where the driver has no sample buffer
    copy_s: float = 15.0  # how often the spool is copied to the shared directory
    idle_s: float = 5.0  # the idle window before the load
    host: bool = (
        True  # the host and the node beside the GPUs, or in their place, where a meter answers
    )
    powercap_dir: str = "/sys/class/powercap"  # where the kernel shows RAPL
    hwmon_dir: str = "/sys/class/hwmon"  # and the power meters of Grace sockets
    cray_dir: str = "/sys/cray/pm_counters"  # and Cray's node controller its counters
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
class Container:
    """The image that jobs run in, at sites that want one."""

    kind: str | None = None  # apptainer | pyxis | edf; null: none
    image: str | None = None  # a file, a folder or a name; of edf the environment's name or file
    pythonpath: str | None = None  # a folder with the packages that the image lacks
    binds: list[str] = field(default_factory=list)  # further folders: FOLDER, or FOLDER:INSIDE
    options: list[str] = field(default_factory=list)  # of apptainer exec; of srun else


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
    )  # watts: what to ask for, a node feature or an option of sbatch: partition=NAME, gpu-power=300
    reservation: str | None = None
    wckey: str | None = None
    cpus_per_rank: int = 1
    mem_gb_per_node: float | None = None  # null: the site's default
    time_min: int = 60  # limit of one task
    points_per_task: int = 1
    side_by_side: bool = (
        False  # a task takes a node's GPUs and runs as many of its points at once as fit
    )
    array_throttle: int = 256  # tasks of an array that run at once
    max_array_size: int = 1001
    pack: bool = False  # files of finished points go into one archive a task
    bills: str = "node"  # node | gpu: the hours that the site charges, of whole nodes or of the GPUs asked for
    max_node_hours: float | None = None  # more than a submit or resume may ask for, by time limits
    max_tasks: int | None = None  # tasks queued at once (MaxSubmitJobs); more points share tasks
    setup: list[str] = field(default_factory=list)  # shell lines before the job: module and venv
    sbatch_options: dict[str, str] = field(default_factory=dict)
    srun_options: list[str] = field(default_factory=list)
    accounting: bool = True  # whether sacct answers
    comment: bool = True  # whether jobs may carry a comment
    python: str | None = (
        None  # the interpreter on the compute nodes; null: this one, an image's own
    )
    container: Container = field(default_factory=Container)
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
        # board: one task a repeat runs all points of a shape, on the same GPUs
        # neighbours: one task runs a point alone in each slot of a node, and in all at once
        None
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
    workload: Workload = field(default_factory=Workload)
    power: Power = field(default_factory=Power)
    control: Control = field(default_factory=Control)
    cluster: Cluster = field(default_factory=Cluster)
    sweep: Sweep = field(default_factory=Sweep)
    sweeps_dir: str = "sweeps"
    shards: int = 1
    pipeline: int = 1  # stages of layers, each split into shards: engine=vllm alone
    nodes: int | None = None  # ceil(shards x pipeline / cluster.gpus_per_node)
    batch_size: int = 64
    max_gen_len: int = 256
    max_seq_len: int | None = None  # prompt + output; max_gen_len + 512
    precision: str = "bf16"
    kv_precision: str | None = None  # fp8: of cached keys and values; null: as the rest
    n_prompts: int | None = (
        None  # all records, at most MOST_PROMPTS; a batch of shipped ones at least
    )
    seed: int = 0  # draws prompts and tokens
    repeat: int = 0
    temperature: float = 0.8  # 0 is greedy
    top_p: float = 0.95
    stop: str | None = None  # eos | length; length for dummy weights, eos for real ones
    weights: str = (
        "dummy"  # dummy | meta | hf; auto, what lies in model.path, until points are made
    )


MOST_PROMPTS = 4096  # of a point that does not say how many

GROUPS = ("model", "dataset", "engine", "power", "cluster", "grid")


def resolve(config: Config, records: Callable[[Config], int]) -> Config:
    """Return the same choices with what follows from others filled in where it was null.

    nodes, max_seq_len and stop; n_prompts and dataset.cycle by `records`, which counts those of a point's file.
    """
    nodes, max_seq_len, stop = config.nodes, config.max_seq_len, config.stop
    if nodes is None:
        nodes = math.ceil(ranks_of(config) / config.cluster.gpus_per_node)
    if max_seq_len is None:
        max_seq_len = config.max_gen_len + 512
    if stop is None:
        stop = "length" if config.weights == "dummy" else "eos"
    config = replace(config, nodes=nodes, max_seq_len=max_seq_len, stop=stop)
    return _with_prompts(config, records)


def _with_prompts(config: Config, records: Callable[[Config], int]) -> Config:
    """Return the same choices with n_prompts and dataset.cycle filled in."""
    n_prompts, cycle = config.n_prompts, config.dataset.cycle
    shipped = config.dataset.path is None and config.workload.trace is None
    if n_prompts is None:
        n_prompts = min(records(config), MOST_PROMPTS)
        if cycle or (cycle is None and shipped):
            n_prompts = max(n_prompts, config.batch_size)
    if cycle is None:
        cycle = shipped and n_prompts > records(config)
    dataset = (
        config.dataset if cycle is config.dataset.cycle else replace(config.dataset, cycle=cycle)
    )
    return replace(config, n_prompts=n_prompts, dataset=dataset)


def plain(precision: str) -> str:
    """Return the precision of what a precision does not quantise."""
    return "bf16" if precision in QUANTISED else precision


def ranks_of(config: Config) -> int:
    """Return how many ranks, and so GPUs, a point takes: the shards of all stages."""
    return config.shards * config.pipeline


def slots_of(cluster: Cluster, nodes: int, ranks_per_node: int) -> int:
    """Return how many points a task runs at once, each on GPUs of its own; 1 without cluster.side_by_side."""
    if not cluster.side_by_side or nodes > 1:
        return 1
    return cluster.gpus_per_node // ranks_per_node


def controls_itself(config: Config) -> bool:
    """Whether the job sets what control.* asks, on GPUs of its own; else the site does, before the job."""
    by = config.control.by
    return by == "nvml" or (by == "auto" and config.cluster.launcher == "local")


def reads_folders(config: Config) -> bool:
    """Whether the engine runs any model of a Hugging Face folder, and takes its shapes from there."""
    return config.engine.name in ("vllm", "transformers")


def computes_on_cpu(config: Config) -> bool:
    """Whether the CPU was asked to compute; the synthetic engine computes nowhere."""
    return config.engine.device == "cpu" and config.engine.name != "synthetic"


def leaves(config: Config) -> dict[str, Any]:
    """Return all choices by dotted key, see `flat`."""
    return flat(to_dict(config))


def with_leaves(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the same choices with some values by dotted key, which may hold the same parts.

    RefusedError for a key below a part that is null.
    """
    changed: Config = _with_leaves(config, values)
    return changed


def _with_leaves(config: Any, values: Mapping[str, Any], at: str = "") -> Any:
    """Return a part of the choices, a dataclass or a dict, with some values by dotted key."""
    own: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        part, _, rest = key.partition(".")
        if rest:
            below.setdefault(part, {})[rest] = value
        else:
            own[part] = value
    for part, inner in below.items():
        there = config.get(part) if isinstance(config, dict) else getattr(config, part)
        if there is None:
            key = f"{at}{part}"
            raise RefusedError(
                f"{key}.{next(iter(inner))}: {key} is null here. A file of conf/ can set it."
            )
        own[part] = _with_leaves(there, inner, f"{at}{part}.")
    return {**config, **own} if isinstance(config, dict) else replace(config, **own)


# --- as JSON --------------------------------------------------------------------------------------


def flat(choices: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested choices by dotted key; lists and empty dicts are leaves."""
    out: dict[str, Any] = {}
    for key, value in choices.items():
        if isinstance(value, dict) and value:
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain dicts and lists."""
    return {name: _plain(value) for name, value in vars(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return to_dict(value) if is_dataclass(value) else value


def from_dict(choices: dict[str, Any]) -> Config:
    """The typed form of resolved choices; absent keys have their defaults, an unknown key raises TypeError.

    Keys that were added later are absent from the choices of older sweeps.
    """
    parts: dict[str, Any] = {name: made(**choices.get(name, {})) for name, made in _PARTS.items()}
    if parts["model"].rope_scaling is not None:
        parts["model"].rope_scaling = RopeScaling(**parts["model"].rope_scaling)
    parts["engine"].vllm = Vllm(**choices.get("engine", {}).get("vllm", {}))
    container = choices.get("cluster", {}).get("container", {})
    parts["cluster"].container = Container(**container)
    options = choices.get("engine", {}).get("transformers", {})
    parts["engine"].transformers = Transformers(**options)
    parts["workload"].slo = Slo(**choices.get("workload", {}).get("slo", {}))
    parts["cluster"].cost = Cost(**choices.get("cluster", {}).get("cost", {}))
    parts["sweep"].exclude = [Exclude(**rule) for rule in parts["sweep"].exclude]
    return Config(**{**choices, **parts})


_PARTS: dict[str, Any] = {
    "model": Model,
    "dataset": Dataset,
    "engine": Engine,
    "workload": Workload,
    "power": Power,
    "control": Control,
    "cluster": Cluster,
    "sweep": Sweep,
}
