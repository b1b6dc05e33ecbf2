"""A load that is switched on and off at given instants, to measure sensors by; one process per device.

    CUDA_VISIBLE_DEVICES=GPU-... python -m wattflow.engine.pulsed_load

    stdout  {"ready": "NVIDIA H100 80GB HBM3"}      the device is warm and idle
    stdin   {"edges": [unix ns, ...]}               on, off, on, off ...: as many ons as offs
    stdout  {"edges": [unix ns, ...]}               when it was switched: on just before the first work was queued on an
                                                    idle device, off once the device had ended all of it
            end of file                             ends the process

The load copies within the device's memory. It is the same at any clock, and on an H100 it stays far below the power
limit, so nothing is throttled and the plateau of a step is flat.
"""

import json
import sys
import time
from collections.abc import Callable

COPY_BYTES, CPU_COPY_BYTES = 128 * 2**20, 2**20  # a copy takes some 0.1 ms
# a sleep may end late by so much; the rest of the wait polls the clock
SPIN_NS = 2_000_000


def copier() -> tuple[Callable[[], object], str]:
    """Return a function that makes one copy and waits for it, and the device's name: the CPU without a GPU."""
    import torch  # noqa: PLC0415 - not before a load is wanted

    gpu = torch.cuda.is_available()
    count = (COPY_BYTES if gpu else CPU_COPY_BYTES) // 4
    source = torch.ones(count, device="cuda" if gpu else "cpu")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if gpu:
            torch.cuda.synchronize()

    return copy, torch.cuda.get_device_name() if gpu else "cpu"


def follow(edges_ns: list[int], work: Callable[[], object]) -> list[int]:
    """Work from each on to the off after it, in whole calls of `work`; returns the actual instants."""
    actual_ns = []
    for on_ns, off_ns in zip(edges_ns[::2], edges_ns[1::2], strict=True):
        wait_until(on_ns)
        actual_ns.append(time.time_ns())
        work()
        while time.time_ns() < off_ns:
            work()
        actual_ns.append(time.time_ns())
    return actual_ns


def wait_until(time_ns: int) -> None:
    """Return at a unix time, to some microseconds."""
    left_ns = time_ns - time.time_ns()
    if left_ns > SPIN_NS:
        time.sleep((left_ns - SPIN_NS) / 1e9)
    while time.time_ns() < time_ns:
        pass


def main() -> None:
    """Follow edges until there are no more."""
    work, name = copier()
    for _ in range(100):
        work()
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"edges": follow(json.loads(line)["edges"], work)}), flush=True)


if __name__ == "__main__":
    main()
