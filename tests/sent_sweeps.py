"""Sweeps that were sent to the fake Slurm, with attempts in any state."""

import time
from pathlib import Path
from typing import Any

from sweeps import choices, plan_point

from wattflow.plan.points import Plan
from wattflow.store.files import write_json
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import SCHEMA_VERSION, JobInfo, Record
from wattflow.submit import journal, send, status


def make_plan(folder: Path, count: int, **over: Any) -> Plan:
    settings = {"cluster__launcher": "slurm", "cluster__name": "site", **over}
    made = [choices(seed=seed, **settings) for seed in range(count)]
    points = [plan_point(one) for one in made]
    return Plan("demo", SweepDir(folder / "demo"), [], points, 0)


def sent(folder: Path, count: int, **over: Any) -> Plan:
    """A plan of `count` points, submitted as job 101 with collector 102."""
    made = make_plan(folder, count, **over)
    send.submit(made)
    return made


def attempt(
    made: Plan, number: int, state: str, job: str | None = "101_0", **over: Any
) -> AttemptDir:
    """An attempt at the plan's point of that number."""
    point_id = made.points[number].point_id
    one = made.sweep.claim_attempt(point_id)
    info: JobInfo = {"job_id": job, "array_task": None, "restart": 0, "cluster": "site"}
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "point_id": point_id,
        "attempt": one.number,
        "status": state,  # type: ignore[typeddict-item]
        "error": None,
        "error_rank": None,
        "started_ns": time.time_ns(),
        "job": info,
    }
    one.write_record({**record, **over})  # type: ignore[typeddict-item]
    return one


def only(made: Plan, number: int = 0) -> status.Row:
    return status.states(made.sweep)[number]


def name_of(made: Plan) -> str:
    return journal.read(made.sweep)[0].name


def measured(
    made: Plan,
    number: int,
    energy_j: float | None,
    seconds: float,
    source: str = "nvml_buffer",
) -> AttemptDir:
    """A finished attempt whose sidecar told joules."""
    node = {"node": "node1", "source": source, "energy_j": energy_j}
    start_ns = 1_760_000_000_000_000_000
    times = {"started_ns": start_ns, "ended_ns": start_ns + round(seconds * 1e9)}
    return attempt(made, number, "finished", f"101_{number}", nodes=[node], **times)


def beats(one: AttemptDir, **told: Any) -> None:
    """A heartbeat of a running attempt."""
    write_json(one.path / "heartbeat.json", {"by": "local:elsewhere:1:1", "beat": 1, **told})
