"""The GPUs that a job may use: NVML's handles in CUDA's order, and what is fixed about each."""

import functools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from wattflow.errors import DamagedError, PowerError
from wattflow.power.credible import credible_watts
from wattflow.power.nvml_calls import call, call_or_none, pynvml
from wattflow.store import references
from wattflow.store.schema import Device, DeviceSettings, Reference

log = logging.getLogger(__name__)


class AbsentError(PowerError):
    """There is no NVML, or it shows no GPU that this job may use."""


@dataclass(frozen=True)
class Gpu:
    """One visible GPU."""

    handle: Any  # NVML's
    device: Device


def visible(setting: str | None, uuids: Sequence[str | None]) -> list[int]:
    """NVML indices of the GPUs that CUDA shows for CUDA_VISIBLE_DEVICES, by CUDA ordinal.

    By CUDA's rules: unset shows all; entries are ordinals or (beginnings of) GPU- UUIDs, of one kind only; the list
    ends at the first entry that names no GPU; a GPU named twice leaves none. PowerError for MIG- entries.

    A GPU without a UUID does not answer, and only those in use must: PowerError where an entry names one, or may.
    """
    if setting is None:
        return [index for index, uuid in enumerate(uuids) if uuid is not None]
    entries = [entry.strip() for entry in setting.split(",")]
    if entries[0].startswith("MIG-"):
        raise PowerError(
            f"CUDA_VISIBLE_DEVICES={setting}: power and energy are the whole board's, never a MIG slice's, so "
            "the energy of a slice is unknown. Ask for whole GPUs."
        )
    index_of = _index_of_uuid if entries[0].startswith("GPU-") else _index_of_ordinal
    found: list[int] = []
    for entry in entries:
        index = index_of(entry, uuids)
        if index is None:
            break
        if index in found:
            return []
        found.append(index)
    return found


def _index_of_uuid(entry: str, uuids: Sequence[str | None]) -> int | None:
    if not entry.startswith("GPU-"):
        return None
    matches = [i for i, uuid in enumerate(uuids) if uuid and uuid.lower().startswith(entry.lower())]
    if not matches and None in uuids:
        raise PowerError(
            f"CUDA_VISIBLE_DEVICES names {entry}, which is none of the GPUs that answer; "
            f"{uuids.count(None)} of this node do not. Look at `nvidia-smi -L`."
        )
    return matches[0] if len(matches) == 1 else None


def _index_of_ordinal(entry: str, uuids: Sequence[str | None]) -> int | None:
    digits = re.match(r"\+?([0-9]+)", entry)  # as strtoul does: what follows them is ignored
    if not digits or int(digits[1]) >= len(uuids):
        return None
    index = int(digits[1])
    answering = len(uuids) - uuids.count(None)
    # CUDA may count a GPU that does not answer, or pass over it
    if uuids[index] is None or (None in uuids[:index] and index < answering):
        silent = ", ".join(str(i) for i, uuid in enumerate(uuids) if uuid is None)
        raise PowerError(
            f"CUDA_VISIBLE_DEVICES names GPU {index}, and GPU {silent} of this node does not answer, so that it is not "
            "known which one that is. Name GPUs by UUID (`nvidia-smi -L`), and have the lost one looked at."
        )
    return index


def find_gpus(named: Sequence[str] | None = None) -> list[Gpu]:
    """Return the GPUs that CUDA shows under CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, by ordinal; NVML must be open.

    With `named` the GPUs of these UUIDs, as if CUDA_VISIBLE_DEVICES named them.

    AbsentError where there is none; PowerError where their order is ambiguous, one of them does not answer, or is in
    MIG mode. That another GPU of the node does not answer is no fault.
    """
    setting = os.environ.get("CUDA_VISIBLE_DEVICES") if named is None else ",".join(named)
    order = os.environ.get("CUDA_DEVICE_ORDER")
    boards = _boards()
    uuids = [None if board is None else board[1] for board in boards]
    names = [board[2] for board in boards if board is not None]
    by_uuid = setting is not None and setting.strip().startswith("GPU-")
    if len(set(names)) > 1 and order != "PCI_BUS_ID" and not by_uuid:
        raise PowerError(
            f"GPUs of several kinds ({', '.join(sorted(set(names)))}): CUDA counts the fastest first and NVML by "
            "bus, so an ordinal may mean two GPUs. Set CUDA_DEVICE_ORDER=PCI_BUS_ID in the job (cluster.setup)."
        )
    shown = visible(setting, uuids)
    if not shown:
        raise AbsentError(
            f"no GPU is visible (CUDA_VISIBLE_DEVICES={setting}, {len(uuids)} by NVML)."
        )
    gpus = []
    for ordinal, index in enumerate(shown):
        board = boards[index]
        assert board is not None
        handle, uuid, name = board
        mode = call_or_none("nvmlDeviceGetMigMode", handle)
        if mode is not None and mode[0]:
            raise PowerError(
                f"{uuid} is in MIG mode: its power is the whole board's, so a slice's energy is unknown. "
                "Ask for GPUs without MIG."
            )
        pci = call_or_none("nvmlDeviceGetPciInfo", handle)
        gpus.append(
            Gpu(
                handle,
                {
                    "ordinal": ordinal,
                    "uuid": uuid,
                    "bus_id": None if pci is None else text(pci.busId),
                    "name": name,
                    **_fixed(handle),
                    **_metered(uuid),
                },
            )
        )
    return gpus


class _Metered(TypedDict, total=False):
    reference: Reference


def _metered(uuid: str) -> _Metered:
    """Return what an external meter found of a board, where somebody kept it; PowerError for a file that is none."""
    try:
        found = references.find(uuid)
    except DamagedError as error:
        raise PowerError(f"{error} Remove it, or measure anew by `wattflow calibrate`.") from error
    return {} if found is None else {"reference": found}


def _boards() -> list[tuple[Any, str, str] | None]:
    """Return handle, UUID and name of each GPU of the node by NVML's index; null for one that does not answer.

    Those that this user may not see are left out, as CUDA does not count them. PowerError where none answers.
    """
    found: list[tuple[Any, str, str] | None] = []
    faults = []
    for index in range(call("nvmlDeviceGetCount")):
        try:
            handle = call("nvmlDeviceGetHandleByIndex", index)
            found.append(
                (handle, call("nvmlDeviceGetUUID", handle), call("nvmlDeviceGetName", handle))
            )
        except PowerError as error:
            faults.append(error)
            if not isinstance(error.__cause__, pynvml.NVMLError_NoPermission):
                found.append(None)
    if faults and not any(found):
        raise faults[0]
    if None in found:
        _warn(f"GPU {found.index(None)} of this node does not answer ({faults[0]})")
    return found


@functools.cache
def _warn(line: str) -> None:
    """Say a thing once a process, however often GPUs are looked for."""
    log.warning("%s", line)


def _fixed(handle: Any) -> DeviceSettings:
    """Return what an operator set on a GPU and what its maker allows; null where NVML has no answer."""
    ecc = call_or_none("nvmlDeviceGetEccMode", handle)
    persistence = call_or_none("nvmlDeviceGetPersistenceMode", handle)
    default_mw = call_or_none("nvmlDeviceGetPowerManagementDefaultLimit", handle)
    bounds_mw = call_or_none("nvmlDeviceGetPowerManagementLimitConstraints", handle)
    return {
        "ecc": None if ecc is None else bool(ecc[0]),
        "persistence": None if persistence is None else bool(persistence),
        "power_limit_default_w": _limit_w(default_mw),
        "power_limit_min_w": None if bounds_mw is None else _limit_w(bounds_mw[0]),
        "power_limit_max_w": None if bounds_mw is None else _limit_w(bounds_mw[1]),
    }


def _limit_w(limit_mw: float | None) -> float | None:
    """Return NVML's limit in W; null for what is none of a board."""
    limit_w = None if limit_mw is None else limit_mw / 1e3
    return limit_w if credible_watts(limit_w, "") else None


KERNEL_LISTS = Path("/proc/driver/nvidia/gpus")  # a folder a GPU, also where NVML does not answer
_HIDES_ALL = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES


def gpus_in_words() -> str | None:
    """Return how many GPUs of this node the job may use, and which; null where it has none or hides them all."""
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is not None and setting.strip() in _HIDES_ALL:
        return None
    try:
        call("nvmlInit")
    except PowerError as error:
        return _without_nvml(error)
    try:
        gpus = find_gpus()
        return f"{len(gpus)} GPUs ({', '.join(sorted({gpu.device['name'] for gpu in gpus}))})"
    except AbsentError as error:
        return f"GPUs, though {error}" if call_or_none("nvmlDeviceGetCount") else None
    except PowerError as error:
        return f"GPUs, though {error}"
    finally:
        call_or_none("nvmlShutdown")


def _without_nvml(error: PowerError) -> str | None:
    """Return the GPUs that the kernel lists while NVML fails; null in a job that was given none."""
    given = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS")
    if "SLURM_JOB_ID" in os.environ and not any(os.environ.get(name) for name in given):
        return None
    try:
        count = len(list(KERNEL_LISTS.iterdir()))
    except OSError:
        return None
    return f"{count} GPUs, though NVML does not answer ({error})" if count else None


def text(value: str | bytes) -> str:
    """Return the text of a name, which NVML gives as bytes in some versions."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def uuids_shown() -> list[str]:
    """Return the UUIDs of the GPUs that CUDA shows, by ordinal; [] for none, PowerError where they are not known."""
    call("nvmlInit")
    try:
        return [gpu.device["uuid"] for gpu in find_gpus()]
    except AbsentError:
        return []
    finally:
        call_or_none("nvmlShutdown")
