"""The peak rates of a rank's device: bytes of a copy and FLOPs of a matrix product, outside every measured window."""

import time
from collections.abc import Callable

from wattflow.engine.ranks import Ranks
from wattflow.store.schema import Ceilings

# 1 GiB takes 0.7 ms on an H100: too short: a first run there measured 2.5 TB/s on a board that copies 3.0
COPY_BYTES, CPU_COPY_BYTES = 2**32, 2**25  # a CPU's last level may hold part
SIDE, CPU_SIDE = 8192, 512  # of the square matrices
ROUNDS = 10


def measure(ranks: Ranks, precision: str) -> Ceilings:
    """Return bytes moved (read and written) and operations a second, the best of ten on the slowest rank's device.

    All ranks measure at once: on a CPU they share what it has. The product is in the point's precision. 60 ms on a GPU,
    timed by its own events, since a launch takes the host a tenth of a millisecond.
    """
    import torch  # noqa: PLC0415 - the synthetic engine runs without

    cuda = ranks.device.startswith("cuda")
    size, side = (COPY_BYTES, SIDE) if cuda else (CPU_COPY_BYTES, CPU_SIDE)
    if cuda:  # weights that other points share may still lie there
        size = min(size, torch.cuda.mem_get_info(ranks.device)[0] // 8)
    with torch.inference_mode():
        copy_s = _copy_s(ranks, size)
        product_s = _product_s(ranks, side, precision)
    rates = ranks.gather([2 * size / copy_s, 2 * side**3 / product_s])
    return {
        "copy_bytes_per_s": min(copy for copy, _ in rates),
        "product_flops_per_s": min(product for _, product in rates),
        "source": f"copy of {size / 2**30:.3g} GiB, product of {side} in {precision}, after the batches",
    }


def _copy_s(ranks: Ranks, size: int) -> float:
    import torch  # noqa: PLC0415 - as above

    source = torch.ones(size // 4, device=ranks.device)
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
