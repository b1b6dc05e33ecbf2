"""The recorder of a calibration: reads every power sensor of the visible GPUs while a load is switched on and off.

It takes all GPUs through the steps of calibration_steps.py. What comes of it is a row a value (schema.READS) and the
instants at which the load was switched; wattflow.energy.response makes sense of them. Nothing is set on a GPU, so an
ordinary user may do this.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from wattflow.config.choices import Power
from wattflow.errors import PowerError, RefusedError
from wattflow.power.calibration_steps import Step, StepRecord, wave
from wattflow.power.gpus import Gpu, find_gpus
from wattflow.power.load_process import Load
from wattflow.power.nvml_calls import call, call_or_none
from wattflow.power.nvml_sensors import (
    conditions,
    is_superchip,
    open_gpm,
    running_pids,
    sources,
)
from wattflow.power.sensor_reads import GpuReads, Read
from wattflow.power.sidecar_client import Sidecar
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import Device

POLL_S, BUFFER_S, WATCHED_BUFFER_S, GPM_S = 0.003, 0.2, 0.004, 0.020
# of each GPU: these calls hold up all others, and are not made more often
COUNTER_CALL_S, GPM_CALL_S = 0.008, 0.012
LEAD_NS = 400_000_000  # from planning a step's edges to the first of them
MOST_IDLE_PCT = 5  # the utilisation of a GPU that nobody uses is no more


class Recorder:
    """Takes the visible GPUs through the steps; a context manager that leaves no process behind."""

    def __init__(self, load: Sequence[str]) -> None:
        """Open NVML; RefusedError where there is no GPU, where it is used by others, or in MIG mode."""
        self._command = load
        try:
            call("nvmlInit")
        except PowerError as error:
            raise RefusedError(
                f"no GPU to calibrate: {error} Run it on a GPU's node, inside a job."
            ) from error
        try:
            self._gpus = [_open(gpu) for gpu in find_gpus()]
        except PowerError as error:
            call_or_none("nvmlShutdown")
            raise RefusedError(f"no GPU to calibrate: {error}") from error
        except RefusedError:
            call_or_none("nvmlShutdown")
            raise
        self._loads: list[Load] = []
        self.driver: str | None = call_or_none("nvmlSystemGetDriverVersion")
        self.load_name: str | None = None

    def __enter__(self) -> Self:
        """The recorder itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the loads and close NVML."""
        for load in self._loads:
            load.close()
        for gpu in self._gpus:
            if gpu.gpm is not None:
                gpu.gpm.close()
        call_or_none("nvmlShutdown")

    @property
    def devices(self) -> list[Device]:
        """The GPUs, by CUDA ordinal."""
        return [reads.gpu.device for reads in self._gpus]

    def rows(self, uuid: str) -> list[Read]:
        """Return the readings of a GPU's sensors, as rows of schema.READS."""
        return self._of(uuid).rows

    def failed(self, uuid: str) -> dict[str, int]:
        """Return how often each of its sensors failed."""
        return dict(self._of(uuid).failed)

    def _of(self, uuid: str) -> GpuReads:
        return next(reads for reads in self._gpus if reads.gpu.device["uuid"] == uuid)

    def strangers(self) -> dict[str, list[int]]:
        """Return the processes on each GPU once the loads are gone: others' that came meanwhile."""
        for load in self._loads:
            load.close()
        self._loads = []
        time.sleep(0.5)  # the driver takes a moment to forget them
        pids = {reads.gpu.device["uuid"]: running_pids(reads.gpu.handle) for reads in self._gpus}
        return {uuid: found for uuid, found in pids.items() if found}

    def record(self, steps: Sequence[Step], say: Callable[[str], None]) -> list[StepRecord]:
        """Go through the steps; returns a record of each.

        PowerError where a load or the sidecar does not do its part.
        """
        records = []
        with tempfile.TemporaryDirectory(prefix="wattflow-calibrate-") as name:
            folder = Path(name)
            for number, step in enumerate(steps):
                say(f"{number + 1}/{len(steps)} {step.name}, {step.seconds:.0f} s")
                if step.context and not self._loads:
                    self._start_loads(folder)
                with contextlib.ExitStack() as beside:
                    if step.sidecar:
                        beside.enter_context(_sidecar(folder / f"sidecar-{number}"))
                    records.append(self._record_step(number, step))
        return records

    def _start_loads(self, folder: Path) -> None:
        self._loads = [
            Load(self._command, device["uuid"], folder / f"load-{device['uuid']}.log")
            for device in self.devices
        ]
        self.load_name = " / ".join(sorted({load.ready() for load in self._loads}))

    def _record_step(self, number: int, step: Step) -> StepRecord:
        start_ns = time.time_ns() + (LEAD_NS if step.context else 0)
        end_ns = start_ns + round(step.seconds * 1e9)
        has_load = step.load_on or step.half_s is not None or step.period_ms is not None
        edges: dict[str, list[int]] = {}
        if has_load:
            for load, device in zip(self._loads, self.devices, strict=True):
                load.switch(wave(step, start_ns, device["uuid"]))
        if step.load_on:
            time.sleep(max(0.0, (start_ns + LEAD_NS - time.time_ns()) / 1e9))
        stop = threading.Event()
        with ThreadPoolExecutor(max_workers=4 * len(self._gpus)) as pool, _set_in_the_end(stop):
            futures = [
                pool.submit(*work)
                for reads in self._gpus
                for work in self._threads(reads, number, step, end_ns, stop)
            ]
            for future in futures:
                future.result()
        if has_load:
            for load, device in zip(self._loads, self.devices, strict=True):
                edges[device["uuid"]] = load.switched()
        return {
            "name": step.name,
            "half_s": step.half_s,
            "period_ms": step.period_ms,
            "start_ns": start_ns,
            "end_ns": max(end_ns, time.time_ns()) if step.pace == "alone" else end_ns,
            "edges_ns": edges,
        }

    def _threads(
        self, reads: GpuReads, number: int, step: Step, end_ns: int, stop: threading.Event
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the work of a GPU's threads in a step: a function and its arguments each."""
        if step.pace == "alone":
            yield reads.each_alone, number
            return
        if step.pace == "silent":
            yield reads.silently, number, end_ns, stop
            return
        count = len(self._gpus)
        buffer_s = WATCHED_BUFFER_S if step.name == "watched" else BUFFER_S
        yield _each, buffer_s, end_ns, reads.drain, number, stop
        if step.counter_s is not None:
            counter_s = max(step.counter_s, COUNTER_CALL_S * count)
            yield _each, counter_s, end_ns, reads.count, number, stop
        if step.pace == "counter":
            return
        yield _each, POLL_S, end_ns, reads.power_now, number, stop
        if step.period_ms is None and reads.gpm is not None:
            yield _each, max(GPM_S, GPM_CALL_S * count), end_ns, reads.activity, number, stop


def _open(gpu: Gpu) -> GpuReads:
    """Return a GPU whose sensors can be read; RefusedError where others use it."""
    uuid = gpu.device["uuid"]
    pids = running_pids(gpu.handle)
    if pids:
        raise RefusedError(
            f"{uuid} is in use (process {', '.join(map(str, pids))}), and its watts would be taken for the "
            "load's. Wait until it is free, or hide it by CUDA_VISIBLE_DEVICES."
        )
    busy_pct = conditions(gpu.handle)["gpu_activity_pct"]
    if busy_pct is not None and busy_pct > MOST_IDLE_PCT:
        raise RefusedError(
            f"{uuid} is {busy_pct} % busy by something that is not visible here, and its watts would be taken for "
            "the load's. Ask for a GPU of your own."
        )
    if is_superchip(gpu.handle):
        raise RefusedError(
            f"{uuid} shares a module with a CPU, whose energy counter covers both: there is nothing that its sensors "
            "could be compared with."
        )
    return GpuReads(gpu, open_gpm(gpu.handle), sources(gpu.handle))


@contextlib.contextmanager
def _set_in_the_end(event: threading.Event) -> Iterator[None]:
    """Set an event whatever happens, so that threads end with whoever waits for them."""
    try:
        yield
    finally:
        event.set()


def _each(
    period_s: float, end_ns: int, read: Callable[[int], None], step: int, stop: threading.Event
) -> None:
    """Read at a steady pace until a unix time; readings that were missed are skipped."""
    due_s = time.monotonic()
    while time.time_ns() < end_ns and not stop.is_set():
        read(step)
        due_s = max(due_s + period_s, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))


@contextlib.contextmanager
def _sidecar(folder: Path) -> Iterator[None]:
    """Yield a sidecar that records as in a sweep; what it writes is thrown away."""
    attempt = AttemptDir(folder / "attempt-1", "calibrate", 1)
    attempt.path.mkdir(parents=True)
    attempt.make_folders()
    spool = folder / "spool"
    spool.mkdir(mode=0o700)
    with Sidecar(Power(meter="nvml", host=False), "calibrate", spool) as sidecar:
        sidecar.start(attempt)
        yield
