"""Which values each choice may take."""

import math
import re
from difflib import get_close_matches
from typing import Any

from wattflow.config.choices import (
    PRECISIONS,
    QUANTISED,
    Cluster,
    Config,
    Container,
    Cost,
    Sweep,
    Workload,
    computes_on_cpu,
    leaves,
    ranks_of,
    slots_of,
)
from wattflow.config.features import why_not_computed
from wattflow.errors import RefusedError

_ALLOWED = {
    "precision": PRECISIONS,
    "kv_precision": ("fp8", None),
    "weights": ("auto", "dummy", "meta", "hf"),
    "stop": ("eos", "length", None),
    "dataset.format": ("alpaca", "gsm8k", "prompts", "jsonl", "chat"),
    "dataset.turns": ("last", "all"),
    "dataset.template": ("default", "plain"),
    "dataset.on_bad": ("error", "skip", "truncate"),
    "model.dummy": ("normal", "heavy"),
    "model.tokenizer": ("bytes", "sentencepiece", "tokenizer_json"),
    "engine.name": ("paper", "fast", "vllm", "transformers", "synthetic"),
    "engine.kernels": ("auto", "cublas", "triton", "eager", "speed", "energy", "edp"),
    "engine.device": ("auto", "cuda", "cpu"),
    "engine.transformers.cache": ("auto", "static", "dynamic"),
    "workload.mode": ("static", "offline", "closed", "open"),
    "sweep.block": ("board", "neighbours", None),
    "sweep.on_interrupt": ("restart", "continue"),
    "power.meter": ("auto", "nvml", "dcgm", "rapl", "hwmon", "cray", "simulated"),
    "power.scope": ("gpu", "module"),
    "control.by": ("auto", "nvml", "slurm"),
    "cluster.launcher": ("local", "slurm"),
    "cluster.bills": ("node", "gpu"),
    "cluster.container.kind": ("apptainer", "pyxis", "edf", None),
    "cluster.gpu_request": ("gpus-per-node", "gres", "none"),
}

_TOO_LARGE = 2**63  # for a column of results

_AT_LEAST = {
    "seed": 0,
    "shards": 1,
    "pipeline": 1,
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
    "engine.vllm.gpu_memory_utilization": 0.0,
    "engine.vllm.kv_cache_memory_bytes": 1,
    "engine.vllm.max_num_batched_tokens": 1,
    "engine.vllm.max_num_seqs": 1,
    "workload.concurrency": 1,
    "workload.rate_per_s": 1e-4,
    "workload.burstiness": 0.01,
    "workload.ramp_s": 0.0,
    "workload.slo.ttft_s": 0.0,
    "workload.slo.itl_s": 0.0,
    "cluster.gpus_per_node": 1,
    "cluster.mem_gb_per_node": 0.001,
    "cluster.gpu_memory_gib": 0.001,
    "cluster.cpus_per_rank": 1,
    "cluster.time_min": 1,
    "cluster.points_per_task": 1,
    "cluster.array_throttle": 1,
    "cluster.max_array_size": 2,
    "cluster.max_tasks": 1,
    "cluster.max_node_hours": 0.0,
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


def allowed(key: str) -> tuple[str, ...]:
    """The values that a key may have, as they are typed; empty for one that takes any of its type."""
    return tuple("null" if value is None else str(value) for value in _ALLOWED.get(key, ()))


def check_value(key: str, value: Any) -> None:
    """Raise RefusedError when one key's value is none of those allowed, or below its least."""
    refuse_controls(key, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"{key}={value}: must be a finite number.")
    if isinstance(value, int) and abs(value) >= _TOO_LARGE:
        raise RefusedError(f"{key}={value}: must be less than 2^63.")
    if key in _ALLOWED and value not in _ALLOWED[key]:
        raise RefusedError(
            f"{key}={value}: not one of {', '.join(allowed(key))}.{_meant(str(value), allowed(key))}"
        )
    least = _AT_LEAST.get(key)
    if least is not None and value is not None and value < least:
        raise RefusedError(f"{key}={value}: must be at least {least}.")
    if key == "top_p" and not 0.0 < value <= 1.0:
        raise RefusedError(f"top_p={value}: must be above 0 and at most 1.")


# what a value is called elsewhere
_ELSEWHERE = {
    **dict.fromkeys(("float16", "half"), "fp16"),
    **dict.fromkeys(("float32", "float", "full"), "fp32"),
    **dict.fromkeys(("float64", "double"), "fp64"),
    "bfloat16": "bf16",
    "float8": "fp8",
    "gpu": "cuda",
    "none": "null",
}


def _meant(value: str, names: tuple[str, ...]) -> str:
    """Return the question whether another value was meant; empty where none is near."""
    typed = value.lower()
    found = [_ELSEWHERE.get(typed), *get_close_matches(typed, names, n=1, cutoff=0.8)]
    return next((f" Did you mean {one}?" for one in found if one in names), "")


def refuse_controls(key: str, value: Any) -> None:
    """Raise RefusedError for a text with control characters: a line break would begin a line of a batch script.

    The texts in lists and dicts count too, and so do names of keys. A tab is none.
    """
    if isinstance(value, list):
        for one in value:
            refuse_controls(key, one)
    elif isinstance(value, dict):
        for name, one in value.items():
            refuse_controls(f"{key}.{name}", one)
    elif _CONTROL.search(f"{key}{value}" if isinstance(value, str) else key):
        raise RefusedError(
            f"{ascii(key)[1:-1]}={value!a}: holds a line break or another control character. Write it in one line; of "
            "a list such as cluster.setup, each line as an item of its own."
        )


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check(config: Config) -> None:
    """Raise RefusedError at the first choice whose value is not allowed."""
    for key, value in leaves(config).items():
        check_value(key, value)
    check_cost(config.cluster.cost)
    check_container(config.cluster)
    _check_clocks(config.cluster)


def _check_clocks(cluster: Cluster) -> None:
    """Raise RefusedError where options of a site set clocks: no row would say so, as it does of `control`'s."""
    words = {
        "cluster.sbatch_options": cluster.sbatch_options,
        "cluster.srun_options": [word.lstrip("-").split("=")[0] for word in cluster.srun_options],
        "cluster.power_caps": [asked.partition("=")[0] for asked in cluster.power_caps.values()],
    }
    for key, names in words.items():
        for name in names:
            if name in ("gpu-freq", "cpu-freq"):
                raise RefusedError(
                    f"{key}: {name} sets clocks that no result shows. Choose GPU clocks by control.sm_clock_mhz, and "
                    "caps by control.power_limit_w with cluster.power_caps."
                )


def why_not_metered(config: Config) -> str | None:
    """Return why a point's meter says nothing of where it computes; null where it does."""
    meter = config.power.meter
    if config.power.scope == "module" and (
        meter not in ("auto", "nvml") or computes_on_cpu(config)
    ):
        return "power.scope=module: NVML alone reports power of a superchip's module, on which nothing else may run"
    if not (computes_on_cpu(config) and meter in _OF_GPUS):
        return None
    return (
        f"engine.device=cpu: power.meter={meter} measures GPUs, on which nothing would run. Leave power.meter=auto, "
        "which then measures the host"
    )


_OF_GPUS = ("nvml", "dcgm")


def why_not_side_by_side(config: Config) -> str | None:
    """Return why points cannot run side by side as asked; null where they can, or nobody asked."""
    cluster, is_control = config.cluster, config.sweep.block == "neighbours"
    if not cluster.side_by_side:
        return "sweep.block=neighbours: it needs cluster.side_by_side=true" if is_control else None
    if cluster.launcher == "local":
        return "cluster.side_by_side: this machine runs points one after another; it is for Slurm"
    if cluster.container.kind is not None:
        return "cluster.side_by_side: jobs in a container cannot start the steps of their points"
    if config.power.meter in OF_HOSTS or computes_on_cpu(config):
        return "cluster.side_by_side: joules of a host cannot be separated by points; it needs GPUs"
    slots = slots_of(cluster, config.nodes or 1, ranks_of(config) // (config.nodes or 1))
    if is_control and (slots < 2 or config.sweep.repeats % (2 * slots)):
        return (
            f"sweep.block=neighbours: each of {slots} slots runs the point alone, then all at once; sweep.repeats="
            f"{config.sweep.repeats} is no multiple of {2 * max(2, slots)}"
        )
    return None


OF_HOSTS = ("rapl", "hwmon", "cray", "simulated")  # meters of a node as one device


def why_not_engine(config: Config) -> str | None:
    """Return why an engine cannot run what is asked of it, before anything of it is looked at; null where it can."""
    law = config.model.dummy
    if law != "normal" and config.weights != "dummy":
        return f"model.dummy={law}: weights={config.weights} are real ones"
    return _why_not_computed(config)


def _why_not_computed(config: Config) -> str | None:
    name = config.engine.name
    load = config.workload
    if load.mode != "static" and name != "vllm":
        return f"workload.mode={load.mode}: engine={name} has no scheduler that refills a batch; use engine=vllm"
    if (misfit := _why_not_load(load, config.sweep)) is not None:
        return misfit
    if config.pipeline > 1 and name != "vllm":
        return (
            f"pipeline={config.pipeline}: engine={name} has no stages; use shards, or engine=vllm"
        )
    of_engine = {"vllm": _why_not_vllm, "transformers": _why_not_transformers}
    return of_engine.get(name, _why_not_ours)(config)


def _why_not_load(load: Workload, sweep: Sweep) -> str | None:
    """Return why requests cannot arrive as asked; null where they can."""
    if load.mode == "closed" and load.concurrency is None:
        return "workload.mode=closed: how many requests at a time? workload.concurrency=1,8,64"
    if load.mode == "open" and load.rate_per_s is None and load.trace is None:
        return (
            "workload.mode=open: workload.rate_per_s=N, or a file of arrivals, workload.trace=FILE"
        )
    if load.mode in ("closed", "open") and sweep.on_interrupt == "continue":
        return f"sweep.on_interrupt=continue: workload.mode={load.mode} is one load, without batches to go on from"
    for key, value, modes in (
        ("concurrency", load.concurrency, ("closed",)),
        ("rate_per_s", load.rate_per_s, ("open",)),
        ("trace", load.trace, ("closed", "open")),
    ):
        if value is not None and load.mode not in modes:
            return f"workload.{key}={value}: workload.mode={load.mode} does not use it; it is for {' and '.join(modes)}"
    if load.burstiness != 1.0 and load.rate_per_s is None:
        return f"workload.burstiness={load.burstiness:g}: no arrivals are drawn without workload.rate_per_s"
    return None


def _why_not_ours(config: Config) -> str | None:
    name = config.engine.name
    if name == "synthetic":
        return None
    if config.kv_precision is not None:
        return f"kv_precision=fp8: engine={name} does not quantise its cache; use engine=vllm"
    if config.precision in QUANTISED and (name, config.precision) != ("fast", "fp8"):
        other = "fast or vllm" if config.precision == "fp8" else "vllm"
        return (
            f"precision={config.precision}: engine={name} does not quantise so; use engine={other}"
        )
    missing = why_not_computed(config.model, name, config.max_seq_len)
    return None if missing is None else f"{missing}; use engine=vllm or transformers"


def _why_not_vllm(config: Config) -> str | None:
    quantization = config.engine.vllm.quantization
    if config.weights == "meta":
        return "weights=meta: engine=vllm reads Hugging Face's folders, weights=hf"
    if config.precision == "fp64":
        return "precision=fp64: engine=vllm has no such arithmetic"
    if config.precision in QUANTISED and quantization not in (None, "fp8"):
        return f"precision={config.precision} and engine.vllm.quantization={quantization}: say one of them"
    return _why_not_max_num_seqs(config)


def _why_not_max_num_seqs(config: Config) -> str | None:
    most, size = config.engine.vllm.max_num_seqs, config.batch_size
    if most is not None and most < size:
        return f"engine.vllm.max_num_seqs={most}: below batch_size={size}"
    if most not in (None, size) and config.workload.mode != "static":
        return (
            f"engine.vllm.max_num_seqs={most}: workload.mode={config.workload.mode} fills a batch up to it, and "
            f"batch_size is {size}; leave it out"
        )
    return None


def check_container(cluster: Cluster) -> None:
    """Raise RefusedError for a profile's container that cannot be entered."""
    container, at = cluster.container, "cluster.container"
    if container.kind is None:
        if container != Container():
            raise RefusedError(f"{at}: {at}.kind is null; apptainer, pyxis or edf?")
        return
    if not container.image:
        raise RefusedError(f"{at}.kind={container.kind}: which one? {at}.image=IMAGE.")
    if cluster.launcher != "slurm":
        raise RefusedError(f"{at}: cluster={cluster.name} starts no jobs by Slurm.")
    if container.kind == "edf" and container.binds:
        raise RefusedError(f"{at}.binds: the environment's own file lists its mounts.")
    for key, folder in (
        ("pythonpath", container.pythonpath),
        *(("binds", b) for b in container.binds),
    ):
        if folder and not folder.startswith("/"):
            raise RefusedError(f"{at}.{key}: {folder} is no path from the root.")


def _why_not_transformers(config: Config) -> str | None:
    options = config.engine.transformers
    if config.weights == "meta":
        return "weights=meta: engine=transformers reads Hugging Face's folders, weights=hf"
    if config.precision in QUANTISED or config.kv_precision is not None:
        return (
            f"precision={config.precision}, kv_precision={config.kv_precision}: engine=transformers does not quantise; "
            "use engine=vllm"
        )
    if options.compile and options.cache == "dynamic":
        return "engine.transformers.compile: steps are compiled over a static cache; leave engine.transformers.cache"
    return None


# a price may be below 0; a grid's carbon is some 10 to 1,200 g, and no facility takes less than its computers
FACTOR_RANGES = {"price_per_kwh": (-1e6, 1e6), "g_per_kwh": (0, 10_000), "pue": (1, 10)}


def check_cost(cost: Cost) -> None:
    """Raise RefusedError for a factor without its source, one that is declared twice, or one that there cannot be."""
    at = "cluster.cost"
    for name, value, path, source in (
        ("price_per_kwh", cost.price_per_kwh, cost.price_path, cost.price_source),
        ("carbon_g_per_kwh", cost.carbon_g_per_kwh, cost.carbon_path, cost.carbon_source),
        ("pue", cost.pue, None, cost.pue_source),
    ):
        kind = name.partition("_")[0]
        least, most = FACTOR_RANGES[name.removeprefix("carbon_")]
        if value is not None and not least <= value <= most:  # nor is NaN
            raise RefusedError(f"{at}.{name}={value}: not between {least:g} and {most:g}.")
        if value is not None and path is not None:
            raise RefusedError(f"{at}.{name} and {at}.{kind}_path: declare one of them.")
        if (value is not None or path is not None) and not source:
            raise RefusedError(
                f"{at}.{name}: say where it comes from, {at}.{kind}_source='tariff of 2026'."
            )
    if (cost.price_per_kwh is not None or cost.price_path is not None) and not cost.currency:
        raise RefusedError(f"{at}.price_per_kwh: in which currency? {at}.currency=EUR.")
