"""What is advised for a point that did not finish."""

import json
from pathlib import Path

import pytest
from sweeps import choices

from wattflow.slurm.client import TaskState
from wattflow.store.grid import GridPoint
from wattflow.store.layout import SweepDir
from wattflow.submit import advice

POINT = GridPoint("0" * 12, 0, None, json.dumps(choices(cluster__time_min=30)))


@pytest.mark.parametrize(
    ("reason", "state", "minutes"),
    [
        ("the job was near its time limit of 10 min, cluster.time_min (SIGUSR2).", "FAILED", 20),
        ("task 7_1 ended as TIMEOUT", "TIMEOUT", 60),
        ("task 7_1 ended as OUT_OF_MEMORY", "OUT_OF_MEMORY", None),
        (None, None, None),
    ],
)
def test_twice_the_time_where_a_point_ran_out_of_it(reason, state, minutes):
    """By what the job said of its limit, else by the point's own where Slurm says TIMEOUT."""
    answer = None if state is None else TaskState(state)
    assert advice.more_time_min(POINT, reason, answer) == minutes


def test_the_command_quotes_and_asks_for_the_time():
    """A measurement is measured again; a point is resumed."""
    sweep = SweepDir(Path("my sweeps") / "s")
    assert advice.rerun(sweep, "0" * 12, None, 60) == (
        f"wattflow resume 'my sweeps/s' --only {'0' * 12} cluster.time_min=60"
    )
    record = {"measure": {"command": ["sh", "-c", "echo 'a'"], "nodes": 1}}
    assert advice.rerun(sweep, "0" * 12, record, None) == (
        "wattflow measure --out 'my sweeps/s' -- sh -c 'echo '\"'\"'a'\"'\"''"
    )
