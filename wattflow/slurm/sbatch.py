"""An array of calls as submitit sends it: the options of sbatch, one pickle for all tasks, the batch script as text."""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from wattflow.config.checks import refuse_controls
from wattflow.config.choices import Cluster, to_dict
from wattflow.errors import RefusedError
from wattflow.slurm import client, containers, guard
from wattflow.slurm.shapes import Shape
from wattflow.store.files import read_own
from wattflow.store.layout import SweepDir

RUN_TASK = "wattflow.run.task:run_task"
RUN_SIDE_BY_SIDE = "wattflow.run.side_by_side:run_side_by_side"

_SIGNAL_BEFORE_END_S = 90  # how long before its time limit a task is signalled
_COLLECT_MIN = 60
_LONGEST_NAME = 80  # a job has nine letters more
_COLLECT_GB = 16.0


@dataclass(frozen=True)
class Call:
    """A function by name, with its arguments: what submitit pickles. Nothing of it is imported where it is sent."""

    function: str  # module:name
    arguments: tuple[Any, ...]

    def __call__(self) -> object:
        """Import the function and call it."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)(*self.arguments)


@dataclass(frozen=True)
class OneOf:
    """The calls of all tasks of an array, in one pickle; each task makes its own."""

    calls: tuple[Call, ...]

    def __call__(self) -> object:
        """Make the call of the task that this process is of."""
        return self.calls[int(os.environ["SLURM_ARRAY_TASK_ID"])]()


def gpu_options(shape: Shape) -> dict[str, str]:
    """Return the options that request one GPU a rank at this site, for all slots."""
    cluster = shape.cluster
    typed = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    if cluster.gpu_request == "gpus-per-node":
        return {"gpus-per-node": f"{typed}{shape.gpus_per_node}"}
    if cluster.gpu_request == "gres":
        return {"gres": f"gpu:{typed}{shape.gpus_per_node}"}
    return {}


def _site_options(cluster: Cluster) -> dict[str, Any]:
    """Options of sbatch that every job of a site carries, the collect job too; an empty value is a bare flag."""
    named = {
        "account": cluster.account,
        "constraint": cluster.constraint,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "reservation": cluster.reservation,
        "wckey": cluster.wckey,
    }
    own = {key: value or True for key, value in cluster.sbatch_options.items()}
    return {**{key: value for key, value in named.items() if value is not None}, **own}


def check_values(shape: Shape) -> None:
    """Raise RefusedError for a value that would begin a line of its own in a batch script."""
    refuse_controls("cluster", to_dict(shape.cluster))
    refuse_controls("cluster.power_caps", shape.control)


def call_of(shape: Shape, sweep: SweepDir, point_ids: list[str], again: dict[str, int]) -> Call:
    """Return what a task of a shape calls; `again` has the newest attempt of points that are run though finished."""
    if shape.slots > 1:
        return Call(RUN_SIDE_BY_SIDE, (str(sweep.path), point_ids, again, shape.slots))
    return Call(RUN_TASK, (str(sweep.path), point_ids, again))


def warned_before_s(time_min: int) -> int:
    """How long before its time limit a task is to be warned: a quarter of a very short limit.

    Slurm may do so up to a minute early, and then the task waits, see `run.signals`.
    """
    return min(_SIGNAL_BEFORE_END_S, time_min * 60 // 4)


@dataclass(frozen=True)
class Job:
    """What submitit is given: its parameters, and the command of the interpreter, quoted for a shell."""

    parameters: dict[str, Any]
    python: str


def points_job(shape: Shape, name: str, sweep: SweepDir) -> Job:
    """Return a job of points."""
    cluster = shape.cluster
    check_values(shape)
    entered = _entered(shape, sweep)
    memory = cluster.mem_gb_per_node
    # side by side one process a node starts the points' own steps, for which it leaves everything free
    beside = shape.slots > 1
    ranks = 1 if beside else shape.ranks_per_node
    cpus = cluster.cpus_per_rank * (shape.gpus_per_node if beside else 1)
    parameters = {
        "job_name": name,
        "nodes": shape.nodes,
        "ntasks_per_node": ranks,
        "cpus_per_task": cpus,
        "time": cluster.time_min,
        "mem": None if memory is None else f"{round(memory * 1024)}M",
        "array_parallelism": cluster.array_throttle,
        "signal_delay_s": warned_before_s(cluster.time_min),
        "comment": f"wattflow {sweep.name}" if cluster.comment else None,
        "wckey": None,  # submitit's own default is refused where wckeys are checked
        # srun does not inherit --cpus-per-task from Slurm 22.05 on
        # with --export=NONE the job's srun would pass nothing on either, not even what submitit sets
        "setup": [
            *cluster.setup,
            *entered.setup,
            f"export SRUN_CPUS_PER_TASK={cpus}",
            "export SLURM_EXPORT_ENV=ALL",
        ],
        "srun_args": [
            "--kill-on-bad-exit=1",
            *(["--overlap"] if beside else []),
            *cluster.srun_options,
            *entered.srun_args,
        ],
        "additional_parameters": {
            "hold": True,
            **gpu_options(shape),
            **_site_options(cluster),
            **shape.control,
        },
    }
    # submitit adds its own arguments, for `guard`, which looks at the pickle before submitit loads it
    return Job(parameters, shlex.join([*entered.command, "-P", "-u", "-m", guard.MODULE]))


def _entered(shape: Shape, sweep: SweepDir) -> containers.Launch:
    """Return the command of the compute nodes' interpreter, and what its container asks of the batch script."""
    cluster = shape.cluster
    if cluster.container.kind is not None:
        return containers.launch(cluster, sweep.path, shape.read)
    own = shlex.split(cluster.python) if cluster.python else [sys.executable]
    return containers.Launch([], [], own)


def collect_job(shape: Shape, name: str, sweep: SweepDir, after: list[str], wait_s: int) -> Job:
    """Return the job that collects: one CPU rank, no GPU, once `after` have ended, however.

    It starts in `wait_s` at the earliest.
    """
    memory = shape.cluster.mem_gb_per_node
    cluster = replace(
        shape.cluster,
        gpu_request="none",
        side_by_side=False,
        time_min=min(shape.cluster.time_min, _COLLECT_MIN),
        mem_gb_per_node=None if memory is None else min(memory, _COLLECT_GB),
        sbatch_options={k: v for k, v in shape.cluster.sbatch_options.items() if k != "exclusive"},
    )
    alone = Shape(nodes=1, ranks_per_node=1, cluster=cluster)
    job = points_job(alone, name, sweep)
    job.parameters["dependency"] = f"afterany:{':'.join(after)}"
    if wait_s:
        job.parameters["additional_parameters"]["begin"] = f"now+{wait_s}"
    return job


def send(folder: Path, job: Job, calls: Sequence[Call]) -> Any:
    """The job as submitit sees it: an array with a task a call, or a plain job where there is one call only."""
    import submitit  # noqa: PLC0415 (0.1 s, which dry runs and cancels need not wait for)

    executor = submitit.SlurmExecutor(folder=folder, python=job.python)
    one, of = len(calls) == 1, job.parameters
    executor.update_parameters(**(of if one else _as_array(of, folder, len(calls))))
    # submitit prints what sbatch said, and raises it too: it is said once, by whoever prints the error
    with contextlib.redirect_stderr(io.StringIO()):
        return executor.submit(calls[0] if one else OneOf(tuple(calls)))


def _as_array(parameters: dict[str, Any], folder: Path, tasks: int) -> dict[str, Any]:
    """The parameters of a plain job for an array of so many tasks, whose logs are named as submitit names them.

    submitit's own arrays have a pickle a task. Here all have one, which each task finds under the name of its own by
    a link that its batch script makes: a submit of 10,000 tasks writes some forty files.
    """
    log = f"{folder}/%A_%a_"
    array, task = "${SLURM_ARRAY_JOB_ID}", "${SLURM_ARRAY_TASK_ID}"
    return {
        **parameters,
        "setup": [
            *parameters["setup"],
            f"jobs={shlex.quote(str(folder))}",
            f'ln -sf "{array}_submitted.pkl" "$jobs/{array}_{task}_submitted.pkl"',
        ],
        # the last of two is srun's
        "srun_args": [
            *("--output", f"{log}%t_log.out"),
            *("--error", f"{log}%t_log.err"),
            *parameters["srun_args"],
        ],
        "additional_parameters": {
            "array": f"0-{tasks - 1}%{min(tasks, parameters['array_parallelism'])}",
            "output": f"{log}0_log.out",
            "error": f"{log}0_log.err",
            **parameters["additional_parameters"],
        },
    }


def batch_script(shape: Shape, sweep: SweepDir, name: str | None = None, array: int = 0) -> str:
    """The text that sbatch would get for the first array of a shape, or a later one; nothing is sent.

    submitit writes it, in a folder that is then taken away, before an sbatch that accepts anything.
    """
    name = name or f"{sweep.name}-00000000"
    final = str(sweep.submitit / name)
    check_path(sweep)
    calls = [call_of(shape, sweep, task, {}) for task in shape.arrays[array]]
    with tempfile.TemporaryDirectory(prefix="wattflow-") as folder, client.recording_sbatch():
        sent = send(Path(folder), points_job(shape, name, sweep), calls)
        text = read_own(sent.paths.submission_file).decode()
        # whole shell words, as the final path may need quotes where this one needs none
        paths = re.compile(re.escape(folder) + r"\S*")
        return paths.sub(lambda path: shlex.quote(path[0].replace(folder, final)), str(text))


def check_path(sweep: SweepDir) -> None:
    """Raise RefusedError for a measurement, and for a name or path that Slurm or submitit cannot keep."""
    sweep.refuse_measurement()
    if len(sweep.name) > _LONGEST_NAME:
        raise RefusedError(
            f"sweep {sweep.name}: {len(sweep.name)} letters, and its jobs' names have more: choose one of at most "
            f"{_LONGEST_NAME} with sweep=NAME."
        )
    for character in '%\\\n\r"':
        if character in str(sweep.path):
            raise RefusedError(
                f"{str(sweep.path)!r}: Slurm cannot keep logs below a path with {character!r} in it. "
                "Choose another with sweeps_dir=DIR."
            )
