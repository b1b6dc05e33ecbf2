"""The sum over ranks after each row-parallel product, by the quicker of two ways where there are two.

    nccl      torch.distributed: any size, any distance (gloo on the CPU)
    one-shot  symmetric memory: the product writes where all peers on one node's NVLink read it, and each adds for
              itself; two to three times quicker for the few rows of a decode step

Which one is used for a batch is measured when the engine loads, and only after both gave the same sums. NVLink
multicast is never used.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from time import perf_counter
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist

from wattflow.engine.llama import wide
from wattflow.engine.ranks import Ranks

_CALLS = 16  # in a row, as a step makes them
_ROUNDS = 5
_TYPES = (torch.bfloat16, torch.float32)  # torch's one-shot kernel adds no others


class Reduce:
    """Sums in place, by torch.distributed."""

    def buffer(self, shape: Sequence[int]) -> torch.Tensor | None:
        """Where a product [rows, width] is to be written to be summed; None: anywhere."""
        del shape
        return None

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' parts, on every rank."""
        dist.all_reduce(part)
        return part


class OneShot(Reduce):
    """Sums of few rows through symmetric memory, of others by torch.distributed."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: str) -> None:
        """Allocate and exchange the buffer of up to `rows` rows and sum once; torch's error where that cannot be."""
        import torch.distributed._symmetric_memory as symmetric  # noqa: PLC0415 - not in every torch >= 2.4

        self._sum = torch.ops.symm_mem.one_shot_all_reduce_out
        self._buffer = symmetric.empty(rows * width, dtype=dtype, device=torch.device(device))
        group = dist.group.WORLD
        assert group is not None
        self._group: Any = group.group_name
        self._handle = symmetric.rendezvous(self._buffer, self._group)
        self.most_rows = rows
        self(self._buffer.zero_())  # an operation that cannot run fails here

    def buffer(self, shape: Sequence[int]) -> torch.Tensor | None:
        """See Reduce."""
        rows, width = shape
        return self._buffer[: rows * width].view(rows, width) if rows <= self.most_rows else None

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        """See Reduce; a part in the buffer is left there, and the sum is another tensor."""
        if part.data_ptr() != self._buffer.data_ptr():
            return super().__call__(part)
        out = torch.empty_like(part)
        self._sum(part, "sum", self._group, out)
        return out


def choose(
    ranks: Ranks, rows: Sequence[int], width: int, dtype: torch.dtype
) -> tuple[Reduce, dict[str, object]]:
    """Return the sum to use for products [n, width] for each n of `rows`, ascending, and its entries in the record.

    `allreduce_us` has, by rows, the microseconds of one sum by the chosen way; `allreduce_nccl_us` those of NCCL where
    the other is quicker. All ranks make this call.
    """
    plain = Reduce()
    if ranks.world == 1:
        return plain, {"allreduce": None}
    base = {n: _us_each(ranks, plain, n, width, dtype) for n in rows}
    name = "nccl" if ranks.device.startswith("cuda") else "gloo"
    one_shot, reason = _one_shot(ranks, rows, width, dtype)
    if one_shot is None:
        return plain, {"allreduce": name, "allreduce_us": base, "allreduce_reason": reason}
    quicker = {n: _us_each(ranks, one_shot, n, width, dtype) for n in rows}
    one_shot.most_rows = largest_won(base, quicker)
    chosen = {n: quicker[n] if n <= one_shot.most_rows else base[n] for n in rows}
    if one_shot.most_rows == 0:
        return plain, {
            "allreduce": name,
            "allreduce_us": base,
            "allreduce_one_shot_us": quicker,
            "allreduce_reason": "NCCL was quicker",
        }
    return one_shot, {
        "allreduce": f"one-shot up to {one_shot.most_rows} rows, {name} above",
        "allreduce_us": chosen,
        "allreduce_nccl_us": base,
        "allreduce_reason": None,
    }


def largest_won(base_us: dict[int, float], other_us: dict[int, float]) -> int:
    """Return the most rows up to which the other way is quicker at every measured number of rows; 0 if at none."""
    won = takewhile(lambda n: other_us[n] < base_us[n], sorted(base_us))
    return max(won, default=0)


def _one_shot(
    ranks: Ranks, rows: Sequence[int], width: int, dtype: torch.dtype
) -> tuple[OneShot | None, str | None]:
    """Return the one-shot sum, checked against NCCL, or why there is none; the same on all ranks."""
    reason = None
    if not ranks.device.startswith("cuda"):
        reason = "no GPU"
    elif len(set(ranks.gather(ranks.node))) > 1:
        reason = "ranks are on several nodes"
    elif dtype not in _TYPES:
        reason = f"torch's one-shot kernel does not add {dtype}"
    if reason is not None:
        return None, reason
    one_shot, fault = None, None
    try:
        one_shot = OneShot(max(rows), width, dtype, ranks.device)
    except Exception as error:  # noqa: BLE001 - an old torch or a fabric without peer access fails as it likes
        fault = f"symmetric memory: {str(error).partition(chr(10))[0][:200]}"
    faults = [f for f in ranks.gather(fault) if f is not None]
    if one_shot is None or faults:
        return None, faults[0]
    reason = next((r for n in rows if (r := _why_wrong(ranks, one_shot, n, width, dtype))), None)
    return (one_shot, None) if reason is None else (None, reason)


def _why_wrong(
    ranks: Ranks, one_shot: OneShot, rows: int, width: int, dtype: torch.dtype
) -> str | None:
    """Return why the one-shot sum is wrong; None where it is NCCL's but for rounding, and equal on all ranks."""
    generator = torch.Generator(ranks.device).manual_seed(1 + ranks.rank)
    part = torch.randn((rows, width), device=ranks.device, generator=generator).to(dtype)
    place = one_shot.buffer(part.shape)
    assert place is not None
    place.copy_(part)
    ours = one_shot(place).to(wide(dtype))
    exact = part.to(torch.float64)
    dist.all_reduce(exact)
    worst = float((ours - exact).norm() / exact.norm())
    # bytes, since equal sums must stay equal through every later step
    digest = crc32(ours.cpu().numpy().tobytes())
    results = ranks.gather([worst, digest])
    allowed = 1e-2 if dtype == torch.bfloat16 else 1e-5
    if max(error for error, _ in results) > allowed:
        return f"the one-shot sum of {rows} rows is off by {max(error for error, _ in results):.1e}"
    if len({digest for _, digest in results}) > 1:
        return f"the one-shot sum of {rows} rows differs between ranks"
    return None


def _us_each(ranks: Ranks, reduce: Reduce, rows: int, width: int, dtype: torch.dtype) -> float:
    """Return the microseconds of one sum, the longest of all ranks', in a row of many; from a graph on a GPU."""
    place = reduce.buffer((rows, width))
    if place is None:
        place = torch.zeros((rows, width), dtype=dtype, device=ranks.device)
    place.zero_()  # sums in place would soon overflow anything else

    def calls() -> None:
        for _ in range(_CALLS):
            reduce(place)

    calls()
    took_s = _graph_s(ranks, calls) if ranks.device.startswith("cuda") else _eager_s(ranks, calls)
    return float(max(ranks.gather(took_s / _CALLS * 1e6)))


def _eager_s(ranks: Ranks, calls: Callable[[], None]) -> float:
    times = []
    for _ in range(_ROUNDS):
        ranks.barrier()
        began = perf_counter()
        calls()
        times.append(perf_counter() - began)
    return sorted(times)[len(times) // 2]


def _graph_s(ranks: Ranks, calls: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    ranks.barrier()  # every collective has run once on every rank
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        calls()
    graph.replay()
    torch.cuda.synchronize()
    ranks.barrier()
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch leaves it untyped
        for _ in range(2)
    )
    start.record()
    for _ in range(_ROUNDS):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / _ROUNDS
