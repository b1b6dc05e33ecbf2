"""Run points: on every rank of a Slurm task (`run_task`), or one after another on this machine (`run_serially`).

One attempt, on each rank:

    join -> claim (rank 0) -> sidecar ready (local rank 0) -> idle, load, warmup, batches, idle_after
         -> sidecar closed -> record

A rank that fails leaves logs/error-rank<k>.json; rank 0 alone writes record.json, and `finished` only once every
other file lies in place.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wattflow import config, dataset, heartbeat, pieces, slurm, tokenizer
from wattflow.config import Config
from wattflow.devices import device_locks, visible_devices
from wattflow.engine import ceilings, reference
from wattflow.engine.build import build
from wattflow.engine.generation import Engine, Generated, total_work
from wattflow.engine.ranks import Ranks, join
from wattflow.errors import DamagedError, EngineError, PowerError, SlurmError, WattflowError
from wattflow.interrupt import InterruptedRunError, Signals
from wattflow.pieces import Left
from wattflow.power.parent import Sidecar
from wattflow.power.sidecar import die_with_parent
from wattflow.process import node_name
from wattflow.provenance import commit, versions
from wattflow.schema import (
    REQUEST,
    SCHEMA_VERSION,
    Device,
    JobInfo,
    NodeInfo,
    Piece,
    RankInfo,
    Ready,
    Record,
)
from wattflow.stream import write_table
from wattflow.sweepdir import AttemptDir, SweepDir, write_json
from wattflow.timings import SpanLog, close_node
from wattflow.watchdog import Watchdog

Progress = Callable[[str, int, int], None]  # phase, batches done, batches in all


@dataclass(frozen=True)
class Place:
    """Where this process stands among the ranks of a task."""

    rank: int
    world: int
    local_rank: int
    node: str
    init_method: str  # how ranks find each other: tcp://host:port, or file://path on one node
    spool: str  # a private folder of this node that its ranks share
    job: JobInfo


class HungError(WattflowError, RuntimeError):
    """Nothing moved for longer than sweep.hang_s."""


@dataclass
class Loaded:
    """Weights that lie on this rank's device for several points, and for how many more."""

    of: str  # what they are, see `_load_key`
    weights: Any
    points_left: int


@dataclass
class Task:
    """What the attempts of one task share on one of its ranks."""

    sweep: SweepDir
    ranks: Ranks
    place: Place
    progress: Progress
    signals: Signals
    loaded: Loaded | None = None
    sidecar: Sidecar | None = None  # local rank 0 has it; it goes on between points
    sidecar_of: object = None  # what it was started for

    @property
    def sidecar_spool(self) -> Path:
        """Where this node's sidecar writes."""
        return Path(self.place.spool) / "sidecar"

    def sidecar_for(self, chosen: Config, *, controls: bool) -> Sidecar:
        """This node's sidecar: the one of the point before, where it may go on for this one."""
        of = (chosen.power, chosen.control if controls else None)
        if self.sidecar is None or self.sidecar_of != of:
            self.close_sidecar()
            control = chosen.control if controls else None
            self.sidecar = Sidecar(chosen.power, self.place.node, self.sidecar_spool, control)
            self.sidecar_of = of
        return self.sidecar

    def close_sidecar(self) -> None:
        """End this node's sidecar, if one is left."""
        if self.sidecar is not None:
            self.sidecar.close()
            self.sidecar = None

    def weights_for(self, chosen: Config, engine: Engine, begins: Callable[[], None]) -> Any:
        """The weights that a point shares with others of its task, loaded before or now, which `begins` is told."""
        of = _load_key(chosen)
        if self.loaded is None or self.loaded.of != of or self.loaded.points_left == 0:
            begins()
            self.loaded = None  # before the next ones take its memory
            self.loaded = Loaded(of, engine.load_weights(), chosen.sweep.load_shared_by)
        self.loaded.points_left -= 1
        return self.loaded.weights


def _load_key(chosen: Config) -> str:
    """What the weights of a rank depend on."""
    told = [asdict(chosen.model), chosen.weights, chosen.precision, chosen.shards, chosen.nodes]
    return json.dumps([*told, chosen.engine.name, chosen.engine.device])


def read_choices(sweep: SweepDir, point_id: str) -> dict[str, Any]:
    """The resolved choices of one point, from grid.parquet."""
    table = pq.read_table(sweep.grid_path, columns=["point_id", "choices"])
    row = table["point_id"].to_pylist().index(point_id)
    choices: dict[str, Any] = json.loads(table["choices"][row].as_py())
    return choices


# --- one attempt, as one of its ranks -------------------------------------------------------------


class _Attempt:
    """One rank's part in one attempt."""

    def __init__(self, task: Task, point_id: str, claimed: "_Claimed") -> None:
        """What the task says of this point, the same on all ranks."""
        self.task, self.point_id, self.claimed = task, point_id, claimed
        self.choices = read_choices(task.sweep, point_id)
        self.config: Config = config.from_dict(self.choices)
        self.ranks, self.place = task.ranks, task.place
        self.first_batch = 0
        self.stops = False  # whether a rank was told to end, as all ranks know from the newest edge
        self.answers: list[Generated] = []
        self.sidecar: Sidecar | None = None
        self.at = "its start", 0, 0  # phase, batches done, batches in all
        number = claimed.number
        path = task.sweep.point_path(point_id) / f"attempt-{number}"
        self.dir = AttemptDir(path, point_id, number)
        self.record: Record = {
            "schema_version": SCHEMA_VERSION,
            "point_id": point_id,
            "attempt": number,
            "status": "running",
            "error": None,
            "error_rank": None,
            "started_ns": time.time_ns(),
            "ended_ns": None,
            "choices": self.choices,
            "job": self.place.job,
            "versions": versions(),
            "git": commit(),
        }
        if self.ranks.rank == 0:
            self.dir.write_record(self.record)

    def _spool(self) -> Path:
        return Path(self.place.spool) / f"{self.point_id}-{self.dir.number}"

    def edge(self, engine: Engine) -> int:
        """Unix ns once this rank's device has no queued work and every rank has said the same."""
        engine.synchronize()
        self.stops = self.ranks.any(self.task.signals.asked)
        return time.time_ns()

    def run(self, progress: Progress) -> None:
        """Measure the point; on return all files but the final record lie in place."""
        spool = self._spool()
        spool.mkdir(mode=0o700, exist_ok=True)
        self.text = tokenizer.load(self.config.model, self.config.weights)
        self.prompts = dataset.load(self.config, self.text)
        self.record["prompts"] = self.prompts.info
        if self._goes_on():  # all batches were finished before, by others
            self.record["ranks"], self.record["nodes"] = [], []
            return
        engine = build(self.config, self.ranks, eos_id=self.text.eos_id, pad_id=self.text.pad_id)
        with contextlib.closing(engine):
            shared = self._shared_weights(engine, progress)
            with self._measured(spool) as (devices, mark):
                mine = self._my_device(devices)
                self.record["ranks"] = self.ranks.gather(self._rank_info(mine))
                log = self._span_log(engine, spool, mine)
                if self.claimed.first_of_task:
                    self._reference(log, progress)
                self._generate(engine, shared, log, mark, progress)
                self.record["engine"] = engine.info
                engine.close()
                self._tell_limits()
                if self.claimed.last_of_task:
                    self._reference(log, progress)
                log.close()
        self._close_files(spool)

    def _goes_on(self) -> bool:
        """Take over what an attempt before left, if it answered the same prompts; whether nothing is left to do."""
        left = self.claimed.left
        if left.prompts_sha256 == self.prompts.info["sha256"]:
            self.record["pieces"] = left.pieces
            self.first_batch = left.batches
        return self.first_batch * self.config.batch_size >= len(self.prompts.tokens)

    def _shared_weights(self, engine: Engine, progress: Progress) -> Any:
        """Weights that points of this task share, loaded before anything is measured; null where each loads its own."""
        if self.config.sweep.load_shared_by == 1:
            self.task.loaded = None
            return None
        weights = self.task.weights_for(self.config, engine, lambda: progress("load", 0, 0))
        self.record["load_shared"] = True
        return weights

    @contextlib.contextmanager
    def _measured(self, spool: Path) -> Iterator[tuple[list[Device], Callable[[], None]]]:
        """This node's devices while its sidecar samples them, and what tells it of the measured window's edges.

        Every rank waits for every node's sidecar.
        """
        ready: Ready | None = None
        try:
            if self.place.local_rank == 0:
                controls = config.controls_itself(self.choices)
                self.sidecar = self.task.sidecar_for(self.config, controls=controls)
                ready = self.sidecar.start(self.dir)
            by_node = {r["node"]: r for r in self.ranks.gather(ready) if r is not None}
            mark = _nothing if self.sidecar is None else self.sidecar.mark
            try:
                yield by_node[self.place.node]["devices"], mark
            except BaseException as error:
                self._close_traces()
                interrupted = isinstance(error, InterruptedRunError)
                if interrupted and self.config.sweep.on_interrupt == "continue":
                    self._keep_piece(spool, list(by_node.values()))
                raise
            self.ranks.barrier()  # no rank still works when a sidecar takes its last sample
            told = None if self.sidecar is None else self.sidecar.stop(keep=True)
            self.record["nodes"] = [node for node in self.ranks.gather(told) if node is not None]
        except BaseException:
            self.task.close_sidecar()
            raise

    def _keep_piece(self, spool: Path, nodes: list[Ready]) -> None:
        """Close what was measured up to the last finished batch, for the next attempt to go on from.

        Each node by itself, as other ranks may be anywhere: who goes on looks at what all of them left.
        """
        if self.place.local_rank == 0:
            self._close_spans(spool)
        if self.ranks.rank == 0:
            write_table(self.dir.requests_path, self._requests())
            restarts = 0 if self.sidecar is None else self.sidecar.restarts
            self.record["nodes"] = [
                _told_of_node(node, restarts if node["node"] == self.place.node else 0)
                for node in nodes
            ]
            self._add_piece()

    def _add_piece(self) -> None:
        """Write down this attempt's own batches after those that it went on from."""
        if self.config.sweep.on_interrupt == "continue" and self.answers:
            own: Piece = {
                "attempt": self.dir.number,
                "first_batch": self.first_batch,
                "batches": len(self.answers),
            }
            self.record["pieces"] = [*self.record.get("pieces", []), own]

    def _close_traces(self) -> None:
        """Have the traces of an attempt that failed closed: its joules are somebody's bill too."""
        if self.sidecar is not None:
            with contextlib.suppress(PowerError):
                self.sidecar.stop(_CLOSE_FAILED_S)

    def _my_device(self, devices: list[Device]) -> Device:
        """The measured device that this rank works on; PowerError when sidecar and rank disagree."""
        if self.ranks.gpu_uuid is not None:
            found = [d for d in devices if d["uuid"] == self.ranks.gpu_uuid]
        elif len(devices) == 1:
            found = devices  # a host's one meter serves all of its CPU ranks
        else:
            found = [d for d in devices if d["ordinal"] == self.place.local_rank]
        if not found:
            seen = ", ".join(f"{d['ordinal']}: {d['uuid']}" for d in devices)
            raise PowerError(
                f"rank {self.ranks.rank} on {self.place.node} works on "
                f"{self.ranks.gpu_uuid or f'ordinal {self.place.local_rank}'}, and the sidecar "
                f"measures {seen}. Check CUDA_VISIBLE_DEVICES and how the profile asks for GPUs."
            )
        return found[0]

    def _rank_info(self, device: Device) -> RankInfo:
        return {
            "rank": self.ranks.rank,
            "node": self.place.node,
            "local_rank": self.place.local_rank,
            "gpu_uuid": device["uuid"],
            "device": self.ranks.device_name,
        }

    def _generate(
        self,
        engine: Engine,
        shared: Any,
        log: SpanLog,
        mark: Callable[[], None],
        progress: Progress,
    ) -> None:
        """Idle, load, one uncounted batch, then all batches, the last one as short as it is, and idle once more.

        Batches that an attempt before had finished are left out.
        """
        size, prompts = self.config.batch_size, self.prompts.tokens
        batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        progress("idle", 0, len(batches))
        with log.span("idle"):
            time.sleep(self.config.power.idle_s)
        progress("load", 0, len(batches))
        with log.span("load"):
            engine.load(shared)
        progress("warmup", 0, len(batches))
        with log.span("warmup", batch=0):
            engine.prefill(batches[0])
            engine.decode()
        log.flush()
        mark()
        for number, batch in list(enumerate(batches))[self.first_batch :]:
            if self.stops:
                self.task.signals.stop()
            progress("batches", number, len(batches))
            with log.span("prefill", number) as prefill:
                engine.prefill(batch)
            with log.span("decode", number) as decode:
                out = engine.decode()
            prefill.tokens_in = sum(map(len, batch))
            prefill.tokens_computed = out.prefill_tokens_computed
            decode.tokens_kept = sum(map(len, out.tokens))
            decode.tokens_computed = out.decode_tokens_computed
            log.flush()
            self.answers.append(out)
        mark()
        progress("batches", len(batches), len(batches))
        with log.span("idle_after"):  # weights and cache still lie on the device
            time.sleep(self.config.power.idle_s)
        log.flush()

    def _tell_limits(self) -> None:
        """Note what the measured batches worked on, and what the devices can do at most: in no phase's joules."""
        work = total_work(self.answers)
        if work is not None:
            self.record["work"] = work
            self.record["ceilings"] = ceilings.measure(self.ranks, self.config.precision)

    def _span_log(self, engine: Engine, spool: Path, device: Device) -> SpanLog:
        return SpanLog(
            spool / f"spans-rank{self.ranks.rank}.arrow",
            rank=self.ranks.rank,
            node=self.place.node,
            gpu_uuid=device["uuid"],
            edge=partial(self.edge, engine),
        )

    def _reference(self, log: SpanLog, progress: Progress) -> None:
        """The fixed load by which boards are compared, where the sweep asks for it; no part of the point's joules."""
        if self.config.sweep.reference_s == 0:
            return
        progress("reference", 0, 0)
        with log.span("reference"):
            rounds = reference.run(self.ranks, self.config.sweep.reference_s)
        log.flush()
        self.record["reference_rounds"] = self.record.get("reference_rounds", 0) + rounds

    def _requests(self) -> pa.Table:
        """One row a prompt; a dummy model's text means nothing, so its words and text are null."""
        meaningful = self.config.weights != "dummy" and self.config.engine.name != "synthetic"
        rows: list[dict[str, object]] = []
        before = self.first_batch * self.config.batch_size
        for batch, out in enumerate(self.answers, self.first_batch):
            for kept, stop_reason in zip(out.tokens, out.stop_reasons, strict=True):
                prompt = before + len(rows)  # its place in the drawn prompts
                text = self.text.decode(kept) if meaningful else None
                rows.append(
                    {
                        "prompt": prompt,
                        "batch": batch,
                        "tokens_in": len(self.prompts.tokens[prompt]),
                        "tokens_kept": len(kept),
                        "stop_reason": stop_reason,
                        "words": None if text is None else len(text.split()),
                        "text": text,
                    }
                )
        table = pa.Table.from_pylist(rows, schema=REQUEST)
        return table.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})

    def _close_files(self, spool: Path) -> None:
        """Move what the ranks of this node wrote to the attempt, and wait until every node has done so."""
        if self.place.local_rank == 0:
            self._close_spans(spool)
        if self.ranks.rank == 0:
            self._add_piece()
            write_table(self.dir.requests_path, self._requests())
        self.ranks.barrier()
        if self.place.local_rank == 0:
            shutil.rmtree(spool, ignore_errors=True)

    def _close_spans(self, spool: Path) -> None:
        paths = sorted(spool.glob("spans-rank*.arrow"))
        close_node(paths, self.dir.spans_path(self.place.node))

    def power_now(self) -> dict[str, object]:
        """What the heartbeat tells of this node's joules so far and watts now; empty before the sidecar told any."""
        took = None if self.sidecar is None else self.sidecar.so_far()
        return {} if took is None else {**took, "nodes": self.config.nodes}

    def finish(self) -> None:
        """Say `finished`: the last write of an attempt."""
        if self.ranks.rank == 0:
            self.record["status"] = "finished"
            self.record["ended_ns"] = time.time_ns()
            self.dir.write_record(self.record)

    def hung(self) -> None:
        """Keep that this rank hangs and where; the process ends after this."""
        phase, done, of = self.at
        self.fail(
            HungError(
                f"hung: nothing moved for {_hang_limit_s(self.config):g} s in {phase} ({done} of {of} batches done). "
                "The stacks of all ranks are in their logs, which `wattflow logs` prints. `wattflow resume` runs the "
                "point again."
            )
        )
        if self.sidecar is not None:
            self._close_traces()
            self.sidecar.close()
            shutil.rmtree(self._spool(), ignore_errors=True)
            shutil.rmtree(self.task.sidecar_spool, ignore_errors=True)
            with contextlib.suppress(OSError):  # local ranks keep their logs there
                Path(self.place.spool).rmdir()
        if self.ranks.rank != 0:
            time.sleep(_LET_RANK_0_CLOSE_S)  # the first rank to end has Slurm kill the others

    def fail(self, error: BaseException) -> None:
        """Keep why this rank failed; rank 0 also closes the record, with the reason of the first rank to fail."""
        told = {
            "rank": self.ranks.rank,
            "time_ns": time.time_ns(),
            "interrupted": isinstance(error, InterruptedRunError | KeyboardInterrupt),
            "error": _sentence(error),
            "reason": "hung" if isinstance(error, HungError) else None,
            "traceback": "".join(traceback.format_exception(error)),
        }
        write_json(self.dir.error_path(self.ranks.rank), told)
        if self.ranks.rank == 0:
            close_failed(self.dir, self.record)


def _told_of_node(ready: Ready, restarts: int) -> NodeInfo:
    return {**ready, "sidecar_restarts": restarts, "energy_j": None}


def _nothing() -> None:
    """What a rank does at an edge when another one has the sidecar."""


def _sentence(error: BaseException) -> str:
    """One line for a person: our own messages as they are, others with their type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, WattflowError) else f"{type(error).__name__}: {text}"


def close_failed(attempt: AttemptDir, record: Record, otherwise: str = "") -> None:
    """Mark an attempt failed, or interrupted, by the error that came first on any rank, else by `otherwise`."""
    errors = [json.loads(path.read_bytes()) for path in attempt.logs.glob("error-rank*.json")]
    causes = sorted(errors, key=lambda e: (e["interrupted"], e["time_ns"]))
    record["status"] = "interrupted" if causes and causes[0]["interrupted"] else "failed"
    record["error"] = causes[0]["error"] if causes else otherwise
    record["error_rank"] = causes[0]["rank"] if causes else None
    record["reason"] = causes[0].get("reason") if causes else None
    record["ended_ns"] = time.time_ns()
    attempt.write_record(record)


# --- one task -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Claimed:
    """What rank 0 found when it claimed an attempt, for all ranks."""

    number: int
    left: Left
    first_of_task: bool
    last_of_task: bool


def _measure(task: Task, point_id: str, after: int, ends: tuple[bool, bool]) -> None:
    """One attempt at a point, unless another process is at it; `ends`: whether the first and the last of its task."""
    ranks, sweep = task.ranks, task.sweep
    own = heartbeat.claim(sweep, point_id) if ranks.rank == 0 else None
    told = None
    if own is not None:
        left = _left(sweep, point_id, after)
        told = [own[0].number, left.pieces, left.prompts_sha256]
    told = ranks.broadcast(told)
    if told is None:
        print(f"point {point_id}: another task runs it now; this one steps aside", flush=True)
        return
    with own[1] if own else contextlib.nullcontext() as heart:
        number, pieces_left, sha256 = told
        attempt = _Attempt(task, point_id, _Claimed(number, Left(pieces_left, sha256), *ends))
        if heart is not None:
            heart.ask(attempt.power_now)
        try:
            with Watchdog(_hang_limit_s(attempt.config), attempt.hung) as watchdog:

                def report(phase: str, done: int, of: int) -> None:
                    attempt.at = phase, done, of
                    watchdog.tell()
                    if heart is not None:
                        heart.tell(phase, done, of)
                    task.progress(phase, done, of)

                attempt.run(report)
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.finish()


def _left(sweep: SweepDir, point_id: str, after: int) -> Left:
    """What earlier attempts above `after` left to go on from; nothing where a point starts anew."""
    on_interrupt = read_choices(sweep, point_id)["sweep"].get("on_interrupt", "restart")
    return pieces.find(sweep, point_id, after) if on_interrupt == "continue" else Left([], None)


def _hang_limit_s(chosen: Config) -> float:
    """How long nothing may move: sweep.hang_s beside the longest time that a phase waits on purpose; 0 for ever."""
    waits_s = max(chosen.power.idle_s, chosen.sweep.reference_s)
    return chosen.sweep.hang_s and chosen.sweep.hang_s + waits_s


def _join(chosen: Config, place: Place) -> Ranks:
    return join(
        place.rank,
        place.world,
        place.local_rank,
        place.node,
        place.init_method,
        chosen.engine.device,
        chosen.engine.init_timeout_s,
        max(chosen.engine.init_timeout_s, _hang_limit_s(chosen) + _WATCHDOG_FIRST_S),
    )


def is_finished(sweep: SweepDir, point_id: str, after: int = 0) -> bool:
    """Whether a finished attempt with a number above `after` lies on disk; a damaged record is none that did."""
    for attempt in sweep.attempts(point_id):
        with contextlib.suppress(DamagedError):
            record = attempt.read_record() if attempt.number > after else None
            if record is not None and record["status"] == "finished":
                return True
    return False


def run_points(  # noqa: PLR0917 - what a task is told
    sweep: SweepDir,
    point_ids: Sequence[str],
    place: Place,
    progress: Progress,
    again: Mapping[str, int],
    signals: Signals,
    ends: tuple[bool, bool] = (True, True),
) -> None:
    """Run points one after another as one of the ranks of a task; EngineError when some of them failed.

    `ends` says whether the task's first and last point are among them.

    What finished is left alone; a point in `again` is, once it finished with a higher attempt than told there.

    With one rank a failure costs one point. With several, the ranks no longer agree on where they are, so the task
    ends; `resume` runs what is left.
    """
    ranks = _join(config.from_dict(read_choices(sweep, point_ids[0])), place)
    signals.together = ranks.world > 1
    task = Task(sweep, ranks, place, progress, signals)
    failed = []
    first = ends[0]
    try:
        for point_id in point_ids:
            after = again.get(point_id, 0)
            if ranks.any(signals.asked):
                signals.stop()
            if ranks.broadcast(is_finished(sweep, point_id, after) if ranks.rank == 0 else None):
                continue
            try:
                at_ends = first, ends[1] and point_id == point_ids[-1]
                first = False
                _measure(task, point_id, after, at_ends)
            except InterruptedRunError:
                raise
            except Exception:
                if ranks.world > 1:
                    raise
                traceback.print_exc()
                task.loaded = None  # whatever broke may have broken them too
                failed.append(point_id)
    finally:
        task.close_sidecar()
        ranks.close()
    if failed:
        raise EngineError(f"{len(failed)} of {len(point_ids)} points failed: {', '.join(failed)}")


def run_task(sweep_path: str, point_ids: list[str], again: Mapping[str, int] | None = None) -> None:
    """What a Slurm task runs, once on each rank; submitit calls it."""
    import submitit  # noqa: PLC0415 (only under Slurm)

    signals = Signals()
    signals.heed()  # submitit's own handler takes preemption for time-out where a limit is below 10 minutes
    env = submitit.JobEnvironment()
    sweep = SweepDir(Path(sweep_path))
    chosen = config.from_dict(read_choices(sweep, point_ids[0]))
    os.environ.setdefault("OMP_NUM_THREADS", str(chosen.engine.threads_per_rank))
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    job: JobInfo = {
        "job_id": env.job_id,
        "array_task": env.array_task_id,
        "restart": restart,
        "cluster": chosen.cluster.name,
    }
    base = chosen.cluster.spool_dir or os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    spool = Path(base) / f"wattflow-{os.getuid()}-{env.job_id}-{restart}-{node_name()}"
    spool.mkdir(mode=0o700, exist_ok=True)
    if spool.stat().st_uid != os.getuid():
        raise PowerError(
            f"{spool} belongs to somebody else: set cluster.spool_dir to a private folder."
        )
    # one job's tasks never share a node with another's of the same number, whatever the port's range
    port = 20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 12000  # below the ephemeral ports
    place = Place(
        rank=env.global_rank,
        world=env.num_tasks,
        local_rank=env.local_rank,
        node=node_name(),
        init_method=f"tcp://{env.hostnames[0]}:{port}",
        spool=str(spool),
        job=job,
    )
    again = again or {}
    began = time.monotonic()
    before = _done(sweep, point_ids, again)
    try:
        run_points(sweep, point_ids, place, _print_progress(), again, signals)
    except InterruptedRunError as error:
        if env.global_rank != 0:
            time.sleep(_LET_RANK_0_CLOSE_S)  # the first rank to end has Slurm kill the others
        elif error.signum == signal.SIGUSR2:
            progressed = _done(sweep, point_ids, again) != before
            _go_back(env.job_id, chosen.cluster.time_min, time.monotonic() - began, progressed)
        raise
    finally:
        if env.local_rank == 0:
            shutil.rmtree(spool, ignore_errors=True)


_LET_RANK_0_CLOSE_S = 5.0
_CLOSE_FAILED_S = (
    3.0  # Slurm kills some 30 s after it says so, a rank that outlives rank 0 within 5 s
)
_WATCHDOG_FIRST_S = 60.0  # a collective gives up so long after the watchdog, which says more
_SIGNAL_EARLY_S = 150.0  # before its limit a task is told 90 s ahead, which Slurm may do 60 s early


def _done(
    sweep: SweepDir, point_ids: Sequence[str], again: Mapping[str, int]
) -> list[tuple[bool, int]]:
    """Which points are finished, and how many batches each has closed in pieces."""
    return [
        (is_finished(sweep, point_id, again.get(point_id, 0)), pieces.batches_kept(sweep, point_id))
        for point_id in point_ids
    ]


def _go_back(task: str, time_min: int, ran_s: float, progressed: bool) -> None:
    """Queue the task once more: after a preemption always, near its time limit if it had come further by then.

    Further is a finished point or, where points go on from where they were, a finished batch.

    A point that alone outlasts the limit would do so again, so its task ends, and status says why.
    """
    preempted = slurm.was_preempted(os.environ["SLURM_JOB_ID"])
    if preempted is None:
        preempted = ran_s < time_min * 60 - _SIGNAL_EARLY_S
    if not (preempted or progressed):
        print(f"a point outlasts cluster.time_min={time_min}; give it more time", flush=True)
        return
    try:
        slurm.requeue(task)
    except SlurmError as error:
        print(f"not queued again, `wattflow resume` does so: {error}", flush=True)


def _print_progress() -> Progress:
    """Progress lines for a job's log, at most one in 15 s but for changes of phase."""
    last: dict[str, float] = {}

    def report(phase: str, done: int, of: int) -> None:
        if time.monotonic() - last.get(phase, -15.0) >= 15.0 or done == of:
            last[phase] = time.monotonic()
            print(f"{phase}: {done}/{of} batches", flush=True)

    return report


# --- this machine ---------------------------------------------------------------------------------

PointProgress = Callable[
    [str, str, int, int], None
]  # point_id, phase, batches done, batches in all


def run_serially(
    sweep_path: str,
    point_ids: Sequence[str],
    again: Mapping[str, int] | None = None,
    report: PointProgress | None = None,
) -> list[str]:
    """Run points one after another on this machine, each rank a process of its own; the ids that failed."""
    sweep = SweepDir(Path(sweep_path))
    failed = []
    for point_id in point_ids:
        after = (again or {}).get(point_id, 0)
        if not is_finished(sweep, point_id, after):
            ends = point_id == point_ids[0], point_id == point_ids[-1]
            _run_locally(sweep, point_id, after, ends, report or _print_point_progress)
            if not is_finished(sweep, point_id, after):
                failed.append(point_id)
    return failed


def _print_point_progress(point_id: str, phase: str, done: int, of: int) -> None:
    print(f"{point_id}: {phase}{f', {done} of {of} batches' if of else ''}", flush=True)


def _run_locally(
    sweep: SweepDir, point_id: str, after: int, ends: tuple[bool, bool], report: PointProgress
) -> None:
    """One attempt at a point by local processes; it lies closed on disk afterwards, finished or not."""
    chosen = config.from_dict(read_choices(sweep, point_id))
    before = {attempt.number for attempt in sweep.attempts(point_id)}
    base = chosen.cluster.spool_dir or tempfile.gettempdir()
    wait = partial(report, point_id, "waiting for another sweep on this machine", 0, 0)
    with (
        visible_devices(chosen.shards),
        device_locks(chosen.power, wait),
        tempfile.TemporaryDirectory(prefix="wattflow-", dir=base) as spool,
    ):
        ranks: list[subprocess.Popen[str]] = []
        try:
            told = {
                "sweep": str(sweep.path),
                "point_id": point_id,
                "after": after,
                "ends": ends,
            }
            ranks += [_spawn(told, chosen, rank, spool) for rank in range(chosen.shards)]
            _follow(ranks[0], point_id, report)
        finally:
            codes = _end(ranks)
            attempts = [a for a in sweep.attempts(point_id) if a.number not in before]
            attempt = attempts[-1] if attempts else sweep.claim_attempt(point_id)
            if not is_finished(sweep, point_id, after):
                _close_unfinished(attempt, Path(spool), codes)


def _spawn(told: dict[str, object], chosen: Config, rank: int, spool: str) -> subprocess.Popen[str]:
    """Start one rank; its stdout tells progress (rank 0), its stderr goes to a log in the spool."""
    place = Place(
        rank=rank,
        world=chosen.shards,
        local_rank=rank,
        node=node_name(),
        init_method=f"file://{spool}/rendezvous",
        spool=spool,
        job={
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "array_task": None,
            "restart": 0,
            "cluster": chosen.cluster.name,
        },
    )
    words = json.dumps({**told, "place": asdict(place)})
    env = {**os.environ, "OMP_NUM_THREADS": str(chosen.engine.threads_per_rank)}
    with (Path(spool) / f"rank{rank}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "wattflow.run", words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if rank == 0 else log,
            stderr=log,
            env=env,
            text=True,
        )


def _follow(rank0: subprocess.Popen[str], point_id: str, report: PointProgress) -> None:
    """Pass rank 0's progress on until it ends."""
    assert rank0.stdout is not None
    with rank0.stdout as lines:
        for line in lines:
            if line.startswith('{"progress"'):
                phase, done, of = json.loads(line)["progress"]
                report(point_id, phase, done, of)
    rank0.wait()


def _end(ranks: Sequence[subprocess.Popen[str]]) -> list[int]:
    """The exit codes of all ranks; those that outlive rank 0 by 5 s are ended, and have -SIGTERM however they end."""
    deadline = time.monotonic() + 5.0
    outlived: set[int] = set()
    for end in (subprocess.Popen.terminate, subprocess.Popen.kill):
        for rank in ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.wait(timeout=max(0.0, deadline - time.monotonic()))
        for rank in ranks:
            if rank.poll() is None:
                outlived.add(rank.pid)
                end(rank)
        deadline = time.monotonic() + 5.0
    codes = [(rank.wait(), rank.pid) for rank in ranks]
    return [-signal.SIGTERM if pid in outlived else code for code, pid in codes]


def _close_unfinished(attempt: AttemptDir, spool: Path, codes: list[int]) -> None:
    """Keep the ranks' logs, and close the record with what the ranks themselves could not say."""
    for log in spool.glob("rank*.log"):
        shutil.copy(log, attempt.logs / log.name)
    for rank, code in enumerate(codes):
        if code < 0 and code != -signal.SIGTERM and not attempt.error_path(rank).exists():
            # the others saw only that a peer went away
            how = signal.Signals(-code).name
            told = {"rank": rank, "time_ns": 0, "interrupted": False, "traceback": ""}
            write_json(
                attempt.error_path(rank), {**told, "error": f"rank {rank} was killed: {how}."}
            )
    record = attempt.read_record() or {
        "schema_version": SCHEMA_VERSION,
        "point_id": attempt.point_id,
        "attempt": attempt.number,
    }
    ended = ", ".join(f"rank {k} with {code}" for k, code in enumerate(codes) if code)
    close_failed(attempt, record, f"ranks ended: {ended or 'all with 0, without a record'}")


def main(told: str) -> None:
    """One rank that `_run_locally` started: `python -m wattflow.run JSON`."""
    die_with_parent(os.getppid())
    given = json.loads(told)
    stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between the lines of progress

    def progress(phase: str, done: int, of: int) -> None:
        stdout.write(json.dumps({"progress": [phase, done, of]}) + "\n")

    place = Place(**given["place"])
    point_id = given["point_id"]
    again = {point_id: given["after"]}
    ends = bool(given["ends"][0]), bool(given["ends"][1])
    signals = Signals()
    signals.heed()
    run_points(SweepDir(Path(given["sweep"])), [point_id], place, progress, again, signals, ends)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except WattflowError as error:
        raise SystemExit(f"wattflow: {error}") from error
