"""What the tests on a real Slurm share: small plans, and waiting for what jobs do."""

import random
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes

from wattflow.plan import grid
from wattflow.plan import points as plan_points
from wattflow.slurm import client
from wattflow.store.layout import SweepDir
from wattflow.submit import status

# a point that takes a moment: the synthetic engine loads no torch on one rank
QUICK = (
    "engine=synthetic",
    "engine.synthetic_ms_per_token=0.1",
    "power.meter=simulated",
    "power.idle_s=0.1",
    "n_prompts=4",
    "batch_size=2",
    "max_gen_len=4",
    "max_seq_len=512",
)


def until(fact: Callable[[], object], timeout_s: float = processes.PATIENCE_S) -> None:
    """Wait until a fact holds; Slurm is asked a few times a second."""
    processes.until(fact, timeout_s, each_s=0.3)


def free_base_port() -> int:
    """The first of twenty ports of which the few that are tried are free, below those that jobs use."""
    while True:
        base = random.randrange(11000, 19000, 20)
        try:
            for port in (base, base + 1, base + 2, base + 11):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return base


def plan(folder: Path, *words: str) -> plan_points.Plan:
    """A plan for the test cluster whose sweeps lie in a folder; of words with one key the last wins."""
    by_key = {
        word.partition("=")[0]: word
        for word in (
            "cluster=testcluster",
            "engine.device=cpu",
            f"sweeps_dir={folder}",
            "sweep.repeats=1",
            *words,
        )
    }
    return grid.plan(list(by_key.values()))


def with_cluster(made: plan_points.Plan, **settings: Any) -> plan_points.Plan:
    """The same plan with other settings of its profile."""
    points = [
        replace(p, config=replace(p.config, cluster=replace(p.config.cluster, **settings)))
        for p in made.points
    ]
    return replace(made, points=points)


def fresh(sweep: SweepDir) -> list[status.Row]:
    """The states, from answers of this moment."""
    client.forget()
    return status.states(sweep)


def states(sweep: SweepDir) -> set[str]:
    """The states that points are in now."""
    return {row.state for row in fresh(sweep)}


def jobs_of(made: plan_points.Plan) -> list[str]:
    """The jobs of a sweep's names that wait or run: the array and the collector."""
    command = ["squeue", "-h", "-o", "%F %j"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    jobs = [line.split() for line in lines.splitlines()]
    return sorted({job for job, name in jobs if name.startswith(f"{made.sweep.name}-")})
