"""The peak rates of a rank's device: bytes of a copy and FLOPs of a matrix product, outside every measured window.

On H200s a copy moved 4.19 to 4.27 TB/s in a fresh process, hot or cold, and 3.81 to 3.83 in most processes that had
used and freed 26 GB and more: where its buffers then lie is the driver's choice. So it is timed twice, before the first
load and after the batches, and the better one counts.
"""

import time
from collections.abc import Callable

from wattflow.engine.ranks import Ranks
from wattflow.store.schema import Ceilings

# 1 GiB takes 0.7 ms on an H100: too short: a first run there measured 2.5 TB/s on a board that copies 3.0
COPY_BYTES, CPU_COPY_BYTES = 2**32, 2**25  # a CPU's last level may hold part
SIDE, CPU_SIDE = 8192, 512  # of the square matrices
ROUNDS = 20  # the first of them bring clocks up

_copied: dict[
    str, float
] = {}  # by device, the bytes a second of a copy before the first load of this process


def look_before_load(ranks: Ranks) -> None:
    """Time a copy on a GPU whose memory this process has not used yet; 0.1 s. All ranks make this call."""
    if not ranks.device.startswith("cuda") or ranks.device in _copied:
        return
    import torch  # noqa: PLC0415 - the synthetic engine runs without

    with torch.inference_mode():
        size = _copy_size(ranks)
        _copied[ranks.device] = 2 * size / _copy_s(ranks, size)
    torch.cuda.empty_cache()


def _copy_size(ranks: Ranks) -> int:
    import torch  # noqa: PLC0415 - as above

    if not ranks.device.startswith("cuda"):
        return CPU_COPY_BYTES
    # weights that other points share may still lie there
    return min(COPY_BYTES, torch.cuda.mem_get_info(ranks.device)[0] // 8)


def measure(ranks: Ranks, precision: str) -> Ceilings:
    """Return bytes moved (read and written) and operations a second, the best of all on the slowest rank's device.

    All ranks measure at once: on a CPU they share what it has. The product is in the point's precision. 0.1 s on a GPU,
    timed by its own events, since a launch takes the host a tenth of a millisecond.
    """
    import torch  # noqa: PLC0415 - as above

    size = _copy_size(ranks)
    side = SIDE if ranks.device.startswith("cuda") else CPU_SIDE
    with torch.inference_mode():
        copy_s = _copy_s(ranks, size)
        product_s = _product_s(ranks, side, precision)
    before = _copied.get(ranks.device, 0.0)
    rates = ranks.gather([max(before, 2 * size / copy_s), 2 * side**3 / product_s])
    also = ", the better of before the load and after" if before else ""
    return {
        "copy_bytes_per_s": min(copy for copy, _ in rates),
        "product_flops_per_s": min(product for _, product in rates),
        "source": f"copy of {size / 2**30:.3g} GiB{also}, product of {side} in {precision}, after the batches",
    }


def _copy_s(ranks: Ranks, size: int) -> float:
    import torch  # noqa: PLC0415 - as above

    source = torch.empty(size // 4, dtype=torch.int32, device=ranks.device).random_()
    target = torch.empty_like(source)
    return _best_s(ranks, lambda: target.copy_(source))


def _product_s(ranks: Ranks, side: int, precision: str) -> float:
    import torch  # noqa: PLC0415 - as above

    from wattflow.engine.checks import DTYPES  # noqa: PLC0415 - as above
    from wattflow.engine.products import product, quantised, rows8  # noqa: PLC0415 - as above

    # random numbers: a GPU multiplies zeros faster than data
    generator = torch.Generator(ranks.device).manual_seed(0)
    a, b = (
        torch.randn(side, side, device=ranks.device, generator=generator).to(DTYPES[precision])
        for _ in range(2)
    )
    if precision == "fp8":
        rows, weight = rows8(a), quantised(b)
        return _best_s(ranks, lambda: product(rows, weight))
    out = torch.empty_like(a)
    return _best_s(ranks, lambda: torch.mm(a, b, out=out))


def _best_s(ranks: Ranks, work: Callable[[], object]) -> float:
    work()  # sets libraries up
    ranks.barrier()
    if not ranks.device.startswith("cuda"):
        return min(_seconds(work) for _ in range(ROUNDS))
    return min(_gpu_seconds(ranks, work) for _ in range(ROUNDS))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _gpu_seconds(ranks: Ranks, work: Callable[[], object]) -> float:
    import torch  # noqa: PLC0415 - as above

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(ranks.device):
        start.record()
        work()
        end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
