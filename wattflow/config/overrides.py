"""Factors of cost given on the command line in place of a profile's."""

import math
from collections.abc import Sequence

from wattflow.config.checks import check_cost, check_value
from wattflow.config.choices import Cost
from wattflow.errors import RefusedError


def with_cost(cost: Cost, words: Sequence[str]) -> Cost:
    """The same factors with those of `cluster.cost.KEY=VALUE` words in their place; RefusedError for another word.

    A constant takes the place of a table, and the other way round; `null` takes a factor away.
    """
    told = dict(vars(cost))
    for word in words:
        key, equals, text = word.partition("=")
        name = key.removeprefix("cluster.cost.")
        if key == name or not equals or name not in told:
            known = ", ".join(f"cluster.cost.{name}" for name in told)
            raise RefusedError(f"--set {word}: not KEY=VALUE with one of {known}.")
        value = None if text == "null" else text if name not in _COST_NUMBERS else _float(word)
        check_value(key, value)
        told[name] = value
        if name in _INSTEAD:
            told[_INSTEAD[name]] = None
    made = Cost(**told)
    check_cost(made)
    return made


_COST_NUMBERS = ("price_per_kwh", "carbon_g_per_kwh", "pue")
_INSTEAD = {
    "price_per_kwh": "price_path",
    "price_path": "price_per_kwh",
    "carbon_g_per_kwh": "carbon_path",
    "carbon_path": "carbon_g_per_kwh",
}


def _float(word: str) -> float:
    try:
        value = float(word.partition("=")[2])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RefusedError(f"--set {word}: no number.")
    return value
