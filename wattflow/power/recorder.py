"""Every power sensor of the visible GPUs, side by side, while a load is switched on and off at known instants.

Steps follow one another, each on all GPUs at once:

    costs      each call some times, alone: how long it takes
    bare       nothing is asked of the driver; then the buffer tells what it saw meanwhile
    sidecar    the same beside a sidecar, which asks as it does in a sweep
    context    the same with the load's process on the GPU, idle
    watched    all sensors asked densely, nothing to do
    slow       a load that is on for seconds and off for seconds
    fast       one of half a second, which the buffer needs
    ticks      the same for the counter, whose calls hold up all others and are left out of `fast`
    alias-5    a load of 5 ms: half on, half off; and so on up to alias-200
    costs-on   as costs, while the load is on

What comes of it is a row a value (schema.READS) and the instants at which the load was switched; wattflow.sensors makes
sense of them. Nothing is set on a GPU, so an ordinary user may do this.

The load is a process of its own a GPU, which speaks JSON lines as `engine.pulsed_load` does; this module only knows
its command.
"""

import contextlib
import json
import math
import os
import random
import select
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import pynvml

from wattflow.config.choices import Power
from wattflow.errors import PowerError, RefusedError
from wattflow.power.gpm import Gpm
from wattflow.power.nvml import (
    FIELD_AVERAGE,
    FIELD_INSTANT,
    Gpu,
    buffer,
    conditions,
    fields,
    find_gpus,
    number,
    open_gpm,
    polled_power_w,
    sources,
)
from wattflow.power.nvml_calls import ask, ask_or_none
from wattflow.power.sidecar_client import Sidecar, as_here
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import Device

ALIAS_MS = (5.0, 10.0, 15.0, 20.0, 25.0, 40.0, 50.0, 80.0, 100.0, 104.8, 150.0, 200.0)
LEAST_MINUTES = 2.0
SLOW_HALF_S, FAST_HALF_S = 2.2, 0.5
SILENT_S = 2.2  # the buffer remembers 2.36 s
POLL_S, BUFFER_S, WATCHED_BUFFER_S = 0.003, 0.2, 0.004
COUNTER_S, TICKS_S, GPM_S = 0.030, 0.010, 0.020
# of each GPU: calls hold up all others, and are not asked for more often
COUNTER_CALL_S, GPM_CALL_S = 0.008, 0.012
FIELD_COUNTER = 83
LEAD_NS = 400_000_000  # from planning a step's edges to the first of them
MOST_IDLE_PCT = 5  # what utilisation may say of a GPU that nobody uses
READY_S, ANSWER_S = 180.0, 30.0  # for a load to import torch, and to answer after its last edge

Asking = Literal["alone", "silent", "densely", "counter"]


@dataclass(frozen=True)
class Step:
    """What happens for some seconds: how sensors are asked, and how the load goes, if it does."""

    name: str
    seconds: float
    asking: Asking
    half_s: float | None = None  # the load is on for about so long, off for about so long
    period_ms: float | None = None  # the load is on for half of this, exactly
    load_on: bool = False  # all the time
    counter_s: float | None = COUNTER_S  # how often the counter is asked at most, or never
    sidecar: bool = False
    context: bool = True  # the load's process is there, busy or not


def plan(minutes: float) -> list[Step]:
    """The steps of a calibration that takes about so many minutes, starting loads aside; RefusedError below 2."""
    if not LEAST_MINUTES <= minutes < math.inf:
        raise RefusedError(
            f"--minutes {minutes:g}: {LEAST_MINUTES:g} at least, or sensors that average 1 s see too few edges."
        )
    scale = minutes / 5
    silent = max(SILENT_S, 7 * scale)
    idle = [
        Step("bare", silent, "silent", context=False),
        Step("sidecar", silent, "silent", sidecar=True, context=False),
    ]
    return [
        Step("costs", 0.0, "alone", context=False),
        *idle,
        *idle,
        Step("context", silent, "silent"),
        Step("watched", 8 * scale, "densely"),
        Step("slow", 48 * scale, "densely", half_s=SLOW_HALF_S),
        Step("fast", 28 * scale, "densely", half_s=FAST_HALF_S, counter_s=None),
        Step("ticks", 14 * scale, "counter", half_s=FAST_HALF_S, counter_s=TICKS_S),
        *(Step(f"alias-{ms:g}", 11 * scale, "densely", period_ms=ms) for ms in ALIAS_MS),
        Step("costs-on", 3.0, "alone", load_on=True),
    ]


# --- the load -------------------------------------------------------------------------------------


def load_command(text: str) -> list[str]:
    """The words of a load's command line; RefusedError for none, or one that this machine does not have."""
    try:
        words = shlex.split(text)
    except ValueError as error:  # a quotation that does not end
        raise RefusedError(f"--load {text}: {error}.") from error
    if not words or shutil.which(words[0]) is None:
        raise RefusedError(f"--load {text}: no command that can be run here.")
    return words


class Load:
    """The process that loads one GPU: told when to switch, it tells when it did."""

    def __init__(self, command: Sequence[str], uuid: str, log: Path) -> None:
        """Start it; `ready` waits for it."""
        self._uuid, self._log = uuid, log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**as_here(), "CUDA_VISIBLE_DEVICES": uuid},
            )

    def ready(self) -> str:
        """The name of what it loads, once it is warm and idle; PowerError where it does not come."""
        return str(self._answer("ready", READY_S))

    def switch(self, edges_ns: Sequence[int]) -> None:
        """Have it go on, off, on, off ... at these unix times."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died, which `switched` tells
            self._process.stdin.write(json.dumps({"edges": list(edges_ns)}).encode() + b"\n")
            self._process.stdin.flush()

    def switched(self) -> list[int]:
        """When it did, all edges being over; PowerError where it died."""
        return [int(edge) for edge in self._answer("edges", ANSWER_S)]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self, key: str, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        came, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if came else b""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return json.loads(line)[key]
        said = self._log.read_text(errors="replace").strip().splitlines()
        why = f"did not answer within {timeout_s:g} s" if not came else f"said {line[:80]!r}"
        raise PowerError(
            f"the load of {self._uuid} {why} instead of its {key}; its last line: {said[-1] if said else 'none'}"
        )


def wave(step: Step, start_ns: int, seed: str) -> list[int]:
    """When a step's load goes on and off: an even number of unix times, none for a step without load."""
    end_ns = start_ns + round(step.seconds * 1e9)
    if step.load_on:
        return [start_ns, end_ns]
    if step.period_ms is not None:
        half_ns = step.period_ms * 5e5
        count = int((end_ns - start_ns) / half_ns / 2)
        return [start_ns + round(k * half_ns) for k in range(2 * count)]
    if step.half_s is None:
        return []
    # of another length each time, or samples that come as regularly would fall on the same places of each
    lengths = random.Random(f"{seed} {step.name}")  # noqa: S311 - no secret
    edges: list[int] = []
    at_ns = start_ns
    while True:
        at_ns += round(step.half_s * lengths.uniform(0.9, 1.1) * 1e9)
        if at_ns >= end_ns:
            return edges[: len(edges) // 2 * 2]
        edges.append(at_ns)


# --- asking ---------------------------------------------------------------------------------------


@dataclass
class Asked:
    """One GPU with what its sensors answered: columns of schema.READS, and how often each failed."""

    gpu: Gpu
    sources: list[str]
    rows: list[tuple[int, str, int, int, int | None, float]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    last_us: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, step: int, source: str, call: Callable[[Any], Sequence[Any]]) -> None:
        """Ask a sensor once; `call` gives (source, stamp or null, value) for each value that it has."""
        start_ns = time.time_ns()
        try:
            answers = call(self.gpu.handle)
        except PowerError:
            self.failed[source] += 1
            return
        end_ns = time.time_ns()
        self.rows.extend(
            (step, name, start_ns, end_ns, stamp_ns, float(value))
            for name, stamp_ns, value in answers
            if value is not None
        )

    def drain(self, step: int) -> None:
        """Ask for the samples of the buffer that are new."""
        if "nvml_buffer" in self.sources:
            self.ask(step, "nvml_buffer", self._new_samples)

    def _new_samples(self, handle: Any) -> list[tuple[str, int, float]]:
        with self.lock:
            samples = buffer(handle, self.last_us)
            self.last_us = samples[-1][0] if samples else self.last_us
        return [("nvml_buffer", stamp_us * 1000, power_w) for stamp_us, power_w in samples]

    def count(self, step: int) -> None:
        """Ask the energy counter."""
        self.ask(step, "nvml_counter", _counter)

    def power_now(self, step: int) -> None:
        """Ask all polled sensors of power."""
        for source in self.sources:
            if source.startswith("nvml_usage"):
                self.ask(step, source, _polled(source))
        if {"nvml_instant", "nvml_average"} & set(self.sources):
            self.ask(step, "nvml_instant", _both_fields)

    def activity(self, step: int) -> None:
        """Ask GPM how busy the memory was since it was last asked."""
        gpm = self.gpu.gpm
        if gpm is not None:
            self.ask(step, "nvml_gpm", lambda _: _memory_activity(gpm))


def _counter(handle: Any) -> list[tuple[str, None, float]]:
    return [("nvml_counter", None, ask("nvmlDeviceGetTotalEnergyConsumption", handle))]


def _polled(source: str) -> Callable[[Any], list[tuple[str, None, float]]]:
    return lambda handle: [(source, None, polled_power_w(handle, source))]


def _both_fields(handle: Any) -> list[tuple[str, int, float | None]]:
    names = ("nvml_instant", "nvml_average")
    found = ask("nvmlDeviceGetFieldValues", handle, [FIELD_INSTANT, FIELD_AVERAGE])
    return [
        (name, answer.timestamp * 1000, value / 1e3)
        for name, answer in zip(names, found, strict=True)
        if answer.nvmlReturn == pynvml.NVML_SUCCESS
        and (value := number(answer.valueType, answer.value)) is not None
    ]


def _memory_activity(gpm: Gpm) -> list[tuple[str, None, float]]:
    activity = gpm.read()["dram_activity_pct"]
    return [("nvml_gpm", None, math.nan if activity is None else activity)]  # the call has its cost


def _alone(asked: Asked, step: int, times: int = 30) -> None:
    """Each call by itself, in turn, so that its cost is its own."""

    def counter_field(handle: Any) -> list[tuple[str, None, float | None]]:
        return [("nvml_counter_field", None, fields(handle, [FIELD_COUNTER])[0])]

    def all_conditions(handle: Any) -> list[tuple[str, None, float]]:
        conditions(handle)
        return [("nvml_conditions", None, 1.0)]

    def whole_buffer(handle: Any) -> list[tuple[str, int, float]]:
        return [("nvml_buffer", us * 1000, power_w) for us, power_w in buffer(handle, 0)]

    for _ in range(times):
        if "nvml_buffer" in asked.sources:
            asked.ask(step, "nvml_buffer", whole_buffer)
        for source in asked.sources:
            if source != "nvml_buffer":
                asked.ask(step, source, _polled(source))
        asked.count(step)
        asked.ask(step, "nvml_counter_field", counter_field)
        asked.ask(step, "nvml_conditions", all_conditions)
        asked.activity(step)


def _silently(asked: Asked, step: int, end_ns: int, stopped: threading.Event) -> None:
    """Nothing but the counter at both ends, and the buffer as seldom as it allows."""
    asked.count(step)
    asked.drain(step)
    while (left_ns := end_ns - time.time_ns()) > 0 and not stopped.is_set():
        stopped.wait(min(SILENT_S, left_ns / 1e9))
        asked.drain(step)
    asked.count(step)


def _each(
    period_s: float, end_ns: int, call: Callable[[int], None], step: int, stopped: threading.Event
) -> None:
    """Call at a steady pace until a unix time; beats that were missed are passed over."""
    due_s = time.monotonic()
    while time.time_ns() < end_ns and not stopped.is_set():
        call(step)
        due_s = max(due_s + period_s, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))


# --- recording ------------------------------------------------------------------------------------


class Recorder:
    """Takes the visible GPUs through the steps; a context manager that leaves no process behind."""

    def __init__(self, load: Sequence[str]) -> None:
        """Open NVML; RefusedError where there is no GPU, where it is used by others, or in MIG mode."""
        self._command = load
        try:
            ask("nvmlInit")
        except PowerError as error:
            raise RefusedError(
                f"no GPU to calibrate: {error} Run it on a GPU's node, inside a job."
            ) from error
        try:
            self._asked = self._find()
        except PowerError as error:
            ask_or_none("nvmlShutdown")
            raise RefusedError(f"no GPU to calibrate: {error}") from error
        except RefusedError:
            ask_or_none("nvmlShutdown")
            raise
        self._loads: list[Load] = []
        self.driver: str | None = ask_or_none("nvmlSystemGetDriverVersion")
        self.load_name: str | None = None

    def _find(self) -> list[Asked]:
        gpus = find_gpus(
            os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER")
        )
        for gpu in gpus:
            self._check_free(gpu)
            gpu.gpm = open_gpm(gpu.handle)
        return [Asked(gpu, sources(gpu.handle)) for gpu in gpus]

    @staticmethod
    def _check_free(gpu: Gpu) -> None:
        uuid = gpu.device["uuid"]
        pids = running(gpu)
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

    def __enter__(self) -> Self:
        """The recorder itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the loads and close NVML."""
        for load in self._loads:
            load.close()
        for asked in self._asked:
            if asked.gpu.gpm is not None:
                asked.gpu.gpm.close()
        ask_or_none("nvmlShutdown")

    @property
    def devices(self) -> list[Device]:
        """The GPUs, by CUDA ordinal."""
        return [asked.gpu.device for asked in self._asked]

    def rows(self, uuid: str) -> list[tuple[int, str, int, int, int | None, float]]:
        """What the sensors of a GPU answered, as rows of schema.READS."""
        return next(a.rows for a in self._asked if a.gpu.device["uuid"] == uuid)

    def failed(self, uuid: str) -> dict[str, int]:
        """How often each of its sensors failed."""
        return dict(next(a.failed for a in self._asked if a.gpu.device["uuid"] == uuid))

    def strangers(self) -> dict[str, list[int]]:
        """The processes on each GPU once the loads are gone: others' that came meanwhile."""
        for load in self._loads:
            load.close()
        self._loads = []
        time.sleep(0.5)  # the driver takes a moment to forget them
        return {a.gpu.device["uuid"]: pids for a in self._asked if (pids := running(a.gpu))}

    def record(self, steps: Sequence[Step], say: Callable[[str], None]) -> list[dict[str, Any]]:
        """Go through the steps; returns for each its name, its edges in time and those of each GPU's load.

        PowerError where a load or the sidecar does not do its part.
        """
        done = []
        with tempfile.TemporaryDirectory(prefix="wattflow-calibrate-") as name:
            folder = Path(name)
            for number, step in enumerate(steps):
                say(f"{number + 1}/{len(steps)} {step.name}, {step.seconds:.0f} s")
                if step.context and not self._loads:
                    self._start_loads(folder)
                with contextlib.ExitStack() as beside:
                    if step.sidecar:
                        beside.enter_context(_sidecar(folder / f"sidecar-{number}"))
                    done.append(self._take(number, step))
        return done

    def _start_loads(self, folder: Path) -> None:
        self._loads = [
            Load(self._command, device["uuid"], folder / f"load-{device['uuid']}.log")
            for device in self.devices
        ]
        self.load_name = " / ".join(sorted({load.ready() for load in self._loads}))

    def _take(self, number: int, step: Step) -> dict[str, Any]:
        start_ns = time.time_ns() + (LEAD_NS if step.context else 0)
        end_ns = start_ns + round(step.seconds * 1e9)
        loaded = step.load_on or step.half_s is not None or step.period_ms is not None
        edges: dict[str, list[int]] = {}
        if loaded:
            for load, device in zip(self._loads, self.devices, strict=True):
                load.switch(wave(step, start_ns, device["uuid"]))
        if step.load_on:
            time.sleep(max(0.0, (start_ns + LEAD_NS - time.time_ns()) / 1e9))
        stopped = threading.Event()
        with ThreadPoolExecutor(max_workers=4 * len(self._asked)) as pool, _set_in_the_end(stopped):
            waiting = [
                pool.submit(*words)
                for asked in self._asked
                for words in self._askers(asked, number, step, end_ns, stopped)
            ]
            for future in waiting:
                future.result()
        if loaded:
            for load, device in zip(self._loads, self.devices, strict=True):
                edges[device["uuid"]] = load.switched()
        return {
            "name": step.name,
            "half_s": step.half_s,
            "period_ms": step.period_ms,
            "start_ns": start_ns,
            "end_ns": max(end_ns, time.time_ns()) if step.asking == "alone" else end_ns,
            "edges_ns": edges,
        }

    def _askers(
        self, asked: Asked, number: int, step: Step, end_ns: int, stopped: threading.Event
    ) -> Iterator[tuple[Any, ...]]:
        """What the threads of a GPU do in a step: a function and its arguments each."""
        if step.asking == "alone":
            yield _alone, asked, number
            return
        if step.asking == "silent":
            yield _silently, asked, number, end_ns, stopped
            return
        count = len(self._asked)
        buffer_s = WATCHED_BUFFER_S if step.name == "watched" else BUFFER_S
        more = number, stopped
        yield _each, buffer_s, end_ns, asked.drain, *more
        if step.counter_s is not None:
            yield _each, max(step.counter_s, COUNTER_CALL_S * count), end_ns, asked.count, *more
        if step.asking == "counter":
            return
        yield _each, POLL_S, end_ns, asked.power_now, *more
        if step.period_ms is None and asked.gpu.gpm is not None:
            yield _each, max(GPM_S, GPM_CALL_S * count), end_ns, asked.activity, *more


@contextlib.contextmanager
def _set_in_the_end(event: threading.Event) -> Iterator[None]:
    """Set an event whatever happens, so that threads end with whoever waits for them."""
    try:
        yield
    finally:
        event.set()


def running(gpu: Gpu) -> list[int]:
    """The processes with a compute context on a GPU, as far as this user may see them."""
    found = ask_or_none("nvmlDeviceGetComputeRunningProcesses", gpu.handle)
    return sorted(int(process.pid) for process in found or ())


@contextlib.contextmanager
def _sidecar(folder: Path) -> Iterator[None]:
    """A sidecar that records as in a sweep; what it writes is thrown away."""
    attempt = AttemptDir(folder / "attempt-1", "calibrate", 1)
    attempt.path.mkdir(parents=True)
    attempt.make_folders()
    spool = folder / "spool"
    spool.mkdir(mode=0o700)
    with Sidecar(Power(meter="nvml", host=False), "calibrate", spool) as sidecar:
        sidecar.start(attempt)
        yield
