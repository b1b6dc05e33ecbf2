"""The lock that lets one process at a time submit to a sweep, and write to its journal."""

from contextlib import AbstractContextManager

from wattflow.store.layout import SweepDir
from wattflow.store.lock import FolderLock, LostLockError, folder_lock

__all__ = ["LostLockError", "SubmitLock", "submit_lock"]

SubmitLock = FolderLock
_PATIENCE_S = 30.0  # a collect job holds the lock for a second or two, a submit of 10,000 points for some more


def submit_lock(
    sweep: SweepDir, patience_s: float = _PATIENCE_S
) -> AbstractContextManager[SubmitLock]:
    """Hold the submit lock within; RefusedError when another process has it for longer than `patience_s`."""
    return folder_lock(sweep.path / "turns", "submitting", patience_s)
