"""What a rank's device can move and compute at most: a copy and a matrix product, outside every measured window."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from wattflow.engine.ranks import Ranks
from wattflow.schema import Ceilings

if TYPE_CHECKING:
    import torch

COPY_BYTES, CPU_COPY_BYTES = 2**30, 2**25  # far beyond a GPU's L2; a CPU's last level may hold part
SIDE, CPU_SIDE = 8192, 512  # of the square matrices
ROUNDS = 5


def measure(ranks: Ranks, precision: str) -> Ceilings:
    """Bytes moved (read and written) and operations a second, the best of five on the slowest rank's device.

    All ranks measure at once: on a CPU they share what it has. The product is in the point's precision. 20 ms on a GPU.
    """
    import torch  # noqa: PLC0415 - the synthetic engine runs without

    from wattflow.engine.guards import DTYPES  # noqa: PLC0415 - as above

    cuda = ranks.device.startswith("cuda")
    size, side = (COPY_BYTES, SIDE) if cuda else (CPU_COPY_BYTES, CPU_SIDE)
    if cuda:  # weights that other points share may still lie there
        size = min(size, torch.cuda.mem_get_info(ranks.device)[0] // 8)
    with torch.inference_mode():
        copy_s = _copy_s(ranks, size)
        product_s = _product_s(ranks, side, DTYPES[precision])
    told = ranks.gather([2 * size / copy_s, 2 * side**3 / product_s])
    return {
        "copy_bytes_per_s": min(copy for copy, _ in told),
        "product_flops_per_s": min(product for _, product in told),
        "source": f"copy of {size / 2**30:.3g} GiB, product of {side} in {precision}, after the batches",
    }


def _copy_s(ranks: Ranks, size: int) -> float:
    import torch  # noqa: PLC0415 - as above

    source = torch.ones(size // 4, device=ranks.device)
    target = torch.empty_like(source)
    return _best_s(ranks, lambda: target.copy_(source))


def _product_s(ranks: Ranks, side: int, dtype: "torch.dtype") -> float:
    import torch  # noqa: PLC0415 - as above

    # random numbers: a GPU multiplies zeros faster than data
    generator = torch.Generator(ranks.device).manual_seed(0)
    a, b = (
        torch.randn(side, side, device=ranks.device, generator=generator).to(dtype)
        for _ in range(2)
    )
    out = torch.empty_like(a)
    return _best_s(ranks, lambda: torch.mm(a, b, out=out))


def _best_s(ranks: Ranks, work: Callable[[], object]) -> float:
    import torch  # noqa: PLC0415 - as above

    def wait() -> None:
        if ranks.device.startswith("cuda"):
            torch.cuda.synchronize(ranks.device)

    times = []
    for _ in range(ROUNDS + 1):  # the first one sets libraries up
        wait()
        ranks.barrier()
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return min(times[1:])
