"""Submit a planned sweep, resume it, cancel it; it returns as soon as Slurm has the jobs.

    wattflow submit grid=shards model=llama-7b cluster=mysite
    wattflow resume sweeps/shards
    wattflow cancel sweeps/shards

Points of one shape share arrays, which are sent held; a collect job waits for their end. In this order, so that a
kill at any moment loses nothing: grid.parquet, all INTENTs, then for each array sbatch (held), its pickles, SUBMITTED,
and when all are sent their release. `resume` mends what was cut short: it releases what is complete and takes back
what is not. Both hold the sweep's turn (journal.turn) meanwhile, so that two terminals never send one point twice.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyarrow as pa

from wattflow import __version__, estimate, journal, mounts, process, slurm
from wattflow.config import Cluster, cluster_of, controls_itself
from wattflow.errors import DamagedError, RefusedError, SlurmError
from wattflow.journal import LostTurnError, Sent, Turn
from wattflow.schema import GRID, SCHEMA_VERSION
from wattflow.stream import read_table, write_table
from wattflow.sweepdir import AttemptDir, SweepDir, write_atomic

if TYPE_CHECKING:  # importing it loads Hydra, which resume and cancel do not need
    from wattflow.grid import Plan

log = logging.getLogger(__name__)

RUN_TASK = "wattflow.run:run_task"
RUN_SERIALLY = "wattflow.run:run_serially"
COLLECT_TASK = "wattflow.submit:collect_task"
COLLECT = "wattflow.collect:collect_task"

_Item = TypeVar("_Item")

_SIGNAL_BEFORE_END_S = 90  # how long before its time limit a task is told
_COLLECT_MIN = 60
_COLLECT_GB = 16.0
_COLLECT_ROUNDS = 10  # collect jobs in a row
_COLLECT_WAIT_S = (
    60  # of the second collect job, after the jobs that it waits for; each next waits twice as long
)
_MAY_BE_MANY = 10  # tasks from which on Slurm is asked how many it takes
_SHARE_OF_JOBS = 0.8  # of Slurm's table of jobs that one sweep may fill; others use the cluster too


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


@dataclass(frozen=True)
class Shape:
    """What a task asks of Slurm, and the points that ask for the same."""

    nodes: int
    ranks_per_node: int  # one GPU each
    cluster: Cluster
    point_ids: list[str] = field(default_factory=list)
    blocks: list[list[str]] = field(default_factory=list)  # that must not be parted; empty: none
    control: dict[str, str] = field(default_factory=dict)  # options by which the site sets limits

    @property
    def tasks(self) -> list[list[str]]:
        """The point ids of each task, in the order in which points are run; points_per_task counts whole blocks."""
        units = self.blocks or [[point_id] for point_id in self.point_ids]
        tasks = _chunks(units, self.cluster.points_per_task)
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
            "points": len(self.point_ids),
            "tasks": len(self.tasks),
            "jobs": 1 if self.is_local else len(self.arrays),
            "time_min": None if self.is_local else self.cluster.time_min,
            "node_hours": None if self.is_local else round(node_hours, 3),
            "gpu_hours": None if self.is_local else round(node_hours * self.ranks_per_node, 3),
        }


@dataclass
class Submission:
    """What a call sent, or with `dry_run` would send."""

    sweep: SweepDir
    shapes: list[Shape]
    points: int  # sent by this call
    tried: int  # left out: sent before
    infeasible: int  # left out: they cannot run
    job_ids: list[str] = field(default_factory=list)
    collect_job: str | None = None


def _chunks(items: Sequence[_Item], size: int) -> list[list[_Item]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


# --- shapes and the batch script ------------------------------------------------------------------


def shapes(points: Sequence[tuple[str, dict[str, Any]]]) -> list[Shape]:
    """Points (id, resolved choices) by what they ask of Slurm, in the order of each shape's first point."""
    by_shape: dict[str, Shape] = {}
    repeats: dict[str, dict[int, list[str]]] = {}
    for point_id, choices in points:
        nodes, shards = choices["nodes"], choices["shards"]
        control = _control_options(choices)
        key = json.dumps([nodes, shards, choices["cluster"], control], sort_keys=True)
        if key not in by_shape:
            cluster = cluster_of(choices)
            ranks, rest = divmod(shards, nodes)
            if rest or not 0 < ranks <= cluster.gpus_per_node:
                raise RefusedError(
                    f"point {point_id}: shards={shards} cannot be spread evenly over nodes={nodes} of "
                    f"cluster.gpus_per_node={cluster.gpus_per_node}. Leave nodes out to have it follow from shards."
                )
            by_shape[key] = Shape(nodes, ranks, cluster, control=control)
        by_shape[key].point_ids.append(point_id)
        if choices["sweep"]["block"] == "board":
            of_shape = repeats.setdefault(key, {})
            of_shape.setdefault(choices["repeat"], []).append(point_id)
    return [_blocked(shape, list(repeats.get(key, {}).values())) for key, shape in by_shape.items()]


def _blocked(shape: Shape, blocks: list[list[str]]) -> Shape:
    """The shape with its blocks; a task has as much more time as its longest block has points."""
    if not blocks:
        return shape
    longest = max(map(len, blocks))
    cluster = replace(shape.cluster, time_min=shape.cluster.time_min * longest)
    return replace(shape, cluster=cluster, blocks=blocks)


def _fitting(asked: list[Shape]) -> list[Shape]:
    """The same shapes with so many points a task that Slurm takes all tasks; a task that holds more has more time."""
    remote = [shape for shape in asked if not shape.is_local]
    tasks = sum(len(shape.tasks) for shape in remote)
    told = [shape.cluster.max_tasks for shape in remote if shape.cluster.max_tasks is not None]
    array_size: int | None = None
    if tasks > _MAY_BE_MANY:
        jobs, array_size = slurm.limits()
        told += [] if told or jobs is None else [int(jobs * _SHARE_OF_JOBS)]
    factor = math.ceil(tasks / max(1, min(told))) if told else 1
    out = []
    for shape in asked:
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


def _control_options(choices: dict[str, Any]) -> dict[str, str]:
    """The options by which a site is asked for a point's power limit and clock; {} where the job sets them itself."""
    control, cluster = choices.get("control"), choices["cluster"]
    if control is None or controls_itself(choices):
        return {}
    out = {}
    if control["power_limit_w"] is not None:
        feature = cluster["power_caps"][str(control["power_limit_w"])]
        kind, _, partition = feature.partition("partition=")
        if partition and not kind:
            out["partition"] = partition
        else:
            both = [cluster["constraint"], feature] if cluster["constraint"] else [feature]
            out["constraint"] = "&".join(both)
    if control["sm_clock_mhz"] is not None:
        out["gpu-freq"] = str(control["sm_clock_mhz"])
    return out


def _gpu_options(shape: Shape) -> dict[str, str]:
    """How this site is asked for one GPU a rank."""
    cluster = shape.cluster
    typed = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    if cluster.gpu_request == "gpus-per-node":
        return {"gpus-per-node": f"{typed}{shape.ranks_per_node}"}
    if cluster.gpu_request == "gres":
        return {"gres": f"gpu:{typed}{shape.ranks_per_node}"}
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


def _parameters(shape: Shape, name: str, sweep: SweepDir) -> dict[str, Any]:
    """What submitit is told about a job of points."""
    cluster = shape.cluster
    # a quarter of a very short limit, so that such a task is not told at its very start
    signal_s = min(_SIGNAL_BEFORE_END_S, cluster.time_min * 60 // 4)
    memory = cluster.mem_gb_per_node
    return {
        "job_name": name,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.ranks_per_node,
        "cpus_per_task": cluster.cpus_per_rank,
        "time": cluster.time_min,
        "mem": None if memory is None else f"{round(memory * 1024)}M",
        "array_parallelism": cluster.array_throttle,
        "signal_delay_s": signal_s,
        "comment": f"wattflow {sweep.name}" if cluster.comment else None,
        "wckey": None,  # submitit's own default is refused where wckeys are checked
        # srun does not inherit --cpus-per-task from Slurm 22.05 on
        "setup": [*cluster.setup, f"export SRUN_CPUS_PER_TASK={cluster.cpus_per_rank}"],
        "srun_args": ["--kill-on-bad-exit=1", *cluster.srun_options],
        "additional_parameters": {
            "hold": True,
            **_gpu_options(shape),
            **_site_options(cluster),
            **shape.control,
        },
    }


def _collect_parameters(
    shape: Shape, name: str, sweep: SweepDir, after: list[str], wait_s: int
) -> dict[str, Any]:
    """What submitit is told about the collect job: one CPU rank, no GPU, after the end of `after`, however they end.

    It starts in `wait_s` at the earliest.
    """
    memory = shape.cluster.mem_gb_per_node
    cluster = replace(
        shape.cluster,
        gpu_request="none",
        time_min=min(shape.cluster.time_min, _COLLECT_MIN),
        mem_gb_per_node=None if memory is None else min(memory, _COLLECT_GB),
        sbatch_options={k: v for k, v in shape.cluster.sbatch_options.items() if k != "exclusive"},
    )
    alone = Shape(nodes=1, ranks_per_node=1, cluster=cluster)
    told = {**_parameters(alone, name, sweep), "dependency": f"afterany:{':'.join(after)}"}
    if wait_s:
        told["additional_parameters"]["begin"] = f"now+{wait_s}"
    return told


def _python(cluster: Cluster) -> str:
    """The interpreter of the compute nodes, as words that a shell takes for nothing else."""
    return shlex.join(shlex.split(cluster.python) if cluster.python else [sys.executable])


def _send(folder: Path, parameters: dict[str, Any], calls: Sequence[Call], cluster: Cluster) -> Any:
    """The job as submitit sees it: an array with a task a call, or a plain job where there is one call only."""
    import submitit  # noqa: PLC0415 (0.1 s, which dry runs and cancels need not wait for)

    executor = submitit.SlurmExecutor(folder=folder, python=_python(cluster))
    if len(calls) == 1:
        executor.update_parameters(**parameters)
        return executor.submit(calls[0])
    executor.update_parameters(**_as_array(parameters, folder, len(calls)))
    return executor.submit(OneOf(tuple(calls)))


def _as_array(parameters: dict[str, Any], folder: Path, tasks: int) -> dict[str, Any]:
    """The parameters of a plain job for an array of so many tasks, whose logs are named as submitit names them.

    submitit's own arrays have a pickle a task. Here all have one, which each task finds under the name of its own by
    a link that its batch script makes: a submit of 10,000 tasks writes two dozen files.
    """
    logs = {"output": f"{folder}/%A_%a_{{}}_log.out", "error": f"{folder}/%A_%a_{{}}_log.err"}
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
            *("--output", logs["output"].format("%t")),
            *("--error", logs["error"].format("%t")),
            *parameters["srun_args"],
        ],
        "additional_parameters": {
            "array": f"0-{tasks - 1}%{min(tasks, parameters['array_parallelism'])}",
            **{stream: path.format("0") for stream, path in logs.items()},
            **parameters["additional_parameters"],
        },
    }


def batch_script(shape: Shape, sweep: SweepDir, name: str | None = None, array: int = 0) -> str:
    """The text that sbatch would get for the first array of a shape, or a later one; nothing is sent.

    submitit writes it, in a folder that is then taken away, before an sbatch that accepts anything.
    """
    name = name or f"{sweep.name}-00000000"
    final = str(sweep.submitit / name)
    _check_path(sweep)
    calls = [Call(RUN_TASK, (str(sweep.path), task)) for task in shape.arrays[array]]
    with tempfile.TemporaryDirectory(prefix="wattflow-") as folder, slurm.recording_sbatch():
        job = _send(Path(folder), _parameters(shape, name, sweep), calls, shape.cluster)
        text = job.paths.submission_file.read_text()
        # whole shell words, as the final path may need quotes where this one needs none
        words = re.compile(re.escape(folder) + r"\S*")
        return words.sub(lambda word: shlex.quote(word[0].replace(folder, final)), str(text))


def shape_rows(plan: "Plan") -> list[dict[str, Any]]:
    """What each shape of a plan asks for, see `Shape.row`, and what it should take by what has finished."""
    asked = _fitting(shapes([(p.point_id, p.choices) for p in plan.feasible]))
    choices = {point.point_id: point.choices for point in plan.feasible}
    past = estimate.past_of(plan.sweep.path.parent, choices.values())
    return [{**shape.row(), "expected": _expected(shape, choices, past)} for shape in asked]


def _expected(
    shape: Shape, choices: dict[str, dict[str, Any]], past: estimate.Past
) -> dict[str, Any]:
    """What a shape should take: GPU-hours and kWh of its known points, and the minutes of its longest known task."""
    gpus = shape.nodes * shape.ranks_per_node
    by_task = [[past.expect(choices[point_id]) for point_id in task] for task in shape.tasks]
    known = [sum(one.seconds for one in task if one) for task in by_task if None not in task]
    return {
        **asdict(past.add_up([(gpus, one) for task in by_task for one in task])),
        "longest_task_min": max(known) / 60.0 if known else None,
    }


@dataclass(frozen=True)
class Tested:
    """What `sbatch --test-only` says of one array, without sending it."""

    cluster: str
    nodes: int
    ranks_per_node: int
    tasks: int
    accepted: bool
    answer: str


def test_only(plan: "Plan") -> list[Tested]:
    """Slurm's answer to each array that a submit of the plan would send; RefusedError without Slurm's commands."""
    asked = [
        shape
        for shape in _fitting(shapes([(p.point_id, p.choices) for p in plan.feasible]))
        if not shape.is_local
    ]
    _check_commands(asked)
    return [
        Tested(
            shape.cluster.name,
            shape.nodes,
            shape.ranks_per_node,
            len(tasks),
            *slurm.test_only(batch_script(shape, plan.sweep, array=number)),
        )
        for shape in asked
        for number, tasks in enumerate(shape.arrays)
    ]


def batch_scripts(plan: "Plan") -> list[str]:
    """The text that sbatch would get for the first array of each shape of a plan; local points have none."""
    asked = _fitting(shapes([(p.point_id, p.choices) for p in plan.feasible]))
    return [batch_script(shape, plan.sweep) for shape in asked if not shape.is_local]


# --- what is asked, on disk -----------------------------------------------------------------------


def _check_path(sweep: SweepDir) -> None:
    """RefusedError for a measurement, and for a path that Slurm or submitit would read as something else."""
    sweep.refuse_measurement()
    for character in '%\\\n\r"':
        if character in str(sweep.path):
            raise RefusedError(
                f"{str(sweep.path)!r}: Slurm cannot keep logs below a path with {character!r} in it. "
                "Choose another with sweeps_dir=DIR."
            )


def read_grid(sweep: SweepDir) -> list[dict[str, Any]]:
    """The sweep's points, in the order in which they are run: point_id, position, reason, choices (JSON)."""
    rows: list[dict[str, Any]] = read_table(sweep.grid_path, GRID).to_pylist()
    return rows


def _write_grid(plan: "Plan", tried: Collection[str]) -> None:
    """grid.parquet: what was there, with the plan's points added; a point that was tried keeps its row."""
    old = read_grid(plan.sweep) if plan.sweep.grid_path.is_file() else []
    rows = {row["point_id"]: row for row in old}
    written: dict[int, str] = {}  # choices share their parts, and so their text
    for point in plan.points:
        if point.point_id in tried and point.point_id in rows:
            continue
        rows[point.point_id] = {
            "point_id": point.point_id,
            "position": rows.get(point.point_id, {}).get("position", len(rows)),
            "reason": point.reason,
            "choices": _json(point.choices, written),
        }
    told = GRID.with_metadata({"schema_version": str(SCHEMA_VERSION)})
    write_table(plan.sweep.grid_path, pa.Table.from_pylist(list(rows.values()), schema=told))


def _json(choices: dict[str, Any], written: dict[int, str]) -> str:
    """Choices as JSON, each shared group written once."""
    parts = []
    for key, value in choices.items():
        if isinstance(value, dict):
            text = written.get(id(value))
            if text is None:
                text = written[id(value)] = json.dumps(value)
        else:
            text = json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    return "{" + ", ".join(parts) + "}"


def _write_words(plan: "Plan") -> None:
    """sweep.yaml: the words of each submit, for people; JSON's strings are YAML too."""
    path = plan.sweep.sweep_yaml
    text = (
        path.read_text() if path.is_file() else f"# What was asked of {plan.name}, oldest first.\n"
    )
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    words = json.dumps(plan.words, ensure_ascii=False)
    text += f'- time: "{when}"\n  wattflow: "{__version__}"\n  words: {words}\n'
    write_atomic(path, text.encode())


# --- submit ---------------------------------------------------------------------------------------


def keep(plan: "Plan") -> None:
    """Write sweep.yaml and grid.parquet, adding the plan's points; RefusedError in somebody else's sweep."""
    plan.sweep.refuse_measurement()
    plan.sweep.make()
    plan.sweep.require_owner()
    with journal.turn(plan.sweep):
        _write_grid(plan, set(journal.newest_task(journal.read(plan.sweep))))
        _write_words(plan)


def submit(plan: "Plan", *, dry_run: bool = False, only: set[str] | None = None) -> Submission:
    """Send the points of a plan that were never tried, and what was sent.

    RefusedError before anything is written or sent; SlurmError when Slurm took none or a part of the jobs: those
    it took run, and the same submit sends the rest.
    """
    sweep = plan.sweep
    _check_path(sweep)
    if sweep.path.exists():
        sweep.make()
        sweep.require_owner()
    submission, todo = _never_tried(plan, only)
    _check_commands(submission.shapes)
    _check_shared(sweep, submission.shapes)
    if dry_run:
        return submission
    sweep.make()
    sweep.require_owner()
    with journal.turn(sweep) as turn:
        # once more, now that nobody else can send any of them
        submission, todo = _never_tried(plan, only)
        _write_grid(plan, set(journal.newest_task(journal.read(sweep))))
        _write_words(plan)
        _start(submission, todo, turn)
    return submission


_Todo = list[tuple[str, dict[str, Any]]]  # point ids with their choices


def _never_tried(plan: "Plan", only: set[str] | None) -> tuple[Submission, _Todo]:
    """What a submit of this plan has to send: the points that were neither sent nor tried."""
    sweep = plan.sweep
    tried = {*journal.newest_task(journal.read(sweep)), *_attempted(sweep)}
    chosen = [p for p in plan.points if only is None or p.point_id in only]
    feasible = [point for point in chosen if point.reason is None]
    todo = [(point.point_id, point.choices) for point in feasible if point.point_id not in tried]
    submission = Submission(
        sweep,
        _fitting(shapes(todo)),
        points=len(todo),
        tried=len(feasible) - len(todo),
        infeasible=len(chosen) - len(feasible),
    )
    return submission, todo


def _attempted(sweep: SweepDir) -> set[str]:
    """The points that have an attempt."""
    return {point_id for point_id in sweep.points_on_disk() if sweep.attempts(point_id)}


def _check_commands(asked: Sequence[Shape]) -> None:
    """RefusedError where jobs are meant for Slurm and this machine has none."""
    for shape in asked:
        if not shape.is_local and not (shutil.which("sbatch") and shutil.which("srun")):
            raise RefusedError(
                f"cluster={shape.cluster.name}: no sbatch and srun on the PATH. "
                "Submit from a login node, or run here with cluster=local."
            )


def _check_shared(sweep: SweepDir, asked: Sequence[Shape]) -> None:
    """RefusedError where Slurm has nodes that cannot see the sweep's folder."""
    if all(shape.is_local or shape.cluster.shared_sweeps_dir for shape in asked):
        return
    try:
        told = mounts.MOUNTINFO.read_text(errors="replace")
    except OSError:  # no Linux
        return
    why = mounts.node_local(sweep.path.resolve(), told)
    other = slurm.other_node() if why else None
    if other is not None:
        raise RefusedError(
            f"{sweep.path}: {why}, which {other} cannot see. Choose a folder that all nodes share with "
            "sweeps_dir=DIR; if this one is shared, say cluster.shared_sweeps_dir=true."
        )


def _start(
    submission: Submission, todo: _Todo, turn: Turn, again: dict[str, int] | None = None
) -> None:
    """Send what is asked: points of Slurm profiles as arrays, those of local ones as one local job.

    `again` holds the newest attempt of points that are run though they finished.
    """
    local = [point_id for point_id, choices in todo if choices["cluster"]["launcher"] == "local"]
    remote = [shape for shape in submission.shapes if not shape.is_local]
    try:
        if remote:
            _start_arrays(submission, remote, turn, again or {})
        if local:
            _start_local(submission, local, again or {})
    finally:
        slurm.forget()


def _new_name(sweep: SweepDir) -> str:
    """A name for one submission, its folder and its job."""
    return f"{sweep.name}-{secrets.token_hex(4)}"


def _intend(sweep: SweepDir, kind: Any, tasks: list[list[str]]) -> Sent:
    """A new submission, journalled before it is sent."""
    name = _new_name(sweep)
    sent = Sent(name, kind, tasks, sweep.submitit / name, time.time_ns())
    journal.intend(sweep, sent)
    return sent


def _start_arrays(
    submission: Submission, remote: Sequence[Shape], turn: Turn, again: dict[str, int]
) -> None:
    """Send all arrays held, then the collect job, then let them start.

    At the first refusal no further array is sent: SlurmError says what is under way and what is not.
    """
    sweep = submission.sweep
    intended = [
        (shape, _intend(sweep, "points", tasks)) for shape in remote for tasks in shape.arrays
    ]
    refusal: SlurmError | None = None
    accepted: list[Sent] = []
    with slurm.guarded_sbatch():
        for shape, sent in intended:
            if refusal is None:
                turn.check()
                refusal = _send_array(sweep, shape, sent, turn, again)
            if refusal is None:
                accepted.append(sent)
            else:
                journal.write(sweep, "failed", sent.name, error=str(refusal))
        submission.job_ids = [str(sent.job_id) for sent in accepted]
        if accepted:
            collect = _send_collect(sweep, remote[0], turn, submission.job_ids)
            submission.collect_job = collect.job_id
            accepted.append(collect)
    turn.check()
    _release(sweep, accepted)
    if refusal is not None:
        left = sum(len(sent.tasks) for _, sent in intended) - sum(
            len(sent.tasks) for sent in accepted if sent.kind == "points"
        )
        fewer = " with cluster.max_tasks at what this site allows" * ("MaxSubmit" in str(refusal))
        raise SlurmError(
            f"{refusal} {left} tasks of {sweep.name} were not sent; {len(submission.job_ids)} arrays were. "
            f"`wattflow submit` with the same words{fewer} sends the rest."
        )


def _send_array(
    sweep: SweepDir, shape: Shape, sent: Sent, turn: Turn, again: dict[str, int]
) -> SlurmError | None:
    """Send one array, held; null, or why Slurm refused it."""
    calls = [Call(RUN_TASK, (str(sweep.path), task, _of(task, again))) for task in sent.tasks]
    try:
        parameters = _parameters(shape, sent.name, sweep)
        _send_noted(sweep, sent, turn, parameters=parameters, calls=calls, cluster=shape.cluster)
    except SlurmError as error:
        return error
    return None


def _of(point_ids: Sequence[str], again: dict[str, int]) -> dict[str, int]:
    return {point_id: again[point_id] for point_id in point_ids if point_id in again}


def _send_collect(
    sweep: SweepDir, shape: Shape, turn: Turn, after: list[str], earlier: Sequence[int] = ()
) -> Sent:
    """Send the job that collects once `after` have ended; without it `wattflow collect` does the same by hand.

    `earlier` says how many points each collect job before it found unfinished.
    """
    sent = _intend(sweep, "collect", [[]])
    calls = [Call(COLLECT_TASK, (str(sweep.path), list(earlier)))]
    wait_s = _COLLECT_WAIT_S * 2 ** (len(earlier) - 1) if earlier else 0
    try:
        parameters = _collect_parameters(shape, sent.name, sweep, after, wait_s)
        _send_noted(sweep, sent, turn, parameters=parameters, calls=calls, cluster=shape.cluster)
    except SlurmError as error:
        journal.write(sweep, "failed", sent.name, error=str(error))
        log.warning("no collect job: %s `wattflow collect %s` collects by hand.", error, sweep.path)
    return sent


def _send_noted(
    sweep: SweepDir,
    sent: Sent,
    turn: Turn,
    *,
    parameters: dict[str, Any],
    calls: Sequence[Call],
    cluster: Cluster,
) -> None:
    """Send, held, and journal the job's id once its pickle lies where its tasks look for it.

    LostTurnError when the turn was lost meanwhile: then nobody may know of the job, and it is taken back.
    """
    from submitit.core.utils import FailedJobError  # noqa: PLC0415 (as in _send)

    sent.folder.mkdir(mode=0o700)
    try:
        job = _send(sent.folder, parameters, calls, cluster)
    except FailedJobError as error:
        shutil.rmtree(sent.folder, ignore_errors=True)  # a pickle that no task will load
        raise SlurmError(" ".join(str(error).split())) from error
    sent.job_id = str(job.job_id)
    try:
        turn.check()
    except LostTurnError:
        slurm.cancel([sent.job_id])
        raise
    journal.write(sweep, "submitted", sent.name, job_id=sent.job_id)


def _release(sweep: SweepDir, sents: Sequence[Sent]) -> None:
    """Let held submissions start."""
    held = [sent for sent in sents if sent.job_id is not None]
    slurm.release([str(sent.job_id) for sent in held])
    for sent in held:
        journal.write(sweep, "released", sent.name)


def collect_task(sweep_path: str, earlier: list[int]) -> None:
    """What the collect job runs: collect, and if points are queued still or again, send the next collect job.

    Tasks that were requeued may end after their array did. At most ten collect jobs follow each other, each waiting
    twice as long as the last, and none after one that found no further point finished.
    """
    sweep = SweepDir.existing(sweep_path)
    left = cast(Any, Call(COLLECT, (sweep_path,))()).unfinished
    if not left or len(earlier) + 1 >= _COLLECT_ROUNDS or (earlier and left >= earlier[-1]):
        return
    try:
        _collect_again(sweep, [*earlier, left])
    except (SlurmError, RefusedError, LostTurnError) as error:
        print(f"no further collect job: {error}", flush=True)


def _collect_again(sweep: SweepDir, earlier: list[int]) -> None:
    """Send a collect job after the jobs of points that wait or run, if there are any."""
    with journal.turn(sweep) as turn, slurm.guarded_sbatch():
        sents = [sent for sent in journal.read(sweep) if sent.kind == "points" and sent.job_id]
        words = live_words(sents)
        waiting = [
            sent for sent in sents if any(sent.key(k) in words for k in range(len(sent.tasks)))
        ]
        if not waiting:
            return
        of = waiting[0].tasks[0][0]
        (choices,) = [row["choices"] for row in read_grid(sweep) if row["point_id"] == of]
        (shape,) = shapes([(of, json.loads(choices))])
        sent = _send_collect(sweep, shape, turn, [str(sent.job_id) for sent in waiting], earlier)
        _release(sweep, [sent])


# --- without Slurm --------------------------------------------------------------------------------


def _start_local(submission: Submission, point_ids: list[str], again: dict[str, int]) -> None:
    """Have points run one after another in a process that outlives the terminal.

    Not submitit's local executor: that is ended with the terminal, hides GPUs that it was not told of, and has a time
    limit of its own.
    """
    sweep = submission.sweep
    sent = _intend(sweep, "points", [point_ids])
    sent.folder.mkdir(mode=0o700)
    told = json.dumps(again)
    words = [sys.executable, "-m", "wattflow.submit", str(sweep.path), sent.name, told]
    out, err = (
        str(sent.folder / f"{journal.LOCAL_LOG}_0_log.{stream}") for stream in ("out", "err")
    )
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    hears, tells = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        words,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, hears, 0),
            (os.POSIX_SPAWN_OPEN, 1, out, append, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, err, append, 0o600),
        ],
        setsid=True,
    )
    os.close(hears)
    job_id = process.job_id(pid)
    with open(tells, "w") as pipe:  # noqa: PTH123 (a descriptor)
        journal.write(sweep, "submitted", sent.name, job_id=job_id)
        pipe.write(_GO)
    submission.job_ids.append(job_id)


_GO = "go"


def main(sweep_path: str, name: str, again: str) -> int:
    """What the detached process of a local job does: run its points, then collect; 1 when points failed.

    It begins when it is told that the journal knows it: a process that nobody knows of could run beside another.
    """
    if sys.stdin.read(len(_GO)) != _GO:
        return 1
    sweep = SweepDir.existing(sweep_path)
    (sent,) = [sent for sent in journal.read(sweep) if sent.name == name]
    failed = Call(RUN_SERIALLY, (str(sweep.path), sent.tasks[0], json.loads(again)))()
    Call(COLLECT, (str(sweep.path),))()
    return 1 if failed else 0


# --- resume and cancel ----------------------------------------------------------------------------


def resume(
    sweep: SweepDir, *, dry_run: bool = False, only: set[str] | None = None, force: bool = False
) -> Submission:
    """Send the points that were tried, have no finished attempt, and neither wait nor run now; and what was sent.

    `force` also sends those of `only` that have a finished attempt. SlurmError when Slurm does not say what waits and
    runs: then nothing is sent.
    """
    sweep.require_owner()
    _check_path(sweep)
    if force and only is None:
        raise RefusedError("--force runs finished points again: name them with --only ID.")
    if dry_run:
        sents = journal.read(sweep)
        return _unfinished(sweep, sents, live_words(sents), only, force)[0]
    with journal.turn(sweep) as turn:
        sents = journal.read(sweep)
        words = live_words(sents)
        _mend(sweep, sents, words)
        submission, todo, again = _unfinished(sweep, sents, words, only, force)
        _start(submission, todo, turn, again)
    return submission


def _unfinished(
    sweep: SweepDir,
    sents: Sequence[Sent],
    words: dict[str, slurm.Word],
    only: set[str] | None,
    force: bool,
) -> tuple[Submission, _Todo, dict[str, int]]:
    """What a resume has to send, and the newest attempt of those points that are sent though they finished."""
    newest = journal.newest_task(sents)
    rows = [row for row in read_grid(sweep) if only is None or row["point_id"] in only]
    _refuse_unknown(sweep, only, {row["point_id"] for row in rows})
    todo: _Todo = []
    again: dict[str, int] = {}
    for row in rows:
        point_id = row["point_id"]
        if row["reason"] is not None:
            continue
        attempts = sweep.attempts(point_id)
        if _needs_another_try(point_id, attempts, newest, words, force):
            todo.append((point_id, json.loads(row["choices"])))
            if force and attempts:
                again[point_id] = attempts[-1].number
    submission = Submission(
        sweep,
        _fitting(shapes(todo)),
        points=len(todo),
        tried=sum(row["reason"] is None for row in rows) - len(todo),
        infeasible=sum(row["reason"] is not None for row in rows),
    )
    _check_commands(submission.shapes)
    return submission, todo, again


def live_words(sents: Sequence[Sent]) -> dict[str, slurm.Word]:
    """What waits or runs now, by task; asks Slurm at once, and only if something was ever sent to it."""
    words = {}
    if any(not sent.is_local for sent in sents):
        words = {key: word for key, word in slurm.queue().items() if not word.is_over}
    for sent in sents:
        if sent.is_local and process.lives(str(sent.job_id)) is not False:
            words[sent.key(0)] = slurm.Word("RUNNING")
    return words


def _mend(sweep: SweepDir, sents: Sequence[Sent], words: dict[str, slurm.Word]) -> None:
    """Finish what a killed submit left: complete submissions are released, all other jobs of our names cancelled."""
    by_name: dict[str, set[str]] = {}
    for key, word in words.items():
        by_name.setdefault(word.name, set()).add(key.partition("_")[0])
    for sent in sents:
        jobs = by_name.get(sent.name, set())
        # taken without an answer, so that their pickle may not lie where their tasks look; or after the turn was lost
        stray = sorted(jobs if sent.cancelled else jobs - {str(sent.job_id)})
        slurm.cancel(stray)
        for key in [key for key in words if key.partition("_")[0] in stray]:
            del words[key]
        if not sent.is_open:
            continue
        if sent.job_id is None:
            journal.write(sweep, "cancelled", sent.name)
        elif str(sent.job_id) in jobs:
            slurm.release([sent.job_id])
            journal.write(sweep, "released", sent.name)


def _refuse_unknown(sweep: SweepDir, only: set[str] | None, known: set[str]) -> None:
    unknown = sorted((only or set()) - known)
    if unknown:
        raise RefusedError(
            f"{', '.join(unknown)}: no such point in {sweep.path}. `wattflow status {sweep.path}` lists them."
        )


def _needs_another_try(
    point_id: str,
    attempts: Sequence[AttemptDir],
    newest: dict[str, tuple[Sent, int]],
    words: dict[str, slurm.Word],
    force: bool,
) -> bool:
    """Whether a point was tried, is not finished (or is forced), and neither waits nor runs."""
    if not force and is_finished(attempts):
        return False
    if point_id not in newest:
        # `wattflow run` leaves attempts without a submission; a point never tried is submit's to send
        return bool(attempts)
    sent, task = newest[point_id]
    return sent.key(task) not in words or _has_failed(attempts, sent, task)


def _has_failed(attempts: Sequence[AttemptDir], sent: Sent, task: int) -> bool:
    """Whether a task that is still alive has given a point up and gone on to its others."""
    with contextlib.suppress(DamagedError):
        record = attempts[-1].read_record() if attempts else None
        if record is not None and sent.made(record, task):
            return record["status"] in ("failed", "interrupted")
    return False


def is_finished(attempts: Sequence[AttemptDir]) -> bool:
    """Whether one of the attempts finished; a damaged record is none that did."""
    for attempt in reversed(attempts):
        with contextlib.suppress(DamagedError):
            record = attempt.read_record()
            if record is not None and record["status"] == "finished":
                return True
    return False


def cancel(
    sweep: SweepDir,
    *,
    only: set[str] | None = None,
    states: set[str] | None = None,
    dry_run: bool = False,
) -> list[str]:
    """End the tasks that hold these points (all by default), waiting or running; the tasks that were ended.

    `states`, of `waiting` and `running`, chooses by what a task does now. A task that packs several points ends for
    all of them. Without a filter the collect job ends too.
    """
    sweep.require_owner()
    if states is not None and not states <= {"running", "waiting"}:
        raise RefusedError(
            f"--state {', '.join(sorted(states))}: only running, waiting points have a task that can be ended."
        )
    sents = journal.read(sweep)
    words = live_words(sents)
    chosen = {
        (sent.key(task), sent.is_local)
        for sent in sents
        for task, point_ids in enumerate(sent.tasks)
        if (word := words.get(sent.key(task))) is not None
        and (sent.is_local or word.name == sent.name)  # a job of another Slurm may have its number
        and (only is None or only.intersection(point_ids))
        and (states is None or (point_ids and _state(word) in states))
    }
    if not dry_run:
        slurm.cancel(slurm.pack(sorted(key for key, is_local in chosen if not is_local)))
        for key in (key for key, is_local in chosen if is_local):
            process.end(key)
        slurm.forget()
    return sorted(key for key, _ in chosen)


def _state(word: slurm.Word) -> str:
    return "waiting" if word.is_queued else "running"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
