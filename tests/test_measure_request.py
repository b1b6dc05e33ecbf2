"""Where a measurement runs, by Slurm's variables."""

import pytest

from wattflow.errors import RefusedError
from wattflow.measure import request


def test_several_tasks_of_a_node_are_refused():
    """Each would measure all GPUs of the node, which bills them several times."""
    with pytest.raises(RefusedError, match="one `wattflow measure` a node"):
        request.Place.of(
            {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}
        )


def test_a_batch_script_without_a_step_is_one_node():
    """Outside srun the job's other nodes run nothing of the command."""
    place = request.Place.of(
        {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NODEID": "0"}
    )
    assert (place.nodes, place.task, place.job["job_id"]) == (1, 0, "7")
