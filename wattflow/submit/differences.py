"""What a submit leaves as it was: points that were sent before keep the choices that they were sent with."""

import shlex
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from wattflow.config.choices import Config, leaves
from wattflow.config.identity import is_hashed, is_replaceable
from wattflow.store.grid import encoded

if TYPE_CHECKING:  # importing it loads Hydra, which resume and cancel do not need
    from wattflow.plan.points import Plan

# what shapes the list of points, or names their sweep
_OF_THE_LIST = (
    "sweeps_dir",
    "sweep.name",
    "sweep.repeats",
    "sweep.seed",
    "sweep.zip",
    "sweep.exclude",
)
_ENOUGH = 100  # points that differ: the others differ as they do


def ignored(plan: "Plan", tried: Collection[str]) -> list[str]:
    """Return a line for each choice that points sent before, and not finished, have otherwise than this plan."""
    if not tried or not plan.sweep.grid_path.is_file():
        return []
    rows = {point.point_id: point for point in plan.sweep.points()}
    planned = [point for point in plan.points if point.point_id in tried and point.point_id in rows]
    new: dict[str, tuple[Any, Any]] = {}
    seen = 0
    for point, text in zip(planned, encoded(point.config for point in planned), strict=True):
        row = rows[point.point_id]
        if row.text == text or plan.sweep.is_finished(point.point_id):
            continue
        new = {**_changed(row.config(), point.config), **new}
        seen += 1
        if seen == _ENOUGH:
            break
    return _lines(new, shlex.quote(str(plan.sweep.path)))


def _changed(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each key that makes no point; a profile's lists and dicts are values."""
    before = {**leaves(old), **_of_the_profile(old)}
    after = {**leaves(new), **_of_the_profile(new)}
    return {
        key: (before.get(key), value)
        for key, value in after.items()
        if before.get(key) != value
        and not is_hashed(key)
        and key not in _OF_THE_LIST
        and (not is_replaceable(key) or key in _of_the_profile(new))
    }


def _of_the_profile(config: Config) -> dict[str, Any]:
    return {f"cluster.{key}": value for key, value in vars(config.cluster).items() if key != "cost"}


def _lines(new: dict[str, tuple[Any, Any]], sweep: str) -> list[str]:
    asked = {key: value for key, (_, value) in new.items() if is_replaceable(key)}
    lines = [
        f"{key}={_shown(value)} is ignored for points that were sent before: they keep {_shown(old)}."
        for key, (old, value) in new.items()
    ]
    if asked:
        words = " ".join(shlex.quote(f"{key}={_shown(value)}") for key, value in asked.items())
        lines.append(
            f"`wattflow resume {sweep} {words}` sends those that have not finished with it."
        )
    if len(asked) < len(new):
        lines.append(
            "One sweep does not mix checkpoints, prompts or meters: submit them under another sweep=NAME."
        )
    return lines


def _shown(value: Any) -> str:
    """Return a value as an override has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{text!r}" for key, text in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(repr, value))}]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
