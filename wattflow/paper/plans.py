"""From the paper's grids to ordinary submits: what each is called, which points are missing, what is done.

A point that two grids share, such as 65B at batch 64 in Figure 2 and Table IV, is run once: a grid's own sweep lists
all of its points, and those that another sweep of the scale holds are not sent again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wattflow.config.choices import Config
from wattflow.config.overrides import split
from wattflow.errors import RefusedError
from wattflow.paper.objects import OBJECTS, Object
from wattflow.paper.scales import grids
from wattflow.plan.grid import plan
from wattflow.plan.points import Plan
from wattflow.store.layout import SweepDir
from wattflow.submit import send
from wattflow.submit.send import SubmitResult, tried
from wattflow.workload.model import largest_batch, valid_shards

_OURS = ("grid", "sweep", "sweep.name", "sweep.zip")
_SIZES = ("llama-7b", "llama-13b", "llama-65b")
_POWERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Part:
    """One grid of a scale, planned on one cluster."""

    grid: str
    plan: Plan
    missing: frozenset[str]  # points that no sweep of the scale holds yet
    done: int  # of the points that can run

    @property
    def command(self) -> list[str]:
        """The ordinary command's words."""
        return ["wattflow", "submit", *self.plan.overrides]

    @property
    def objects(self) -> list[Object]:
        """The figures and tables that the grid makes."""
        return [one for one in OBJECTS.values() if one.grid == self.grid]


def sweep_name(scale: str, grid: str, cluster: str) -> str:
    """Return the name of the sweep of a grid at a scale on a cluster."""
    return f"paper-{scale}-{grid.removeprefix('paper-')}-{cluster}"


def parts(scale: str, overrides: Sequence[str], objects: Sequence[Object]) -> list[Part]:
    """Return the grids that some objects need, planned; each cluster of `cluster=a,b` has sweeps of its own.

    RefusedError for a scale that is none, and for overrides that name a grid or a sweep.
    """
    for override in overrides:
        if split(override)[0] in _OURS:
            raise RefusedError(
                f"{override}: `wattflow paper` names its own grids and sweeps. `wattflow submit` takes any."
            )
    wanted = {one.grid for one in objects}
    found: list[Part] = []
    for cluster in _clusters(overrides):
        seen: set[str] = set()
        for grid, own in grids(scale).items():
            if grid in wanted:
                words = _words(scale, grid, own, overrides, cluster)
                found.append(_part(grid, plan(words), scale, seen))
                seen |= {point.point_id for point in found[-1].plan.points}
    return found


def _clusters(overrides: Sequence[str]) -> list[str]:
    """Return the clusters that overrides name, else this machine."""
    named = [value for key, value in map(split, overrides) if key == "cluster" and value]
    return named[-1].split(",") if named else ["local"]


def _words(
    scale: str, grid: str, own: Sequence[str], overrides: Sequence[str], cluster: str
) -> list[str]:
    """Return the overrides of one submit: the grid's, the scale's in their place, then the caller's in both's."""
    words = [f"grid={grid}", f"sweep={sweep_name(scale, grid, cluster)}", *own]
    if scale == "full" and grid == "paper-baseline":
        words += _least_hardware([*own, *overrides, f"cluster={cluster}"])
    by_key = {split(word)[0]: word for word in [*words, *overrides, f"cluster={cluster}"]}
    return list(by_key.values())


def _least_hardware(words: Sequence[str]) -> list[str]:
    """Return the shards of each of the paper's sizes by the memory model; nothing where a GPU's memory is unknown."""
    by_key = {split(word)[0]: word for word in [*words, "dataset=gsm8k", "sweep.repeats=1"]}
    if {"model", "shards"} & by_key.keys():
        return []
    found = {
        point.config.model.name: point.config
        for point in plan(["grid=paper-baseline", *by_key.values()]).points
    }
    shards = [least_shards(found[name]) for name in _SIZES]
    return [] if None in shards else [f"shards={','.join(map(str, shards))}"]


def least_shards(config: Config) -> int | None:
    """Return the fewest shards, a power of two, whose GPUs hold a point's model and batch; null where none do.

    Null, too, where the profile does not say what memory its GPUs have.
    """
    memory_gib = config.cluster.gpu_memory_gib
    counts = [shards for shards in valid_shards(config.model) if shards in _POWERS]
    if memory_gib is None:
        return None
    fitting = (
        shards
        for shards in counts
        if largest_batch(replace(config, shards=shards), memory_gib) >= config.batch_size
    )
    return next(fitting, None)


def _part(grid: str, planned: Plan, scale: str, earlier: set[str]) -> Part:
    """Return a planned grid with what is missing and what is done of it."""
    held, finished = set(earlier), set()
    ids = {point.point_id for point in planned.feasible}
    for sweep in sweeps_of(scale, planned.sweep.path.parent):
        known = ids & tried(sweep)
        finished |= {point_id for point_id in known if sweep.is_finished(point_id)}
        held |= known
    return Part(grid, planned, frozenset(ids - held), len(finished))


def sweeps_of(scale: str, folder: Path, grid: str | None = None) -> list[SweepDir]:
    """Return the sweeps of a scale in a folder, of one grid or of all, in the order of their names."""
    names = [grid] if grid is not None else list(grids(scale))
    found = {
        path.parent
        for name in names
        for path in folder.glob(f"{sweep_name(scale, name, '*')}/grid.parquet")
    }
    return [SweepDir(path) for path in sorted(found)]


def submit(part: Part, *, dry_run: bool = False) -> SubmitResult:
    """Send what is missing of a grid by the ordinary submit, and return what was sent."""
    cannot_run = {point.point_id for point in part.plan.points if point.reason is not None}
    return send.submit(part.plan, dry_run=dry_run, only={*part.missing, *cannot_run})
