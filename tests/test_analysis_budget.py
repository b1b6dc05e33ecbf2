"""The budget of a row adds up to what the row publishes."""

import pytest
from collection import one
from sweeps import Gpu, Made, constant

from wattflow.analysis.budget import budget, heading
from wattflow.errors import RefusedError


def test_shares_add_up(tmp_path):
    """Squares of all inputs, the covariance with its sign, make half the expanded uncertainty; shares make 1."""
    row = one(tmp_path, Made([Gpu("GPU-a", constant(150.0))]))[2]
    inputs = {line.name: line for line in budget(row)}
    assert list(inputs) == [
        "sampling",
        "edges",
        "response",
        "aliasing",
        "missing",
        "ticks",
        "gain",
        "offset",
        "gain with offset",
    ]
    assert sum(line.share for line in inputs.values()) == pytest.approx(1)
    assert inputs["gain with offset"].u_j < 0  # r = -0.55
    squares = sum(line.u_j * abs(line.u_j) for line in inputs.values())
    assert 2 * squares**0.5 == pytest.approx(row["energy_expanded_u_j"])
    assert heading(row).startswith("E = integral of (reading - offset) / (1 + gain) over 8.5")


def test_what_was_not_measured_has_none(tmp_path):
    """Simulated joules, and a point without energy, are refused with the reason."""
    made = Made([Gpu("host-node1")], source="simulated", boundary="host")
    with pytest.raises(RefusedError, match="simulated"):
        budget(one(tmp_path, made)[2])
