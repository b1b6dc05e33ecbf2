"""Run the points of one Slurm task on each of its ranks."""

import contextlib
import hashlib
import math
import os
import shutil
import signal
import stat
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wattflow.config.choices import Config
from wattflow.engine.ranks import Ranks, join
from wattflow.errors import EngineError, PowerError, SlurmError
from wattflow.process import node_name
from wattflow.run import continuation
from wattflow.run.attempt import LET_RANK_0_CLOSE_S, run_attempt
from wattflow.run.place import Claim, Place, PointReport, Progress, TaskEnds
from wattflow.run.resources import NodeSidecar, Task
from wattflow.run.signals import EARLY_S, InterruptedRunError, Signals
from wattflow.run.watchdog import hang_limit_s
from wattflow.slurm import client
from wattflow.slurm.sbatch import warned_before_s
from wattflow.store import heartbeat
from wattflow.store.layout import SweepDir
from wattflow.store.packing import pack_or_say

if TYPE_CHECKING:
    import submitit

_WATCHDOG_FIRST_S = 60.0  # a collective gives up so long after the watchdog, which says more


@dataclass(frozen=True)
class Todo:
    """The points of a task; those in `again` run although they finished, until an attempt above that number has."""

    sweep: SweepDir
    point_ids: Sequence[str]
    again: Mapping[str, int]

    def after(self, point_id: str) -> int:
        """The attempt up to which a point's attempts count for nothing."""
        return self.again.get(point_id, 0)

    def is_finished(self, point_id: str) -> bool:
        """Whether a point has a finished attempt that counts."""
        return self.sweep.is_finished(point_id, self.after(point_id))

    def finished(self) -> list[tuple[bool, int]]:
        """Of each point, whether it is finished, and its number of finished batches in partial attempts."""
        return [
            (self.is_finished(point_id), continuation.batches_kept(self.sweep, point_id))
            for point_id in self.point_ids
        ]


def run_task(sweep_path: str, point_ids: list[str], again: Mapping[str, int] | None = None) -> None:
    """Run the points of a Slurm task; submitit calls it once on each rank."""
    todo = Todo(SweepDir(Path(sweep_path)), point_ids, again or {})
    with slurm_task(todo) as (place, signals):
        run_points(todo, place, signals, progress_printer())


def _pack(todo: Todo, config: Config, place: Place) -> None:
    """Pack the files of the points that have finished, where the profile asks for it; rank 0 alone does."""
    if config.cluster.pack and place.rank == 0:
        pack_or_say(todo.sweep, todo.point_ids)


@contextlib.contextmanager
def slurm_task(todo: Todo) -> Iterator[tuple[Place, Signals]]:
    """Handle signals and have a spool while a rank of a Slurm task works; what was interrupted is queued again."""
    import submitit  # noqa: PLC0415 (only under Slurm)

    config = todo.sweep.point(todo.point_ids[0]).config()
    limit_min = time_limit_min(config)
    signals = Signals(limit_min)
    signals.install()  # submitit's own handler takes preemption for time-out where a limit is below 10 minutes
    env = submitit.JobEnvironment()
    os.environ.setdefault("OMP_NUM_THREADS", str(config.engine.threads_per_rank))
    place = _place(env, config)
    began_s = time.monotonic()
    before = todo.finished()
    try:
        try:
            yield place, signals
        except EngineError:  # some points failed
            _pack(todo, config, place)
            raise
        _pack(todo, config, place)
    except InterruptedRunError as error:
        if place.rank != 0:
            time.sleep(LET_RANK_0_CLOSE_S)  # the first rank to end has Slurm kill the others
        elif error.signum == signal.SIGUSR2:
            progressed = todo.finished() != before
            _requeue(env.job_id, limit_min, time.monotonic() - began_s, progressed)
        raise
    finally:
        if place.local_rank == 0:
            shutil.rmtree(place.spool, ignore_errors=True)


def time_limit_min(config: Config) -> int:
    """The task's time limit in minutes: Slurm's own, since a task of many points has a multiple of cluster.time_min."""
    try:
        begins_s, ends_s = (int(os.environ[f"SLURM_JOB_{at}_TIME"]) for at in ("START", "END"))
    except (KeyError, ValueError):  # an older Slurm
        return config.cluster.time_min
    return max(1, round((ends_s - begins_s) / 60))


def _place(env: "submitit.JobEnvironment", config: Config) -> Place:
    """This rank's place by Slurm's variables, with a private spool; PowerError where somebody else has that folder."""
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    base = config.cluster.spool_dir or os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    spool = Path(base) / f"wattflow-{os.getuid()}-{env.job_id}-{restart}-{_unguessable(env)}"
    spool.mkdir(mode=0o700, exist_ok=True)
    about = spool.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise PowerError(
            f"{spool} belongs to somebody else: set cluster.spool_dir to a private folder."
        )
    # one job's tasks never share a node with another's of the same number, whatever the port's range
    port = 20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 12000  # below the ephemeral ports
    return Place(
        rank=env.global_rank,
        world=env.num_tasks,
        local_rank=env.local_rank,
        node=node_name(),
        init_method=f"tcp://{env.hostnames[0]}:{port}",
        spool=str(spool),
        job={
            "job_id": env.job_id,
            "array_task": env.array_task_id,
            "restart": restart,
            "cluster": config.cluster.name,
        },
    )


def _unguessable(env: "submitit.JobEnvironment") -> str:
    """A word that all ranks on this node find alike and nobody else can: a spool whose name is known can be planted.

    Only the owner can see when the pickle was written, to the nanosecond.
    """
    sent = "SUBMITIT_FOLDER" in os.environ  # by submitit; not where a rank is started by hand
    written_ns = env.paths.submitted_pickle.stat().st_mtime_ns if sent else 0
    return hashlib.sha256(f"{written_ns} {node_name()}".encode()).hexdigest()[:16]


def run_points(
    todo: Todo, place: Place, signals: Signals, report: PointReport, ends: TaskEnds | None = None
) -> None:
    """Run points one after another as one rank of a task; EngineError when some of them failed.

    `ends` says whether the task's first and last point are among them, as by default; a point that is finished is left
    alone. With one rank a failure costs one point. With several, the ranks no longer agree on where they are, so the
    task ends; `resume` runs what is left.
    """
    ends = ends or TaskEnds()
    ranks = _join(todo.sweep.point(todo.point_ids[0]).config(), place)
    signals.together = ranks.world > 1
    task = Task(todo.sweep, ranks, place, report, signals, NodeSidecar(place))
    failed = []
    first = ends.first
    try:
        for point_id in todo.point_ids:
            if ranks.any(signals.received):
                signals.stop()
            if ranks.broadcast(todo.is_finished(point_id) if ranks.rank == 0 else None):
                continue
            here = TaskEnds(first, ends.last and point_id == todo.point_ids[-1])
            first = False
            try:
                _run_point(task, point_id, todo.after(point_id), here)
            except InterruptedRunError:
                raise
            except Exception:
                if ranks.world > 1:
                    raise
                traceback.print_exc()
                task.weights.drop()  # whatever broke may have broken them too
                failed.append(point_id)
    finally:
        task.sidecar.close()
        task.weights.drop()
        ranks.close()
    if failed:
        raise EngineError(
            f"{len(failed)} of {len(todo.point_ids)} points failed: {', '.join(failed)}"
        )


def _join(config: Config, place: Place) -> Ranks:
    return join(
        place.rank,
        place.world,
        place.local_rank,
        place.node,
        place.init_method,
        config.engine.device,
        config.engine.init_timeout_s,
        max(config.engine.init_timeout_s, hang_limit_s(config) + _WATCHDOG_FIRST_S),
    )


def _run_point(task: Task, point_id: str, after: int, ends: TaskEnds) -> None:
    """Attempt a point, unless another process runs it; attempts up to `after` are not continued."""
    point = task.sweep.point(point_id)
    own = heartbeat.claim(task.sweep, point_id) if task.ranks.rank == 0 else None
    with own or contextlib.nullcontext() as heart:
        claim = None
        if heart is not None:
            left = continuation.ANEW
            if point.config().sweep.on_interrupt == "continue":
                left = continuation.find(task.sweep, point_id, after)
            claim = asdict(Claim(heart.attempt.number, left))
        claim = task.ranks.broadcast(claim)
        if claim is None:
            print(f"point {point_id}: another task runs it now; this one steps aside", flush=True)
            return
        run_attempt(task, point, Claim.from_json(claim), ends, heart)


def _requeue(task: str, time_min: int, ran_s: float, progressed: bool) -> None:
    """Queue the task once more: after a preemption always, near its time limit if it had progressed by then.

    Progress is a finished point or, where points continue from where they were, a finished batch. A point that alone
    outlasts the limit would do so again, so its task ends, and status says why.
    """
    preempted = client.was_preempted(os.environ["SLURM_JOB_ID"])
    if preempted is None:
        preempted = ran_s < time_min * 60 - warned_before_s(time_min) - EARLY_S
    if not (preempted or progressed):
        print(f"a point outlasts cluster.time_min={time_min}; give it more time", flush=True)
        return
    try:
        client.requeue(task)
    except SlurmError as error:
        print(f"not queued again, `wattflow resume` does so: {error}", flush=True)


def progress_printer() -> PointReport:
    """Print progress for a job's log, a line at each change of phase and at most one in 15 s else."""
    last_s: dict[str, float] = {}

    def report(_: str, progress: Progress) -> None:
        now_s = time.monotonic()
        if now_s - last_s.get(progress.phase, -math.inf) >= 15.0 or progress.done == progress.of:
            last_s[progress.phase] = now_s
            print(f"{progress.phase}: {progress.done}/{progress.of} batches", flush=True)

    return report
