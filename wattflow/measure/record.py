"""What `measure` leaves on disk: a sweep directory of one point, whose point_id is a hash of the command.

    sweeps/<name>/  measured.json  grid.parquet  points/<point_id>/attempt-<n>/  as in a sweep, and
        timings/<node>.json        each node's part: exit code, devices, sensor, tokens

Task 0 makes the directory and the record; each node adds its traces, spans and part, which are joined to the record
when it is read. Each device of a node is recorded as one rank.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from wattflow import process
from wattflow.analysis.means import of_sum
from wattflow.config.identity import command_id
from wattflow.errors import DamagedError, RefusedError, WattflowError
from wattflow.measure.request import CommandRun, Place, Request
from wattflow.measure.timeline import ReportedSpan, Segment, parse, segments
from wattflow.nullable import NO_DOUBT, complete_sum, is_undoubted, with_doubt
from wattflow.power.sidecar_client import Sidecar
from wattflow.run.provenance import commit, versions
from wattflow.run.record import new_record
from wattflow.spans import reports_to
from wattflow.store.columns import PHASE, POINT, REASONS
from wattflow.store.files import create, expanded, read_json, read_own, write_json
from wattflow.store.grid import GridPoint, write_grid
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.phases import NOT_WITHIN
from wattflow.store.schema import SCHEMA_VERSION, SPAN, NodeInfo, Part, Status
from wattflow.store.tables import read_table, write_table

JOIN_S = 120.0  # how long a node waits for task 0's record
RANKS_A_NODE = 1024  # a device's rank is its node's task times this, plus its index there
_ABOUT = {"schema_version": str(SCHEMA_VERSION)}


# --- the directory --------------------------------------------------------------------------------


def _directory(request: Request, place: Place) -> SweepDir:
    """Where the measurement goes: `--out`, else a new name below ./sweeps, the same on all nodes of a step."""
    if request.out is not None:
        return SweepDir(expanded(request.out).absolute())
    name = f"measure-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if place.nodes > 1:
        name = f"measure-{place.job['job_id']}.{place.job['step']}"
    return SweepDir.named("sweeps", name)


def _make(sweep: SweepDir, request: Request, place: Place) -> AttemptDir:
    """Claim an attempt in a new directory or one that holds this command; RefusedError for any other directory."""
    mine = command_id(request.command)
    if sweep.measured_path.is_file():
        held = read_json(sweep.measured_path)
        if held.get("point_id") != mine:
            raise RefusedError(
                f"{sweep.path}: holds the measurement of another command ({' '.join(held['command'])}). Name another "
                "folder with --out."
            )
    elif sweep.path.is_dir() and any(path.name[0] != "." for path in sweep.path.iterdir()):
        raise RefusedError(
            f"{sweep.path}: is not empty and holds no measurement. Name another --out."
        )
    sweep.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(sweep.measured_path, {"point_id": mine, "command": request.command})
    sweep.make()
    choices = json.dumps(_choices(request, place))
    write_grid(sweep.grid_path, [GridPoint(mine, 0, None, choices)])
    return sweep.claim_attempt(mine)


def _choices(request: Request, place: Place) -> dict[str, object]:
    """The choices of a measurement, under the keys of a sweep's; what has no key here is null in results."""
    return {
        "measure": {"command": request.command},
        "power": asdict(request.power),
        "cluster": {"name": place.job["cluster"], "accounting": True, "group_readable": False},
    }


def _join(sweep: SweepDir, request: Request, place: Place) -> AttemptDir:
    """Wait for the attempt that task 0 makes and take this node's part in it; RefusedError if none comes."""
    end = time.monotonic() + JOIN_S
    while time.monotonic() < end:
        for attempt in reversed(sweep.attempts(command_id(request.command))):
            with contextlib.suppress(FileNotFoundError, DamagedError):
                if read_json(attempt.record_path).get("job") == place.job and _claim_part(
                    attempt, place.node
                ):
                    return attempt
        time.sleep(0.1)
    raise RefusedError(
        f"{sweep.path}: {place.node} waited {JOIN_S:g} s for task 0 of step {place.job['step']} to make it. It has to "
        "measure the same command, and the folder to lie on a disk that all nodes see."
    )


def _reported(spans_file: Path) -> tuple[list[ReportedSpan], int]:
    """Return the spans that the command reported, and the number of bad lines; a file that cannot be read is one."""
    try:
        return parse(read_own(spans_file).splitlines())
    except (DamagedError, OSError):
        return [], 1


def _claim_part(attempt: AttemptDir, node: str) -> bool:
    """Take this node's part in an attempt; false where it is taken already."""
    try:
        with create(attempt.part_path(node)) as file:
            file.write(json.dumps({"status": "running"}).encode())
    except FileExistsError:
        return False
    return True


# --- one node's part ------------------------------------------------------------------------------


class Measurement:
    """One node's part in the measurement of a command."""

    def __init__(self, request: Request, place: Place) -> None:
        """Make the directory and the attempt as task 0, else join them; RefusedError where that is not possible."""
        self._place = place
        self._sweep = _directory(request, place)
        if place.task == 0:
            self._attempt = attempt = _make(self._sweep, request, place)
            _claim_part(attempt, place.node)
        else:
            self._attempt = attempt = _join(self._sweep, request, place)
        self._part: Part = {
            "schema_version": SCHEMA_VERSION,
            "node": place.node,
            "task": place.task,
            "status": "running",
            "error": None,
            "exit_code": None,
            "ranks": [],
            "nodes": [],
            "tokens_out": None,
            "bad_lines": 0,
            "still_running": 0,
        }
        self._record = new_record(attempt, _choices(request, place), place.job)
        self._record["measure"] = {
            "command": request.command,
            "nodes": place.nodes,
            "process": process.job_id(os.getpid()),
        }

    @property
    def folder(self) -> Path:
        """Where the measurement lies."""
        return self._sweep.path

    def _write_record(self) -> None:
        if self._place.task == 0:
            self._attempt.write_record(self._record)

    def open(self, sidecar: Sidecar) -> None:
        """Start recording into the attempt, and note the versions that the command runs with."""
        self._write_record()
        self._record["versions"], self._record["git"] = versions(), commit()
        self._ready = sidecar.start(self._attempt)

    def finish(
        self, sidecar: Sidecar, run: CommandRun, spans_file: Path, tokens_out: int | None
    ) -> tuple[list[str], bool]:
        """Close and collect the measurement of a command that ran; lines for a person, and whether all was measured."""
        beside = ThreadPoolExecutor(1)
        loaded = beside.submit(_load_collect)
        try:
            self._write_part(sidecar, run, spans_file, tokens_out)
        except (WattflowError, OSError, pa.ArrowException) as error:
            self.close(error)
            return [f"not measured: {error}"], False
        if self._place.nodes > 1:
            return [f"this node's part is in {self.folder}; `wattflow collect` merges all."], False
        try:
            loaded.result()(self._sweep)
            return _summary(self._sweep, self._attempt), True
        except (WattflowError, OSError, pa.ArrowException) as error:
            return [f"measured, and not collected: {error}"], False

    def _write_part(
        self, sidecar: Sidecar, run: CommandRun, spans_file: Path, tokens_out: int | None
    ) -> None:
        """Write spans, part and record, the last only on the node of task 0."""
        self._part["exit_code"] = run.exit_code
        self._part["still_running"] = _still_running(spans_file)
        self._part["tokens_out"] = tokens_out
        if run.stopped:
            self._part["stopped"] = [list(interval) for interval in run.stopped]
        info = sidecar.stop()
        spans, self._part["bad_lines"] = _reported(spans_file)
        write_table(
            self._attempt.spans_path(self._place.node),
            _span_table(segments(spans, run.start_ns, run.end_ns), self._place, info),
        )
        self._part["ranks"] = [
            {
                "rank": RANKS_A_NODE * self._place.task + i,
                "node": self._place.node,
                "local_rank": i,
                "gpu_uuid": device["uuid"],
                "device": device["name"],
            }
            for i, device in enumerate(self._ready["devices"])
        ]
        self._part["nodes"] = [info]
        self._part["status"] = "finished"
        write_json(self._attempt.part_path(self._place.node), self._part)
        self._record["status"] = "finished"
        self._record["ended_ns"] = time.time_ns()
        self._record["ranks"] = self._part["ranks"]
        self._record["nodes"] = self._part["nodes"]
        self._write_record()

    def close(self, error: BaseException, *, interrupted: bool = False) -> None:
        """Record why there is no measurement."""
        status: Status = "interrupted" if interrupted else "failed"
        self._part["status"] = self._record["status"] = status
        self._part["error"] = self._record["error"] = str(error) or type(error).__name__
        self._record["error_rank"] = 0
        self._record["ended_ns"] = time.time_ns()
        with contextlib.suppress(OSError):  # the disk may be what failed
            write_json(self._attempt.part_path(self._place.node), self._part)
            self._write_record()


def _load_collect() -> Callable[[SweepDir], object]:
    """Import the collector, which takes a moment."""
    from wattflow.collect.collect import collect  # noqa: PLC0415 (see above)

    return collect


def _still_running(spans_file: Path) -> int:
    """Count the processes of the command that outlive it; the sidecar, a child of this one, is none of them."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal()]
    others = [pid for pid in pids if pid != os.getpid() and reports_to(pid, str(spans_file))]
    return sum(process.parent(pid) not in {None, os.getpid()} for pid in others)


def _span_table(found: Sequence[Segment], place: Place, info: NodeInfo) -> pa.Table:
    """The spans of a node: a row for each segment and device, as it is not known which devices a segment used."""
    rows = [
        {
            "rank": RANKS_A_NODE * place.task + i,
            "node": place.node,
            "gpu_uuid": device["uuid"],
            "phase": segment.phase,
            "batch": None,
            "start_ns": segment.start_ns,
            "end_ns": segment.end_ns,
            "tokens_in": segment.tokens_in,
            "tokens_kept": segment.tokens_out,
            "tokens_computed": None,
        }
        for segment in found
        for i, device in enumerate(info["devices"])
    ]
    return pa.Table.from_pylist(rows, schema=SPAN).replace_schema_metadata(_ABOUT)


# --- for a person ---------------------------------------------------------------------------------


def _summary(sweep: SweepDir, attempt: AttemptDir) -> list[str]:
    """Lines for a person: joules, watts and tokens, each device's joules in the window, then the row's reasons."""
    (row,) = _rows(sweep.points_path, POINT, attempt)
    mark = "~" if row["simulated"] else ""
    about = [f"{row['duration_s']:.3f} s" if row["duration_s"] is not None else "no window"]
    if row["energy_j"] is not None:
        about += [
            with_doubt(row["energy_j"], row["energy_expanded_u_j"], "J", mark),
            with_doubt(row["power_w"], row["power_expanded_u_w"], "W", mark),
        ]
    if row["tokens_kept"]:
        about.append(f"{row['tokens_kept']} output tokens")
    if row["energy_per_token_j"] is not None:
        doubt = row["energy_per_token_expanded_u_j"]
        about.append(with_doubt(row["energy_per_token_j"], doubt, "J/token", mark))
    lines = [f"{', '.join(about)}; {row['power_source']} ({row['boundary']})"]
    devices: dict[str, list[dict[str, Any]]] = {}
    for phase in _rows(sweep.phases_path, PHASE, attempt):
        if phase["phase"] not in NOT_WITHIN:
            devices.setdefault(phase["gpu_uuid"], []).append(phase)
    for uuid, parts in devices.items():
        energy_j = complete_sum(part["energy_j"] for part in parts)
        # phases share their board's sensor
        doubt_j = of_sum(part["energy_expanded_u_j"] for part in parts if part["energy_j"])
        joules = with_doubt(energy_j, doubt_j, "J", mark)
        lines.append(f"  {uuid}  {'no joules' if energy_j is None else joules}")
    if not row["simulated"] and is_undoubted(row["energy_j"], row["energy_expanded_u_j"]):
        lines.append(f"  {NO_DOUBT}")
    lines += [f"  {REASONS[code][1]}" for code in row["reasons"] if code not in _COMMON_REASONS]
    return lines


_COMMON_REASONS = {"no_requests"}  # of every measurement


def _rows(path: Path, schema: pa.Schema, attempt: AttemptDir) -> list[dict[str, Any]]:
    """The rows of one attempt in a table of results."""
    table = read_table(path, schema)
    return [row for row in table.to_pylist() if row["attempt"] == attempt.number]
