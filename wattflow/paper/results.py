"""What the sweeps of a scale have found: for each grid of the paper its points, wherever one of them was run."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from wattflow.analysis.sweep import Sweep
from wattflow.config.choices import Config
from wattflow.paper.objects import SIZE
from wattflow.paper.plans import sweeps_of
from wattflow.paper.scales import SCALES
from wattflow.store.layout import SweepDir
from wattflow.workload.model import GIB, parameters

LABEL = "size_label"


@dataclass(frozen=True)
class Found:
    """The points of one grid on one cluster: a row each, with the columns of results/points.parquet and some more.

    SIZE has the model's parameters, LABEL its name, memory_occupancy_pct the most memory in use of what a GPU has.
    """

    grid: str
    cluster: str
    points: pl.DataFrame
    configs: dict[str, Config]  # by point_id

    @property
    def gpu(self) -> str:
        """The GPU's name as its driver has it, else as the profile has it, else that it is unknown."""
        for column in ("gpu_name", "cluster_gpu_model"):
            names = self.points[column].drop_nulls().unique().sort().to_list()
            if names:
                return " and ".join(names)
        return f"{self.cluster}, GPU unknown"


def found(scale: str, folder: Path) -> tuple[list[Found], list[str]]:
    """Return the grids of a scale that were sent from a folder, and a line for each sweep without results."""
    opened, notes = [], []
    for grid in SCALES[scale]:
        for directory in sweeps_of(scale, folder, grid):
            if directory.points_path.is_file():
                opened.append((grid, Sweep(directory)))
            else:
                notes.append(
                    f"{directory.name}: not collected yet; `wattflow collect {directory.path}` does."
                )
    rows = [_with_configs(sweep.points, _configs(sweep.directory)) for _, sweep in opened]
    every = pl.concat(rows, how="diagonal") if rows else None
    return [_found(grid, sweep, every) for grid, sweep in opened if every is not None], notes


def _found(grid: str, sweep: Sweep, every: pl.DataFrame) -> Found:
    """Return a sweep's points, each by the row of whichever sweep ran it."""
    configs = _configs(sweep.directory)
    ids = list(configs)
    own = every.filter(pl.col("point_id").is_in(ids))
    best = own.sort("counts", "attempt", nulls_last=False).unique(
        "point_id", keep="last", maintain_order=True
    )
    order = pl.DataFrame({"point_id": ids, "order_": range(len(ids))})
    cluster = next(iter(configs.values())).cluster.name if configs else sweep.name
    return Found(
        grid, cluster, best.join(order, on="point_id").sort("order_").drop("order_"), configs
    )


def _configs(directory: SweepDir) -> dict[str, Config]:
    return {point.point_id: point.config() for point in directory.points()}


def _with_configs(points: pl.DataFrame, configs: dict[str, Config]) -> pl.DataFrame:
    """Return rows with what follows from their choices."""
    sizes = {point_id: parameters(config.model) for point_id, config in configs.items()}
    many = len({config.model.name for config in configs.values()}) < len(set(sizes.values()))
    labels = {
        point_id: config.model.name + (f", {config.model.n_layers} layers" if many else "")
        for point_id, config in configs.items()
    }
    capacity = pl.col("cluster_gpu_memory_gib") * GIB
    return points.with_columns(
        pl.col("point_id").replace_strict(sizes, return_dtype=pl.Int64).alias(SIZE),
        pl.col("point_id").replace_strict(labels, return_dtype=pl.String).alias(LABEL),
        (100.0 * pl.col("memory_used_bytes") / capacity).alias("memory_occupancy_pct"),
    )
