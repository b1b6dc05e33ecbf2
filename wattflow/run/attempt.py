"""Run points: on every rank of a Slurm task (`run_task`), or one after another on this machine (`run_serially`).

One attempt, on each rank:

    join -> claim (rank 0) -> sidecar ready (local rank 0) -> idle, load, warmup, batches, idle_after
         -> sidecar closed -> record

A rank that fails leaves logs/error-rank<k>.json; rank 0 alone writes record.json, and `finished` only once every
other file lies in place.
"""

import contextlib
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from wattflow.config import choices
from wattflow.config.choices import Config
from wattflow.engine import ceilings, reference
from wattflow.engine.build import build
from wattflow.engine.protocol import Engine, Generated, total_work
from wattflow.engine.ranks import Ranks
from wattflow.errors import PowerError, WattflowError
from wattflow.power.sidecar_client import Sidecar
from wattflow.run.place import Claim, Place, Progress
from wattflow.run.provenance import commit, versions
from wattflow.run.signals import InterruptedRunError, Signals
from wattflow.run.spans import SpanLog, close_node
from wattflow.store.files import write_json
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import (
    REQUEST,
    SCHEMA_VERSION,
    Device,
    EnergySoFar,
    MeterInfo,
    NodeInfo,
    Piece,
    RankInfo,
    Record,
)
from wattflow.store.tables import write_table
from wattflow.workload import prompts as workload_prompts
from wattflow.workload import tokenizer


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


# --- one attempt, as one of its ranks -------------------------------------------------------------


class Attempt:
    """One rank's part in one attempt."""

    def __init__(self, task: Task, point_id: str, claimed: Claim) -> None:
        """What the task says of this point, the same on all ranks."""
        self.task, self.point_id, self.claimed = task, point_id, claimed
        point = task.sweep.point(point_id)
        self.choices, self.config = point.choices(), point.config()
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
        self.prompts = workload_prompts.load(self.config, self.text)
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
        ready: MeterInfo | None = None
        try:
            if self.place.local_rank == 0:
                controls = choices.controls_itself(self.choices)
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

    def _keep_piece(self, spool: Path, nodes: list[MeterInfo]) -> None:
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

    def energy_so_far(self) -> EnergySoFar | None:
        """This node's joules so far and watts now; null before the sidecar reports any."""
        return None if self.sidecar is None else self.sidecar.so_far()

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
                f"hung: nothing moved for {hang_limit_s(self.config):g} s in {phase} ({done} of {of} batches done). "
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
            time.sleep(LET_RANK_0_CLOSE_S)  # the first rank to end has Slurm kill the others

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


def _told_of_node(ready: MeterInfo, restarts: int) -> NodeInfo:
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


def hang_limit_s(chosen: Config) -> float:
    """How long nothing may move: sweep.hang_s beside the longest time that a phase waits on purpose; 0 for ever."""
    waits_s = max(chosen.power.idle_s, chosen.sweep.reference_s)
    return chosen.sweep.hang_s and chosen.sweep.hang_s + waits_s


LET_RANK_0_CLOSE_S = 5.0
_CLOSE_FAILED_S = (
    3.0  # Slurm kills some 30 s after it says so, a rank that outlives rank 0 within 5 s
)
