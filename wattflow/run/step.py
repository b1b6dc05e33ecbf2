"""One rank of the points that run in one slot of a node, beside others: the program of a step.

python -m wattflow.run.step JSON
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from wattflow.errors import PowerError, WattflowError
from wattflow.power.gpus import uuids_shown
from wattflow.run.place import Place
from wattflow.run.signals import Signals
from wattflow.run.task import Todo, progress_printer, run_points
from wattflow.store.layout import SweepDir


@dataclass(frozen=True)
class StepJob:
    """What the ranks of a slot run, and on what; it travels as JSON on the command line."""

    sweep: str
    point_ids: list[str]
    again: dict[str, int]
    place: Place  # rank 0's
    gpus: list[int]  # the slot's, by their place among those that are visible
    cpus: list[list[int]]  # of each rank; none: all
    limit_min: int  # of the task
    began_s: float  # when the task began, unix time

    def text(self) -> str:
        """Return the job as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StepJob":
        """Read what `text` makes of a job."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "place": Place.from_json(fields["place"])})


def take_devices(job: StepJob, rank: int) -> None:
    """Show this rank its slot's GPUs alone, and keep it to its CPUs; PowerError where they are not the sidecar's."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    of_task = shown.split(",") if shown else None
    chosen = [str(gpu) if of_task is None else of_task[gpu] for gpu in job.gpus]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    if job.cpus:
        os.sched_setaffinity(0, job.cpus[rank])
    common = job.place.common
    assert common is not None
    if (found := uuids_shown()) != common.devices:
        raise PowerError(
            f"this step sees {', '.join(found) or 'no GPU'} as its slot's, and its node's sidecar "
            f"{', '.join(common.devices)}: the steps of one task must see the same GPUs (CUDA_VISIBLE_DEVICES is "
            f"{shown}). Look at how the profile asks for them, or leave cluster.side_by_side out."
        )


def main(text: str) -> None:
    """Run a slot's points as one of its ranks."""
    job = StepJob.from_json(text)
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    signals = Signals(job.limit_min, time.time() - job.began_s)
    signals.install()
    take_devices(job, rank)
    place = replace(job.place, rank=rank, local_rank=rank)
    run_points(
        Todo(SweepDir.existing(job.sweep), job.point_ids, job.again),
        place,
        signals,
        progress_printer(),
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except WattflowError as error:
        raise SystemExit(f"wattflow: {error}") from error
