"""Means over repeats, worked out by hand."""

import pytest

from wattflow.analysis.means import Mean, energies, mean, settings


def row(shards, energy_j, **over):
    """A row of points.parquet that counts."""
    return {
        "shards": shards,
        "energy_j": energy_j,
        "energy_expanded_u_j": None if energy_j is None else 0.1 * energy_j,
        "counts": True,
        "boundary": "gpu",
        "simulated": False,
        "power_source": "nvml_buffer",
        "reasons": [],
        **over,
    }


def of(rows, **options):
    return settings(rows, ["shards"], ["energy_j"], **options)


def test_a_mean_and_its_deviation():
    """1 and 3 have the mean 2 and the deviation 1.414; one value has none, nothing has neither."""
    assert mean([1.0, None, 3.0]) == Mean(2.0, pytest.approx(2**0.5))
    assert mean([1.0]) == Mean(1.0, None)
    assert mean([None]) == Mean(None, None)


def test_a_setting_is_a_row_over_the_repeats_that_count():
    """Of 10, 20 and a failed repeat n is 2 and the mean 15; settings stand in order, null last."""
    failed = row(
        1, None, counts=False, reasons=["failed"], boundary=None, simulated=None, power_source=None
    )
    one, two, none = of([row(2, 5.0), row(1, 10.0), failed, row(1, 20.0), row(None, 7.0)])
    assert (one.chosen, one.n, one.means["energy_j"].mean) == ({"shards": 1}, 2, 15.0)
    assert one.reasons == ["failed"]
    assert (two.chosen, none.chosen) == ({"shards": 2}, {"shards": None})


def test_a_setting_of_which_nothing_counts_is_there():
    """It has its reasons, and neither mean nor sensor."""
    failed = row(
        1, None, counts=False, reasons=["failed"], boundary=None, simulated=None, power_source=None
    )
    (found,) = of([failed])
    assert (found.n, found.means["energy_j"], found.power_source) == (0, Mean(None, None), None)
    assert found.reasons == ["failed"]


def test_joules_of_two_kinds_have_no_mean():
    """Another boundary, another sensor, or a simulated meter is a setting of its own, unless it is asked not to be."""
    rows = [row(1, 1.0), row(1, 2.0, power_source="dcgm"), row(1, 4.0, simulated=True)]
    assert [one.means["energy_j"].mean for one in of(rows)] == [1.0, 2.0, 4.0]
    assert [one.means["energy_j"].mean for one in of(rows, apart=("simulated",))] == [1.5, 4.0]


def test_joules_that_count_are_summed_by_kind():
    """1 and 2 J of GPUs are 3 J; a host's stand apart, and what does not count is in neither."""
    rows = [row(1, 1.0), row(2, 2.0), row(1, 8.0, boundary="host"), row(1, 99.0, counts=False)]
    found = energies(rows)
    assert [(one.energy_j, one.boundary) for one in found] == [(3.0, "gpu"), (8.0, "host")]
    # runs may share their boards, so that uncertainties add up; one that is unknown makes the sum's unknown
    assert [one.expanded_u_j for one in found] == [pytest.approx(0.3), pytest.approx(0.8)]
    assert energies([row(1, 1.0, energy_expanded_u_j=None)])[0].expanded_u_j is None
