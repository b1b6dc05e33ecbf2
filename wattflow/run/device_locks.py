"""This machine's devices, one user of wattflow at a time: which ones are seen, and a lock for each."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from wattflow.config.choices import Config
from wattflow.errors import PowerError
from wattflow.power.open import choose, settings_of
from wattflow.process import node_name
from wattflow.store.files import open_append
from wattflow.store.schema import Device


@contextlib.contextmanager
def visible_devices(count: int) -> Iterator[None]:
    """Show only the first `count` of the visible GPUs, so that no other one is measured."""
    key = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(key)
    devices = [str(k) for k in range(count)] if before is None else before.split(",")
    os.environ[key] = ",".join(devices[:count])
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextlib.contextmanager
def device_locks(config: Config, wait: Callable[[], None]) -> Iterator[None]:
    """Hold this machine's lock of each device that a point is measured by: two on one GPU would spoil both's joules.

    `wait` is called before waiting for another sweep. Slurm hands out GPUs itself, so its tasks take no locks; flock is
    sound for all others, as the files lie on this machine.
    """
    folder = Path(tempfile.gettempdir()) / f"wattflow-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PowerError(f"{folder} belongs to somebody else: set TMPDIR to another folder.")
    devices: list[Device] = []
    with contextlib.suppress(PowerError):  # the sidecar says the same, and the attempt keeps it
        meter = choose(settings_of(config), node_name())
        devices = meter.devices
        meter.close()
    with contextlib.ExitStack() as held:
        for uuid in sorted(device["uuid"] for device in devices):
            file = held.enter_context(open_append(folder / f"{uuid}.lock"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
