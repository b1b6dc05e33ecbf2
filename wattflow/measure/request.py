"""The values of a measurement: what to run, on which node of a step, and how it ended."""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wattflow.config.choices import Power
from wattflow.errors import RefusedError
from wattflow.process import node_name
from wattflow.store.schema import JobInfo

# signals that end what runs, or warn it
FORWARDED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2),  # by which Slurm warns of a time limit
)


@dataclass(frozen=True)
class Watched:
    """What is measured though `measure` does not start it: a process of this node, or a Slurm job's part on it."""

    kind: Literal["pid", "job"]
    number: str
    for_s: float | None = None  # null: until it ends


_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """Return a duration such as 90, 60s, 5m or 2h in s; RefusedError for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if found is None or found[2] not in _SECONDS or float(found[1]) == 0:
        raise RefusedError(f"--for {text}: say how long, such as 90s, 5m or 2h.")
    return float(found[1]) * _SECONDS[found[2]]


@dataclass(frozen=True)
class Request:
    """A command to measure, and how; of what is watched, the words that it is known by."""

    command: list[str]
    out: Path | None = None  # null: a new folder below ./sweeps
    power: Power = field(default_factory=Power)
    tokens_json: str | None = None
    tokens_key: str | None = None
    watched: Watched | None = None


@dataclass(frozen=True)
class Outcome:
    """How a measurement ended: the command's exit code, and lines for a person, also on what was not measured."""

    exit_code: int
    folder: Path
    lines: list[str]
    complete: bool  # measured and collected; false where other nodes have parts too


@dataclass(frozen=True)
class Place:
    """Where this process runs: alone, or as the task of one node of a Slurm step."""

    node: str
    task: int
    nodes: int
    job: JobInfo

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        """Read Slurm's variables; RefusedError where a node has several tasks, as each would measure all of it."""
        step = environment.get("SLURM_STEP_ID")
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1")) if step is not None else 1
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1")) if step is not None else 1
        if tasks > nodes:
            raise RefusedError(
                f"{tasks} tasks on {nodes} nodes: one `wattflow measure` a node, or each GPU is billed to several. "
                "Use `srun --ntasks-per-node=1 wattflow measure ...`; the command starts its ranks, as torchrun does."
            )
        return cls(
            node=node_name(),
            task=int(environment.get("SLURM_NODEID", "0")) if nodes > 1 else 0,
            nodes=nodes,
            job={
                "job_id": environment.get("SLURM_JOB_ID"),
                "array_task": environment.get("SLURM_ARRAY_TASK_ID"),
                "restart": int(environment.get("SLURM_RESTART_COUNT", "0")),
                "cluster": environment.get("SLURM_CLUSTER_NAME", "local"),
                "step": step,
            },
        )


@dataclass(frozen=True)
class CommandRun:
    """One run of a command: its exit code as a shell reports it, its start and end, the tokens in its output."""

    exit_code: int
    start_ns: int
    end_ns: int
    tokens_out: int | None
    tokens_fault: str | None = None  # why the output's are unknown, where it has some
    stopped: Sequence[tuple[int, int]] = ()  # when it stood still, as after Ctrl-Z; unix ns
