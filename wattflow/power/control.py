"""Power limits and locked clocks on this node's own GPUs, set for a job and put back after it, whatever ends it.

    lock -> prior value -> journal, fsync -> set -> read back -> the job -> prior value -> read back -> journal gone

A limit outlives the process that set it. So the prior value lies on disk, one file a GPU, before anything is set, and
whoever comes next finds it: a sidecar that was started again for the same job, the next job's, `wattflow restore`.
What is put back is the value found, not the maker's default: sites run their boards below it. NVML does not say
whether clocks were locked before, so locked clocks are put back by unlocking them.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattflow.config.choices import Control
from wattflow.errors import PowerError
from wattflow.power.credible import credible_watts
from wattflow.power.nvml_calls import call, call_or_none
from wattflow.store.files import fsync_folder, open_append, read_own, write_atomic
from wattflow.store.schema import DeviceControl

log = logging.getLogger(__name__)

_UUID = re.compile(r"GPU-[0-9a-fA-F-]{1,60}")


@dataclass(frozen=True)
class Journal:
    """The power limit found on a GPU, and the limit and clock that a job sets there."""

    uuid: str
    prior_mw: int
    limit_mw: int | None  # to be set; null: left as found
    clock_mhz: int | None

    def write(self, folder: Path) -> None:
        """Keep it so that it outlives a power loss; PowerError where it cannot be kept, and nothing may be set."""
        record = {
            "uuid": self.uuid,
            "prior_mw": self.prior_mw,
            "limit_mw": self.limit_mw,
            "clock_mhz": self.clock_mhz,
            "pid": os.getpid(),
            "time_ns": time.time_ns(),
        }
        path = folder / f"{self.uuid}.json"
        try:
            write_atomic(path, json.dumps(record).encode())
            fsync_folder(folder)
        except OSError as error:
            raise PowerError(f"{path}: not written ({error}), so no limit is set.") from error

    @classmethod
    def read(cls, folder: Path, uuid: str) -> "Journal | None":
        """Return the journal that an earlier job left for a GPU; null where none; PowerError where it is damaged."""
        path = folder / f"{uuid}.json"
        try:
            record = json.loads(read_own(path))
            return cls(uuid, int(record["prior_mw"]), record["limit_mw"], record["clock_mhz"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PowerError(
                f"{path}: not readable ({error}). It holds the limit that this GPU had before a job: look at "
                "`nvidia-smi -q -d POWER`, set what the site wants, and remove the file."
            ) from error

    def remove(self, folder: Path) -> None:
        """Forget it: the GPU has its prior value again."""
        (folder / f"{self.uuid}.json").unlink(missing_ok=True)
        fsync_folder(folder)


def _open_folder(path: Path) -> Path:
    """Return the journal's folder, this user's alone; PowerError where it cannot be, as then nothing may be set."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise PowerError(
            f"control.journal_dir={path}: {error}. Limits are set only where the prior value can be kept."
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PowerError(
            f"control.journal_dir={path}: must be a folder of this user's with mode 0700."
        )
    return path


@contextlib.contextmanager
def _locked(folder: Path, uuid: str) -> Iterator[bool]:
    """Yield whether nobody else holds a GPU's control; the kernel lets go of a lock when its holder dies."""
    with open_append(folder / f"{uuid}.lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def restore_left(folder: Path, uuids: Sequence[str] | None = None) -> list[str]:
    """Put back the limits of jobs that ended without doing so; returns the UUIDs. NVML must be open.

    GPUs whose job still lives are skipped. PowerError where a prior value cannot be put back: its journal stays. For
    GPUs that are not in `uuids`, those of a job, that is only a warning: they may be hidden from it, or gone.
    """
    restored, faults = [], []
    for path in sorted(folder.glob("GPU-*.json")):
        if not _UUID.fullmatch(path.stem):
            continue
        with _locked(folder, path.stem) as free:
            if not free:
                continue
            try:
                journal = Journal.read(folder, path.stem)
                if journal is not None:
                    _put_back(folder, journal)
                    restored.append(path.stem)
            except PowerError as error:
                fault = f"{path.stem}: its prior limit could not be put back ({error}), and {path} stays."
                if uuids is None or path.stem in uuids:
                    faults.append(fault)
                else:
                    log.warning("%s", fault)
    if faults:
        raise PowerError(" ".join(faults))
    return restored


def restore(control: Control) -> list[str]:
    """Put back all limits on this node, for `wattflow restore`; [] where no job of this user's set anything."""
    folder = Path(control.journal_dir)
    if not folder.is_dir():
        return []
    call("nvmlInit")
    try:
        return restore_left(_open_folder(folder))
    finally:
        call_or_none("nvmlShutdown")


def _put_back(folder: Path, journal: Journal) -> None:
    handle = call("nvmlDeviceGetHandleByUUID", journal.uuid)
    if journal.clock_mhz is not None:
        call("nvmlDeviceResetGpuLockedClocks", handle)
    if journal.limit_mw is not None:
        call("nvmlDeviceSetPowerManagementLimit", handle, journal.prior_mw)
        now_mw = call("nvmlDeviceGetPowerManagementLimit", handle)
        if now_mw != journal.prior_mw:
            raise PowerError(
                f"{journal.uuid}: its power limit is {now_mw / 1e3:g} W, and not again the "
                f"{journal.prior_mw / 1e3:g} W that it was."
            )
    journal.remove(folder)


class GpuControl:
    """The control of some GPUs while a job holds it. NVML must be open as long."""

    def __init__(self, control: Control, uuids: Sequence[str]) -> None:
        """Set the limit and clock on each GPU; PowerError, and nothing left set, where that fails."""
        self._folder = _open_folder(Path(control.journal_dir))
        self._locks = contextlib.ExitStack()
        self._journals: list[Journal] = []
        self.controlled: list[DeviceControl] = []
        try:
            for uuid in uuids:
                self._take(control, uuid)
        except BaseException:
            self.release()
            raise

    def _take(self, control: Control, uuid: str) -> None:
        if not _UUID.fullmatch(uuid):
            raise PowerError(f"{uuid}: no GPU's UUID, so nothing is set.")
        if not self._locks.enter_context(_locked(self._folder, uuid)):
            raise PowerError(
                f"{uuid}: another job on this node holds its limits. Run one at a time."
            )
        handle = call("nvmlDeviceGetHandleByUUID", uuid)
        wanted_mw = None if control.power_limit_w is None else control.power_limit_w * 1000
        if wanted_mw is not None:
            _check_bounds(handle, uuid, wanted_mw)
        left = Journal.read(self._folder, uuid)
        if left is not None and (left.limit_mw, left.clock_mhz) != (
            wanted_mw,
            control.sm_clock_mhz,
        ):
            _put_back(self._folder, left)
            left = None
        # a sidecar of this job that was killed has set the same: what it found is the prior value, not what is there
        found_mw = call("nvmlDeviceGetPowerManagementLimit", handle)
        if not credible_watts(found_mw / 1e3, ""):
            raise PowerError(
                f"{uuid}: its limit reads {found_mw} mW, to which nothing could be put back."
            )
        journal = Journal(
            uuid, found_mw if left is None else left.prior_mw, wanted_mw, control.sm_clock_mhz
        )
        journal.write(self._folder)
        self._journals.append(journal)
        if wanted_mw is not None:
            _set("control.power_limit_w", "nvmlDeviceSetPowerManagementLimit", handle, wanted_mw)
        if control.sm_clock_mhz is not None:
            clocks = control.sm_clock_mhz, control.sm_clock_mhz
            _set("control.sm_clock_mhz", "nvmlDeviceSetGpuLockedClocks", handle, *clocks)
        self.controlled.append(
            {
                "uuid": uuid,
                "prior_limit_w": journal.prior_mw / 1e3,
                "power_limit_w": None if wanted_mw is None else wanted_mw / 1e3,
                "sm_clock_mhz": control.sm_clock_mhz,
                "limit_in_force_w": call("nvmlDeviceGetEnforcedPowerLimit", handle) / 1e3,
            }
        )

    def release(self) -> None:
        """Put all back; what cannot be is logged, and its journal stays for the next one who comes."""
        with self._locks:
            for journal in self._journals:
                try:
                    _put_back(self._folder, journal)
                except (PowerError, OSError) as error:
                    log.error("%s The journal stays: run `wattflow restore` on this node.", error)  # noqa: TRY400 - the message is for people
            self._journals = []


def _check_bounds(handle: Any, uuid: str, wanted_mw: int) -> None:
    least_mw, most_mw = call("nvmlDeviceGetPowerManagementLimitConstraints", handle)
    if not least_mw <= wanted_mw <= most_mw:
        raise PowerError(
            f"control.power_limit_w={wanted_mw // 1000}: {uuid} takes {least_mw / 1e3:g} to {most_mw / 1e3:g} W."
        )


def _set(key: str, name: str, handle: Any, *values: int) -> None:
    try:
        call(name, handle, *values)
    except PowerError as error:
        raise PowerError(
            f"{key}: {error} Setting needs root or CAP_SYS_ADMIN; on a shared cluster an admin offers caps as node "
            "features (docs/sites.md)."
        ) from error
