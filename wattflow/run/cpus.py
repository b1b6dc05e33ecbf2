"""Disjoint processors for the ranks that run side by side on a node."""

import os
from pathlib import Path

from wattflow.errors import WattflowError
from wattflow.store.files import read_given

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def shares(count: int, cpus: set[int] | None = None) -> list[list[int]]:
    """Return the CPUs of each of `count` ranks, of those that this process may use; [] where they are fewer.

    Threads of one core stand together, so that ranks share as few cores as can be.
    """
    cpus = os.sched_getaffinity(0) if cpus is None else cpus
    each = len(cpus) // count
    if each == 0:
        return []
    ordered = sorted(cpus, key=lambda cpu: (_core(cpu), cpu))
    return [ordered[k * each : (k + 1) * each] for k in range(count)]


def _core(cpu: int) -> int:
    """Return the first thread of a CPU's core; the CPU itself where the system does not say."""
    try:
        first = read_given(Path(_TOPOLOGY.format(cpu))).decode().replace("-", ",").split(",")[0]
        return int(first)
    except (OSError, ValueError, WattflowError):
        return cpu
