"""DCGM: watts, the energy counter and conditions of each visible GPU, by `dcgmi dmon`, where a site has it.

Two dcgmi processes run beside the sidecar, as fields differ in what it costs the driver to read them:

    power     field 157 (instant), else 155 (as NVML's power usage): each power.poll_ms
    the rest  each second: energy counter, clocks, temperature, activity, memory, limit in force, reasons for lower
              clocks, and profiling fields where power.dcgm_profiling asks for them

A row of dmon is the host engine's field cache: it has no stamp, so it is stamped on arrival, and its value may be a
period older. There is no history either: what a process that died did not print is lost, and marked as a gap.

Fields go by number, as DCGM 4.6 renamed them. Which GPUs are this job's, NVML tells: DCGM's numbers are the node's.
"""

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import pyarrow as pa

from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.power.meter import Beat, Moment, Reading, Row, moment, stamped
from wattflow.power.nvml import find_gpus, usage_source
from wattflow.power.nvml_calls import ask, ask_or_none
from wattflow.store.schema import TRACE, Device
from wattflow.store.sources import MS, longest_spacing_ns, source_of

log = logging.getLogger(__name__)

INSTANT, USAGE, COUNTER = 157, 155, 156
MIB = 1024 * 1024

# the column that a field fills, and what its value is multiplied by
CONDITIONS = {
    100: ("sm_clock_mhz", 1),
    101: ("memory_clock_mhz", 1),
    112: ("throttle_reasons", 1),
    150: ("temperature_c", 1),
    164: ("power_limit_w", 1),
    203: ("gpu_activity_pct", 1),
    204: ("memory_activity_pct", 1),
    252: ("memory_used_bytes", MIB),
}
# shares of 1, and bytes per second
PROFILING = {
    1001: ("graphics_activity_pct", 100),
    1002: ("sm_activity_pct", 100),
    1003: ("sm_occupancy_pct", 100),
    1004: ("tensor_activity_pct", 100),
    1005: ("dram_activity_pct", 100),
    1009: ("pcie_tx_mib_s", 1 / MIB),
    1010: ("pcie_rx_mib_s", 1 / MIB),
    1011: ("nvlink_tx_mib_s", 1 / MIB),
    1012: ("nvlink_rx_mib_s", 1 / MIB),
}

# DCGM's blank values begin here; a double's is the least of the large ones, and an int64's lies above it
BLANK_INT32 = range(0x7FFFFFF0, 0x80000000)
BLANK_FP64 = 140737488355328.0

ANSWER_TIMEOUT_S = 30.0  # for a dcgmi command that ends by itself; one without a host engine gives up after some 5 s
REST_MS = source_of("dcgm").counter_age_ns // MS
DRAIN_NS = 50_000_000  # how often what came is handed on; it was stamped when it came
LONGEST_PAUSE_S = 5.0  # between two tries to start a dmon that keeps ending
SILENT_NS = (
    10_000_000_000  # a dmon that prints nothing for so long (and five periods) is started again
)

# prctl(PR_SET_PDEATHSIG, SIGKILL), then become the command; the signal follows the thread that started it
DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"

Values = dict[int, float | int | None]  # by field

ENTITY = re.compile(r"\s*(?:GPU-I|GPU-CI|GPU|vGPU|Switch|Link|CPU) +\d+\s")


# ---- what dcgmi prints ----


def number(cell: str) -> float | int | None:
    """The number in a cell; None for N/A, a value that was cut (`1234...`), any text, and DCGM's blank values."""
    try:
        value = int(cell) if cell.isdigit() else float(cell)
    except ValueError:
        return None
    known = 0 <= value < BLANK_FP64 and value not in BLANK_INT32
    return value if known else None


class Table:
    """Takes in what dmon prints, in pieces of any size, and gives the values of GPUs.

    Headers come again and again and are passed over, as are entities other than whole GPUs. A row with fewer or more
    cells than there are fields is left out: which one is missing cannot be told. `said` is the last line that was no
    part of the table: an error, if anything.
    """

    def __init__(self, fields: Sequence[int]) -> None:
        self._fields = tuple(fields)
        self._rest = b""
        self.said = ""

    def feed(self, data: bytes) -> list[tuple[int, Values]]:
        """The whole rows of GPUs, as (DCGM's number of the GPU, values), that end in this piece."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        rows = (self._row(line.decode(errors="replace")) for line in lines)
        return [row for row in rows if row is not None]

    def _row(self, line: str) -> tuple[int, Values] | None:
        cells = line.split()
        if not ENTITY.match(line):
            if cells and not cells[0].startswith("#") and cells[0].upper() != "ID":
                self.said = line.strip()
            return None
        if cells[0] != "GPU" or len(cells) != 2 + len(self._fields):
            return None
        return int(cells[1]), dict(zip(self._fields, map(number, cells[2:]), strict=True))


def discovered(text: str) -> dict[str, int]:
    """DCGM's number of each GPU by its UUID, from `dcgmi discovery -l`; NvSwitches and CPUs have no such UUID."""
    found: dict[str, int] = {}
    gpu = None
    for line in text.splitlines():
        if row := re.match(r"\|\s*(\d+)\s*\|", line):
            gpu = int(row[1])
        uuid = re.search(r"Device UUID:\s*(GPU-\S+)", line)
        if uuid and gpu is not None:
            found[uuid[1]] = gpu
    return found


# ---- asking ----


def dcgmi(*arguments: str) -> str:
    """What a dcgmi command prints; PowerError with its last line where it is not there, fails, or does not answer."""
    command = f"dcgmi {' '.join(arguments)}"
    try:
        asked = subprocess.run(
            ["dcgmi", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise PowerError(f"dcgmi cannot be run ({error}).") from error
    except subprocess.TimeoutExpired as error:
        raise PowerError(f"{command}: no answer within {ANSWER_TIMEOUT_S:g} s.") from error
    text = asked.stdout.decode(errors="replace")
    if asked.returncode != 0:
        lines = text.strip().splitlines()
        last = lines[-1].strip() if lines else f"it ended with code {asked.returncode}"
        raise PowerError(f"{command}: {last}")
    return text


def numbers_of_gpus() -> dict[str, int]:
    """DCGM's number of each of the node's GPUs by UUID; PowerError where the host engine shows none."""
    engine = "Is DCGM installed, and its host engine running (`systemctl status nvidia-dcgm`)?"
    try:
        found = discovered(dcgmi("discovery", "-l"))
    except PowerError as error:
        raise PowerError(f"{error} {engine}") from error
    if not found:
        raise PowerError(f"dcgmi discovery -l shows no GPU. {engine}")
    return found


def sampled(fields: Sequence[int], gpus: Sequence[int], period_ms: int) -> list[tuple[int, Values]]:
    """Three rows of each GPU, a period apart; [] where DCGM prints none."""
    text = dcgmi(*_dmon(fields, gpus, period_ms), "-c", "3")
    return Table(fields).feed(text.encode() + b"\n")


def _dmon(fields: Sequence[int], gpus: Sequence[int], period_ms: int) -> list[str]:
    told = [",".join(map(str, some)) for some in (fields, gpus)]
    return ["dmon", "-e", told[0], "-i", told[1], "-d", str(period_ms)]


def power_field(gpus: Sequence[int]) -> int:
    """The first of fields 157 and 155 that all GPUs have; PowerError, with what each gave, where there is none.

    157 may read 0 W where it is not supported, so that 0 W is no reading.
    """
    told = []
    for field in (INSTANT, USAGE):
        try:
            rows = sampled([field], gpus, 100)
        except PowerError as error:
            told.append(str(error))
            continue
        silent = set(gpus) - {gpu for gpu, values in rows if values[field]}
        if not silent:
            return field
        told.append(f"field {field} has no watts of {_listed(silent)}.")
    raise PowerError(f"DCGM tells no power of all GPUs {_listed(gpus)}: {' '.join(told)}")


def check_profiling(gpus: Sequence[int]) -> None:
    """PowerError where DCGM has no profiling values of a GPU for this user."""
    rows = sampled(list(PROFILING), gpus, 500)
    silent = set(gpus) - {gpu for gpu, values in rows if set(values.values()) != {None}}
    if silent:
        raise PowerError(
            f"power.dcgm_profiling=true: DCGM has no profiling values of GPU {_listed(silent)}. They need a "
            "data-centre GPU, often a host engine that runs as root, and no other profiler. "
            "Set power.dcgm_profiling=false."
        )


def _listed(gpus: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(gpus)))


# ---- listening ----


class Heard(NamedTuple):
    """A row of a GPU and when it came; or, where `gpu` is None, that the process ended at that moment."""

    at: Moment
    gpu: int | None
    values: Values


class Stream:
    """A dmon that runs until `close`: a thread stamps its rows as they come, and starts it again when it ends."""

    def __init__(
        self,
        fields: Sequence[int],
        gpus: Sequence[int],
        period_ms: int,
        silent_ns: int = SILENT_NS,
    ) -> None:
        self._fields, self._gpus = fields, gpus
        self._command = ["dcgmi", *_dmon(fields, gpus, period_ms)]
        # it prints for ever, and must not outlive a sidecar that is killed: the kernel sees to it
        self._start = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, *self._command]
        self._silent_ns = max(silent_ns, 5 * period_ms * 1_000_000)
        self._heard: deque[Heard] = deque()
        self._last_ns: dict[int, int] = {}  # when each GPU's last row came, monotonic
        self._alive_ns = time.monotonic_ns()  # when anything was last heard
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="dmon", daemon=True)
        self._thread.start()

    def take(self) -> list[Heard]:
        """What was heard since the last call, oldest first; a process that went silent is killed."""
        with self._changed:
            heard = list(self._heard)
            self._heard.clear()
            if time.monotonic_ns() - self._alive_ns > self._silent_ns:
                log.warning("%s: silent; it is started again", " ".join(self._command))
                self._alive_ns = time.monotonic_ns()
                self._kill()
        return heard

    def wait(self, timeout_s: float) -> None:
        """Return when every GPU has a row that is newer than this call, or when the time is up."""
        now_ns = time.monotonic_ns()
        with self._changed:
            self._changed.wait_for(
                lambda: all(self._last_ns.get(gpu, 0) > now_ns for gpu in self._gpus), timeout_s
            )

    def close(self) -> None:
        """End the process and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._kill()
        self._thread.join()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    # ---- the listening thread ----

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            said, rows = self._listen_once()
            pause_s = 0.1 if rows else min(max(2 * pause_s, 0.1), LONGEST_PAUSE_S)
            with self._changed:
                if self._closed:
                    return
                log.warning("%s: ended (%s); it is started again", " ".join(self._command), said)
                self._heard.append(Heard(moment(), None, {}))
                if self._changed.wait_for(lambda: self._closed, pause_s):
                    return

    def _listen_once(self) -> tuple[str, int]:
        """Run dmon until it ends; returns what it said beside its table, and how many rows it gave."""
        try:
            with self._changed:
                if self._closed:
                    return "", 0
                self._alive_ns = time.monotonic_ns()
                self._process = process = subprocess.Popen(
                    self._start,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    process_group=0,  # Ctrl-C is for the sidecar's parent, which says when to end
                )
        except OSError as error:
            return str(error), 0
        table = Table(self._fields)
        stale = set(self._gpus)  # the first value after a start may be an old one
        rows = 0
        with process:
            for data in _pieces(process.stdout):
                at = moment()
                # of several rows of a GPU that come at once, only the newest is of now
                fresh = dict(table.feed(data))
                rows += len(fresh)
                with self._changed:
                    self._alive_ns = at.monotonic_ns
                    for gpu in fresh.keys() & set(self._gpus):
                        if gpu in stale:
                            stale.discard(gpu)
                            continue
                        self._heard.append(Heard(at, gpu, fresh[gpu]))
                        self._last_ns[gpu] = at.monotonic_ns
                    self._changed.notify_all()
        return table.said or f"code {process.returncode}", rows


def _pieces(stream: IO[bytes] | None) -> Iterator[bytes]:
    """What a pipe holds each time that something comes, until its end."""
    assert stream is not None
    while data := os.read(stream.fileno(), 1 << 20):
        yield data


# ---- the meter ----


class DcgmMeter:
    """Reads all visible GPUs of this node through DCGM."""

    name = "dcgm"
    boundary = "gpu"
    late_polls = 0  # dcgmi keeps its own pace: lateness shows in the stamps

    def __init__(self, power: Power) -> None:
        """Find the GPUs and probe their fields; PowerError where dcgmi, its host engine or a GPU's power is missing."""
        self._streams: list[Stream] = []
        numbers = numbers_of_gpus()
        self.devices, self.driver, usage = visible_devices()
        unknown = [device["uuid"] for device in self.devices if device["uuid"] not in numbers]
        if unknown:
            raise PowerError(
                f"DCGM does not know {', '.join(unknown)}; `dcgmi discovery -l` shows {', '.join(numbers)}."
            )
        self._uuids = {numbers[device["uuid"]]: device["uuid"] for device in self.devices}
        self._gpus = sorted(self._uuids)
        self._field = power_field(self._gpus)
        self._profiling = PROFILING if power.dcgm_profiling else {}
        if self._profiling:
            check_profiling(self._gpus)
        averaged = self._field == USAGE and "nvml_usage_mean" in usage
        self.source = "dcgm_mean" if averaged else "dcgm"
        self.period_ms = float(power.poll_ms)
        self._gap_ns = longest_spacing_ns(self.source, self.period_ms)
        self._version = version()

    @property
    def about(self) -> dict[str, str]:
        """Which field the watts are, what time they average, and how old a value may be when it is stamped."""
        told: dict[str, str | None] = {
            "dcgm_version": self._version,
            "dcgm_field": str(self._field),
            "averaging": source_of(self.source).averages,
            "stamped": "on arrival",
            "age_ms": f"0 to {self.period_ms:g}",
            "counter_age_ms": f"0 to {REST_MS}",
        }
        return {key: value for key, value in told.items() if value is not None}

    def begin(self, last_ns: Mapping[str, int]) -> None:
        """Start a trace; there is no history, so whatever came before is dropped."""
        if not self._streams:
            rest = [COUNTER, *CONDITIONS, *self._profiling]
            self._streams = [
                Stream([self._field], self._gpus, round(self.period_ms)),
                Stream(rest, self._gpus, REST_MS),
            ]
        for stream in self._streams:
            stream.take()
        self._last_ns = dict(last_ns)  # the last sample by uuid
        self._lost: set[str] = set()  # devices whose history was lost since their last sample
        self._drain = Beat(DRAIN_NS, time.monotonic_ns())

    def due_ns(self) -> int:
        """The monotonic time at which what came is next handed on."""
        return self._drain.next_ns

    def read(self) -> list[Reading]:
        """The rows that came since the last call."""
        return self._take() if self._drain.take(time.monotonic_ns()) else []

    def mark(self) -> None:
        """Nothing to do: the host engine reads the counter at its own pace, and asking more often disturbs the GPU."""

    def finish(self) -> list[Reading]:
        """What came, and one more row of every field, so that samples and counter enclose what was measured."""
        readings = self._take()
        for stream, period_ms in zip(self._streams, (self.period_ms, REST_MS), strict=True):
            stream.wait(2 * period_ms / 1e3 + 0.5)
        return readings + self._take()

    def close(self) -> None:
        """End both processes."""
        for stream in self._streams:
            stream.close()
        self._streams = []

    def _take(self) -> list[Reading]:
        power, rest = self._streams
        rows = [(heard, self._power_rows) for heard in power.take()]
        rows += [(heard, self._rest_rows) for heard in rest.take()]
        return [reading for heard, rows_of in rows for reading in rows_of(heard)]

    def _power_rows(self, heard: Heard) -> Iterator[Reading]:
        """A sample; or, where dmon ended, the mark of a sensor that stopped, for each device."""
        if heard.gpu is None:
            self._lost.update(self._uuids.values())
            for device in self.devices:
                yield device["uuid"], stamped(heard.at, self.source, True)
            return
        uuid = self._uuids[heard.gpu]
        power_w = heard.values[self._field] or None  # 0 W is no reading
        last_ns = self._last_ns.get(uuid, heard.at.time_ns)
        gap = uuid in self._lost or heard.at.time_ns - last_ns > self._gap_ns
        row = stamped(heard.at, self.source, power_w is not None and gap)
        if power_w is not None:
            self._lost.discard(uuid)
            self._last_ns[uuid] = heard.at.time_ns
        yield uuid, {**row, "power_w": power_w}

    def _rest_rows(self, heard: Heard) -> Iterator[Reading]:
        """The counter, the conditions and the profiling values, each in a row of its own."""
        if heard.gpu is None:
            return
        uuid = self._uuids[heard.gpu]
        counter_mj = heard.values[COUNTER]
        # a counter that was printed with an exponent has lost its joules
        if isinstance(counter_mj, int):
            yield uuid, {**stamped(heard.at, "dcgm_counter", False), "counter_mj": counter_mj}
        row = columns(CONDITIONS, heard.values)
        yield uuid, {**stamped(heard.at, "dcgm_conditions", False), **row}
        if self._profiling:
            row = columns(self._profiling, heard.values)
            yield uuid, {**stamped(heard.at, "dcgm_profiling", False), **row}


def visible_devices() -> tuple[list[Device], str | None, set[str]]:
    """The GPUs that CUDA shows, the driver's version, and what NVML's power usage is on them.

    PowerError where NVML shows none: DCGM runs outside of the job, and cannot tell which of the node's GPUs are its.
    """
    ask("nvmlInit")
    try:
        gpus = find_gpus(
            os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER")
        )
        driver = ask_or_none("nvmlSystemGetDriverVersion")
        return [gpu.device for gpu in gpus], driver, {usage_source(gpu.handle) for gpu in gpus}
    finally:
        ask_or_none("nvmlShutdown")


def version() -> str | None:
    """DCGM's version, or None where dcgmi does not tell it."""
    with contextlib.suppress(PowerError):
        if found := re.search(r"\d+(?:\.\d+)+", dcgmi("--version")):
            return found[0]
    return None


def columns(filled: Mapping[int, tuple[str, float]], values: Values) -> Row:
    """The trace columns that some fields fill; null for what is blank, and for what the column cannot hold."""
    row: Row = {}
    for field, (column, factor) in filled.items():
        value = values[field]
        kind = TRACE.field(column).type
        if value is not None and pa.types.is_integer(kind):
            whole = round(value * factor)
            row[column] = whole if whole < 2 ** (kind.bit_width - 1) else None
        else:
            row[column] = None if value is None else value * factor
    return row
