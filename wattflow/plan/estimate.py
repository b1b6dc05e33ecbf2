"""How long points will take and what they will draw, from finished attempts and from nothing else.

A point is expected to take what finished attempts took, on the mean,

    same    with the same choices but for seed and repeat, or else
    shape   of the same model, engine, control, precision, cluster, nodes and shards: their time a decode step, times
            its steps

and is unknown where there is neither. docs/commands.md says what the second rests on.
"""

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from wattflow.errors import DamagedError
from wattflow.store.layout import SweepDir

Choices = dict[str, Any]

_J_PER_KWH = 3.6e6
_SWEEPS = 20  # that a plan looks into, the newest first
# choices that change neither a point's work nor where it runs
_NO_WORK = ("seed", "repeat", "sweep", "sweeps_dir", "cluster")


@dataclass(frozen=True)
class Seen:
    """One finished attempt: what it was of, its time in s, and its J where they are known."""

    choices: Choices
    seconds: float
    energy_j: float | None
    simulated: bool = False  # joules that are arithmetic, not measured


@dataclass(frozen=True)
class Expected:
    """What one point should take: s, J where they are known, and which attempts tell so."""

    seconds: float
    energy_j: float | None
    how: Literal["same", "shape"]


@dataclass(frozen=True)
class Sum:
    """What several points should take, without those that are unknown."""

    gpu_hours: float
    energy_kwh: float | None  # null where the joules of some are unknown
    same: int  # points told by attempts with the same choices
    shape: int  # by attempts of the same shape
    unknown: int
    attempts: int  # finished ones that all this rests on
    simulated: bool = False  # whether joules of any of those are


class Past:
    """Finished attempts, by what can be told from them."""

    def __init__(self, seen: Iterable[Seen]) -> None:
        same: dict[str, list[tuple[float, float | None]]] = defaultdict(list)  # s, J
        shape: dict[str, list[tuple[float, float | None]]] = defaultdict(list)  # s a step, W
        self.attempts = 0
        self.simulated = False
        for one in seen:
            self.attempts += 1
            self.simulated |= one.simulated
            same[_work(one.choices)].append((one.seconds, one.energy_j))
            busy_s = max(0.0, one.seconds - _waits_s(one.choices))
            power_w = None if one.energy_j is None else one.energy_j / one.seconds
            shape[_shape(one.choices)].append((busy_s / _steps(one.choices), power_w))
        self._same = {key: _means(told) for key, told in same.items()}
        self._shape = {key: _means(told) for key, told in shape.items()}

    def expect(self, choices: Choices) -> Expected | None:
        """What a point should take; null where nothing like it has finished."""
        if not self.attempts:
            return None
        if (same := self._same.get(_work(choices))) is not None:
            return Expected(*same, "same")
        if (shape := self._shape.get(_shape(choices))) is not None:
            step_s, power_w = shape
            seconds = step_s * _steps(choices) + _waits_s(choices)
            return Expected(seconds, None if power_w is None else power_w * seconds, "shape")
        return None

    def sum(self, points: Iterable[Choices]) -> Sum:
        """What these points should take together."""
        return self.add_up([(choices["shards"], self.expect(choices)) for choices in points])

    def add_up(self, told: Sequence[tuple[int, Expected | None]]) -> Sum:
        """What points on so many GPUs each should take together."""
        known = [(gpus, one) for gpus, one in told if one is not None]
        joules = [one.energy_j for _, one in known]
        energy_j = None if None in joules else sum(j for j in joules if j is not None)
        return Sum(
            gpu_hours=sum(gpus * one.seconds for gpus, one in known) / 3600.0,
            energy_kwh=None if energy_j is None else energy_j / _J_PER_KWH,
            same=sum(one.how == "same" for _, one in known),
            shape=sum(one.how == "shape" for _, one in known),
            unknown=len(told) - len(known),
            attempts=self.attempts,
            simulated=self.simulated,
        )


def _means(told: list[tuple[float, float | None]]) -> tuple[float, float | None]:
    """The mean of the first values, and that of the second ones that are known; null where none is."""
    known = [second for _, second in told if second is not None]
    return fmean(first for first, _ in told), fmean(known) if known else None


def _work(choices: Choices) -> str:
    """What a point does and where, as a key: all choices but those that only say how it is asked for."""
    kept = {key: value for key, value in choices.items() if key not in _NO_WORK}
    return json.dumps([_where(choices), kept], sort_keys=True)


def _shape(choices: Choices) -> str:
    kept = [choices["model"]["name"], choices["engine"], choices.get("control")]
    sizes = [choices["nodes"], choices["shards"], choices["precision"]]
    return json.dumps([_where(choices), kept, sizes], sort_keys=True)


def _where(choices: Choices) -> list[str | None]:
    return [choices["cluster"]["name"], choices["cluster"]["gpu_model"]]


def _waits_s(choices: Choices) -> float:
    """The time that an attempt idles before its load and after its last batch."""
    return 2.0 * float(choices["power"]["idle_s"])


def _steps(choices: Choices) -> int:
    """Decode steps of a point, those of the uncounted batch too."""
    batches = math.ceil(choices["n_prompts"] / choices["batch_size"]) + 1
    steps: int = batches * choices["max_gen_len"]
    return steps


def collected(sweep: SweepDir, like: Collection[tuple[str, int]] | None = None) -> list[Seen]:
    """The finished attempts that a sweep's collector saw; none where it has no results, or damaged ones.

    With `like`, only those of such a (model.name, shards).
    """
    names = ["point_id", "status", "model", "shards", "attempt_s", "job_energy_j"]
    names += ["simulated", "pieces"]
    try:
        with pq.ParquetFile(sweep.points_path) as file:
            rows = file.read(columns=names, use_threads=False).to_pylist()
        wanted = [
            row
            for row in rows
            if row["status"] == "finished"
            and row["attempt_s"]
            and row["pieces"] is None  # the last piece is not the whole point
            and (like is None or (row["model"], row["shards"]) in like)
        ]
        if not wanted:
            return []
        points = {point.point_id: point for point in sweep.points()}
        return [
            Seen(
                points[row["point_id"]].choices(),
                float(row["attempt_s"]),
                row["job_energy_j"],
                bool(row["simulated"]),
            )
            for row in wanted
        ]
    except (OSError, pa.ArrowException, DamagedError, LookupError, TypeError, ValueError):
        return []  # absent, of an earlier version, or damaged


def past_of(sweeps_dir: Path, points: Iterable[Choices]) -> Past:
    """What the newest sweeps in a folder can tell of points like these."""
    like = {(choices["model"]["name"], choices["shards"]) for choices in points}
    newest: list[tuple[float, Path]] = []
    for path in sweeps_dir.glob("*/results/points.parquet"):
        with contextlib.suppress(OSError):  # being replaced, or another's
            newest.append((path.stat().st_mtime, path.parent.parent))
    sweeps = [SweepDir(path) for _, path in sorted(newest, reverse=True)[:_SWEEPS]]
    return Past(one for sweep in sweeps for one in collected(sweep, like))
