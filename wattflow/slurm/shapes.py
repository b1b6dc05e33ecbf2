"""What points ask of Slurm: those that ask for the same share a shape, and its tasks share few arrays."""

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from wattflow.config import identity
from wattflow.config.choices import Cluster, Config, controls_itself, ranks_of, slots_of
from wattflow.errors import RefusedError
from wattflow.slurm import client
from wattflow.slurm.containers import paths_of

_Item = TypeVar("_Item")

_MAY_BE_MANY = 10  # tasks from which on Slurm is asked how many it takes
_SHARE_OF_JOBS = 0.8  # of Slurm's table of jobs, or of one's own share of it, that a sweep may fill


@dataclass(frozen=True)
class Shape:
    """What a task asks of Slurm, and the points that ask for the same."""

    nodes: int
    ranks_per_node: int  # one GPU each
    cluster: Cluster
    point_ids: list[str] = field(default_factory=list)
    blocks: list[list[str]] = field(default_factory=list)  # that must not be parted; empty: none
    control: dict[str, str] = field(default_factory=dict)  # options by which the site sets limits
    read: list[str] = field(default_factory=list)  # paths that the points read, beside their sweep
    takes_all: bool = False  # whether one block takes all slots of a node

    @property
    def slots(self) -> int:
        """How many points a task runs at once, each on GPUs of its own; 1 without cluster.side_by_side."""
        return slots_of(self.cluster, self.nodes, self.ranks_per_node)

    @property
    def gpus_per_node(self) -> int:
        """How many GPUs a task asks for on each node: one a rank of all its slots."""
        return self.ranks_per_node * self.slots

    @property
    def tasks(self) -> list[list[str]]:
        """The point ids of each task, in the order in which points are run.

        points_per_task counts whole blocks, and those of one slot.
        """
        units = self.blocks or [[point_id] for point_id in self.point_ids]
        at_once = 1 if self.takes_all else self.slots
        tasks = _chunks(units, self.cluster.points_per_task * at_once)
        return [list(itertools.chain.from_iterable(task)) for task in tasks]

    @property
    def arrays(self) -> list[list[list[str]]]:
        """The tasks of each array; MaxArraySize bounds the index, so each array counts from 0."""
        return _chunks(self.tasks, self.cluster.max_array_size)

    @property
    def is_local(self) -> bool:
        """Whether its points run on this machine, one after another."""
        return self.cluster.launcher == "local"

    def row(self) -> dict[str, Any]:
        """The shape for people: counts, a task's limit in minutes, the most node- and GPU-hours that all can use."""
        node_hours = len(self.tasks) * self.nodes * self.cluster.time_min / 60.0
        return {
            "cluster": self.cluster.name,
            "control": " ".join(f"--{k}={v}" for k, v in self.control.items()) or None,
            "nodes": self.nodes,
            "ranks_per_node": self.ranks_per_node,
            "slots": self.slots,
            "points": len(self.point_ids),
            "tasks": len(self.tasks),
            "jobs": 1 if self.is_local else len(self.arrays),
            "time_min": None if self.is_local else self.cluster.time_min,
            "node_hours": None if self.is_local else round(node_hours, 3),
            "gpu_hours": None if self.is_local else round(node_hours * self.gpus_per_node, 3),
        }


def _chunks(items: Sequence[_Item], size: int) -> list[list[_Item]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def shapes(points: Sequence[tuple[str, Config]]) -> list[Shape]:
    """Points (id, resolved choices) by what they ask of Slurm, in the order of each shape's first point."""
    by_shape: dict[Hashable, Shape] = {}
    blocks: dict[Hashable, dict[Hashable, list[str]]] = {}
    profiles: dict[int, str] = {}  # points share them
    for point_id, config in points:
        nodes, ranks, cluster = config.nodes, ranks_of(config), config.cluster
        assert nodes is not None  # the choices are resolved
        control = _control_options(config)
        if id(cluster) not in profiles:
            profiles[id(cluster)] = repr(cluster)
        key = nodes, ranks, profiles[id(cluster)], *control.items()
        if key not in by_shape:
            of_node, rest = divmod(ranks, nodes)
            if rest or not 0 < of_node <= cluster.gpus_per_node:
                raise RefusedError(
                    f"point {point_id}: {_in_words(config)} cannot be spread evenly over nodes={nodes} of "
                    f"cluster.gpus_per_node={cluster.gpus_per_node}. Leave nodes out to have it follow from shards."
                )
            by_shape[key] = Shape(nodes, of_node, cluster, control=control)
        by_shape[key].point_ids.append(point_id)
        known = by_shape[key].read
        known.extend(path for path in paths_of(config) if path not in known)
        if config.sweep.block is not None:
            by_shape[key] = replace(by_shape[key], takes_all=config.sweep.block == "neighbours")
            blocks.setdefault(key, {}).setdefault(block_of(config), []).append(point_id)
    return [_blocked(shape, list(blocks.get(key, {}).values())) for key, shape in by_shape.items()]


def block_of(config: Config) -> Hashable:
    """Return what the points of a block share: their repeat, or a round of the repeats of one point."""
    if config.sweep.block != "neighbours":
        return config.repeat
    nodes = config.nodes or 1
    slots = slots_of(config.cluster, nodes, ranks_of(config) // nodes)
    return identity.point_id(replace(config, repeat=0)), config.repeat // (2 * slots)


def _in_words(config: Config) -> str:
    """Return the ranks of a point as its keys say them."""
    stages = "" if config.pipeline == 1 else f" x pipeline={config.pipeline}"
    return f"shards={config.shards}{stages}"


def _blocked(shape: Shape, blocks: list[list[str]]) -> Shape:
    """The shape with its blocks; a task has as much more time as its longest block has points."""
    if not blocks:
        return shape
    longest = max(map(len, blocks))
    if shape.takes_all:  # each slot in turn, and all at once
        longest = shape.slots + 1
    cluster = replace(shape.cluster, time_min=shape.cluster.time_min * longest)
    return replace(shape, cluster=cluster, blocks=blocks)


def fitting(requested: list[Shape]) -> list[Shape]:
    """The same shapes with so many points a task that Slurm takes all tasks; a task that holds more has more time."""
    counts = [len(shape.tasks) for shape in requested if not shape.is_local]
    array_size: int | None = None
    factor = 1
    if counts:
        most, array_size = _limits([s.cluster for s in requested if not s.is_local], sum(counts))
        factor = 1 if most is None else _fewest_a_task(counts, most)
    out = []
    for shape in requested:
        cluster = shape.cluster
        more = 1 if shape.is_local else factor
        cluster = replace(
            cluster,
            points_per_task=cluster.points_per_task * more,
            time_min=cluster.time_min * more,
            max_array_size=min(cluster.max_array_size, array_size or cluster.max_array_size),
        )
        out.append(replace(shape, cluster=cluster))
    return out


def _limits(clusters: list[Cluster], tasks: int) -> tuple[int | None, int | None]:
    """How many tasks this sweep may send, and the size of an array; null where nothing limits them."""
    bounds = [cluster.max_tasks for cluster in clusters if cluster.max_tasks is not None]
    if tasks <= _MAY_BE_MANY:
        return min(bounds, default=None), None
    jobs, array_size = client.limits()
    if not bounds:
        known = [jobs, *(client.most_submitted(of) for of in {c.account for c in clusters})]
        bounds = [int(most * _SHARE_OF_JOBS) for most in known if most is not None]
    return min(bounds, default=None), array_size


def _fewest_a_task(counts: list[int], most: int) -> int:
    """How many times as many points a task must hold so that shapes of so many tasks have at most `most` together.

    Each shape keeps at least one task.
    """
    factor = math.ceil(sum(counts) / max(1, most))
    while sum(-(-count // factor) for count in counts) > max(most, len(counts)):
        factor += 1
    return factor


def _control_options(config: Config) -> dict[str, str]:
    """Return the options that request a point's power limit and clock; {} where the job sets them itself."""
    control, cluster = config.control, config.cluster
    if controls_itself(config):
        return {}
    out = {}
    if control.power_limit_w is not None:
        asked = cluster.power_caps[str(control.power_limit_w)]
        option, equals, value = asked.partition("=")
        if equals and option and value:
            out[option] = value
        else:
            both = [cluster.constraint, asked] if cluster.constraint else [asked]
            out["constraint"] = "&".join(both)
    if control.sm_clock_mhz is not None:
        out["gpu-freq"] = str(control.sm_clock_mhz)
    return out
