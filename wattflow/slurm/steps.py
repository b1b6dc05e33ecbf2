"""Steps of one's own inside a job: several side by side on its node, each with what it needs of the job's variables."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from wattflow.slurm.sbatch import gpu_options
from wattflow.slurm.shapes import Shape

# Of a step's variables srun would take most as options of the next one; these say which job it is, and of which array.
_KEPT = (
    *("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_TMPDIR"),
    *("SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME", "SLURM_RESTART_COUNT"),
)


def environment(of: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables for a step's srun: all but those by which Slurm describes the step that calls it."""
    return {
        name: value
        for name, value in of.items()
        if not name.startswith(("SLURM_", "SRUN_")) or name in _KEPT or "ARRAY" in name
    }


def command(shape: Shape, program: Sequence[str], log: Path) -> list[str]:
    """Return the srun of one slot: a process a rank, which sees all of the task's GPUs and CPUs and takes its own.

    Steps differ by what they take, not by Slurm: with --overlap no step waits for another's end to be noticed,
    and each slot has the same boards for the whole task. `log` has %t where a rank's number stands.
    """
    ranks, cpus = shape.ranks_per_node, shape.gpus_per_node * shape.cluster.cpus_per_rank
    asked = {
        "nodes": "1",
        "ntasks": str(ranks),
        "cpus-per-task": str(cpus // ranks),
        "mem": "0",  # all of the job's, as its slots share it
        "input": "none",
        "output": str(log),
        "error": str(log),
        "export": "ALL",
        **gpu_options(shape),
    }
    options = [f"--{name}={value}" for name, value in asked.items()]
    more = ["--overlap", "--kill-on-bad-exit=1", *shape.cluster.srun_options]
    return ["srun", *options, *more, *program]
