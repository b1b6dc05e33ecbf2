"""The ranks of a point: one process a shard, joined through torch.distributed, on GPUs (NCCL) or CPU cores (gloo).

Values other than tensors travel between ranks as JSON in byte tensors, so nothing is ever unpickled. One rank
alone needs no torch.distributed, and on the CPU no torch.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from wattflow.engine.device import why_no_cuda
from wattflow.engine.installed import FAIRSCALE, TORCH
from wattflow.errors import EngineError

if TYPE_CHECKING:
    import torch


@dataclass
class Ranks:
    """This rank among all of them, and its device."""

    rank: int
    world: int
    local_rank: int
    node: str
    device: str  # cpu or cuda:k
    device_name: str  # cpu, or the GPU's name
    gpu_uuid: str | None  # as NVML spells it; None on the CPU
    why_cpu: str | None = None  # why device=auto came to the CPU; None where the CPU was asked for

    def barrier(self) -> None:
        """Return once every rank has made this call."""
        self.any(value=False)

    def any(self, value: bool) -> bool:
        """Return once every rank has made this call: whether `value` is true on one of them."""
        if self.world == 1:
            return value
        import torch  # noqa: PLC0415 - one rank alone runs without torch
        import torch.distributed as dist  # noqa: PLC0415

        count = torch.tensor([float(value)])
        # a sum over gloo: dist.barrier would go through the GPU where there is one
        dist.all_reduce(count)
        return bool(count.item())

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank, by way of JSON; the others' argument is ignored."""
        if self.world == 1:
            return json.loads(json.dumps(value))
        import torch.distributed as dist  # noqa: PLC0415 - see barrier

        data = _to_bytes(value if self.rank == 0 else None)
        length = _length(data)
        dist.broadcast(length, src=0)
        tensor = _padded(data, int(length))
        dist.broadcast(tensor, src=0)
        return _from_bytes(tensor, int(length))

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value in the order of ranks, by way of JSON, on every rank."""
        if self.world == 1:
            return [json.loads(json.dumps(value))]
        import torch  # noqa: PLC0415 - see barrier
        import torch.distributed as dist  # noqa: PLC0415

        data = _to_bytes(value)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(lengths, _length(data))
        longest = max(int(length) for length in lengths)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(parts, _padded(data, longest))
        return [_from_bytes(part, int(length)) for part, length in zip(parts, lengths, strict=True)]

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1:
            import torch.distributed as dist  # noqa: PLC0415 - see barrier

            if dist.is_initialized():
                dist.destroy_process_group()


def join(  # noqa: PLR0917 - who, where, and how long to wait: each once, in `run`
    rank: int,
    world: int,
    local_rank: int,
    node: str,
    init_method: str,
    device: str,
    timeout_s: float,
    collective_s: float,
) -> Ranks:
    """Meet the other ranks at `init_method` (file:///... or tcp://host:port); EngineError if they do not come.

    They come within `timeout_s`; from then on a rank waits for the others in a collective for up to `collective_s`.
    `device` is auto, cuda or cpu; on GPUs a rank takes the one of its local rank. Where auto came to the CPU, `why_cpu`
    says why: whether that is right, the caller knows.
    """
    if device == "cpu" and world == 1:
        return Ranks(rank, world, local_rank, node, "cpu", "cpu", None)
    why_cpu = why_no_cuda() if device == "auto" else None
    if device == "auto":
        device = "cuda" if why_cpu is None else "cpu"
    if device == "cpu" and world == 1:
        return Ranks(rank, world, local_rank, node, "cpu", "cpu", None, why_cpu)
    TORCH.require("engine.device=cuda" if world == 1 else f"{world} ranks")
    import torch  # noqa: PLC0415 - see barrier

    if device == "cuda":
        _check_gpu(rank, local_rank, node)
        torch.cuda.set_device(local_rank)
    if world > 1:
        _meet(rank, world, node, init_method, device == "cuda", timeout_s, collective_s)
    if device == "cpu":
        return Ranks(rank, world, local_rank, node, "cpu", "cpu", None, why_cpu)
    about = torch.cuda.get_device_properties(local_rank)
    uuid = getattr(about, "uuid", None)  # not in every torch >= 2.4
    return Ranks(
        rank,
        world,
        local_rank,
        node,
        device=f"cuda:{local_rank}",
        device_name=about.name,
        gpu_uuid=None if uuid is None else f"GPU-{uuid}",
    )


def _check_gpu(rank: int, local_rank: int, node: str) -> None:
    import torch  # noqa: PLC0415 - see barrier

    count = torch.cuda.device_count()
    if local_rank >= count:
        raise EngineError(
            f"rank {rank} on {node} is number {local_rank} of its node, but torch {torch.__version__} sees {count} "
            "GPUs there. Check cluster.gpus_per_node, CUDA_VISIBLE_DEVICES and that torch was built for CUDA, or set "
            "engine.device=cpu."
        )


def _meet(  # noqa: PLR0917 - see join
    rank: int,
    world: int,
    node: str,
    init_method: str,
    cuda: bool,
    timeout_s: float,
    collective_s: float,
) -> None:
    if FAIRSCALE.is_there:
        # fairscale and torch.distributed.nn name the group in default arguments: imported after it exists, they would
        # hold it past `close`, and its threads would abort the process at exit (seen in one exit of seven)
        import fairscale.nn.model_parallel.layers  # noqa: F401, PLC0415 - see above
    import torch.distributed as dist  # noqa: PLC0415 - see barrier
    from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415 - see barrier

    # one group with two backends: tensors on a GPU go through NCCL, the few bytes of JSON through gloo
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    limit = timedelta(seconds=timeout_s)
    # a fault in NVLink multicast takes the whole host's GPUs out of service, and decode's few rows gain nothing by it
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    try:
        with _stdout_to_stderr():
            store, _, _ = next(rendezvous(init_method, rank, world, timeout=limit))
            store.set(f"wattflow-{rank}", "here")
            store.wait([f"wattflow-{k}" for k in range(world)], limit)
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=collective_s),
            )
    except (RuntimeError, ValueError) as error:  # DistStoreError and its like are RuntimeErrors
        first_line = str(error).partition("\n")[0]
        raise EngineError(
            f"rank {rank} of {world} on {node} did not meet the others at {init_method} within {timeout_s:g} s "
            f"({first_line}). Look at the other ranks' logs for one that failed before, and whether nodes can reach "
            "each other there (MASTER_ADDR, GLOO_SOCKET_IFNAME); engine.init_timeout_s sets the wait."
        ) from error


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what C++ code prints to stderr: gloo greets its peers on stdout in some versions of torch."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _to_bytes(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def _length(data: bytes) -> "torch.Tensor":
    import torch  # noqa: PLC0415 - see barrier

    return torch.tensor([len(data)], dtype=torch.int64)


def _padded(data: bytes, length: int) -> "torch.Tensor":
    import torch  # noqa: PLC0415 - see barrier

    return torch.frombuffer(bytearray(data[:length].ljust(length)), dtype=torch.uint8)


def _from_bytes(data: "torch.Tensor", length: int) -> Any:
    return json.loads(data[:length].numpy().tobytes())
