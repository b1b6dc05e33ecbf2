"""The GPUs that a job may use: NVML's handles in CUDA's order, and what is fixed about each."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattflow.errors import PowerError
from wattflow.power.nvml_calls import call, call_or_none
from wattflow.store.schema import Device, DeviceSettings


class AbsentError(PowerError):
    """There is no NVML, or it shows no GPU that this job may use."""


@dataclass(frozen=True)
class Gpu:
    """One visible GPU."""

    handle: Any  # NVML's
    device: Device


def visible(setting: str | None, uuids: Sequence[str]) -> list[int]:
    """NVML indices of the GPUs that CUDA shows for CUDA_VISIBLE_DEVICES, by CUDA ordinal.

    By CUDA's rules: unset shows all; entries are ordinals or (beginnings of) GPU- UUIDs, of one kind only; the list
    ends at the first entry that names no GPU; a GPU named twice leaves none. PowerError for MIG- entries.
    """
    if setting is None:
        return list(range(len(uuids)))
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


def _index_of_uuid(entry: str, uuids: Sequence[str]) -> int | None:
    matches = [i for i, uuid in enumerate(uuids) if uuid.lower().startswith(entry.lower())]
    return matches[0] if entry.startswith("GPU-") and len(matches) == 1 else None


def _index_of_ordinal(entry: str, uuids: Sequence[str]) -> int | None:
    digits = re.match(r"\+?([0-9]+)", entry)  # as strtoul does: what follows them is ignored
    return int(digits[1]) if digits and int(digits[1]) < len(uuids) else None


def find_gpus() -> list[Gpu]:
    """Return the GPUs that CUDA shows under CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, by ordinal; NVML must be open.

    AbsentError where there is none; PowerError where their order is ambiguous, or a GPU is in MIG mode.
    """
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    order = os.environ.get("CUDA_DEVICE_ORDER")
    handles = [call("nvmlDeviceGetHandleByIndex", i) for i in range(call("nvmlDeviceGetCount"))]
    uuids = [call("nvmlDeviceGetUUID", handle) for handle in handles]
    names = [call("nvmlDeviceGetName", handle) for handle in handles]
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
        handle = handles[index]
        mode = call_or_none("nvmlDeviceGetMigMode", handle)
        if mode is not None and mode[0]:
            raise PowerError(
                f"{uuids[index]} is in MIG mode: its power is the whole board's, so a slice's energy is unknown. "
                "Ask for GPUs without MIG."
            )
        pci = call_or_none("nvmlDeviceGetPciInfo", handle)
        gpus.append(
            Gpu(
                handle,
                {
                    "ordinal": ordinal,
                    "uuid": uuids[index],
                    "bus_id": None if pci is None else text(pci.busId),
                    "name": names[index],
                    **_fixed(handle),
                },
            )
        )
    return gpus


def _fixed(handle: Any) -> DeviceSettings:
    """Return what an operator set on a GPU and what its maker allows; null where NVML has no answer."""
    ecc = call_or_none("nvmlDeviceGetEccMode", handle)
    persistence = call_or_none("nvmlDeviceGetPersistenceMode", handle)
    default_mw = call_or_none("nvmlDeviceGetPowerManagementDefaultLimit", handle)
    bounds_mw = call_or_none("nvmlDeviceGetPowerManagementLimitConstraints", handle)
    return {
        "ecc": None if ecc is None else bool(ecc[0]),
        "persistence": None if persistence is None else bool(persistence),
        "power_limit_default_w": None if default_mw is None else default_mw / 1e3,
        "power_limit_min_w": None if bounds_mw is None else bounds_mw[0] / 1e3,
        "power_limit_max_w": None if bounds_mw is None else bounds_mw[1] / 1e3,
    }


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
    return value.decode() if isinstance(value, bytes) else value
