"""KEY=VALUE, and settings of one part of the choices."""

import pytest

from wattflow.config.choices import Cost, Power
from wattflow.config.overrides import split, with_cost, with_settings
from wattflow.errors import RefusedError


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a=b", ("a", "b")), ("a=", ("a", "")), ("a", ("a", None)), ("a=b=c", ("a", "b=c"))],
)
def test_a_key_ends_at_the_first_equals_sign(text, parts):
    """What has none has no value, which is another thing than an empty one."""
    assert split(text) == parts


def test_settings_have_the_types_of_their_keys():
    """Text, whole number, number and truth; the last of two wins."""
    settings = ["power.meter=nvml", "power.poll_ms=20", "power.copy_s=2", "power.host=false"]
    assert with_settings(Power(), "power", [*settings, "power.poll_ms=30"]) == Power(
        meter="nvml", poll_ms=30, copy_s=2.0, host=False
    )


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("power.poll_ms=x", "takes a "),
        ("power.copy_s=nan", "takes a "),
        ("power.host=1", "true or false"),
        ("power.meter=volts", "not one of auto, nvml"),
        ("power.poll_ms=1", "at least 5"),
        ("power.colour=red", "not KEY=VALUE with one of power.meter"),
        ("power.meter", "not KEY=VALUE"),
        ("meter=nvml", "not KEY=VALUE"),
    ],
)
def test_a_setting_that_is_none_is_refused(setting, why):
    """Another key, another type, a value that is not allowed."""
    with pytest.raises(RefusedError, match=why):
        with_settings(Power(), "power", [setting])


def test_a_constant_takes_the_place_of_a_table_and_a_table_of_a_constant():
    """Whichever is named last stands alone."""
    table = Cost(price_path="a.csv", price_source="x", currency="EUR")
    constant = with_cost(table, ["cluster.cost.price_per_kwh=0.2"])
    assert (constant.price_per_kwh, constant.price_path) == (0.2, None)
    again = with_cost(constant, ["cluster.cost.price_path=b.csv"])
    assert (again.price_per_kwh, again.price_path) == (None, "b.csv")
