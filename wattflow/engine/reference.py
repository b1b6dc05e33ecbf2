"""A fixed load that shows which boards are slow or draw more: the same work on every GPU, whatever the point is."""

import time

from wattflow.engine.ranks import Ranks

SIDE, CPU_SIDE = 4096, 256  # of the square matrices
COPY_BYTES = 256 * 2**20
PRODUCTS = 16  # a round is so many products and one copy


def run(ranks: Ranks, seconds: float) -> int:
    """Run the load for that time or a little more; returns how many rounds this rank's device finished."""
    import torch  # noqa: PLC0415 - the synthetic engine runs without

    cuda = ranks.device.startswith("cuda")
    side, kind = (SIDE, torch.bfloat16) if cuda else (CPU_SIDE, torch.float32)
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(side, side, generator=generator).to(ranks.device, kind) / side**0.5
        for _ in range(2)
    )
    source = torch.ones(COPY_BYTES // 4 if cuda else 2**16, device=ranks.device)
    target = torch.empty_like(source)
    rounds, end_s = 0, time.monotonic() + seconds
    while time.monotonic() < end_s:
        for _ in range(PRODUCTS):
            a @ b
        target.copy_(source)
        if cuda:
            torch.cuda.synchronize(ranks.device)
        rounds += 1
    return rounds
