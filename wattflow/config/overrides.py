"""KEY=VALUE, read in one place wherever a person writes one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_type_hints

from wattflow.config.checks import check_cost, check_value
from wattflow.config.choices import Cost
from wattflow.config.keys import from_text, wrong_type
from wattflow.errors import RefusedError

Part = TypeVar("Part")


def split(text: str) -> tuple[str, str | None]:
    """Return the key and the value of KEY=VALUE; the value is null where there is no `=`."""
    key, equals, value = text.partition("=")
    return key, value if equals else None


def with_settings(part: Part, at: str, settings: Sequence[str]) -> Part:
    """Return a part of the choices with `at.KEY=VALUE` settings in the place of its values.

    RefusedError for another key, and for a value of another type or one that is not allowed.
    """
    types = get_type_hints(type(part))
    values: dict[str, Any] = {}
    for setting in settings:
        key, text = split(setting)
        name = key.removeprefix(f"{at}.")
        if text is None or key == name or name not in types:
            known = ", ".join(f"{at}.{name}" for name in types)
            raise RefusedError(f"--set {setting}: not KEY=VALUE with one of {known}.")
        values[name] = _typed(setting, key, text)
        check_value(key, values[name])
    return replace(part, **values)  # type: ignore[type-var]


def _typed(setting: str, key: str, text: str) -> Any:
    """Return a text as a value of a key's type; RefusedError where it is none, and for no finite number."""
    try:
        value = from_text(key, text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"--set {setting}: {wrong_type(key)}")
    return value


def with_cost(cost: Cost, settings: Sequence[str]) -> Cost:
    """Return the same factors with those of `cluster.cost.KEY=VALUE` in their place; RefusedError for another key.

    A constant takes the place of a table, and the other way round; `null` takes a factor away.
    """
    for setting in settings:
        cost = with_settings(cost, "cluster.cost", [setting])
        instead = _INSTEAD.get(split(setting)[0].removeprefix("cluster.cost."))
        if instead is not None:
            cost = replace(cost, **{instead: None})
    check_cost(cost)
    return cost


_INSTEAD = {
    "price_per_kwh": "price_path",
    "price_path": "price_per_kwh",
    "carbon_g_per_kwh": "carbon_path",
    "carbon_path": "carbon_g_per_kwh",
}
