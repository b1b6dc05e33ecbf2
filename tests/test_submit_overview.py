"""All sweeps below a folder."""

import pytest
from sweeps import choices, make_sweep

from wattflow.submit.overview import overview, state_of


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ({"done": 3}, "done"),
        ({"done": 3, "infeasible": 1}, "done"),
        ({"done": 3, "interrupted": 1}, "failed"),
        ({"done": 3, "failed": 1, "waiting": 1}, "waiting"),
        ({"running": 1, "waiting": 1}, "running"),
        ({"running": 1, "unknown": 1}, "unknown"),
        ({"infeasible": 2}, "infeasible"),
        ({}, "empty"),
    ],
)
def test_one_word_for_all_points(counts, state):
    """What one has to look at first."""
    assert state_of(counts) == state


def test_links_are_not_followed_and_a_sweep_is_looked_into_no_further(tmp_path):
    """A loop of links ends, and a grid within a sweep's points is none."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    (sweep.path / "points" / "x").mkdir(parents=True)
    (sweep.path / "points" / "x" / "grid.parquet").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    (entry,) = overview(tmp_path)
    assert (entry.sweep, entry.points, entry.varies) == ("s", 1, [])
