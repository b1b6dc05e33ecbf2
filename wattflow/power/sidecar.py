"""The sidecar: one process a node that records the power of its devices, and never imports torch.

    python -m wattflow.power.sidecar '{"node": "n1", "spool": "/tmp/x", "parent_pid": 42, "power": {...}}'

Its parent (wattflow.power.parent) speaks to it in JSON lines:

    stdin   {"open": attempt path, "point_id": "...", "attempt": 1, "log": path}    start the traces of an attempt
            {"mark": true}                                              an edge of the measured window is now
            {"close": true}                                             end them
            end of file, or SIGTERM                                     end them and exit
    stdout  {"ready": schema.Ready}     the first sample of every device lies on disk
            {"so_far": schema.SoFar}    each 5 s, and before it closes: what the job's devices took
            {"closed": reason}          every trace lies in the attempt as Parquet
            {"error": message}          the last line of a sidecar that failed

    time line:  open, first drain, ready, (drain each second, flush, copy) ..., close, 100 ms, last drain, Parquet

Traces grow in the node-local spool and are copied to the attempt by a thread of their own, so that a shared file
system which hangs holds up no sample. A sidecar that is started again for the same attempt leaves what the one before
it wrote, goes on in a second file, and asks the driver's buffer for what came in between.
"""

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from wattflow.config import Control, Power
from wattflow.errors import DamagedError, PowerError, WattflowError
from wattflow.power.meter import Meter, Reading, Row, choose, host_meter
from wattflow.schema import TRACE, Controlled, Host, Ready, SoFar
from wattflow.stream import TableStream, read_stream, write_table
from wattflow.sweepdir import AttemptDir, check_name

if TYPE_CHECKING:
    from wattflow.power.control import Held

log = logging.getLogger(__name__)

FSYNC_S = 5.0  # what a power loss may cost; a killed process costs nothing, as the page cache stays
TELL_NS = 5_000_000_000  # how often joules so far are told, to those who watch
SETTLE_NS = 100_000_000  # the driver shows a sample some 15 to 60 ms after its stamp
TAIL = 10_000  # rows of a spool file in which its last sample is looked for: minutes
PR_SET_PDEATHSIG = 1

Command = dict[str, Any]
Reply = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """What the parent tells at the start."""

    node: str
    spool: Path
    parent_pid: int
    power: Power
    control: Control

    @classmethod
    def parse(cls, text: str) -> "Settings":
        """From the JSON argument."""
        told = json.loads(text)
        return cls(
            check_name(told["node"], "node"),
            Path(told["spool"]),
            int(told["parent_pid"]),
            Power(**told["power"]),
            Control(**told["control"]),
        )


class Commands:
    """Lines from stdin, and SIGTERM, as commands; {"end": why} is the last."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._text = b""
        self._ended: str | None = None
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        signal.signal(signal.SIGTERM, self._terminate)
        # Ctrl-C reaches every process of the terminal; the parent says when to end
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # so does Slurm's warning of a preemption or of the time limit
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.set_wakeup_fd(self._waker.fileno())

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self._ended = "SIGTERM"

    def wait(self, timeout_s: float | None) -> Command | None:
        """The next command, or None when the time is up; no time-out with None."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._ended:
                return {"end": self._ended}
            if b"\n" in self._text:
                line, self._text = self._text.split(b"\n", 1)
                command: Command = json.loads(line)
                return command
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            wake = self._wake.fileno()
            came, _, _ = select.select([self._descriptor, wake], [], [], left_s)
            if not came:
                return None
            if wake in came:
                self._wake.recv(64)
            if self._descriptor in came:
                data = os.read(self._descriptor, 65536)
                self._text += data
                if not data:
                    self._ended = "end of stdin"


class Mirror(threading.Thread):
    """Copies the growing spool files into the attempt each copy_s, new bytes only, and asks the disk to keep them."""

    def __init__(self, copies: list[tuple[Path, Path]], copy_s: float) -> None:
        super().__init__(name="mirror", daemon=True)
        self._copies = copies
        self._copied = dict.fromkeys((source for source, _ in copies), 0)
        self._copy_s = copy_s
        self._stopped = threading.Event()

    def run(self) -> None:
        """Work until `stop`."""
        copy_at_s = time.monotonic() + self._copy_s
        while not self._stopped.wait(min(FSYNC_S, self._copy_s)):
            copy_now = time.monotonic() >= copy_at_s
            if copy_now:
                copy_at_s = time.monotonic() + self._copy_s
            for source, target in self._copies:
                try:
                    keep(source)
                    if copy_now:
                        self._copied[source] += append(source, target, self._copied[source])
                except OSError as error:
                    log.warning("%s: not copied (%s); trying again later", target, error)

    def stop(self) -> None:
        """End the thread and remove the copies: the closed traces take their place."""
        self._stopped.set()
        self.join()
        for _, target in self._copies:
            target.unlink(missing_ok=True)


def keep(path: Path) -> None:
    """Fsync a file that another thread writes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(source: Path, target: Path, offset: int) -> int:
    """Add what a file has beyond an offset to another; returns how many bytes those were."""
    with source.open("rb") as file:
        file.seek(offset)
        data = file.read()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        return os.write(descriptor, data)
    finally:
        os.close(descriptor)


class Tally:
    """Joules of devices while they are sampled, for people who watch; results integrate the closed traces anew."""

    def __init__(self, uuids: Iterable[str], source: str) -> None:
        self._source = source
        self._last: dict[str, tuple[int, float] | None] = dict.fromkeys(uuids)
        self._energy_j = 0.0
        self._told_j = 0.0
        self._told_ns: int | None = None

    def add(self, uuid: str, row: Row) -> None:
        """Take in one reading; those of other sensors and other devices are passed over."""
        if uuid not in self._last or row["source"] != self._source or row.get("power_w") is None:
            return
        now = row["time_ns"], row["power_w"]
        before = self._last[uuid]
        if before is not None and now[0] > before[0]:
            self._energy_j += (before[1] + now[1]) / 2 * (now[0] - before[0]) / 1e9
        self._last[uuid] = now

    def so_far(self) -> SoFar:
        """The joules since the first sample, and the mean watts since this was last asked; null at first."""
        now_ns = max((last[0] for last in self._last.values() if last is not None), default=None)
        past_ns, past_j = self._told_ns, self._told_j
        self._told_ns, self._told_j = now_ns, self._energy_j
        power_w = None
        if now_ns is not None and past_ns is not None and now_ns > past_ns:
            power_w = (self._energy_j - past_j) / (now_ns - past_ns) * 1e9
        return {"energy_j": self._energy_j, "power_w": power_w, "source": self._source}


class Recording:
    """The traces of one attempt while they grow: a stream a device in the spool."""

    def __init__(
        self,
        settings: Settings,
        meter: Meter,
        host: Meter | None,
        controlled: list[Controlled],
        attempt: AttemptDir,
    ) -> None:
        """`meter` reads the job's devices; `host`, where there is one, their host."""
        self._settings = settings
        self._meter = meter
        self._host = host
        self._controlled = controlled
        self._attempt = attempt
        self._meters = [meter] if host is None else [meter, host]
        self._by_uuid = {
            device["uuid"]: (one, device) for one in self._meters for device in one.devices
        }
        self._uuids = list(self._by_uuid)
        self._earlier = {uuid: self._parts(uuid) for uuid in self._uuids}
        self._part = 1 + max(
            (int(path.suffixes[-2][1:]) for parts in self._earlier.values() for path in parts),
            default=-1,
        )
        last_ns = {
            uuid: last
            for uuid, parts in self._earlier.items()
            if (last := last_sample_ns(parts, self._by_uuid[uuid][0].source)) is not None
        }
        for one in self._meters:
            one.begin(last_ns)
        self._streams = {
            uuid: TableStream(self._spool_path(uuid, self._part), TRACE, self._metadata(uuid))
            for uuid in self._uuids
        }
        self._waiting = set(self._uuids)  # devices without a sample yet
        self._tally = Tally((device["uuid"] for device in meter.devices), meter.source)
        self._told = False
        self._mirror = Mirror(
            [
                (stream.path, attempt.trace_path(settings.node, uuid, f".{self._part}.arrow"))
                for uuid, stream in self._streams.items()
            ],
            settings.power.copy_s,
        )
        self._mirror.start()

    def _spool_path(self, uuid: str, part: int | str) -> Path:
        attempt = self._attempt
        return self._settings.spool / f"{attempt.point_id}-{attempt.number}-{uuid}.{part}.arrow"

    def _parts(self, uuid: str) -> list[Path]:
        """What earlier sidecars of this attempt left, oldest first."""
        pattern = re.escape(self._spool_path(uuid, "#").name).replace(r"\#", r"(\d+)")
        found = [
            (int(match[1]), path)
            for path in self._settings.spool.iterdir()
            if (match := re.fullmatch(pattern, path.name))
        ]
        return [path for _, path in sorted(found)]

    def _metadata(self, uuid: str) -> dict[str, str]:
        """What a reader of the file must know: all values are text, and absent where unknown."""
        meter, device = self._by_uuid[uuid]
        told = {
            "node": self._settings.node,
            "gpu_uuid": uuid,
            "gpu_name": device["name"],
            "bus_id": device["bus_id"],
            "driver": meter.driver,
            "meter": meter.name,
            "source": meter.source,
            "boundary": meter.boundary,
            "scope": meter.boundary,
            "period_ms": str(meter.period_ms),
            "point_id": self._attempt.point_id,
            "attempt": str(self._attempt.number),
            "restarts": str(self._part),
            **meter.about,
        }
        return {key: value for key, value in told.items() if value is not None}

    def run(self, commands: Commands, reply: Reply) -> Command:
        """Record until a command comes that ends it, which is returned."""
        flush_ns = self._settings.power.flush_ms * 1_000_000
        flush_at_ns = time.monotonic_ns() + flush_ns
        tell_at_ns = time.monotonic_ns() + TELL_NS
        while True:
            self._add([row for meter in self._meters for row in meter.read()])
            now_ns = time.monotonic_ns()
            if not self._waiting and not self._told:
                self._told = True
                self._flush(durable=True)
                reply({"ready": self._ready()})
                self._tally.so_far()  # watts are told from here on
            elif now_ns >= flush_at_ns:
                self._flush()
                flush_at_ns = now_ns + flush_ns
            if self._told and now_ns >= tell_at_ns:
                reply({"so_far": self._tally.so_far()})
                tell_at_ns = now_ns + TELL_NS
            next_ns = min(self._due_ns(), flush_at_ns)
            command = commands.wait(max(0.0, (next_ns - time.monotonic_ns()) / 1e9))
            if command is not None and "mark" in command:
                for meter in self._meters:
                    meter.mark()
            elif command is not None:
                return command

    def finish(self) -> SoFar:
        """Record 100 ms more and write each trace into the attempt as Parquet; the spool is then empty.

        Returns what the devices took in all.
        """
        end_ns = time.monotonic_ns() + SETTLE_NS
        while (now_ns := time.monotonic_ns()) < end_ns:
            self._add([row for meter in self._meters for row in meter.read()])
            time.sleep(max(0, min(self._due_ns(), end_ns) - now_ns) / 1e9)
        self._add([row for meter in self._meters for row in meter.finish()])
        for uuid, stream in self._streams.items():
            stream.close()
            parts = [*self._earlier[uuid], stream.path]
            metadata = {
                **self._metadata(uuid),
                "schema_version": stream.schema.metadata[b"schema_version"].decode(),
                "late_polls": str(self._by_uuid[uuid][0].late_polls),
                "complete": "true",
            }
            table = merged(parts).replace_schema_metadata(metadata)
            write_table(self._attempt.trace_path(self._settings.node, uuid), table)
        self._mirror.stop()
        for uuid in self._uuids:
            for number, path in enumerate([*self._earlier[uuid], self._streams[uuid].path]):
                path.unlink()
                copy = self._attempt.trace_path(self._settings.node, uuid, f".{number}.arrow")
                copy.unlink(missing_ok=True)
        return self._tally.so_far()

    def _add(self, readings: list[Reading]) -> None:
        for uuid, row in readings:
            self._streams[uuid].add(row)
            self._tally.add(uuid, row)
            if row.get("power_w") is not None:
                self._waiting.discard(uuid)

    def _due_ns(self) -> int:
        return min(meter.due_ns() for meter in self._meters)

    def _flush(self, *, durable: bool = False) -> None:
        for stream in self._streams.values():
            stream.flush(durable=durable)

    def _ready(self) -> Ready:
        meter = self._meter
        return {
            "node": self._settings.node,
            "meter": meter.name,
            "source": meter.source,
            "boundary": meter.boundary,
            "driver": meter.driver,
            "period_ms": meter.period_ms,
            "devices": meter.devices,
            "host": self._host_info(),
            "control": self._controlled,
        }

    def _host_info(self) -> Host | None:
        if self._host is None:
            return None
        (device,) = self._host.devices
        return {
            "uuid": device["uuid"],
            "name": device["name"],
            "source": self._host.source,
            "period_ms": self._host.period_ms,
        }


def readable(parts: list[Path]) -> Iterator[pa.Table]:
    """The tables in spool files; one whose sidecar died before its schema was written has no rows to lose."""
    for part in parts:
        try:
            yield read_stream(part).replace_schema_metadata(None)
        except DamagedError as error:
            log.warning("%s", error)


def last_sample_ns(parts: list[Path], source: str) -> int | None:
    """Unix time of the newest sample of a sensor near the end of spool files, or None."""
    columns = ["time_ns", "source", "power_w"]
    return max(
        (
            row["time_ns"]
            for table in readable(parts)
            for row in table.select(columns).slice(max(0, table.num_rows - TAIL)).to_pylist()
            if row["source"] == source and row["power_w"] is not None
        ),
        default=None,
    )


def merged(parts: list[Path]) -> pa.Table:
    """The rows of spool files as one table, by time; rows of one instant keep their order."""
    table = pa.concat_tables([TRACE.empty_table(), *readable(parts)])
    order = np.argsort(table.column("time_ns").to_numpy(), kind="stable")
    return table.take(pa.array(order)).combine_chunks()


@contextlib.contextmanager
def only_one(spool: Path, job: str, node: str) -> Iterator[None]:
    """Hold the lock of a job's sidecar on a node; PowerError names who holds it.

    The kernel lets go of it when its holder dies, however that happens, so that none is ever stale.
    """
    path = spool / f"sidecar-{job}-{node}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace")
            raise PowerError(
                f"{path}: this job already has a sidecar on {node} ({holder}). Two would write the same traces."
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "start_s": time.time()}).encode())
        yield
    finally:
        os.close(descriptor)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM when the parent dies; SystemExit when it is dead already."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)


def take_control(control: Control, meter: Meter) -> "Held | None":
    """Set what the job asks of its GPUs, once what earlier jobs left on this node is put back; None for no wish.

    PowerError where it cannot be set, or where there is no GPU to set it on.
    """
    wanted = control.power_limit_w is not None or control.sm_clock_mhz is not None
    if meter.name != "nvml":
        if wanted:
            raise PowerError(
                f"control: limits and clocks are a GPU's, and {meter.name} measures none. Leave control out here."
            )
        return None
    from wattflow.power.control import Held, restore_left  # noqa: PLC0415 - pynvml is loaded only where it is wanted

    folder = Path(control.journal_dir)
    if not wanted:
        if os.access(folder, os.W_OK):
            restore_left(folder, [device["uuid"] for device in meter.devices])
        return None
    return Held(control, [device["uuid"] for device in meter.devices])


def serve(settings: Settings, commands: Commands, reply: Reply) -> None:
    """Record one attempt after another until stdin ends or SIGTERM comes."""
    job = check_name(os.environ.get("SLURM_JOB_ID", "local"), "job")
    with only_one(settings.spool, job, settings.node):
        meter = choose(settings.power, settings.node)
        host = host_meter(settings.power, settings.node) if meter.boundary == "gpu" else None
        held = None
        try:
            held = take_control(settings.control, meter)
            controlled = [] if held is None else held.told
            command = commands.wait(None) or {}
            while "end" not in command:
                if "open" not in command:  # a close or mark that crossed a restart
                    command = commands.wait(None) or {}
                    continue
                attempt = AttemptDir(Path(command["open"]), command["point_id"], command["attempt"])
                if "log" in command:
                    log_to(Path(command["log"]))
                recording = Recording(settings, meter, host, controlled, attempt)
                command = recording.run(commands, reply)
                if held is not None and "end" in command:
                    held.release()  # before traces are closed, which may outlast the parent's patience
                reply({"so_far": recording.finish()})
                reply({"closed": command.get("end", "asked")})
        finally:
            if held is not None:
                held.release()
            meter.close()


def log_to(path: Path) -> None:
    """From now on stderr goes to this file, the attempt's; a sidecar may be started before there is one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)


def tell(message: dict[str, Any]) -> None:
    """One JSON line to the parent; if it is gone, nobody listens."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


def main() -> int:
    """Serve until told to end; 0, or 1 with the reason on stdout and in the log."""
    settings = Settings.parse(sys.argv[1])
    die_with_parent(settings.parent_pid)
    logging.basicConfig(
        format=f"%(asctime)s sidecar {settings.node}: %(message)s", level=logging.WARNING
    )
    try:
        settings.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        serve(settings, Commands(sys.stdin.fileno()), tell)
    except (WattflowError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - the message is for people; a traceback adds nothing
        tell({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # the parent waits, and taking the libraries down takes them 0.1 s
