"""Short names of tasks."""

from wattflow.slurm import task_ids


def test_ranges_of_tasks_are_read_and_written():
    """What sacct writes for tasks that never started, and what scancel is given."""
    assert task_ids.expand("7_[0-2,5%4]") == ["7_0", "7_1", "7_2", "7_5"]
    assert task_ids.expand("7_3") == ["7_3"]
    assert task_ids.pack(["7_3", "8", "7_1", "7_2"]) == ["7_[1-3]", "8"]
