"""The command dcgmi: what it prints, and a dmon that runs beside the sidecar.

A row of dmon is the host engine's field cache: it has no stamp, so it is stamped on arrival, and its value may be a
period older. There is no history either: what a process that died did not print is lost.
"""

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from wattflow.errors import PowerError
from wattflow.power.meter import Moment, moment

log = logging.getLogger(__name__)

# DCGM's blank values begin here; a double's is the least of the large ones, and an int64's lies above it
BLANK_INT32 = range(0x7FFFFFF0, 0x80000000)
BLANK_FP64 = 140737488355328.0

ANSWER_TIMEOUT_S = 30.0  # for a dcgmi command that ends by itself; one without a host engine gives up after some 5 s
LONGEST_PAUSE_S = 5.0  # between two tries to start a dmon that keeps ending
SILENT_NS = (
    10_000_000_000  # a dmon that prints nothing for so long (and five periods) is started again
)

# prctl(PR_SET_PDEATHSIG, SIGKILL), then become the command; the signal follows the thread that started it
DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"

# as C prints numbers: Python would also read 1_000, nan and digits of other scripts
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?", re.ASCII)

Values = dict[int, float | int | None]  # by field

ENTITY = re.compile(r"\s*(?:GPU-I|GPU-CI|GPU|vGPU|Switch|Link|CPU) +\d+\s")


# ---- what dcgmi prints ----


def number(cell: str) -> float | int | None:
    """Return the number in a cell; None for N/A, a cut value (`1234...`), any text, and DCGM's blank values."""
    if not _NUMBER.fullmatch(cell):
        return None
    value = int(cell) if cell.isdigit() else float(cell)
    known = 0 <= value < BLANK_FP64 and value not in BLANK_INT32
    return value if known else None


class Table:
    """Reads what dmon prints, in chunks of any size, as the values of GPUs.

    Headers are repeated and skipped, as are entities other than whole GPUs. A row with fewer or more cells than there
    are fields is skipped: which one is missing is unknown. `message` is the last line that was no part of the table:
    an error, if anything.
    """

    def __init__(self, fields: Sequence[int]) -> None:
        self._fields = tuple(fields)
        self._rest = b""
        self.message = ""

    def feed(self, data: bytes) -> list[tuple[int, Values]]:
        """Return the whole rows of GPUs, as (DCGM's number of the GPU, values), that end in this chunk."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        rows = (self._row(line.decode(errors="replace")) for line in lines)
        return [row for row in rows if row is not None]

    def _row(self, line: str) -> tuple[int, Values] | None:
        cells = line.split()
        if not ENTITY.match(line):
            if cells and not cells[0].startswith("#") and cells[0].upper() != "ID":
                self.message = line.strip()
            return None
        if cells[0] != "GPU" or len(cells) != 2 + len(self._fields):
            return None
        return int(cells[1]), dict(zip(self._fields, map(number, cells[2:]), strict=True))


def parse_discovery(text: str) -> dict[str, int]:
    """Return DCGM's number of each GPU by UUID, from `dcgmi discovery -l`; NvSwitches and CPUs have no such UUID."""
    found: dict[str, int] = {}
    gpu = None
    for line in text.splitlines():
        if row := re.match(r"\|\s*(\d+)\s*\|", line):
            gpu = int(row[1])
        uuid = re.search(r"Device UUID:\s*(GPU-\S+)", line)
        if uuid and gpu is not None:
            found[uuid[1]] = gpu
    return found


# ---- commands that end ----


def dcgmi(*arguments: str) -> str:
    """Return what a dcgmi command prints; PowerError with its last line if it is missing, fails or does not answer."""
    command = f"dcgmi {' '.join(arguments)}"
    try:
        done = subprocess.run(
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
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        lines = text.strip().splitlines()
        last = lines[-1].strip() if lines else f"it ended with code {done.returncode}"
        raise PowerError(f"{command}: {last}")
    return text


def numbers_of_gpus() -> dict[str, int]:
    """Return DCGM's number of each of the node's GPUs by UUID; PowerError where the host engine shows none."""
    engine = "Is DCGM installed, and its host engine running (`systemctl status nvidia-dcgm`)?"
    try:
        found = parse_discovery(dcgmi("discovery", "-l"))
    except PowerError as error:
        raise PowerError(f"{error} {engine}") from error
    if not found:
        raise PowerError(f"dcgmi discovery -l shows no GPU. {engine}")
    return found


def sample_rows(
    fields: Sequence[int], gpus: Sequence[int], period_ms: int
) -> list[tuple[int, Values]]:
    """Return three rows of each GPU, a period apart; [] where DCGM prints none."""
    text = dcgmi(*_dmon(fields, gpus, period_ms), "-c", "3")
    return Table(fields).feed(text.encode() + b"\n")


def _dmon(fields: Sequence[int], gpus: Sequence[int], period_ms: int) -> list[str]:
    columns, rows = (",".join(map(str, numbers)) for numbers in (fields, gpus))
    return ["dmon", "-e", columns, "-i", rows, "-d", str(period_ms)]


# ---- a dmon that runs ----


class Arrival(NamedTuple):
    """A row of a GPU and when it came; where `gpu` is None, the process ended at that moment."""

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
        self._arrivals: deque[Arrival] = deque()
        self._last_ns: dict[int, int] = {}  # when each GPU's last row came, monotonic
        self._alive_ns = time.monotonic_ns()  # when anything last came
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="dmon", daemon=True)
        self._thread.start()

    def take(self) -> list[Arrival]:
        """Return the arrivals since the last call, oldest first; a process that went silent is killed."""
        with self._changed:
            arrivals = list(self._arrivals)
            self._arrivals.clear()
            if time.monotonic_ns() - self._alive_ns > self._silent_ns:
                log.warning("%s: silent; it is started again", " ".join(self._command))
                self._alive_ns = time.monotonic_ns()
                self._kill()
        return arrivals

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

    # ---- the reading thread ----

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            message, rows = self._read_once()
            pause_s = 0.1 if rows else min(max(2 * pause_s, 0.1), LONGEST_PAUSE_S)
            with self._changed:
                if self._closed:
                    return
                log.warning("%s: ended (%s); it is started again", " ".join(self._command), message)
                self._arrivals.append(Arrival(moment(), None, {}))
                if self._changed.wait_for(lambda: self._closed, pause_s):
                    return

    def _read_once(self) -> tuple[str, int]:
        """Run dmon until it ends; returns its last message and how many rows it gave."""
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
            for data in _chunks(process.stdout):
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
                        self._arrivals.append(Arrival(at, gpu, fresh[gpu]))
                        self._last_ns[gpu] = at.monotonic_ns
                    self._changed.notify_all()
        return table.message or f"code {process.returncode}", rows


def _chunks(stream: IO[bytes] | None) -> Iterator[bytes]:
    """Yield the content of a pipe each time that something comes, until its end."""
    assert stream is not None
    while data := os.read(stream.fileno(), 1 << 20):
        yield data
