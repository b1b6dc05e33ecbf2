"""Which GPUs of this node some processes use, whatever CUDA_VISIBLE_DEVICES shows this one."""

from collections.abc import Callable
from dataclasses import dataclass

from wattflow.errors import PowerError
from wattflow.power.gpus import text
from wattflow.power.nvml_calls import call, call_or_none
from wattflow.power.nvml_sensors import running_pids


@dataclass(frozen=True)
class Board:
    """A GPU of the node, in NVML's order, and the processes with a compute context on it that this user sees."""

    uuid: str
    pids: list[int]


def boards() -> list[Board] | None:
    """Return the GPUs of the node that answer; null without NVML."""
    try:
        call("nvmlInit")
    except PowerError:
        return None
    try:
        handles = [
            call_or_none("nvmlDeviceGetHandleByIndex", index)
            for index in range(call_or_none("nvmlDeviceGetCount") or 0)
        ]
        named = [(h, call_or_none("nvmlDeviceGetUUID", h)) for h in handles if h is not None]
        return [Board(text(uuid), running_pids(h) or []) for h, uuid in named if uuid is not None]
    finally:
        call_or_none("nvmlShutdown")


def used_by(there: list[Board], is_one: Callable[[int], bool | None]) -> list[str]:
    """Return the UUIDs of the boards on which such a process is."""
    return [board.uuid for board in there if any(is_one(pid) for pid in board.pids)]
