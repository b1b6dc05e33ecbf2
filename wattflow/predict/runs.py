"""Measured runs as a fit needs them, by board; and what is predicted of planned points.

A fit is of one board, engine, kernels, precision, cap and clock: other ones have coefficients of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import polars as pl

from wattflow.analysis.sweep import Sweep, Sweeps
from wattflow.config.choices import Config
from wattflow.config.identity import point_id
from wattflow.errors import RefusedError
from wattflow.plan.points import Point
from wattflow.predict.fit import Fit, HeldOut, Prediction, Run, fit, held_out
from wattflow.predict.form import Ceilings, Fabric, terms, why_not


@dataclass(frozen=True)
class Board:
    """What has a fit of its own."""

    gpu_model: str | None
    engine: str
    kernels: str
    precision: str
    kv_precision: str | None
    power_limit_w: int | None
    sm_clock_mhz: int | None

    @classmethod
    def of(cls, config: Config) -> "Board":
        """Return the board of resolved choices."""
        return cls(
            config.cluster.gpu_model,
            config.engine.name,
            config.engine.kernels,
            config.precision,
            config.kv_precision,
            config.control.power_limit_w,
            config.control.sm_clock_mhz,
        )

    def __str__(self) -> str:
        """Return what is set of it, for a person."""
        return ", ".join(f"{key} {value}" for key, value in vars(self).items() if value is not None)


@dataclass(frozen=True)
class Measured:
    """One run that counts: its choices, what it took, and what its GPUs can do."""

    config: Config
    prompt_tokens: float  # mean of its prompts
    ceilings: Ceilings
    seconds: float
    joules: float
    gpu_name: str | None  # as the driver has it
    boundary: str  # of the joules

    @property
    def setting(self) -> str:
        """The configuration, repeats and seeds aside."""
        return point_id(replace(self.config, repeat=0, seed=0))


@dataclass(frozen=True)
class BoardFit:
    """A fit of one board, with what it rests on."""

    fit: Fit
    ceilings: Ceilings
    runs: list[Run]
    most_shards: int

    @property
    def models(self) -> list[str]:
        """The models of the runs."""
        return list(dict.fromkeys(run.model for run in self.runs))

    @property
    def settings(self) -> int:
        """How many configurations ran."""
        return len({run.setting for run in self.runs})

    @cached_property
    def by_setting(self) -> HeldOut | None:
        """The errors held out by configuration; null where too few are left."""
        return _or_none(self.runs, [run.setting for run in self.runs])

    @cached_property
    def by_model(self) -> HeldOut | None:
        """The errors held out by model; null where too few are left."""
        models = [run.model for run in self.runs]
        return _or_none(self.runs, models) if len(set(models)) > 1 else None


@dataclass(frozen=True)
class Model:
    """All fits of some sweeps, and the mean length of each dataset's prompts."""

    boards: dict[Board, BoardFit]
    why_not: dict[Board, str]  # boards with runs and without a fit
    prompt_tokens: dict[str, float]
    fabric: Fabric | None  # declared: for shards beyond those measured

    def predict(self, config: Config) -> tuple[Prediction | None, str | None]:
        """Return what a point will take, or why nothing is predicted of it."""
        board = Board.of(config)
        known = self.boards.get(board)
        if known is None:
            return None, self.why_not.get(board, f"no finished run of {board}")
        why = why_not(config)
        tokens = self.prompt_tokens.get(config.dataset.name)
        if tokens is None:
            why = why or f"dataset={config.dataset.name}: none of its prompts' lengths is known"
        beyond = config.shards > known.most_shards
        if beyond and self.fabric is None:
            why = why or (
                f"shards={config.shards}: at most {known.most_shards} were measured; declare --fabric for a scenario"
            )
        if why is not None or tokens is None:
            return None, why
        if beyond and self.fabric is not None:
            found = terms(config, tokens, known.ceilings, self.fabric)
            return _over_fabric(known.fit).predict(found, scenario=True), None
        return known.fit.predict(terms(config, tokens, known.ceilings, _UNIT_FABRIC)), None


_UNIT_FABRIC = Fabric(10e-6, 100e9)  # of measured runs: the fit finds how far theirs is from it


def _over_fabric(known: Fit) -> Fit:
    """Return a fit in which a declared fabric's seconds count as they are, with GPUs at static watts meanwhile."""
    time = replace(known.time, coefficients=(*known.time.coefficients[:-1], 1.0))
    return Fit(time, replace(known.energy, coefficients=(*known.energy.coefficients[:-1], 0.0)))


def measured_of(results: Sweep | Sweeps) -> list[Measured]:
    """Return the runs of collected sweeps that count, were measured and that the form describes; of a copy no run."""
    rows = results.points.filter(
        pl.col("counts")
        & ~pl.col("simulated")
        & pl.all_horizontal(pl.col(name).is_not_null() for name in _NEEDED)
    )
    sweeps = results.sweeps if isinstance(results, Sweeps) else [results]
    points = {point.point_id: point for one in sweeps for point in one.directory.points()}
    found = []
    for row in rows.to_dicts():
        config = points[row["point_id"]].config()
        if why_not(config) is None:
            found.append(_measured(config, row))
    return found


_NEEDED = (
    *("energy_j", "duration_s", "tokens_in", "n_prompts"),
    *("copy_bytes_per_s", "product_flops_per_s"),
)


def _measured(config: Config, row: Mapping[str, Any]) -> Measured:
    return Measured(
        config,
        row["tokens_in"] / row["n_prompts"],
        Ceilings(row["copy_bytes_per_s"], row["product_flops_per_s"]),
        row["duration_s"],
        row["energy_j"],
        row["gpu_name"],
        row["boundary"],
    )


def model_of(measured: Sequence[Measured], fabric: Fabric | None = None) -> Model:
    """Return the fits of all boards; RefusedError where no board has one, with the reason of each."""
    groups: dict[Board, list[Measured]] = {}
    for one in measured:
        groups.setdefault(Board.of(one.config), []).append(one)
    fits: dict[Board, BoardFit] = {}
    why: dict[Board, str] = {}
    for board, of in groups.items():
        try:
            fits[board] = _fit(of)
        except RefusedError as error:
            why[board] = f"{board}: {error}"
    if not fits:
        raise RefusedError(
            " ".join(why.values())
            or "no run counts that was measured with its ceilings (copy_bytes_per_s) and that the form describes."
        )
    lengths: dict[str, list[float]] = {}
    for one in measured:
        lengths.setdefault(one.config.dataset.name, []).append(one.prompt_tokens)
    means = {name: sum(of) / len(of) for name, of in lengths.items()}
    return Model(fits, why, means, fabric)


def _fit(measured: Sequence[Measured]) -> BoardFit:
    for of in ({one.gpu_name for one in measured}, {one.boundary for one in measured}):
        if len(of) > 1:
            names = ", ".join(sorted(map(str, of)))
            raise RefusedError(f"its runs are of {names}, which have no fit together.")
    ceilings = Ceilings(
        sum(one.ceilings.copy_bytes_per_s for one in measured) / len(measured),
        sum(one.ceilings.product_flops_per_s for one in measured) / len(measured),
    )
    runs = [
        Run(
            terms(one.config, one.prompt_tokens, ceilings, _UNIT_FABRIC),
            one.seconds,
            one.joules,
            one.setting,
            one.config.model.name,
        )
        for one in measured
    ]
    return BoardFit(fit(runs), ceilings, runs, max(one.config.shards for one in measured))


def _or_none(runs: Sequence[Run], by: Sequence[Any]) -> HeldOut | None:
    try:
        return held_out(runs, by)
    except RefusedError:
        return None


def predicted(
    model: Model, points: Sequence[Point]
) -> list[tuple[Point, Prediction | None, str | None]]:
    """Return each point with what is predicted of it, or why nothing is."""
    return [(point, *model.predict(point.config)) for point in points]
