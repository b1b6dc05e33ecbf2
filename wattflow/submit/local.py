"""Points of a local profile: one detached process of this machine runs them one after another, then collects.

python -m wattflow.submit.local SWEEP SUBMISSION AGAIN      that process
"""

import json
import os
import sys

from wattflow import process
from wattflow.slurm import sbatch
from wattflow.store.layout import SweepDir
from wattflow.submit import journal

RUN_SERIALLY = "wattflow.run.local:run_serially"
COLLECT = "wattflow.collect.collect:collect_task"


def start_local(sweep: SweepDir, point_ids: list[str], again: dict[str, int]) -> str:
    """Have points run one after another in a process that outlives the terminal; its name in the journal.

    Not submitit's local executor: that is ended with the terminal, hides GPUs that it does not know of, and has a time
    limit of its own.
    """
    submission = journal.begin(sweep, "points", [point_ids])
    submission.folder.mkdir(mode=0o700)
    command = process.python("-m", "wattflow.submit.local", str(sweep.path), submission.name)
    command.append(json.dumps(again))
    out, err = (
        str(submission.folder / f"{journal.LOCAL_LOG}_0_log.{stream}") for stream in ("out", "err")
    )
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    reading_end, writing_end = os.pipe()
    pid = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, reading_end, 0),
            (os.POSIX_SPAWN_OPEN, 1, out, append, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, err, append, 0o600),
        ],
        setsid=True,
    )
    os.close(reading_end)
    job_id = process.job_id(pid)
    with os.fdopen(writing_end, "w") as pipe:
        journal.write(sweep, "submitted", submission.name, job_id=job_id)
        pipe.write(_GO)
    return job_id


_GO = "go"


def main(sweep_path: str, name: str, again: str) -> int:
    """What the detached process of a local job does: run its points, then collect; 1 when points failed.

    It begins once the journal knows it: a process that nobody knows of could run beside another.
    """
    if sys.stdin.read(len(_GO)) != _GO:
        return 1
    sweep = SweepDir.existing(sweep_path)
    (submission,) = [submission for submission in journal.read(sweep) if submission.name == name]
    failed = sbatch.Call(RUN_SERIALLY, (str(sweep.path), submission.tasks[0], json.loads(again)))()
    sbatch.Call(COLLECT, (str(sweep.path),))()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
