"""Predictions frozen before the runs that test them: a file with a hash of its own, and what became of it.

    wattflow predict grid=next --from sweeps/first --freeze next.json
    wattflow submit grid=next
    wattflow predict --check next.json sweeps/next

The hash holds the file to what was written; that it is older than the runs, its time and theirs say, and a hash that
was published meanwhile shows to others.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from wattflow import __version__
from wattflow.analysis.sweep import Sweep
from wattflow.errors import DamagedError, RefusedError
from wattflow.predict.fit import Prediction
from wattflow.store.files import read_given, read_own, write_json

_KIND = "wattflow prediction 1"


@dataclass(frozen=True)
class Checked:
    """One predicted point beside what it took; relative errors, positive where more was predicted than measured."""

    point_id: str
    choices: dict[str, Any]
    predicted_j: float
    measured_j: float
    error_j: float
    error_s: float
    inside: (
        bool | None
    )  # whether the joules lie in the interval; null for a scenario, which has none


@dataclass(frozen=True)
class Outcome:
    """What became of frozen predictions."""

    points: list[Checked]
    energy_mape: float | None  # means over configurations
    time_mape: float | None
    inside: float | None  # the share of runs whose joules lie in their interval
    best_first: (
        bool | None
    )  # whether the configuration predicted cheapest a token has the lowest mean
    earlier: int  # runs that began before the predictions were frozen: no test of them
    missing: int  # predicted points without a measured run that counts


def freeze(
    path: Path,
    points: Sequence[tuple[str, Mapping[str, Any], Prediction]],
    about: Mapping[str, Any],
) -> str:
    """Write predictions of points (id, choices that vary, prediction) and return their sha256.

    RefusedError where the file exists: what is frozen is not written again.
    """
    if path.exists():
        raise RefusedError(
            f"--freeze {path}: is there already, and what is frozen stays. Name another file."
        )
    document: dict[str, Any] = {
        "kind": _KIND,
        "wattflow": __version__,
        "frozen_ns": time.time_ns(),
        **about,
        "points": [
            {"point_id": name, "choices": dict(choices), **asdict(made)}
            for name, choices, made in points
        ],
    }
    digest = _sha256(document)
    write_json(path, {**document, "sha256": digest})
    return digest


def read_frozen(path: Path) -> dict[str, Any]:
    """Return a file of predictions; DamagedError where it is none, or not as it was frozen."""
    try:
        document = json.loads(read_given(path))
        kind, digest = document.pop("kind"), document.pop("sha256")
        is_own = _sha256({"kind": kind, **document}) == digest
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise DamagedError(f"{path}: no file of predictions ({error}).") from error
    if kind != _KIND:
        raise DamagedError(f"{path}: no file of predictions of this version ({kind!r}).")
    if not is_own:
        raise DamagedError(f"{path}: was changed since it was frozen: its sha256 is not {digest}.")
    return {"kind": kind, **document, "sha256": digest}


def hash_of(path: Path) -> str:
    """Return the sha256 of a file of a sweep."""
    return hashlib.sha256(read_own(path)).hexdigest()


def _sha256(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check(document: Mapping[str, Any], sweep: Sweep) -> Outcome:
    """Return frozen predictions beside the runs of a sweep that count and began after they were frozen."""
    known = (pl.col("energy_j") > 0) & (pl.col("duration_s") > 0)
    counting = sweep.points.filter(pl.col("counts") & ~pl.col("simulated") & known)
    rows = {row["point_id"]: row for row in counting.to_dicts()}
    found, earlier, missing = [], 0, 0
    for point in document["points"]:
        row = rows.get(point["point_id"])
        if row is None or row["started"] is None:
            missing += 1
        elif row["started"].timestamp() * 1e9 < document["frozen_ns"]:
            earlier += 1
        else:
            found.append(_checked(point, row))
    intervals = [one.inside for one in found if one.inside is not None]
    return Outcome(
        found,
        _mape(found, "error_j"),
        _mape(found, "error_s"),
        sum(intervals) / len(intervals) if intervals else None,
        _best_first(document, found, rows),
        earlier,
        missing,
    )


def _checked(point: Mapping[str, Any], row: Mapping[str, Any]) -> Checked:
    joules, seconds = point["joules"], point["seconds"]
    inside = None
    if joules["low"] is not None:
        inside = joules["low"] <= row["energy_j"] <= joules["high"]
    return Checked(
        point["point_id"],
        point["choices"],
        joules["value"],
        row["energy_j"],
        joules["value"] / row["energy_j"] - 1,
        seconds["value"] / row["duration_s"] - 1,
        inside,
    )


def _setting(choices: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in choices.items() if k != "repeat"}, sort_keys=True)


def _mape(points: Sequence[Checked], name: str) -> float | None:
    """Return the mean over configurations of the mean error of their runs, without its sign."""
    of: dict[str, list[float]] = {}
    for one in points:
        of.setdefault(_setting(one.choices), []).append(abs(getattr(one, name)))
    return sum(sum(errors) / len(errors) for errors in of.values()) / len(of) if of else None


def _best_first(
    document: Mapping[str, Any], points: Sequence[Checked], rows: Mapping[str, Mapping[str, Any]]
) -> bool | None:
    """Return whether the configuration predicted to take least a token took least; null with fewer than two."""
    tested = {one.point_id for one in points}
    predicted: dict[str, float] = {}
    measured: dict[str, list[float]] = {}
    for point in document["points"]:
        token_j = rows.get(point["point_id"], {}).get("energy_per_token_j")
        if point["point_id"] in tested and token_j is not None:
            name = _setting(point["choices"])
            predicted[name] = point["energy_per_token_j"]["value"]
            measured.setdefault(name, []).append(token_j)
    if len(measured) < 2:
        return None
    means = {name: sum(of) / len(of) for name, of in measured.items()}
    return min(predicted, key=lambda k: predicted[k]) == min(means, key=lambda k: means[k])
