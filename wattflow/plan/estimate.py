"""Estimate how long points will take and what they will draw, from finished attempts alone.

A point is expected to take what finished attempts took, on the mean,

    same    with the same choices but for seed and repeat, or else
    shape   of the same model, engine, control, precision, cluster, nodes and shards: their time a decode step, times
            its steps

and is unknown where there is neither. docs/commands.md says what the second rests on.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pyarrow as pa

from wattflow.config.choices import Config, ranks_of
from wattflow.errors import DamagedError
from wattflow.nullable import complete, quotient
from wattflow.store.layout import SweepDir
from wattflow.store.tables import read_columns

_J_PER_KWH = 3.6e6
_SWEEPS = 20  # that a plan looks into, the newest first
# choices that change neither a point's work nor where it runs
_NO_WORK = ("seed", "repeat", "sweep", "sweeps_dir", "cluster")


@dataclass(frozen=True)
class Finished:
    """One finished attempt: its choices, its time in s, and its J where they are known."""

    config: Config
    seconds: float
    energy_j: float | None
    simulated: bool = False  # joules that are arithmetic, not measured
    energy_expanded_u_j: float | None = None  # k = 2; null where it is not known
    power_limit_max_w: float | None = None  # the highest that its boards accept


@dataclass(frozen=True)
class Expected:
    """What one point should take: s, J where they are known, and which attempts this rests on."""

    seconds: float
    energy_j: float | None
    how: Literal["same", "shape"]


@dataclass(frozen=True)
class Sum:
    """What several points should take, without those that are unknown."""

    gpu_hours: float
    energy_kwh: float | None  # null where the joules of some are unknown
    same: int  # points estimated by attempts with the same choices
    shape: int  # by attempts of the same shape
    unknown: int
    attempts: int  # finished ones that all this rests on
    simulated: bool = False  # whether joules of any of those are
    energy_expanded_u_kwh: float | None = (
        None  # k = 2, by the sensors alone; null where one's is not known
    )


class Past:
    """Finished attempts, by which other points they are alike."""

    def __init__(self, finished: Iterable[Finished]) -> None:
        same: dict[Hashable, list[tuple[float, float | None]]] = defaultdict(list)  # s, J
        shape: dict[Hashable, list[tuple[float, float | None]]] = defaultdict(list)  # s a step, W
        self.attempts = 0
        self.simulated = False
        limits_w: dict[Hashable, float] = {}
        shares: list[float | None] = []  # expanded uncertainties over their J
        for one in finished:
            self.attempts += 1
            self.simulated |= one.simulated
            if one.energy_j is not None:
                shares.append(quotient(one.energy_expanded_u_j, one.energy_j))
            same[_work(one.config)].append((one.seconds, one.energy_j))
            busy_s = max(0.0, one.seconds - _waits_s(one.config))
            power_w = None if one.energy_j is None else one.energy_j / one.seconds
            shape[_shape(one.config)].append((busy_s / _steps(one.config), power_w))
            if one.power_limit_max_w is not None:
                where = _where(one.config)
                limits_w[where] = max(limits_w.get(where, 0.0), one.power_limit_max_w)
        self._limits_w = limits_w
        self._relative_u = complete(max, shares)
        self._same = {key: _means(pairs) for key, pairs in same.items()}
        self._shape = {key: _means(pairs) for key, pairs in shape.items()}

    def expect(self, config: Config) -> Expected | None:
        """Return what a point should take; null where nothing like it has finished."""
        if not self.attempts:
            return None
        if (same := self._same.get(_work(config))) is not None:
            return Expected(*same, "same")
        if (shape := self._shape.get(_shape(config))) is not None:
            step_s, power_w = shape
            seconds = step_s * _steps(config) + _waits_s(config)
            return Expected(seconds, None if power_w is None else power_w * seconds, "shape")
        return None

    def power_limit_w(self, config: Config) -> float | None:
        """Return what a GPU of a point can take: its cap, or the highest limit that boards of finished ones accept."""
        cap_w = config.control.power_limit_w
        return self._limits_w.get(_where(config)) if cap_w is None else float(cap_w)

    def sum(self, points: Iterable[Config]) -> Sum:
        """Return what these points should take together."""
        return self.add_up([(ranks_of(config), self.expect(config)) for config in points])

    def add_up(self, points: Sequence[tuple[int, Expected | None]]) -> Sum:
        """Return what points on so many GPUs each should take together."""
        known = [(gpus, one) for gpus, one in points if one is not None]
        joules = [one.energy_j for _, one in known]
        energy_j = None if None in joules else sum(j for j in joules if j is not None)
        return Sum(
            gpu_hours=sum(gpus * one.seconds for gpus, one in known) / 3600.0,
            energy_kwh=None if energy_j is None else energy_j / _J_PER_KWH,
            same=sum(one.how == "same" for _, one in known),
            shape=sum(one.how == "shape" for _, one in known),
            unknown=len(points) - len(known),
            attempts=self.attempts,
            simulated=self.simulated,
            energy_expanded_u_kwh=None
            if energy_j is None or self._relative_u is None
            else self._relative_u * energy_j / _J_PER_KWH,
        )


def _means(pairs: list[tuple[float, float | None]]) -> tuple[float, float | None]:
    """Return the mean of the first values, and that of the second ones that are known; null where none is."""
    known = [second for _, second in pairs if second is not None]
    return fmean(first for first, _ in pairs), fmean(known) if known else None


def _work(config: Config) -> Hashable:
    """Return what a point does and where, as a key: all choices but those that only say how it is asked for."""
    return _where(config), _values(config, without=_NO_WORK)


def _shape(config: Config) -> Hashable:
    """Return what points have in common whose decode steps take as long."""
    sizes = config.nodes, config.shards, config.pipeline, config.precision
    control = _values(config.control)
    return _where(config), config.model.name, _values(config.engine), control, sizes


def _where(config: Config) -> Hashable:
    # joules of a superchip's module are no estimate of its GPU's
    return config.cluster.name, config.cluster.gpu_model, config.power.scope


def _values(part: Any, without: Collection[str] = ()) -> Hashable:
    """Return the values of a part of the choices, and of parts within it."""
    return tuple(
        _values(value) if is_dataclass(value) else repr(value) if isinstance(value, dict) else value
        for key, value in vars(part).items()
        if key not in without
    )


def _waits_s(config: Config) -> float:
    """Return the time that an attempt idles before its load and after its last batch."""
    return 2.0 * config.power.idle_s


def _steps(config: Config) -> int:
    """Return the decode steps of a point, those of the uncounted batch too."""
    assert config.n_prompts is not None  # the choices are resolved
    return (math.ceil(config.n_prompts / config.batch_size) + 1) * config.max_gen_len


def collected(sweep: SweepDir, like: Collection[tuple[str, int]] | None = None) -> list[Finished]:
    """Return the finished attempts in a sweep's results; none where it has no results, or damaged ones.

    With `like`, only those of such a (model.name, shards).
    """
    names = ["point_id", "status", "model", "shards", "attempt_s", "job_energy_j"]
    names += ["simulated", "pieces"]
    try:
        newer = ["job_energy_expanded_u_j", "power_limit_max_w"]
        rows = read_columns(sweep.points_path, names, newer).to_pylist()
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
            Finished(
                points[row["point_id"]].config(),
                float(row["attempt_s"]),
                row["job_energy_j"],
                bool(row["simulated"]),
                row["job_energy_expanded_u_j"],
                row["power_limit_max_w"],
            )
            for row in wanted
        ]
    except (OSError, pa.ArrowException, DamagedError, LookupError, TypeError, ValueError):
        return []  # absent, of an earlier version, or damaged


def past_of(sweeps_dir: Path, points: Iterable[Config]) -> Past:
    """Return the finished attempts of the newest sweeps in a folder, of models and shards such as these."""
    like = {(config.model.name, config.shards) for config in points}
    newest: list[tuple[float, Path]] = []
    for path in sweeps_dir.glob("*/results/points.parquet"):
        with contextlib.suppress(OSError):  # being replaced, or another's
            newest.append((path.stat().st_mtime, path.parent.parent))
    sweeps = [SweepDir(path) for _, path in sorted(newest, reverse=True)[:_SWEEPS]]
    return Past(one for sweep in sweeps for one in collected(sweep, like))
