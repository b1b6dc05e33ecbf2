"""The passport of a GPU's power sensors: what each shows, how late, how smoothed, at what cost; as JSON and as a page.

    wattflow calibrate [--out DIR] [--minutes 5]

    DIR/record.json           what was done, and when each load was switched
    DIR/reads-<uuid>.parquet  every value that a sensor gave (schema.READS)
    DIR/passport-<uuid>.json  what follows from it for one GPU (documents.Passport)
    DIR/passports.html        all of them

The first two come from a GPU (wattflow.power.recorder); the others follow from them anywhere, and again at any time.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from wattflow import __version__
from wattflow.calibrate import findings, reference
from wattflow.calibrate.documents import (
    PASSPORT_VERSION,
    BoardReference,
    CalibrationRecord,
    Passport,
)
from wattflow.calibrate.reads import Reads
from wattflow.calibrate.sources import POWER
from wattflow.errors import DamagedError, RefusedError
from wattflow.run.provenance import versions
from wattflow.store import references
from wattflow.store.files import read_own, write_atomic
from wattflow.store.schema import READS, SCHEMA_VERSION, Device
from wattflow.store.tables import read_table, write_table

if TYPE_CHECKING:  # it loads pynvml
    from wattflow.power.calibration_steps import Step


@dataclass(frozen=True)
class Request:
    """Where a calibration goes, which steps it takes, and the command of its load."""

    out: Path
    steps: Sequence["Step"]
    load: Sequence[str]
    draw: bool = True  # the page, too, for which altair must be installed


def calibrate(request: Request, say: Callable[[str], None]) -> list[Path]:
    """Record all visible GPUs and write their passports, whose paths are returned; `say` takes lines of progress.

    RefusedError, before any sensor is read, where there is no GPU, it is in use, or the folder has a record.
    """
    from wattflow.power.recorder import Recorder  # noqa: PLC0415 - pynvml, only where it is wanted

    check(request.out)
    with Recorder(request.load) as recorder:
        request.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        steps = recorder.record(request.steps, say)
        uuids = [device["uuid"] for device in recorder.devices]
        for uuid in uuids:
            write_table(_reads_path(request.out, uuid), _table(recorder.rows(uuid)))
        record: CalibrationRecord = {
            "schema_version": PASSPORT_VERSION,
            "made": made,
            "minutes": round(sum(step.seconds for step in request.steps) / 60, 2),
            "versions": versions(),
            "driver": recorder.driver,
            "load": recorder.load_name,
            "gpus": recorder.devices,
            "steps": steps,
            "failed": {uuid: recorder.failed(uuid) for uuid in uuids},
            "others": recorder.strangers(),
        }
    write_atomic(_record_path(request.out), json.dumps(record).encode())
    return read_again(request.out, draw=request.draw)


def check(out: Path) -> None:
    """Raise RefusedError for a folder that has a record."""
    if _record_path(out).exists():
        raise RefusedError(
            f"{out} has a calibration: take another --out, or read it again by `wattflow calibrate --from {out}`."
        )


def read_again(folder: Path, *, draw: bool) -> list[Path]:
    """Write the passports of a recorded folder, and their page; return their paths."""
    record = _record(folder)
    passports = [
        passport(record, gpu, read_table(_reads_path(folder, gpu["uuid"]), READS))
        for gpu in record["gpus"]
    ]
    paths = [folder / f"passport-{one['gpu']['uuid']}.json" for one in passports]
    for path, one in zip(paths, passports, strict=True):
        write_atomic(path, json.dumps(one, indent=1).encode())
    if draw:
        from wattflow.calibrate.page import draw_page  # noqa: PLC0415 (altair and polars may be missing on a node)

        paths.append(folder / "passports.html")
        write_atomic(paths[-1], draw_page(passports).encode())
    return paths


@dataclass(frozen=True)
class Meter:
    """The trace of an external meter, and what it may be off itself (k = 1)."""

    path: Path
    u: float  # relative
    offset_u_w: float = 0.0


def refer(folder: Path, meter: Meter, uuid: str | None) -> tuple[Path, Path, Passport]:
    """Find gain and offset of one board of a recorded folder by an external meter's trace.

    Kept in its passport, and where sidecars look for its UUID; both paths, and the passport. RefusedError where the
    board is not clear, or the traces do not fit.
    """
    record = _record(folder)
    boards = [gpu for gpu in record["gpus"] if uuid in (None, gpu["uuid"])]
    if len(boards) != 1:
        there = ", ".join(gpu["uuid"] for gpu in record["gpus"])
        raise RefusedError(f"--gpu {uuid}: name the board that the meter saw. There are {there}.")
    if not 0 < meter.u < 0.2 or not 0 <= meter.offset_u_w < 100:
        raise RefusedError(
            "--meter-u: percent of a reading that the meter may be off (k = 1), above 0 and below 20."
        )
    (gpu,) = boards
    table = read_table(_reads_path(folder, gpu["uuid"]), READS)
    reads = Reads(record["steps"], gpu["uuid"], table)
    source = next((name for name in POWER if name in reads.sources), None)
    if source is None:
        raise RefusedError(f"{folder}: no power was read of {gpu['uuid']}.")
    stamps, watts = reads.series(source, range(len(record["steps"])))
    meter_s, meter_w = reference.read_meter(meter.path)
    found = reference.fit(
        stamps, watts, meter_s, meter_w, meter_u=meter.u, meter_offset_u_w=meter.offset_u_w
    )
    about = {
        **vars(found),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "meter_u": meter.u,
        "meter_offset_u_w": meter.offset_u_w,
    }
    kept = cast(BoardReference, about)
    path = folder / f"passport-{gpu['uuid']}.json"
    whole: Passport = {**passport(record, gpu, table), "reference": kept}
    write_atomic(path, json.dumps(whole, indent=1).encode())
    return path, references.keep(gpu["uuid"], kept), whole


def passport(record: CalibrationRecord, gpu: Device, table: pa.Table) -> Passport:
    """Return what follows from the reads of one GPU (schema.READS)."""
    reads = Reads(record["steps"], gpu["uuid"], table)
    sensors = {source: findings.sensor(reads, source) for source in reads.sources}
    return {
        "schema": "wattflow passport",
        "schema_version": PASSPORT_VERSION,
        "made": record["made"],
        "minutes": record["minutes"],
        "wattflow": __version__,
        "driver": record["driver"],
        "load": record["load"],
        "gpu": gpu,
        "others_on_the_gpu": record["others"].get(gpu["uuid"], []),
        "failed_reads": record["failed"].get(gpu["uuid"], {}),
        "sources": sensors,
        "costs_ms": findings.call_costs(reads),
        "idle_w": {state: findings.idle_power(reads, state) for state in findings.IDLE_STATES},
        "levels_w": findings.levels(reads),
        "aliasing": [
            findings.aliasing(reads, sensors, number)
            for number, step in enumerate(reads.steps)
            if step["period_ms"]
        ],
        "figures": findings.figures(reads, sensors),
    }


def _record(folder: Path) -> CalibrationRecord:
    path = _record_path(folder)
    try:
        record = json.loads(read_own(path))
    except FileNotFoundError as error:
        raise RefusedError(f"{folder} has no calibration: there is no {path}.") from error
    except ValueError as error:
        raise DamagedError(f"{path}: no JSON ({error}).") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != PASSPORT_VERSION:
        raise DamagedError(f"{path}: schema version {version}, not {PASSPORT_VERSION}.")
    return cast(CalibrationRecord, record)


def _record_path(folder: Path) -> Path:
    return folder / "record.json"


def _reads_path(folder: Path, uuid: str) -> Path:
    return folder / f"reads-{uuid}.parquet"


def _table(rows: Sequence[Sequence[Any]]) -> pa.Table:
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * len(READS)
    schema = READS.with_metadata({"schema_version": str(SCHEMA_VERSION)})
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, READS, strict=True)], schema)
