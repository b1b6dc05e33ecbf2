"""vLLM as a library: whether it is there and of a known version, the arguments that choices make, what came of them.

Nothing here is imported before a rank starts an engine, and vLLM itself only inside functions: its import takes
20 seconds, and it reads its environment variables then.
"""

import contextlib
import gc
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wattflow.config.choices import QUANTISED, Config
from wattflow.engine.installed import VLLM
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError, RefusedError
from wattflow.store.files import expanded, write_json
from wattflow.workload import model as arithmetic
from wattflow.workload import vllm_fit
from wattflow.workload.config_json import document

# activations, and weights that are not quantised
_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
    **dict.fromkeys(QUANTISED, "bfloat16"),
}
_DUMMY = "wattflow_dummy"  # the load format of weights by our law
log = logging.getLogger(__name__)


# --- arguments ------------------------------------------------------------------------------------


def arguments(config: Config, folder: Path) -> dict[str, Any]:
    """Return the arguments of vLLM's EngineArgs for resolved choices whose model lies in `folder`."""
    options = dict(vars(config.engine.vllm))
    more = options.pop("more")
    del options["max_num_seqs"]  # among ours, where it follows from the batch
    ours: dict[str, Any] = {
        "model": str(folder),
        "load_format": _DUMMY if config.weights == "dummy" else "auto",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # stop rules and sampling are the point's, not the folder's
        "dtype": _DTYPES[config.precision],
        "max_model_len": config.max_seq_len,
        "max_num_seqs": vllm_fit.most_requests(config),
        "tensor_parallel_size": config.shards,
        "pipeline_parallel_size": config.pipeline,
        "distributed_executor_backend": "external_launcher",
        "disable_log_stats": True,
        "seed": config.seed,
    }
    there = vllm_fit.folder_of(config)
    if config.precision == "fp8" and (there is None or there.quantised_in is None):
        options["quantization"] = "fp8"  # while loading
    if config.kv_precision is not None:
        ours["kv_cache_dtype"] = config.kv_precision
    twice = sorted(set(more) & {*ours, *options})
    if twice:
        raise RefusedError(
            f"engine.vllm.more: {twice[0]} follows from another key of wattflow; set that one."
        )
    return {**ours, **{key: value for key, value in options.items() if value is not None}, **more}


@contextlib.contextmanager
def model_folder(config: Config) -> Iterator[Path]:
    """Yield the folder that vLLM reads: the checkpoint's, or for shapes alone one with nothing but a config.json."""
    if config.model.path is not None:
        folder = expanded(config.model.path)
        if not (folder / "config.json").is_file():
            raise RefusedError(
                f"{folder}: no config.json there. engine={config.engine.name} reads Hugging Face's folders; is "
                "weights=meta meant?"
            )
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="wattflow-model-") as made:
        whole = document(config.model, _DTYPES[config.precision], config.max_seq_len or 0)
        write_json(Path(made) / "config.json", whole)
        yield Path(made)


def environment(config: Config, ranks: Ranks) -> dict[str, str]:
    """Return the environment variables that vLLM reads when it is imported and when it starts."""
    found = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its engine in this process, stepped by us
        "RANK": str(ranks.rank),
        "LOCAL_RANK": str(ranks.local_rank),
        "WORLD_SIZE": str(ranks.world),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if ranks.world == 1:  # several ranks have met already
        found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        found["VLLM_HOST_IP"] = "127.0.0.1"
    if ranks.device == "cpu":
        threads = str(config.engine.threads_per_rank)
        found |= {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        rows = vllm_fit.row_bytes(config) * (vllm_fit.most_requests(config) + 1)
        found["VLLM_CPU_KVCACHE_SPACE"] = str(1 + rows // arithmetic.GIB)
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# --- start and stop -------------------------------------------------------------------------------


def start(config: Config, ranks: Ranks, version: str) -> Any:
    """Return an LLMEngine of vLLM in this process, its weights on the device and its graphs captured."""
    os.environ.update(environment(config, ranks))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # the log is the job's
    with (
        VLLM.explained(version, f"did not start {config.model.name}"),
        model_folder(config) as folder,
    ):
        from vllm import EngineArgs, LLMEngine  # noqa: PLC0415 - see the module

        wanted = arguments(config, folder)
        _check_platform(ranks)
        if ranks.device == "cpu" and ranks.world > 1:
            _name_shared_memory(ranks.broadcast(secrets.token_hex(4)))
        if config.weights == "dummy":
            from wattflow.engine import vllm_dummy  # noqa: PLC0415 - see the module

            vllm_dummy.register(_DUMMY, config.model.dummy)
        return LLMEngine.from_engine_args(EngineArgs(**wanted))


def _name_shared_memory(run: str) -> None:
    """Have the shared memory of CPU ranks bear a run's own name.

    vLLM's is one for all that an external launcher starts: two runs would meet in it, and none starts after a kill.
    """
    from vllm.distributed.device_communicators import cpu_communicator  # noqa: PLC0415 - see the module

    shared = cpu_communicator._CPUSHMDistributed  # noqa: SLF001 - vLLM offers no name to choose
    theirs = vars(shared)["make_group_name"].__func__
    shared.make_group_name = staticmethod(lambda communicator: f"{theirs(communicator)}-{run}")


def _check_platform(ranks: Ranks) -> None:
    from vllm.platforms import current_platform  # noqa: PLC0415 - see the module

    here, wanted = str(current_platform.device_type), ranks.device.partition(":")[0]
    if here != wanted:
        raise EngineError(
            f"engine.device={wanted}: the vLLM that is installed computes on {here or 'no device'} alone"
        )


def stop(engine: Any, ranks: Ranks) -> None:
    """Give back the memory of an engine; the group in which several ranks met stays."""
    client = engine.engine_core
    if ranks.world == 1:
        (getattr(client, "shutdown", None) or client.engine_core.shutdown)()
    else:
        _stop_beside_group(client)
    del engine, client
    gc.collect()
    if ranks.device != "cpu":
        import torch  # noqa: PLC0415 - see the module

        torch.cuda.empty_cache()


def _stop_beside_group(client: Any) -> None:
    """Do as vLLM's own shutdown, but for the process group, which is not vLLM's."""
    from vllm.distributed import parallel_state  # noqa: PLC0415 - see the module

    finalizer = getattr(client, "_finalizer", None)
    if finalizer is not None:
        finalizer.detach()
    core = client.engine_core
    core.model_executor.shutdown()
    core.scheduler.shutdown()
    gc.unfreeze()
    parallel_state.destroy_model_parallel()
    if parallel_state._WORLD is not None:  # noqa: SLF001 - vLLM destroys the whole group or nothing
        parallel_state._WORLD.destroy()  # noqa: SLF001 - as above
        parallel_state._WORLD = None  # noqa: SLF001 - as above


# --- what runs ------------------------------------------------------------------------------------


def description(engine: Any) -> dict[str, object]:
    """Return what really runs: attention, graphs, quantisation, scheduling, bytes of weights and of the KV cache."""
    vllm = engine.vllm_config
    compilation, cache, model = vllm.compilation_config, vllm.cache_config, vllm.model_config
    layers = compilation.static_forward_context.values()
    backends = {layer.attn_backend.get_name() for layer in layers if hasattr(layer, "attn_backend")}
    graphs = getattr(compilation.cudagraph_mode, "name", None)
    by_dtype = engine.apply_model(_bytes_by_dtype)[0]
    blocks, block_size = cache.num_gpu_blocks, cache.block_size
    tensors = engine.engine_core.engine_core.scheduler.kv_cache_config.kv_cache_tensors
    cache_bytes = sum(tensor.size for tensor in tensors)
    return {
        "attention_backend": " + ".join(sorted(backends)) or None,
        "cuda_graphs": graphs,
        "quantization": model.quantization,
        "kv_cache_dtype": str(cache.cache_dtype),
        "async_scheduling": bool(vllm.scheduler_config.async_scheduling),
        "prefix_caching": bool(cache.enable_prefix_caching),
        "max_num_batched_tokens": vllm.scheduler_config.max_num_batched_tokens,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        # null where kernels keep weights in a layout of their own, as on CPUs
        "weight_bytes": None if by_dtype is None else sum(by_dtype.values()),
        "weight_bytes_by_dtype": by_dtype,
        "kv_cache_bytes": cache_bytes,
        "kv_cache_tokens": blocks * block_size,
        "kv_bytes_per_token": cache_bytes / (blocks * block_size) if blocks else None,
    }


def _bytes_by_dtype(model: Any) -> dict[str, int] | None:
    """Return the bytes of a model's tensors by their type; null where one of them was packed away."""
    found: dict[str, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.numel() == 0:
            return None
        name = str(tensor.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + tensor.numel() * tensor.element_size()
    return found
