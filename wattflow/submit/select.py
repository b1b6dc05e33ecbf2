"""Choose points of a sweep by their choices and states."""

import contextlib
import json
from collections.abc import Collection, Sequence
from itertools import repeat

from wattflow.analysis.axes import columns_of, in_words, moving
from wattflow.config import choices, identity
from wattflow.config import choices as config_choices
from wattflow.config.identity import is_hashed, is_replaceable
from wattflow.config.overrides import split
from wattflow.errors import RefusedError
from wattflow.store.columns import CHOICE_KEYS
from wattflow.store.layout import SweepDir

_SOME = 8  # points that an error lists
_MOST_IN_WORDS = 20_000  # points whose choices are read for a table


def choose(
    sweep: SweepDir, filters: Sequence[str], only: Collection[str] | None
) -> set[str] | None:
    """The points that every filter holds for: KEY=VALUE[,VALUE...] of their choices, and ids; null without a filter.

    RefusedError for a filter that names no choice, and for an id that the sweep does not have.
    """
    if not filters and only is None:
        return None
    points = sweep.points()
    unknown = sorted(set(only or ()) - {point.point_id for point in points})
    if unknown:
        raise RefusedError(
            f"{', '.join(unknown)}: no such point in {sweep.path}. `wattflow status {sweep.path}` lists them."
        )
    wanted = dict(_filter(text) for text in filters)
    return {
        point.point_id
        for point in points
        if (only is None or point.point_id in only)
        and (not wanted or _holds(config_choices.flat(point.choices()), wanted))
    }


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part KEY=VALUE words into filters and new settings, which are those of `cluster.*` that points may get anew."""
    settings = [word for word in words if is_replaceable(split(word)[0])]
    return [word for word in words if word not in settings], settings


def refuse_idle_filters(sweep: SweepDir, filters: Sequence[str]) -> None:
    """Raise RefusedError for a filter that no point of a sweep meets: a new value was meant, or it is a slip."""
    for word in filters:
        if choose(sweep, [word], None):
            continue
        if is_hashed(_filter(word)[0]):
            raise RefusedError(f"{word}: no point of {sweep.path} has it.")
        raise RefusedError(
            f"{word}: the points of a sweep keep theirs, since one sweep does not mix checkpoints, prompts or meters. "
            "Submit them under another sweep=NAME; cluster.KEY=VALUE can be asked for anew."
        )


def _filter(text: str) -> tuple[str, list[str]]:
    """The key and the values of one KEY=VALUE[,VALUE...]; a group's key is its name's."""
    key, values = split(text)
    key = f"{key}.name" if key in choices.GROUPS else key
    if not values or key not in identity.DEFAULTS:
        raise RefusedError(
            f"{text!r}: no filter. Write KEY=VALUE, such as batch_size=8,16 or model=tiny; `wattflow keys` lists keys."
        )
    return key, values.split(",")


def _holds(choices: dict[str, object], wanted: dict[str, list[str]]) -> bool:
    return all(any(_is(choices.get(key), v) for v in values) for key, values in wanted.items())


def _is(value: object, text: str) -> bool:
    """Whether a choice equals a text: 5 and 5.0 are one number, true is none."""
    if isinstance(value, str):
        return value == text
    with contextlib.suppress(ValueError):
        said = json.loads(text)
        return bool(said == value) and isinstance(said, bool) == isinstance(value, bool)
    return False


def one(sweep: SweepDir, point: str) -> str:
    """Return the id of the point that is or begins with some digits; RefusedError unless just one does."""
    ids = [known.point_id for known in sweep.points()]
    found = (
        [point] if point in ids else [known for known in ids if point and known.startswith(point)]
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise RefusedError(
            f"{point}: no such point in {sweep.path}. `wattflow status {sweep.path}` lists them."
        )
    more = f" and {len(found) - _SOME} more" if len(found) > _SOME else ""
    raise RefusedError(f"{point}: {len(found)} points begin so: {', '.join(found[:_SOME])}{more}.")


def choices_in_words(sweep: SweepDir) -> dict[str, str]:
    """Return the choices that vary by point, as a person writes them; nothing of a measurement or of very many."""
    points = sweep.points()
    if len(points) > _MOST_IN_WORDS or any(point.command() is not None for point in points[:1]):
        return {}
    columns = columns_of(point.choices() for point in points)
    names = moving(columns) if points else []
    names += ["repeat"] * (len({*columns.get("repeat", ())}) > 1)
    keys = [CHOICE_KEYS[name].removesuffix(".name") for name in names]
    rows = zip(*(columns[name] for name in names), strict=True) if names else repeat(())
    return {
        point.point_id: " ".join(
            f"{key}={in_words(value)}" for key, value in zip(keys, row, strict=True)
        )
        for point, row in zip(points, rows)  # noqa: B905 (repeat is endless)
    }
