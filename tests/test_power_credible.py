"""What a meter reads and no device can give is null where it enters."""

import math

import pytest

from wattflow.power.credible import credible, credible_watts
from wattflow.store.schema import TRACE

AT = {"time_ns": 1, "monotonic_ns": 1, "gap": False}


@pytest.mark.parametrize(
    "power_w",
    [None, math.nan, math.inf, -math.inf, -0.001, 0.0, 0.004, 5000.1, 4_294_967.295, 1e300],
)
def test_watts_that_no_board_draws(power_w):
    """Below 0.1 W, beyond any board, and what is no number: -1 mW as a whole number without sign is 4.29 MW."""
    assert not credible_watts(power_w, "nvml_buffer")


@pytest.mark.parametrize("power_w", [0.1, 700.0, 971.0, 1400.0])
def test_watts_of_boards(power_w):
    """A board of 700 W was seen at 971 W."""
    assert credible_watts(power_w, "nvml_buffer", 700.0)


def test_a_host_may_draw_more_and_a_simulated_one_nothing():
    """Eight packages and their memory, and arithmetic on an idle machine."""
    assert credible_watts(6000.0, "rapl")
    assert credible_watts(0.0, "simulated")
    assert not credible_watts(5e6, "rapl")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("power_w", -1.0),
        ("power_limit_w", 4_294_967.295),
        ("counter_mj", -1),
        ("counter_mj", 2**64 - 1),
        ("temperature_c", 2_147_483_632),
        ("gpu_activity_pct", 4_294_967_295),
        ("sm_activity_pct", math.nan),
        ("dram_activity_pct", -0.5),
        ("sm_clock_mhz", 4_294_967_295),
        ("memory_used_bytes", -1),
        ("throttle_reasons", 2**64 - 2),
        ("under_cap_ns", 2**64 - 1),
        ("processes", -1),
        ("pcie_tx_mib_s", math.inf),
    ],
)
def test_a_value_that_is_no_reading_is_null_and_its_neighbours_stay(column, value):
    """So that it can be written to a trace, whose columns have no room for some of them."""
    row = {**AT, "source": "nvml_conditions", "memory_clock_mhz": 1593, column: value}
    kept = credible(row)
    assert kept == {**row, column: None}
    assert TRACE.field(column).nullable


def test_what_devices_give_is_left_as_it_is():
    """The same row, unchanged."""
    row = {**AT, "source": "nvml_buffer", "power_w": 700.0, "counter_mj": 2**62, "temperature_c": 0}
    assert credible(row, 700.0) is row
    assert credible({**row, "power_w": 1500.0}, 700.0)["power_w"] is None
    assert credible({**row, "power_w": 1500.0})["power_w"] == 1500.0
