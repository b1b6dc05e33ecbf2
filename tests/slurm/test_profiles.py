"""Sites that break an assumption each, as a real Slurm set up like them."""

import pytest
from slurm_sweeps import QUICK, fresh, plan, states, until, with_cluster

from wattflow import status, submit

pytestmark = pytest.mark.slurm


def test_more_points_than_the_site_takes_jobs_finish_by_sharing_tasks(narrow_cluster, tmp_path):
    """No accounting, arrays of 11, 30 jobs: 36 points go as 18 tasks in two arrays, and all finish.

    The profile says none of it but the missing accounting: Slurm is asked for its limits.
    """
    seeds = ",".join(map(str, range(36)))
    made = plan(tmp_path, *QUICK, "sweep=narrow", f"seed={seeds}")
    sent = submit.submit(with_cluster(made, accounting=False))
    assert [len(array) for array in sent.shapes[0].arrays] == [11, 7]
    until(lambda: states(made.sweep) == {"done"}, 120)
    until(made.sweep.points_path.is_file)
    assert status.exit_code(fresh(made.sweep)) == 0
