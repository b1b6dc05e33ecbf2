"""Append samples to the traces of a node and mirror them to the shared attempt."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from wattflow.errors import DamagedError
from wattflow.power.credible import credible
from wattflow.power.meter import Meter, Reading, Row
from wattflow.power.protocol import Command, Commands, Reply, Settings
from wattflow.store.files import open_append, open_own
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE, DeviceControl, EnergySoFar, Host, MeterInfo
from wattflow.store.tables import TableStream, read_stream, write_table

log = logging.getLogger(__name__)

FSYNC_S = 5.0  # what a power loss may cost; a killed process costs nothing, as the page cache stays
REPORT_NS = 5_000_000_000  # how often the energy so far is reported, to those who watch
SETTLE_NS = 100_000_000  # the driver shows a sample some 15 to 60 ms after its stamp
TAIL = 10_000  # rows of a spool file in which its last sample is looked for: minutes


class Mirror(threading.Thread):
    """Copies new bytes of the growing spool files into the attempt each copy_s, and flushes the spool to disk."""

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
                    fsync(source)
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


def fsync(path: Path) -> None:
    """Flush to disk a file that another thread writes."""
    with open_own(path) as file:
        os.fsync(file.fileno())


def append(source: Path, target: Path, offset: int) -> int:
    """Add what a file has beyond an offset to another; returns how many bytes those were."""
    with open_own(source) as file:
        file.seek(offset)
        data = file.read()
    with open_append(target) as copy:
        return os.write(copy.fileno(), data)


class Tally:
    """Energy of devices while they are sampled, for people who watch; results integrate the closed traces anew."""

    def __init__(self, uuids: Iterable[str], source: str) -> None:
        self._source = source
        self._last: dict[str, tuple[int, float] | None] = dict.fromkeys(uuids)
        self._energy_j = 0.0
        self._reported_j = 0.0
        self._reported_ns: int | None = None
        self._first_ns: int | None = None

    def add(self, uuid: str, row: Row) -> None:
        """Add one reading; those of other sensors and other devices are ignored."""
        if uuid not in self._last or row["source"] != self._source or row.get("power_w") is None:
            return
        now = row["time_ns"], row["power_w"]
        self._first_ns = now[0] if self._first_ns is None else self._first_ns
        before = self._last[uuid]
        if before is not None and now[0] > before[0]:
            self._energy_j += (before[1] + now[1]) / 2 * (now[0] - before[0]) / 1e9
        self._last[uuid] = now

    def so_far(self) -> EnergySoFar:
        """Return the joules since the first sample, and the mean watts since the last call; null at first."""
        now_ns = max((last[0] for last in self._last.values() if last is not None), default=None)
        past_ns, past_j = self._reported_ns, self._reported_j
        self._reported_ns, self._reported_j = now_ns, self._energy_j
        power_w = None
        if now_ns is not None and past_ns is not None and now_ns > past_ns:
            power_w = (self._energy_j - past_j) / (now_ns - past_ns) * 1e9
        first_ns = self._first_ns
        return {
            "energy_j": self._energy_j,
            "power_w": power_w,
            "source": self._source,
            "seconds": None if now_ns is None or first_ns is None else (now_ns - first_ns) / 1e9,
            "devices": len(self._last),
        }


class Recording:
    """The traces of one attempt while they grow: a stream a device in the spool."""

    def __init__(
        self,
        settings: Settings,
        meter: Meter,
        beside: Sequence[Meter],
        controlled: list[DeviceControl],
        attempt: AttemptDir,
        *,
        marked: Callable[[], None] = lambda: None,
    ) -> None:
        """`meter` reads the job's devices; those `beside` it their host and node; `marked` is called at each mark."""
        self._settings = settings
        self._meter = meter
        self._beside = beside
        self._controlled = controlled
        self._attempt = attempt
        self._marked = marked
        self._meters = [meter, *beside]
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
        self._is_ready = False
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
        """Return the spool files that earlier sidecars of this attempt left, oldest first."""
        pattern = re.escape(self._spool_path(uuid, "#").name).replace(r"\#", r"(\d+)")
        found = [
            (int(match[1]), path)
            for path in self._settings.spool.iterdir()
            if (match := re.fullmatch(pattern, path.name))
        ]
        return [path for _, path in sorted(found)]

    def _metadata(self, uuid: str) -> dict[str, str]:
        """Return the metadata of a trace: all values are text, and absent where unknown."""
        meter, device = self._by_uuid[uuid]
        known = {
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
        return {key: value for key, value in known.items() if value is not None}

    def run(self, commands: Commands, reply: Reply) -> Command:
        """Record until a command comes that ends it, which is returned."""
        flush_ns = self._settings.power.flush_ms * 1_000_000
        flush_at_ns = time.monotonic_ns() + flush_ns
        report_at_ns = time.monotonic_ns() + REPORT_NS
        while True:
            self._add([row for meter in self._meters for row in meter.read()])
            now_ns = time.monotonic_ns()
            if not self._waiting and not self._is_ready:
                self._is_ready = True
                self._flush(durable=True)
                reply({"ready": self._ready()})
                self._tally.so_far()  # the first watts reported are a mean from here on
            elif now_ns >= flush_at_ns:
                self._flush()
                flush_at_ns = now_ns + flush_ns
            if self._is_ready and now_ns >= report_at_ns:
                reply({"so_far": self._tally.so_far()})
                report_at_ns = now_ns + REPORT_NS
            next_ns = min(self._due_ns(), flush_at_ns)
            command = commands.wait(max(0.0, (next_ns - time.monotonic_ns()) / 1e9))
            if command is not None and "mark" in command:
                for meter in self._meters:
                    meter.mark()
                self._marked()
            elif command is not None:
                return command

    def finish(self) -> EnergySoFar:
        """Record 100 ms more and write each trace into the attempt as Parquet; the spool is then empty.

        Returns the energy of the devices in all.
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
        for uuid, read in readings:
            row = credible(read, self._by_uuid[uuid][1].get("power_limit_max_w"))
            self._streams[uuid].add(row)
            self._tally.add(uuid, row)
            # what is beside the devices is worth no wait: its joules may be unknown
            if row.get("power_w") is not None or self._by_uuid[uuid][0] is not self._meter:
                self._waiting.discard(uuid)

    def _due_ns(self) -> int:
        return min(meter.due_ns() for meter in self._meters)

    def _flush(self, *, durable: bool = False) -> None:
        for stream in self._streams.values():
            stream.flush(durable=durable)

    def _ready(self) -> MeterInfo:
        meter = self._meter
        beside = list(self._each_beside())
        return {
            "node": self._settings.node,
            "meter": meter.name,
            "source": meter.source,
            "boundary": meter.boundary,
            "driver": meter.driver,
            "period_ms": meter.period_ms,
            "devices": meter.devices,
            "host": next((of for one, of in beside if one.boundary == "host"), None),
            "others": [of for one, of in beside if one.boundary != "host"],
            "control": self._controlled,
        }

    def _each_beside(self) -> Iterator[tuple[Meter, Host]]:
        """Yield each device of the meters beside that of the job's devices."""
        for one in self._beside:
            for device in one.devices:
                yield (
                    one,
                    {
                        "uuid": device["uuid"],
                        "name": device["name"],
                        "source": one.source,
                        "period_ms": one.period_ms,
                    },
                )


def readable(parts: list[Path]) -> Iterator[pa.Table]:
    """Yield the tables in spool files; one whose sidecar died before its schema was written has no rows to lose."""
    for part in parts:
        try:
            yield read_stream(part).replace_schema_metadata(None)
        except DamagedError as error:
            log.warning("%s", error)


def last_sample_ns(parts: list[Path], source: str) -> int | None:
    """Return the unix time of the newest sample of a sensor near the end of spool files, or None."""
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
    """Return the rows of spool files as one table, by time; rows of one instant keep their order."""
    table = pa.concat_tables([TRACE.empty_table(), *readable(parts)])
    order = np.argsort(table.column("time_ns").to_numpy(), kind="stable")
    return table.take(pa.array(order)).combine_chunks()
