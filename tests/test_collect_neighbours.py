"""What ran beside a point, as its record has it."""

import pytest

from wattflow.collect.neighbours import Neighbours, neighbours
from wattflow.errors import DamagedError

SEEN = {
    "slots": 2,
    "neighbours": 0.75,
    "neighbour_gpus": 1,
    "neighbour_power_w": 310.5,
    "neighbour_temperature_c": 61.0,
    "host_load_pct": 12.0,
}


def test_a_point_in_a_slot_has_what_its_sidecar_saw():
    """All figures of the record are columns; a neighbour for a part of the window makes the row one beside others."""
    found = neighbours({"nodes": [{"beside": SEEN}]})
    assert found == Neighbours(beside=True, **SEEN)


def test_a_point_alone_in_its_slot_is_alone():
    """No other point ran: the row is like that of a job of its own. Where the window was not seen, others count."""
    assert neighbours({"nodes": [{"beside": {**SEEN, "neighbours": 0.0}}]}).beside is False
    assert neighbours({"nodes": [{"beside": {**SEEN, "neighbours": None}}]}).beside is True


def test_a_job_of_its_own_has_no_neighbours_and_no_figures():
    """Records of any version: all of it is null."""
    assert neighbours({"nodes": [{}, {"beside": None}]}) == neighbours({}) == Neighbours()


def test_a_record_with_other_than_numbers_is_damaged():
    """Text where a number belongs costs the row, not the tables."""
    with pytest.raises(DamagedError, match="neighbours"):
        neighbours({"nodes": [{"beside": {**SEEN, "slots": "two"}}]})
