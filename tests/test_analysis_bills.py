"""What each attempt took and costs, from rows of results worked out by hand."""

import json
from datetime import UTC, datetime

import pytest

from wattflow.analysis.bills import table
from wattflow.errors import RefusedError

TARIFF = {"price_per_kwh": 0.5, "currency": "EUR", "price_source": "tariff"}


def row(**over):
    """A finished attempt of an hour on two GPUs: 3.6 MJ, 36 J a token."""
    return {
        "point_id": "a" * 12,
        "attempt": 1,
        "status": "finished",
        "counts": True,
        "cluster_cost": json.dumps(TARIFF),
        "power_source": "nvml_buffer",
        "unfinished_source": None,
        "boundary": "gpu",
        "shards": 2,
        "cluster_gpu_model": None,
        "gpus": 2,
        "boards": ["GPU-a", "GPU-b"],
        "attempt_s": 3600.0,
        "unfinished_s": None,
        "job_energy_j": 3.4e6,
        "reference_energy_j": 0.2e6,
        "unfinished_energy_j": None,
        "energy_per_token_j": 36.0,
        "energy_per_token_expanded_u_j": 3.6,
        "job_energy_u_j": 0.0,
        "unfinished_energy_u_j": 0.0,
        "energy_j": 3.0e6,
        "duration_s": 3000.0,
        # 5 % of the energy by the gain, and nothing else
        "board_gain_u_j": 0.15e6,
        "board_offset_u_j": 0.0,
        "board_u_j": 0.15e6,
        "command": None,
        "started": datetime(2026, 1, 1, tzinfo=UTC),
        **over,
    }


def bill(settings=(), **over):
    (found,) = table([row(**over)], settings).to_pylist()
    return found


def test_an_hour_on_two_gpus():
    """2 GPU-hours; 3.4 MJ and 0.2 MJ of the reference load are 1 kWh, 0.50 EUR; a million tokens are 10 kWh, 5 EUR."""
    found = bill()
    assert (found["gpu_hours"], found["energy_kwh"], found["price"]) == (2.0, 1.0, 0.5)
    assert found["price_per_million_tokens"] == 5.0
    assert (found["boundary"], found["simulated"], found["why_not"]) == ("gpu", False, None)
    # 5 % doubled is 10 %, of each figure
    for name in (
        "energy_expanded_u_kwh",
        "price_expanded_u",
        "price_per_million_tokens_expanded_u",
    ):
        of = name.replace("_expanded_u_kwh", "_kwh").replace("_expanded_u", "")
        assert found[name] == pytest.approx(0.1 * found[of])


def test_an_attempt_that_did_not_finish():
    """Its joules, sensor and time are those up to its end; without any they are unknown, and no 0."""
    cut = {"power_source": None, "boundary": None, "job_energy_j": None, "attempt_s": None}
    found = bill(
        **cut, unfinished_source="nvml_buffer", unfinished_energy_j=7.2e6, unfinished_s=1800.0
    )
    assert (found["energy_kwh"], found["gpu_hours"], found["power_source"]) == (
        2.0,
        1.0,
        "nvml_buffer",
    )
    found = bill(**cut)
    assert (found["energy_kwh"], found["gpu_hours"], found["boundary"]) == (None, None, None)
    assert found["why_not"] == "no joules are known"


def test_gpus_that_no_rank_recorded_are_those_that_the_profile_gives():
    """4 shards on a profile that names its GPU are 4 GPU-hours; on one that does not they are unknown."""
    lost = {"gpus": None, "boards": None, "shards": 4}
    assert bill(**lost, cluster_gpu_model="h100")["gpu_hours"] == 4.0
    assert bill(**lost)["gpu_hours"] is None


def test_a_host_has_no_gpu_hours():
    """Joules of a host, by RAPL or simulated, are of no GPU."""
    for source, simulated in (("rapl", False), ("simulated", True)):
        found = bill(power_source=source, boundary="host")
        assert (found["gpu_hours"], found["boundary"], found["simulated"]) == (
            None,
            "host",
            simulated,
        )


def test_a_measured_command_holds_its_reference_load():
    """The joules of a command are those of all its phases, to which nothing is added."""
    assert bill(command='["true"]', job_energy_j=3.6e6)["energy_kwh"] == 1.0


def test_points_that_were_never_tried_have_no_bill():
    """A row without an attempt is left out."""
    assert table([row(attempt=None)]).num_rows == 0


def test_a_factor_in_place_of_the_profiles(tmp_path):
    """A setting replaces the constant; a table that cannot be read is refused with what it has to be."""
    assert bill(["cluster.cost.price_per_kwh=2"])["price"] == 2.0
    with pytest.raises(RefusedError, match="has to be a CSV with the columns time"):
        bill([f"cluster.cost.price_path={tmp_path}/none.csv"])
