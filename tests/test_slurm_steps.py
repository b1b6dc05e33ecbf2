"""The srun of a slot."""

from pathlib import Path

from submissions import point

from wattflow.slurm import steps
from wattflow.slurm.shapes import shapes


def shape_of(**over):
    made = point(cluster__side_by_side=True, cluster__gpus_per_node=4, **over)
    (shape,) = shapes([(made.point_id, made.config)])
    return shape


def test_a_step_takes_all_of_the_job_and_leaves_the_parting_to_its_slot():
    """Two ranks in one of two slots: all four GPUs and eight CPUs, --overlap, the site's own options last."""
    shape = shape_of(shards=2, cluster__cpus_per_rank=2, cluster__srun_options=["--mpi=none"])
    command = steps.command(shape, ["python", "-m", "x"], Path("/spool/rank%t.log"))
    assert command[0] == "srun"
    assert {"--ntasks=2", "--cpus-per-task=4", "--gpus-per-node=4", "--overlap", "--mem=0"} <= {
        *command
    }
    assert command[-4:] == ["--mpi=none", "python", "-m", "x"]
    assert "--output=/spool/rank%t.log" in command
    typed = shape_of(cluster__gpu_request="gres", cluster__gpu_type="a100")
    assert "--gres=gpu:a100:4" in steps.command(typed, [], Path("/l"))


def test_variables_of_the_step_that_calls_are_no_options_of_the_next():
    """The job, its array and its times stay; what srun would take as options goes, and nothing of others."""
    kept = {
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_END_TIME": "9",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURMD_NODENAME": "node1",
        "PATH": "/bin",
    }
    gone = {
        "SLURM_NTASKS": "1",
        "SRUN_CPUS_PER_TASK": "8",
        "SLURM_CPU_BIND": "mask",
        "SLURM_STEP_ID": "0",
    }
    assert steps.environment({**kept, **gone}) == kept
