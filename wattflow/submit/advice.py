"""What a person may do about a point that did not finish: the command that tries it again, with time enough."""

import re
import shlex

from wattflow.slurm.client import TaskState
from wattflow.store.grid import GridPoint
from wattflow.store.layout import SweepDir
from wattflow.store.schema import Record


def rerun(sweep: SweepDir, point_id: str, record: Record | None, time_min: int | None) -> str:
    """Return the command that tries a point once more, asking for so many minutes where it needs more than it had."""
    path = shlex.quote(str(sweep.path))
    if record is not None and "measure" in record:
        return f"wattflow measure --out {path} -- {shlex.join(record['measure']['command'])}"
    return f"wattflow resume {path} --only {point_id}{asking_for(time_min)}"


def asking_for(time_min: int | None) -> str:
    """Return what a resume adds to ask for so many minutes; nothing for null."""
    return "" if time_min is None else f" cluster.time_min={time_min}"


def more_time_min(point: GridPoint, reason: str | None, answer: TaskState | None) -> int | None:
    """Return twice the minutes that a point had, where it ran out of them: with as many it would do so for ever.

    Null where it did not, by its own reason and Slurm's answer.
    """
    found = re.search(r"time limit of (\d+) min", reason or "")
    if found is not None:
        return 2 * int(found[1])
    if answer is not None and answer.state == "TIMEOUT":
        return 2 * point.config().cluster.time_min
    return None
